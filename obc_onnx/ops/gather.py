"""Operators that pick positions: by index, or by coordinates that lie between positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from obc_onnx.axes.sizes import value_of
from obc_onnx.errors import ModelError, UnsupportedOperatorError
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_ints
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_TABLE_RANK = 2
_ONE_PER_ROW = 2
"""The rank of indices that hold one tuple in each row."""
_LINEAR_SINCE = 20
"""Before, GridSample called its modes by their names in two dimensions."""
_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}
_PLANE, _VOLUME = 4, 5
"""Ranks of batches of images and of volumes."""


class Gather(FreeOfMacs):
    """Pick positions of one axis: a permutation, one slice of many, or rows of a table."""

    op_types = ("Gather",)
    effects: ClassVar = {"Gather": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Take constant positions of the axis, freeze it for any others; pass the rest through."""
        data, indices = context.value(0), context.value(1)
        axis = context.axis(0, context.node.integer("axis", 0))
        if data.numbers is not None:
            numbers = apply(
                lambda known, picked: np.take(known, picked, axis, mode="wrap"),
                data.numbers,
                context.numbers(1),
            )
        else:
            numbers = None
        picked = _picked(context, data.axes[axis], rank=1)
        if picked is None:
            context.looks_up(0, axis, 1)
        n_inserted = len(indices.axes)
        places = {
            i: i if i < axis else i + n_inserted - 1 for i in range(len(data.axes)) if i != axis
        }
        _couple_table(context, places, dense=len(data.axes) == _TABLE_RANK)
        inserted = indices.axes if picked is None else (picked,)
        return [Value((*data.axes[:axis], *inserted, *data.axes[axis + 1 :]), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Index with an integer tensor; negative positions count from the end."""
        return Call(gather, {"axis": context.node.integer("axis", 0)}, (0, 1))


class GatherElements(FreeOfMacs):
    """Pick a position of one axis for every element of the output."""

    op_types = ("GatherElements",)
    effects: ClassVar = {"GatherElements": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axis in the data; every other axis is that of the indices, where it is whole.

        Along the gathered axis the output has the positions of the indices.
        """
        data, indices = context.value(0), context.value(1)
        axis = context.axis(0, context.node.integer("axis", 0))
        context.looks_up(0, axis, 1)
        places = {}
        for i, (own, other) in enumerate(zip(data.axes, indices.axes, strict=True)):
            if i == axis:
                continue
            if own.size == other.size:
                context.unify(own, other)
                places[i] = i
            else:
                context.freeze([own, other], "an axis that is gathered in part")
        _couple_table(context, places)
        return [Value(indices.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.gather; negative positions count from the end."""
        return Call(gather_elements, {"axis": context.node.integer("axis", 0)}, (0, 1))


class GatherND(FreeOfMacs):
    """Pick slices by tuples of positions, which lie along the last axis of the indices."""

    op_types = ("GatherND",)
    effects: ClassVar = {"GatherND": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the batch axes; freeze the axes that tuples run over and pass on those behind."""
        data, indices = context.value(0), context.value(1)
        n_batch = context.node.integer("batch_dims", 0)
        if not 0 <= n_batch < min(len(data.axes), len(indices.axes)):
            raise ModelError(
                f"{context.node.label} has {n_batch} for batch_dims, but reads values of "
                f"{len(data.axes)} and {len(indices.axes)} axes"
            )
        first = n_batch + indices.axes[-1].size
        for own, other in zip(data.axes[:n_batch], indices.axes[:n_batch], strict=True):
            context.unify(own, other)
        picked = _picked(context, data.axes[0], rank=_ONE_PER_ROW) if n_batch == 0 else None
        if picked is not None:
            return [Value((picked, *data.axes[1:]))]
        if first == 1:
            context.looks_up(0, 0, 1)
        else:
            context.freeze(data.axes[n_batch:first], "a gathered axis")
        context.freeze(indices.axes[-1:], "the tuples of positions")
        behind = range(first, len(data.axes))
        places = {i: len(indices.axes) - 1 + i - first for i in behind}
        _couple_table(context, {**{i: i for i in range(n_batch)}, **places})
        return [Value((*data.axes[:n_batch], *indices.axes[n_batch:-1], *data.axes[first:]))]

    def forward(self, context: ForwardContext) -> Call:
        """Index with one tensor of positions for each axis that tuples run over."""
        return Call(gather_nd, {"batch_dims": context.node.integer("batch_dims", 0)}, (0, 1))


class GridSample(FreeOfMacs):
    """Sample images or volumes at coordinates, the same for every channel."""

    op_types = ("GridSample",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass batch and channels through; the positions of the output are those of the grid."""
        x, grid = context.value(0), context.value(1)
        context.unify(x.axes[0], grid.axes[0])
        context.freeze(x.axes[2:], "a sampled axis")
        context.freeze(grid.axes[-1:], "the coordinates")
        return [Value((*x.axes[:2], *grid.axes[1:-1]))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's grid_sample.

        Raises:
            UnsupportedOperatorError: torch samples neither such a rank nor in such a mode.
        """
        node, rank = context.node, context.rank()
        mode = node.text("mode", "linear" if node.opset >= _LINEAR_SINCE else "bilinear")
        mode = _GRID_MODES.get(mode, mode)
        if rank not in {_PLANE, _VOLUME} or (rank == _VOLUME and mode == "bicubic"):
            raise UnsupportedOperatorError(
                f"{node.label}: the twin cannot sample a tensor of {rank} axes in mode '{mode}'"
            )
        constants = {
            "mode": mode,
            "padding_mode": node.text("padding_mode", "zeros"),
            "align_corners": bool(node.integer("align_corners", 0)),
        }
        return Call(grid_sample, constants, (0, 1))


class AffineGrid(FreeOfMacs):
    """The coordinates of an affine map, for GridSample; inputs are the maps and a size."""

    op_types = ("AffineGrid",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Make an axis for each spatial size; how many channels the size names does not matter."""
        theta, size = context.value(0), context.value(1)
        context.freeze((*theta.axes[1:], *size.axes), "a coefficient or the size")
        axes = context.opaque("a sampled axis").axes[1:]
        if size.numbers is not None:
            spatial = [value_of(n) for n in size.numbers.flat[2:]]
            context.spell(1, theta.axes[0], None, *spatial)
        return [Value((theta.axes[0], *axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's affine_grid."""
        constants = {"align_corners": bool(context.node.integer("align_corners", 0))}
        size = context.integers(1)
        if size is None:
            return Call(affine_grid, constants, (0, 1))
        return Call(affine_grid, {"size": size, **constants})


def _picked(context: CoupleContext, axis: Expr, *, rank: int) -> Expr | None:
    """Return the axis of constant positions, which surgery can number again.

    They lie along one axis or, in indices of rank 2, one in each row.
    """
    shape = context.value(1).shape
    written = context.arrays[1] is not None and len(shape) == rank and shape[1:] in {(), (1,)}
    if not written or context.system.is_open(axis) or 0 in (axis.size, *shape):
        return None
    picked = context.integers(1)
    return None if picked is None else context.pick(1, axis, picked)


def _couple_table(
    context: CoupleContext, places: Mapping[int, int], *, dense: bool = False
) -> None:
    """Record the axes of a table of weights that go on: each makes an axis of the output.

    Args:
        context: The node; its first input may be a table.
        places: For each axis of the table that goes on, which axis of the output it makes.
        dense: Whether the axis may be recombined.
    """
    table, indices = context.value(0), context.value(1)
    if not table.constant or indices.constant:
        return
    for axis, out_axis in places.items():
        expr = table.axes[axis]
        if expr.size > 1:
            tap = Tap("output", 0, out_axis)
            context.writes(0, axis, tap=tap, mixes=[expr] if dense else [])


def gather(data: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """Compute Gather. Source: the ONNX operator page of Gather."""
    axis %= data.ndim
    index = indices.to(data.device).long()
    flat = data.index_select(axis, index.reshape(-1) % data.shape[axis])
    return flat.reshape((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))


def gather_elements(data: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """Compute GatherElements. Source: the ONNX operator page of GatherElements."""
    return data.gather(axis, indices.to(data.device).long() % data.shape[axis])


def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int) -> Tensor:
    """Compute GatherND. Source: the ONNX operator page of GatherND."""
    import torch

    depth = indices.shape[-1]
    first = batch_dims + depth
    n_batch = math.prod(data.shape[:batch_dims])
    n_tuples = math.prod(indices.shape[batch_dims:-1])
    flat = data.reshape(n_batch, *data.shape[batch_dims:])
    index = indices.to(data.device).long().reshape(n_batch, n_tuples, depth)
    rows = torch.arange(n_batch, device=data.device).reshape(-1, 1)
    picked = flat[(rows, *(index[..., i] % flat.shape[1 + i] for i in range(depth)))]
    return picked.reshape((*indices.shape[:-1], *data.shape[first:]))


def grid_sample(
    x: Tensor, grid: Tensor, *, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """Compute GridSample. Source: the ONNX operator page of GridSample.

    Args:
        x: Shape [n, channels, *spatial].
        grid: Shape [n, *positions, n_spatial]; the last spatial axis comes first.
        mode: What to do between positions.
        padding_mode: What to do outside of the image.
        align_corners: Whether -1 and 1 are the centres of the outermost positions.
    """
    from torch.nn import functional

    return functional.grid_sample(x, grid, mode, padding_mode, align_corners)


def affine_grid(theta: Tensor, size: Any, *, align_corners: bool) -> Tensor:
    """Compute AffineGrid. Source: the ONNX operator page of AffineGrid.

    Args:
        theta: Shape [n, n_spatial, n_spatial + 1].
        size: Of the image, [n, channels, *spatial]; integers or an integer tensor.
        align_corners: As in GridSample.
    """
    from torch.nn import functional

    sizes = [theta.shape[0], *as_ints(size)[1:]]
    return functional.affine_grid(theta, sizes, align_corners)


RULES: tuple[Rule, ...] = (
    AffineGrid(),
    Gather(),
    GatherElements(),
    GatherND(),
    GridSample(),
)
