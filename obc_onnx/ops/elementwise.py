"""Operators that act position by position: unary, and binary and variadic with broadcasting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from onnx import TensorProto

from obc_onnx.ops.base.arithmetic import follow
from obc_onnx.ops.base.broadcast import broadcast_axes, couple_parameters
from obc_onnx.ops.base.dtypes import bits_dtype, check_held, torch_dtype, wrap
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_UNARY = {
    op_type: torch_name or op_type.lower()
    for op_type, torch_name in {
        "Abs": "", "Acos": "", "Acosh": "", "Asin": "", "Asinh": "", "Atan": "", "Atanh": "",
        "BitwiseNot": "bitwise_not", "Ceil": "", "Cos": "", "Cosh": "", "Erf": "", "Exp": "",
        "Floor": "", "IsNaN": "", "Log": "", "Neg": "", "Not": "logical_not",
        "Reciprocal": "", "Relu": "", "Round": "", "Sigmoid": "", "Sign": "", "Sin": "",
        "Sinh": "", "Sqrt": "", "Tan": "", "Tanh": "",
    }.items()
}  # fmt: skip
_UNARY_FUNCTIONAL = {"Softplus": "softplus", "Softsign": "softsign", "Mish": "mish"}
_BINARY = {
    "Add": "add", "And": "logical_and", "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor", "Equal": "eq", "Greater": "gt",
    "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "Mul": "mul",
    "Or": "logical_or", "Sub": "sub", "Xor": "logical_xor",
}  # fmt: skip


_WRAPPING = ("Add", "Mul", "Sub")
_HELD_WIDER = (TensorProto.UINT16, TensorProto.UINT32)


class PositionByPosition(FreeOfMacs):
    """Ties all inputs position by position; the base of every elementwise operator."""

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the axes of all inputs by broadcasting; constant inputs are parameters."""
        inputs = [value for value in context.inputs if value is not None]
        axes = inputs[0].axes
        if len(inputs) > 1:
            axes = broadcast_axes(context, [value.axes for value in inputs])
            couple_parameters(context, inputs, len(axes))
        return [Value(axes, follow(context))]


class Unary(PositionByPosition):
    """Functions of one tensor that torch has under some name, without attributes."""

    op_types = (*_UNARY, *_UNARY_FUNCTIONAL)
    effects: ClassVar = {"Exp": Effect.EXPONENTIATES}

    def changing(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Know that Relu is 0 below 0."""
        if node.op_type == "Relu":
            return 0.0, math.inf
        return super().changing(node, numbers)

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's function."""
        import torch

        op_type = context.node.op_type
        if op_type in _UNARY:
            return Call(getattr(torch, _UNARY[op_type]))
        return Call(getattr(torch.nn.functional, _UNARY_FUNCTIONAL[op_type]))


class Binary(PositionByPosition):
    """Functions of two tensors; on sizes read from a shape they follow the numbers."""

    op_types = (*_BINARY, "Div", "Mod", "Pow", "BitShift")
    effects: ClassVar = {
        "Add": Effect.ADDS,
        "Div": Effect.DIVIDES,
        "Mul": Effect.MULTIPLIES,
        "Sub": Effect.SUBTRACTS,
    }

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's function; integer division truncates, and Mod follows `fmod`."""
        import torch

        node = context.node
        if node.op_type in _OWN:
            return Call(_OWN[node.op_type], inputs=(0, 1))
        if node.op_type == "Mod":
            function: Callable[..., Any] = (
                torch.fmod if node.integer("fmod", 0) else torch.remainder
            )
            return Call(function, inputs=(0, 1))
        if node.op_type == "BitShift":
            left = node.text("direction", "") == "LEFT"
            return Call(
                torch.bitwise_left_shift if left else torch.bitwise_right_shift, inputs=(0, 1)
            )
        if node.op_type in _WRAPPING and context.data_type(0) in _HELD_WIDER:
            constants = {"function": _BINARY[node.op_type], "data_type": context.data_type(0)}
            return Call(wrapping, constants, (0, 1))
        return Call(getattr(torch, _BINARY[node.op_type]), inputs=(0, 1))


class Variadic(PositionByPosition):
    """Functions of any number of tensors."""

    op_types = ("Max", "Mean", "Min", "Sum")

    def forward(self, context: ForwardContext) -> Call:
        """Fold the inputs pairwise."""
        slots = tuple(range(len(context.node.inputs)))
        functions = {"Max": maximum, "Mean": mean, "Min": minimum, "Sum": total}
        return Call(functions[context.node.op_type], inputs=slots)


class Where(PositionByPosition):
    """Choose between two tensors by a third."""

    op_types = ("Where",)
    effects: ClassVar = {"Where": Effect.CHOOSES}

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Run torch.where."""
        import torch

        return Call(torch.where, inputs=(0, 1, 2))


class Same(PositionByPosition):
    """Identity and Cast: the same positions, and the same numbers; BitCast reads them again."""

    op_types = ("Identity", "Cast", "BitCast")
    effects: ClassVar = {
        "Cast": Effect.IN_PLACE | Effect.IN_ORDER,
        "Identity": Effect.IN_PLACE | Effect.IN_ORDER | Effect.MOVES,
    }

    def converts_to(self, node: Node) -> int:
        """Return what Cast is told."""
        return node.integer("to", 0) if node.op_type == "Cast" else 0

    def forward(self, context: ForwardContext) -> Call:
        """Return the input, converted for Cast."""
        if context.node.op_type == "Identity":
            return Call(identity)
        to = context.node.integer("to", 1)
        check_held(to, context.node)
        if context.node.op_type == "Cast":
            return Call(cast, {"to": to, "saturate": bool(context.node.integer("saturate", 1))})
        return Call(bit_cast, {"source": context.data_type(0), "to": to})


class CastLike(FreeOfMacs):
    """Convert to the type of a second tensor, whatever its shape."""

    op_types = ("CastLike",)
    effects: ClassVar = {"CastLike": Effect.IN_PLACE | Effect.IN_ORDER}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the first input's axes through."""
        return [Value(context.value(0).axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.to."""
        to = context.data_type(1)
        check_held(to, context.node)
        return Call(cast, {"to": to, "saturate": bool(context.node.integer("saturate", 1))})


class IsInf(PositionByPosition):
    """Where a tensor is infinite, or infinite with one sign."""

    op_types = ("IsInf",)

    def forward(self, context: ForwardContext) -> Call:
        """Compare with the infinities that are asked for."""
        flags = {
            sign: bool(context.node.integer(f"detect_{sign}", 1))
            for sign in ("negative", "positive")
        }
        return Call(is_infinite, flags)


def wrapping(a: Tensor, b: Tensor, *, function: str, data_type: int) -> Tensor:
    """Compute on integers that are held in a wider type; what they have no place for wraps."""
    import torch

    return wrap(getattr(torch, function)(a, b), data_type)


def power(x: Tensor, exponent: Tensor) -> Tensor:
    """Compute Pow, in the type of the base; whole numbers are cut off."""
    import torch

    if x.is_floating_point() or not exponent.is_floating_point():
        return torch.pow(x, exponent).to(x.dtype)
    return torch.pow(x.double(), exponent).to(x.dtype)


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """Divide; integers are truncated towards zero."""
    import torch

    integers = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if integers else torch.div(a, b)


def maximum(*tensors: Tensor) -> Tensor:
    """Take the largest of all tensors, position by position."""
    import torch

    result = tensors[0]
    for tensor in tensors[1:]:
        result = torch.maximum(result, tensor)
    return result


def minimum(*tensors: Tensor) -> Tensor:
    """Take the smallest of all tensors, position by position."""
    import torch

    result = tensors[0]
    for tensor in tensors[1:]:
        result = torch.minimum(result, tensor)
    return result


def total(*tensors: Tensor) -> Tensor:
    """Add all tensors."""
    result = tensors[0]
    for tensor in tensors[1:]:
        result = result + tensor
    return result


def mean(*tensors: Tensor) -> Tensor:
    """Average all tensors."""
    return total(*tensors) / len(tensors)


def identity(x: Tensor) -> Tensor:
    """Return the input."""
    return x


def cast(x: Tensor, *, to: int, saturate: bool = True) -> Tensor:
    """Convert to an ONNX data type.

    Whole numbers wrap around; floats of 8 bits saturate, or become infinite or no number.
    """
    import torch

    kind = torch_dtype(to)
    if saturate and kind.is_floating_point and kind.itemsize == 1:
        most = torch.finfo(kind).max
        return x.clamp(-most, most).to(kind)
    return wrap(x, to)


def bit_cast(x: Tensor, *, source: int, to: int) -> Tensor:
    """Read the bits of every element as another data type of the same width."""
    return x.to(bits_dtype(source)).view(bits_dtype(to)).to(torch_dtype(to))


def is_infinite(x: Tensor, *, negative: bool, positive: bool) -> Tensor:
    """Compute IsInf."""
    return (x.isneginf() & negative) | (x.isposinf() & positive)


_OWN: dict[str, Callable[..., Tensor]] = {"Div": quotient, "Pow": power}
"""Functions that torch has in another form only."""

RULES: tuple[Rule, ...] = (
    Binary(),
    CastLike(),
    IsInf(),
    Same(),
    Unary(),
    Variadic(),
    Where(),
)
