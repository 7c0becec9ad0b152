"""Calls around an operator on floats that make it one on quantised tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.rule import Call
from obc_onnx.ops.quantised.linear import dequantize, quantize

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import ForwardContext

_WHOLE_TENSOR = {"axis": 0, "block_size": 0}
"""One scale for all elements."""


def refuse_channels_last(node: Node) -> None:
    """Refuse a layout that only ONNX Runtime's own optimizers write.

    Raises:
        UnsupportedOperatorError: The node has its channels last.
    """
    if node.integer("channels_last", 0):
        raise UnsupportedOperatorError(
            f"{node.label}: the twin takes channels second, as in a model that ONNX Runtime has "
            f"not rewritten"
        )


def as_floats(context: ForwardContext, x: int, scale: int, zero: int, axis: int = 0) -> Call:
    """Dequantise what is in a slot; scales lie along an axis, or one is for all."""
    constants = {"axis": axis, "block_size": 0, "data_type": TensorProto.FLOAT}
    return Call(dequantize, constants, order=context.given(x, scale, zero))


def as_whole(context: ForwardContext, scale: int, zero: int, like: int) -> Call:
    """Quantise the output, to the type of what is in slot `like`."""
    constants = {**_WHOLE_TENSOR, "data_type": context.data_type(like), "saturate": True}
    return Call(quantize, constants, order=context.given(scale, zero))


def above_zero(context: ForwardContext, x: int, zero: int | None = None, axis: int = 0) -> Call:
    """Subtract the zero point, one for all or one for each position of an axis."""
    slots = (x,) if zero is None else (x, zero)
    return Call(centred, {"axis": axis}, order=context.given(*slots))


def centred(x: Tensor, zero: Tensor | None = None, *, axis: int = 0) -> Tensor:
    """Return what lies above the zero point, in floats."""
    import torch

    kind = x.dtype if x.is_floating_point() else torch.float32
    return x.to(kind) if zero is None else x.to(kind) - along(zero, x, axis).to(kind)


def rescaled(
    y: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    y_scale: Tensor,
    zero: Tensor | None = None,
    *,
    axes: tuple[int, int],
    factor: float,
    data_type: int,
) -> Tensor:
    """Round a sum of products of whole numbers to whole numbers of another scale.

    Args:
        y: The sum.
        a_scale: Of the first factor, one for all or one for each position of an axis of `y`.
        b_scale: Of the second, likewise.
        y_scale: Of the result.
        zero: The zero point of the result.
        axes: Along which axes of `y` the scales of both factors lie.
        factor: By which the result is multiplied beside.
        data_type: The ONNX type of the result.
    """
    scale = factor * along(a_scale, y, axes[0]) * along(b_scale, y, axes[1]) / y_scale
    one = y_scale.new_ones(())
    return quantize(y * scale, one, zero, axis=0, block_size=0, data_type=data_type, saturate=True)


def scaled(
    y: Tensor, a_scale: Tensor, b_scale: Tensor, *, axes: tuple[int, int], factor: float
) -> Tensor:
    """Return the floats that a sum of products of whole numbers stands for; see `rescaled`."""
    return y * factor * along(a_scale, y, axes[0]) * along(b_scale, y, axes[1])


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape scales or zero points so that they broadcast; several axes do as they are."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim > 1:
        return parameter
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
