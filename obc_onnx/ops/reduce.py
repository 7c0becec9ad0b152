"""Reductions along axes, and Softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_ints
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_SUMS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")
"""To these a masked position adds nothing."""
_INEXACT = {
    "ReduceLogSumExp": "sum of exponentials",
    "ReduceMax": "maximum",
    "ReduceMean": "mean",
    "ReduceMin": "minimum",
    "ReduceProd": "product",
}
"""Where a masked position counts, and a removed one does not."""
_ON_SIZES: dict[str, Callable[..., Any]] = {"ReduceProd": np.prod, "ReduceSum": np.sum}
_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    **_ON_SIZES,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}
_SOFTMAX_PER_AXIS_SINCE = 13


class Reduce(FreeOfMacs):
    """Reductions; axes are an attribute in old opsets, an input in new ones."""

    op_types = (*_SUMS, *_INEXACT)
    effects: ClassVar = {"ReduceMean": Effect.AVERAGES, "ReduceSum": Effect.SUMS}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Drop the reduced axes.

        A sum over removed positions equals a sum over masked ones, so it reads the axis; a mean
        divides by fewer positions, so the axis is marked inexact.
        """
        x, op_type = context.value(0), context.node.op_type
        reduced = self._axes(context, len(x.axes))
        if reduced is None:
            context.freeze(x.axes, "an axis that may be reduced")
            return [Value(tuple(context.varying(size) for size in context.shape()))]
        for axis in reduced:
            if op_type in _SUMS:
                context.reads(0, axis)
            else:
                context.mark_inexact([x.axes[axis]], _INEXACT[op_type])
        return [Value(without(context, x.axes, reduced), _reduced_numbers(context, reduced))]

    def forward(self, context: ForwardContext) -> Call:
        """Reduce; axes may be computed as it runs."""
        node = context.node
        axes = node.integers("axes") or context.integers(1)
        constants: dict[str, Any] = {
            "op": node.op_type,
            "keepdims": node.flag("keepdims", default=True),
            "keeps_all": bool(node.integer("noop_with_empty_axes", 0)),
        }
        if axes is None and node.has_input(1):
            return Call(reduce, constants, (0, 1))
        return Call(reduce, {"axes": axes or (), **constants})

    def _axes(self, context: CoupleContext, rank: int) -> set[int] | None:
        """Return the reduced axes, None where they are computed."""
        node = context.node
        axes = node.integers("axes")
        if axes is None and node.has_input(1):
            axes = context.integers(1)
            if axes is None:
                return None
        if not axes and node.integer("noop_with_empty_axes", 0):
            return set()
        return {axis % rank for axis in axes or range(rank)}


class Softmax(FreeOfMacs):
    """Softmax and LogSoftmax; before opset 13 they normalise over all axes from `axis` on."""

    op_types: ClassVar[tuple[str, ...]] = ("Softmax", "LogSoftmax")
    effects: ClassVar = {"Softmax": Effect.SHARES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze what is normalised over: every position depends on every other."""
        x = context.value(0)
        span = span_of(context.node)
        where = x.axes[span["axis"] :] if span["flattens"] else [x.axes[span["axis"]]]
        context.freeze(where, "a normalised axis" if span["flattens"] else "the normalised axis")
        return [x]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's softmax."""
        log = context.node.op_type == "LogSoftmax"
        return Call(softmax, {**span_of(context.node), "log": log})

    def normalised_axis(self, node: Node, rank: int) -> int | None:
        """Return the one axis; where all from one on are taken as one, that is the last."""
        span = span_of(node)
        if span["flattens"] and span["axis"] not in (-1, rank - 1):
            return None
        return int(span["axis"])


def without(
    context: CoupleContext, axes: Sequence[Expr], reduced: Collection[int]
) -> tuple[Expr, ...]:
    """Drop reduced axes, or leave single positions in their place, as `keepdims` says."""
    if not context.node.flag("keepdims", default=True):
        return tuple(axis for i, axis in enumerate(axes) if i not in reduced)
    return tuple(context.system.dim(1) if i in reduced else axis for i, axis in enumerate(axes))


def _reduced_numbers(context: CoupleContext, reduced: set[int]) -> NDArray[Any] | None:
    """Reduce the numbers that describe shapes; sums and products keep following sizes."""
    op_type, known = context.node.op_type, context.value(0).numbers
    if known is None or op_type not in _ON_NUMBERS:
        return None
    if op_type not in _ON_SIZES:
        known = context.numbers(0)
    keepdims = context.node.flag("keepdims", default=True)
    for axis in sorted(reduced, reverse=True):
        known = apply(
            lambda n, axis=axis: _ON_NUMBERS[op_type](n, axis=axis, keepdims=keepdims), known
        )
    return known


def span_of(node: Node) -> dict[str, Any]:
    """Say along what Softmax and its like go: one axis, or all axes from it on as one."""
    flattens = node.opset < _SOFTMAX_PER_AXIS_SINCE
    return {"axis": node.integer("axis", 1 if flattens else -1), "flattens": flattens}


def reduce(
    x: Tensor, axes: Tensor | tuple[int, ...], *, op: str, keepdims: bool, keeps_all: bool
) -> Tensor:
    """Compute a reduction. Source: the ONNX operator pages of ReduceSum and its like.

    Args:
        x: Any shape.
        axes: What to reduce; where there is none, every axis, or no axis with `keeps_all`.
        op: The name of the operator.
        keepdims: Whether reduced axes stay, with one position.
        keeps_all: Then every element is reduced by itself, as to its square in ReduceSumSquare.
    """
    where = tuple(as_ints(axes))
    if not where and keeps_all:
        return _FUNCTIONS[op](x.unsqueeze(-1), (-1,), keepdim=False)
    return _FUNCTIONS[op](x, where or tuple(range(x.ndim)), keepdim=keepdims)


def _sum(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return x.sum(axes, keepdim=keepdim, dtype=x.dtype)  # torch would widen integers


def _sum_square(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _sum(x * x, axes, keepdim=keepdim)


def _l1(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _sum(x.abs(), axes, keepdim=keepdim)


def _l2(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    """Take the norm; its gradient is zero at zero, where that of a square root is not finite."""
    import torch

    own = x if x.is_floating_point() else x.double()
    norm: Tensor = torch.linalg.vector_norm(own, 2, axes, keepdim=keepdim)
    return norm.to(x.dtype)


def _log_sum(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _sum(x, axes, keepdim=keepdim).log()


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return x.logsumexp(axes, keepdim=keepdim)


def _mean(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    """Take the mean; that of whole numbers is cut off, as ONNX Runtime does."""
    import torch

    wide = None if x.is_floating_point() else torch.float64
    return x.mean(axes, keepdim=keepdim, dtype=wide).to(x.dtype)


def _maximum(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _pad_empty(x, axes, greatest=False).amax(axes, keepdim=keepdim)


def _minimum(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _pad_empty(x, axes, greatest=True).amin(axes, keepdim=keepdim)


def _pad_empty(x: Tensor, axes: tuple[int, ...], *, greatest: bool) -> Tensor:
    """Put the greatest or the least number of its type into an axis that has no positions."""
    import torch

    if all(x.shape[axis] for axis in axes):
        return x
    if x.is_floating_point():
        limit = math.inf if greatest else -math.inf
    elif x.dtype == torch.bool:
        limit = float(greatest)
    else:
        limits = torch.iinfo(x.dtype)
        limit = limits.max if greatest else limits.min
    shape = list(x.shape)
    for axis in axes:
        shape[axis] = max(shape[axis], 1)
    return x.new_full(shape, limit)


def _product(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    """Multiply along one axis after the other, from the last: torch takes one at a time."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim, dtype=x.dtype)
    return x


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": _l1, "ReduceL2": _l2, "ReduceLogSum": _log_sum, "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _maximum, "ReduceMean": _mean, "ReduceMin": _minimum, "ReduceProd": _product,
    "ReduceSum": _sum, "ReduceSumSquare": _sum_square,
}  # fmt: skip


def along(
    x: Tensor, function: Callable[[Tensor, int], Tensor], *, axis: int, flattens: bool
) -> Tensor:
    """Apply a function along one axis, or along all axes from it on, laid out as one."""
    if not flattens:
        return function(x, axis)
    axis %= max(x.ndim, 1)
    return function(x.flatten(axis), -1).reshape(x.shape)


def softmax(x: Tensor, *, axis: int, flattens: bool, log: bool) -> Tensor:
    """Compute Softmax or LogSoftmax, over `axis` or over all axes from it on."""
    from torch.nn import functional

    function = functional.log_softmax if log else functional.softmax
    return along(x, function, axis=axis, flattens=flattens)


RULES: tuple[Rule, ...] = (
    Reduce(),
    Softmax(),
)
