"""Reductions along axes, and Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.context import CoupleContext, ForwardContext

_AXES_AS_INPUT_SINCE = {"ReduceMean": 18, "ReduceSum": 13}
_SOFTMAX_PER_AXIS_SINCE = 13


class Reduce(FreeOfMacs):
    """ReduceMean and ReduceSum; axes are an attribute in old opsets, an input in new ones."""

    op_types = tuple(_AXES_AS_INPUT_SINCE)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Drop the reduced axes.

        A sum over removed positions equals a sum over masked ones, so it reads the axis; a mean
        divides by fewer positions, so the axis is marked inexact.
        """
        x = context.value(0)
        reduced = self._axes(context, len(x.axes))
        if reduced is None:
            context.freeze(x.axes, "an axis that may be reduced")
            return [Value(tuple(context.fixed(n, "an axis") for n in context.shape()))]
        for axis in reduced:
            if context.node.op_type == "ReduceSum":
                context.reads(0, axis)
            else:
                context.mark_inexact([x.axes[axis]], "mean")
        if not context.node.integer("keepdims", 1):
            return [Value(tuple(a for i, a in enumerate(x.axes) if i not in reduced))]
        return [
            Value(tuple(context.system.dim(1) if i in reduced else a for i, a in enumerate(x.axes)))
        ]

    def forward(self, context: ForwardContext) -> Call:
        """Reduce; the axes have to be constants."""
        node = context.node
        axes = node.integers("axes") or context.integers(1)
        if axes is None and node.has_input(1):
            raise UnsupportedOperatorError(f"{node.label}: the twin needs constant axes")
        if not axes and node.integer("noop_with_empty_axes", 0):
            return Call(reduce, {"op": "none", "axes": (), "keepdims": True})
        constants = {
            "op": "mean" if node.op_type == "ReduceMean" else "sum",
            "axes": axes or tuple(range(context.rank())),
            "keepdims": bool(node.integer("keepdims", 1)),
        }
        return Call(reduce, constants)

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

    op_types = ("Softmax", "LogSoftmax")

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze what is normalised over: every position depends on every other."""
        x = context.value(0)
        if context.node.opset >= _SOFTMAX_PER_AXIS_SINCE:
            context.freeze([x.axes[context.node.integer("axis", -1)]], "the normalised axis")
        else:
            first = context.node.integer("axis", 1)
            context.freeze(x.axes[first:], "a normalised axis")
        return [x]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's softmax."""
        node = context.node
        flattens = node.opset < _SOFTMAX_PER_AXIS_SINCE
        constants = {
            "axis": node.integer("axis", 1 if flattens else -1),
            "flattens": flattens,
            "log": node.op_type == "LogSoftmax",
        }
        return Call(softmax, constants)


def reduce(x: Tensor, *, op: str, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Compute ReduceMean or ReduceSum."""
    if op == "none":
        return x
    return x.mean(axes, keepdim=keepdims) if op == "mean" else x.sum(axes, keepdim=keepdims)


def softmax(x: Tensor, *, axis: int, flattens: bool, log: bool) -> Tensor:
    """Compute Softmax or LogSoftmax, over `axis` or over all axes from it on."""
    from torch.nn import functional

    function = functional.log_softmax if log else functional.softmax
    if not flattens:
        return function(x, dim=axis)
    axis %= max(x.ndim, 1)
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


RULES: tuple[Rule, ...] = (
    Reduce(),
    Softmax(),
)
