"""Operators that lay a tensor into another: by index, block by block, or around its centre."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.sizes import axes_of, value_of
from obc_onnx.ops.base.axes import named_axes
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.value import Wanted

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""What torch calls the ways to join an update with what is there."""


class ScatterElements(FreeOfMacs):
    """Write every element of the updates to a position of one axis of the data."""

    op_types = ("ScatterElements", "Scatter")

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axis; every other one is the same in all three inputs, where it is whole."""
        operands = [context.value(slot) for slot in range(3)]
        data, indices, updates = (value.axes for value in operands)
        scattered = context.axis(0, context.node.integer("axis", 0))
        for i, axes in enumerate(zip(data, indices, updates, strict=True)):
            if i == scattered:
                context.freeze(axes, "the scattered axis")
            elif data[i].size != indices[i].size:
                context.freeze(axes, "an axis that is scattered in part")
            else:
                context.unify(data[i], indices[i])
                context.unify(data[i], updates[i])
        return [Value(data)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's scatter; negative positions count from the end."""
        constants = {"axis": context.node.integer("axis", 0), **_reduction(context)}
        return Call(scatter_elements, constants, (0, 1, 2))


class ScatterND(FreeOfMacs):
    """Write slices to tuples of positions, which lie along the last axis of the indices."""

    op_types = ("ScatterND",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axes that tuples run over, in the data and in the updates; tie the others."""
        data, indices, updates = (context.value(slot).axes for slot in range(3))
        depth, n_leading = indices[-1].size, len(indices) - 1
        context.freeze(data[:depth], "a scattered axis")
        context.freeze((*indices, *updates[:n_leading]), "the tuples of positions")
        for own, other in zip(data[depth:], updates[n_leading:], strict=True):
            context.unify(own, other)
        return [Value(data)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's scatter on rows, which are the slices."""
        return Call(scatter_nd, _reduction(context), (0, 1, 2))


class Col2Im(FreeOfMacs):
    """Add up blocks where they overlap in an image; the channels are channels x block."""

    op_types = ("Col2Im",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the channels of the image through; freeze where blocks and their elements lie."""
        x, (_, n_channels, *spatial) = context.value(0), context.shape()
        for described in (context.value(1), context.value(2)):
            context.freeze(described.axes, "the spatial axes")
        if context.integers(2) is None:
            context.freeze(x.axes, "a block of unknown size")
            return [Value((x.axes[0], *context.opaque("a block of unknown size").axes[1:]))]
        block_size = x.axes[1].size // n_channels
        channels, block = context.factored(x.axes[1], n_channels, block_size)
        context.freeze([block, x.axes[2]], "the blocks")
        positions = [context.fixed(size, "a spatial axis") for size in spatial]
        return [Value((x.axes[0], channels, *positions))]

    def forward(self, context: ForwardContext) -> Call:
        """Add every element of a block to its position."""
        node = context.node
        constants: dict[str, Any] = {
            key: node.integers(key) for key in ("strides", "pads", "dilations")
        }
        image, block = context.integers(1), context.integers(2)
        if image is None or block is None:
            return Call(col2im, constants, (0, 1, 2))
        return Call(col2im, {"image_shape": image, "block_shape": block, **constants})


class CenterCropPad(FreeOfMacs):
    """Crop or pad axes around their centre to sizes that are an input."""

    op_types = ("CenterCropPad",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axes that change, and tie the sizes of the others that are named."""
        x, target, shape = context.value(0), context.value(1), context.shape()
        context.freeze(target.axes, "the axes that are named")
        where = named_axes(context.node, len(shape))
        numbers = [None] * len(where) if target.numbers is None else target.numbers.tolist()
        axes: list[Expr] = list(x.axes)
        wanted: list[Wanted] = []
        for i, number in zip(where, numbers, strict=True):
            value = value_of(number)
            sized = (axes[i], *axes_of(number))
            if value == axes[i].size and not any(map(context.system.is_open, sized)):
                wanted.append(axes[i])
            else:
                context.freeze([axes[i]], "a cropped or padded axis")
                axes[i] = context.fixed(shape[i], "a cropped or padded axis")
                wanted.append(value)
        if target.numbers is not None:
            context.spell(1, *wanted)
        return [Value(tuple(axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Narrow or pad with zeros."""
        constants = {"axes": named_axes(context.node, context.rank())}
        sizes = context.integers(1)
        if sizes is None:
            return Call(center_crop_pad, constants, (0, 1))
        return Call(center_crop_pad, {"sizes": sizes, **constants})


def _reduction(context: ForwardContext) -> dict[str, str]:
    return {"reduction": context.node.text("reduction", "none")}


def _scatter(data: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int, reduction: str
) -> Tensor:
    """Compute ScatterElements. Source: the ONNX operator page of ScatterElements."""
    index = indices.to(data.device).long() % data.shape[axis]
    return _scatter(data, axis, index, updates, reduction)


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str) -> Tensor:
    """Compute ScatterND. Source: the ONNX operator page of ScatterND."""
    depth = indices.shape[-1]
    outer, inner = data.shape[:depth], data.shape[depth:]
    index = indices.to(data.device).long()
    row = sum(index[..., i] % outer[i] * math.prod(outer[i + 1 :]) for i in range(depth))
    width = math.prod(inner)
    rows = row.reshape(-1, 1).expand(-1, width)  # type: ignore[union-attr]
    flat = data.reshape(math.prod(outer), width)
    return _scatter(flat, 0, rows, updates.reshape(-1, width), reduction).reshape(data.shape)


def col2im(
    x: Tensor,
    image_shape: Any,
    block_shape: Any,
    *,
    strides: tuple[int, ...] | None,
    pads: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
) -> Tensor:
    """Compute Col2Im for any number of spatial axes. Source: the ONNX operator page of Col2Im.

    Args:
        x: Shape [n, channels * prod(block), n_blocks].
        image_shape: The sizes of the image, integers or an integer tensor.
        block_shape: The sizes of a block, likewise.
        strides: Steps from block to block; ones where left out.
        pads: Positions (begin..., end...) around the image; zeros where left out.
        dilations: Steps within a block; ones where left out.
    """
    import torch

    image, block = ([int(size) for size in sizes] for sizes in (image_shape, block_shape))
    rank = len(image)
    steps, gaps = strides or (1,) * rank, dilations or (1,) * rank
    pads = pads or (0,) * 2 * rank
    padded = [size + pads[i] + pads[rank + i] for i, size in enumerate(image)]
    place = torch.zeros((), dtype=torch.long, device=x.device)
    for i, size in enumerate(padded):
        count = (size - gaps[i] * (block[i] - 1) - 1) // steps[i] + 1
        within = torch.arange(block[i], device=x.device) * gaps[i]
        starts = torch.arange(count, device=x.device) * steps[i]
        view = [1] * 2 * rank
        view[i], view[rank + i] = block[i], count
        place = place * size + (within[:, None] + starts).reshape(view)
    n_channels = x.shape[1] // math.prod(block)
    blocks = x.reshape(x.shape[0], n_channels, place.numel())
    flat = x.new_zeros(x.shape[0], n_channels, math.prod(padded))
    y = flat.index_add(2, place.reshape(-1), blocks).reshape(x.shape[0], n_channels, *padded)
    for i, size in enumerate(image):
        y = y.narrow(2 + i, pads[i], size)
    return y


def center_crop_pad(x: Tensor, sizes: Any, *, axes: tuple[int, ...]) -> Tensor:
    """Compute CenterCropPad; `sizes` are integers or an integer tensor, one for each axis.

    Source: the ONNX operator page of CenterCropPad.
    """
    from torch.nn import functional

    for axis, size in zip(axes, map(int, sizes), strict=True):
        missing = size - x.shape[axis]
        if missing < 0:
            x = x.narrow(axis, -missing // 2, size)
        elif missing > 0:
            sides = [missing // 2, missing - missing // 2]
            x = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + sides)
    return x


RULES: tuple[Rule, ...] = (
    CenterCropPad(),
    Col2Im(),
    ScatterElements(),
    ScatterND(),
)
