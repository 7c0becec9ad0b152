"""Operators to which the order of positions along an axis matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from obc_onnx.errors import ModelError
from obc_onnx.ops.base.dtypes import torch_dtype
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class Cumulate(FreeOfMacs):
    """CumSum and CumProd: every position holds the sum or product of those up to it."""

    op_types = ("CumSum", "CumProd")

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass all axes through.

        A masked position adds nothing to the sums of the positions behind it, so the axis is read;
        it makes their products zero, where a removed one does not, so there it is inexact.
        """
        x, axes = context.value(0), context.integers(1)
        if axes is None:
            context.freeze(x.axes, "an axis that may be summed over")
        elif context.node.op_type == "CumSum":
            context.reads(0, context.axis(0, axes[0]))
        else:
            context.mark_inexact([x.axes[axes[0]]], "product")
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's cumsum or cumprod."""
        node, axes = context.node, context.integers(1)
        constants: dict[str, Any] = {
            "multiplies": node.op_type == "CumProd",
            "exclusive": bool(node.integer("exclusive", 0)),
            "reverse": bool(node.integer("reverse", 0)),
        }
        if axes is None:
            return Call(cumulate, constants, (0, 1))
        return Call(cumulate, {"axis": axes[0], **constants})


class ReverseSequence(FreeOfMacs):
    """Reverse the first positions along an axis, of each sample as many as its length says."""

    op_types = ("ReverseSequence",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axis of time, tie the lengths to that of samples, and pass the rest."""
        x, node = context.value(0), context.node
        time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)
        if {time, batch} != {0, 1}:  # ONNX Runtime runs some others
            raise ModelError(
                f"{node.label}: time_axis and batch_axis must be 0 and 1, in either order, found "
                f"{time} and {batch}"
            )
        context.freeze([x.axes[time]], "the reversed axis")
        context.unify(x.axes[batch], context.value(1).axes[0])
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Gather along time."""
        node = context.node
        axes = {"time": node.integer("time_axis", 0), "sample": node.integer("batch_axis", 1)}
        return Call(reverse_sequence, axes, (0, 1))


class Trilu(FreeOfMacs):
    """Zeros above or below a diagonal of the last two axes."""

    op_types = ("Trilu",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the last two axes: without some positions the diagonal lies elsewhere."""
        x = context.value(0)
        context.freeze(x.axes[-2:], "an axis of a triangle")
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's triu or tril."""
        constants: dict[str, Any] = {"upper": bool(context.node.integer("upper", 1))}
        offset = context.integers(1) if context.node.has_input(1) else (0,)
        if offset is None:
            return Call(triangle, constants, (0, 1))
        return Call(triangle, {"offset": offset[0], **constants})


class EyeLike(FreeOfMacs):
    """A diagonal of ones in the shape of a matrix."""

    op_types = ("EyeLike",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze both axes: without some positions the diagonal lies elsewhere."""
        x = context.value(0)
        context.freeze(x.axes, "an axis of a diagonal")
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Fill a diagonal; the type is that of the input unless the node names one."""
        kind = context.node.integer("dtype", TensorProto.UNDEFINED)
        return Call(eye_like, {"offset": context.node.integer("k", 0), "data_type": kind})


def cumulate(
    x: Tensor, axis: Tensor | int, *, multiplies: bool, exclusive: bool, reverse: bool
) -> Tensor:
    """Compute CumSum or CumProd. Source: the ONNX operator pages of CumSum and CumProd.

    Args:
        x: Any shape.
        axis: Along which to go.
        multiplies: Whether to multiply, and not to add.
        exclusive: Whether a position leaves out itself.
        reverse: Whether to go from the last position to the first.
    """
    along = axis if isinstance(axis, int) else int(axis)
    x = x.flip(along) if reverse else x
    if exclusive:
        nothing = x.narrow(along, 0, 1)
        nothing = nothing.new_full(nothing.shape, float(multiplies))
        x = _behind(nothing, x, along)
    y = x.cumprod(along, dtype=x.dtype) if multiplies else x.cumsum(along, dtype=x.dtype)
    return y.flip(along) if reverse else y


def _behind(first: Tensor, x: Tensor, axis: int) -> Tensor:
    """Move positions back by one behind a first one, which pushes the last one out."""
    import torch

    return torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)


def reverse_sequence(x: Tensor, lengths: Tensor, *, time: int, sample: int) -> Tensor:
    """Compute ReverseSequence. Source: the ONNX operator page of ReverseSequence.

    Args:
        x: Any shape.
        lengths: How many positions to reverse, shape [n_samples].
        time: The axis along which to reverse.
        sample: The axis of samples.
    """
    import torch

    view = [1] * x.ndim
    view[time] = x.shape[time]
    place = torch.arange(x.shape[time], device=x.device).reshape(view)
    view[time], view[sample] = 1, x.shape[sample]
    length = lengths.to(x.device).long().reshape(view)
    index = torch.where(place < length, length - 1 - place, place)
    return x.gather(time, index.expand(x.shape))


def triangle(x: Tensor, offset: Tensor | int = 0, *, upper: bool) -> Tensor:
    """Compute Trilu. Source: the ONNX operator page of Trilu."""
    diagonal = int(offset)
    return x.triu(diagonal) if upper else x.tril(diagonal)


def eye_like(x: Tensor, *, offset: int, data_type: int) -> Tensor:
    """Compute EyeLike of a matrix. Source: the ONNX operator page of EyeLike."""
    import torch

    kind = torch_dtype(data_type) if data_type else x.dtype
    y = torch.zeros(x.shape, dtype=kind, device=x.device)
    y.diagonal(offset).fill_(1)
    return y


RULES: tuple[Rule, ...] = (
    Cumulate(),
    EyeLike(),
    ReverseSequence(),
    Trilu(),
)
