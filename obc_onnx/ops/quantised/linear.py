"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

Scales and zero points hold for a tensor, for each position of an axis, or for blocks of an axis.

In the twin a quantised tensor that is computed holds floats that are whole numbers, so that
gradients pass through it; one that is an initializer holds integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TensorProto, helper

from obc_onnx.ops.base.dtypes import check_held, integer_limits, torch_dtype
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_HALF = 0.5
_MOST_LEVELS = 255
"""Of uint8, the one type that DynamicQuantizeLinear gives."""


class _Linear(FreeOfMacs):
    """What both directions share; inputs x, scale and an optional zero point."""

    domains = ("", "com.microsoft")
    held = (1, 2)
    recodes = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the axes through; tie scale and zero point to the axis that they lie along."""
        x, scale = context.value(0), context.value(1)
        axis = context.node.integer("axis", 1) % max(len(x.axes), 1)
        tied: list[Expr] = []
        if context.node.integer("block_size", 0):
            tied = list(x.axes)
            tied[axis] = _couple_blocks(context, x.axes[axis], scale.axes[axis])
        elif scale.axes and scale.axes[0].size > 1:
            tied = [x.axes[axis]]
        for parameter in (scale, context.optional(2)):
            if parameter is not None:
                for own, expr in zip(parameter.axes, tied, strict=False):
                    context.unify(own, expr)
        return [x]


class QuantizeLinear(_Linear):
    """Whole numbers from floats: divided by the scale, rounded, moved by the zero point."""

    op_types = ("QuantizeLinear",)

    def forward(self, context: ForwardContext) -> Call:
        """Round to whole numbers in floats, with a straight-through gradient."""
        node = context.node
        data_type = node.integer("output_dtype", 0) or _type_of_zero(context)
        check_held(data_type, node)
        constants = {
            "axis": node.integer("axis", 1),
            "block_size": node.integer("block_size", 0),
            "data_type": data_type,
            "saturate": bool(node.integer("saturate", 1)),
        }
        return Call(quantize, constants, context.given(0, 1, 2))

    def changing(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Return the floats of the least and the greatest number that the result has room for.

        Quantisers leave out a Relu in front whose zero is the least number of the result.
        """
        found, zero = _one_of_each(node, numbers), numbers.get(node.read_at(2))
        kind = node.integer("output_dtype", 0) or TensorProto.UINT8
        if zero is not None:
            kind = int(helper.np_dtype_to_tensor_dtype(zero.dtype))
        limits = integer_limits(kind)
        if found is None or limits is None:
            return super().changing(node, numbers)
        scale, offset = found
        return (limits[0] - offset) * scale, (limits[1] - offset) * scale

    def line(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float] | None:
        """Divide by the scale, and add the zero point."""
        found = _one_of_each(node, numbers)
        return None if found is None else (1 / found[0], found[1])


class DequantizeLinear(_Linear):
    """Floats from whole numbers: what lies above the zero point, times the scale."""

    op_types = ("DequantizeLinear",)

    def forward(self, context: ForwardContext) -> Call:
        """Multiply by the scale; the result has its type, unless the node names another."""
        node = context.node
        constants = {
            "axis": node.integer("axis", 1),
            "block_size": node.integer("block_size", 0),
            "data_type": node.integer("output_dtype", 0),
        }
        return Call(dequantize, constants, context.given(0, 1, 2))

    def line(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float] | None:
        """Multiply by the scale what lies above the zero point."""
        found = _one_of_each(node, numbers)
        return None if found is None else (found[0], -found[0] * found[1])


class DynamicQuantizeLinear(FreeOfMacs):
    """Whole numbers from floats, with a scale and a zero point that follow the tensor's range."""

    op_types = ("DynamicQuantizeLinear",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the axes through; without a position the range may be another one."""
        x = context.value(0)
        context.mark_inexact(x.axes, "range")
        return [x, Value(()), Value(())]

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Round to whole numbers in floats, with a straight-through gradient."""
        return Call(dynamic_quantize)


def _one_of_each(node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float] | None:
    """Return scale and zero point where both are constant, and hold for the whole tensor."""
    scale, zero = numbers.get(node.inputs[1]), numbers.get(node.read_at(2))
    if scale is None or scale.size > 1 or not scale.item() or (zero is None and node.has_input(2)):
        return None
    return float(scale.item()), 0.0 if zero is None else float(zero.item())


def _couple_blocks(context: CoupleContext, axis: Expr, scales: Expr) -> Expr:
    """Write an axis as blocks x positions of a block, and return what its scales lie along."""
    block_size = context.node.integer("block_size", 0)
    if scales.size == 1:  # a block is never too large, so whatever is left shares the one scale
        return scales
    if axis.size != scales.size * block_size:
        context.freeze([axis, scales], "an axis whose last block is not full")
        return scales
    blocks, block = context.factored(axis, scales.size, block_size)
    context.spell("block_size", block, scalar=True)
    return blocks


def _type_of_zero(context: ForwardContext) -> int:
    """Return the ONNX type of the zero point, which is that of the result."""
    if not context.node.has_input(2):
        return TensorProto.UINT8
    return context.data_type(2)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int,
    block_size: int,
    data_type: int,
    saturate: bool,
) -> Tensor:
    """Compute QuantizeLinear in floats; what saturates passes no gradient.

    The division is one of float32 at least, whatever `precision` says, as in ONNX Runtime. Source:
    the ONNX operator page of QuantizeLinear.
    """
    import torch

    wide = torch.promote_types(x.dtype, torch.float32)
    scaled = x.to(wide) / spread(scale, x, axis, block_size).to(wide)
    limits = integer_limits(data_type)
    if limits is None:
        kind = torch_dtype(data_type)
        most = torch.finfo(kind).max
        scaled = scaled.clamp(-most, most) if saturate else scaled
        return _straight_through(scaled, scaled.to(kind).to(wide))
    low, high = limits
    if zero is None:
        return _whole(scaled, low, high)
    offset = spread(zero, x, axis, block_size).to(wide)
    return _whole(scaled, low - offset, high - offset) + offset


def dequantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int,
    block_size: int,
    data_type: int,
) -> Tensor:
    """Compute DequantizeLinear. Source: the ONNX operator page of DequantizeLinear."""
    import torch

    wide = torch.promote_types(scale.dtype, torch.float32)
    value = x.to(wide)
    if zero is not None:
        value = value - spread(zero, x, axis, block_size).to(wide)
    value = value * spread(scale, x, axis, block_size).to(wide)
    return value.to(torch_dtype(data_type) if data_type else scale.dtype)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute DynamicQuantizeLinear: whole numbers, scale and zero point, all of them floats.

    Scale and zero point pass no gradient. Source: the ONNX operator page of DynamicQuantizeLinear.
    """
    import torch

    fixed = x.detach()
    least, greatest = fixed.amin().clamp(max=0), fixed.amax().clamp(min=0)
    scale = (greatest - least) / _MOST_LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-least / scale).round().clamp(0, _MOST_LEVELS)
    whole = _whole(x / scale, -zero, _MOST_LEVELS - zero) + zero
    return whole, scale, zero


def _whole(x: Tensor, low: Any, high: Any) -> Tensor:
    """Round half to even and clamp; the gradient is that of the identity where it is not clamped.

    A number that rounds to a limit is not: it would be stuck there.
    """
    import torch

    near = torch.clamp(x, low - _HALF, high + _HALF)
    return _straight_through(near, torch.clamp(x.round(), low, high))


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `x`; the sum is exact, since the two are close."""
    return x + (rounded - x).detach()


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Shape scales or zero points so that they broadcast against what they belong to.

    Args:
        parameter: For the whole tensor, for each position of the axis, or for each of its blocks.
        x: What it belongs to.
        axis: Along which there are several.
        block_size: Positions of a block; 0 where there are none.
    """
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


RULES: tuple[Rule, ...] = (
    DequantizeLinear(),
    DynamicQuantizeLinear(),
    QuantizeLinear(),
)
