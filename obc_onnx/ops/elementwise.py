"""Operators that act position by position: unary, binary and variadic with broadcasting, PRelu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from obc_onnx.ops.broadcast import broadcast_axes, couple_parameters
from obc_onnx.ops.context import Computed, Value
from obc_onnx.ops.rule import Call, FreeOfMacs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from obc_onnx.ops.context import CoupleContext, ForwardContext

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
    "Or": "logical_or", "Pow": "pow", "Sub": "sub", "Xor": "logical_xor",
}  # fmt: skip


class _PositionByPosition(FreeOfMacs):
    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the axes of all inputs by broadcasting; constant inputs are parameters."""
        inputs = [value for value in context.inputs if value is not None]
        if len(inputs) == 1:
            return [inputs[0]]
        axes = broadcast_axes(context, [value.axes for value in inputs])
        couple_parameters(context, inputs, len(axes))
        return [Value(axes)]


class Unary(_PositionByPosition):
    """Functions of one tensor that torch has under some name, without attributes."""

    op_types = (*_UNARY, *_UNARY_FUNCTIONAL)

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's function."""
        import torch

        op_type = context.node.op_type
        if op_type in _UNARY:
            return Call(getattr(torch, _UNARY[op_type]))
        return Call(getattr(torch.nn.functional, _UNARY_FUNCTIONAL[op_type]))


class ParametricUnary(_PositionByPosition):
    """Functions of one tensor with number attributes."""

    _table: ClassVar[dict[str, tuple[str, dict[str, float]]]] = {
        "Celu": ("celu", {"alpha": 1.0}),
        "Elu": ("elu", {"alpha": 1.0}),
        "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
        "HardSwish": ("hard_swish", {}),
        "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
        "Selu": (
            "selu",
            {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
        ),
        "Shrink": ("shrink", {"lambd": 0.5, "bias": 0.0}),
        "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
    }
    op_types = tuple(_table)

    def forward(self, context: ForwardContext) -> Call:
        """Run the function of this module with the node's attributes."""
        name, defaults = self._table[context.node.op_type]
        constants = {key: context.node.number(key, value) for key, value in defaults.items()}
        return Call(globals()[name], constants)


class Gelu(_PositionByPosition):
    """Gaussian error linear unit, exact or by tanh."""

    op_types = ("Gelu",)

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's gelu."""
        from torch.nn import functional

        return Call(functional.gelu, {"approximate": context.node.text("approximate", "none")})


class Binary(_PositionByPosition):
    """Functions of two tensors; on sizes read from a shape they follow the numbers."""

    op_types = (*_BINARY, "Div", "Mod", "BitShift")
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie axes by broadcasting; sizes that are computed with are frozen."""
        values = [value for value in context.inputs if value is not None]
        (result,) = super().couple(context)
        for value in values:
            context.freeze_sizes(value)
        if all(value.numbers is not None for value in values):
            count = max(len(value.numbers or ()) for value in values)
            return [Value(result.axes, (Computed(),) * count)]
        return [Value(result.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's function; integer division truncates, and Mod follows `fmod`."""
        import torch

        node = context.node
        if node.op_type == "Div":
            return Call(divide, inputs=(0, 1))
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
        return Call(getattr(torch, _BINARY[node.op_type]), inputs=(0, 1))


class Variadic(_PositionByPosition):
    """Functions of any number of tensors."""

    op_types = ("Max", "Mean", "Min", "Sum")

    def forward(self, context: ForwardContext) -> Call:
        """Fold the inputs pairwise."""
        slots = tuple(range(len(context.node.inputs)))
        functions = {"Max": maximum, "Mean": mean, "Min": minimum, "Sum": total}
        return Call(functions[context.node.op_type], inputs=slots)


class Where(_PositionByPosition):
    """Choose between two tensors by a third."""

    op_types = ("Where",)

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Run torch.where."""
        import torch

        return Call(torch.where, inputs=(0, 1, 2))


class PRelu(_PositionByPosition):
    """Leaky rectifier with a learned slope, broadcast to the input."""

    op_types = ("PRelu",)

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Multiply the negative part."""
        return Call(prelu, inputs=(0, 1))


class Clip(_PositionByPosition):
    """Clamp between two scalars, given as attributes before opset 11 and as inputs since."""

    op_types = ("Clip",)
    held = (1, 2)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the first input's axes through; the bounds are scalars."""
        return [context.value(0)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.clamp."""
        node = context.node
        if "min" in node.attributes or "max" in node.attributes:
            infinity = float("inf")
            bounds = {
                "low": node.number("min", -infinity),
                "high": node.number("max", infinity),
            }
            return Call(clip, bounds)
        return Call(clip, inputs=tuple(range(len(node.inputs))))


class Same(_PositionByPosition):
    """Identity and Cast: the same positions, and the same numbers."""

    op_types = ("Identity", "Cast")
    carries_numbers = True

    def forward(self, context: ForwardContext) -> Call:
        """Return the input, converted for Cast."""
        if context.node.op_type == "Identity":
            return Call(identity)
        return Call(cast, {"to": context.node.integer("to", 1)})


class Dropout(FreeOfMacs):
    """Identity outside of training; the mask, where asked for, is all true."""

    op_types = ("Dropout",)
    held = (1, 2)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass axes through to both outputs."""
        return [Value(context.value(0).axes)] * len(context.node.outputs)

    def forward(self, context: ForwardContext) -> Call:
        """Drop only in training mode."""
        node = context.node
        ratio: float = node.number("ratio", 0.5)
        if len(context.arrays) > 1 and context.arrays[1] is not None:
            ratio = float(context.arrays[1].reshape(-1)[0])
        return Call(dropout, {"ratio": ratio, "n_outputs": len(node.outputs)}, trains=True)


def divide(a: Tensor, b: Tensor) -> Tensor:
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


def celu(x: Tensor, *, alpha: float) -> Tensor:
    """Compute Celu."""
    from torch.nn import functional

    return functional.celu(x, alpha)


def elu(x: Tensor, *, alpha: float) -> Tensor:
    """Compute Elu."""
    from torch.nn import functional

    return functional.elu(x, alpha)


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Compute HardSigmoid: clamp(alpha x + beta, 0, 1)."""
    return (alpha * x + beta).clamp(0.0, 1.0)


def hard_swish(x: Tensor) -> Tensor:
    """Compute HardSwish: x times HardSigmoid with alpha 1/6."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def leaky_relu(x: Tensor, *, alpha: float) -> Tensor:
    """Compute LeakyRelu."""
    from torch.nn import functional

    return functional.leaky_relu(x, alpha)


def selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Compute Selu: gamma times Elu."""
    return gamma * elu(x, alpha=alpha)


def shrink(x: Tensor, *, lambd: float, bias: float) -> Tensor:
    """Compute Shrink: pull towards zero by `bias` outside of [-lambd, lambd], zero inside."""
    import torch

    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def thresholded_relu(x: Tensor, *, alpha: float) -> Tensor:
    """Compute ThresholdedRelu."""
    return x * (x > alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Compute PRelu. torch's own takes one slope per channel only; ONNX broadcasts."""
    return x.clamp(min=0) + slope * x.clamp(max=0)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clamp between two numbers or scalar tensors; a bound that is left out does not bind."""
    return x if low is None and high is None else x.clamp(low, high)


def identity(x: Tensor) -> Tensor:
    """Return the input."""
    return x


def cast(x: Tensor, *, to: int) -> Tensor:
    """Convert to an ONNX data type."""
    from obc_onnx.ops.dtypes import torch_dtype

    return x.to(torch_dtype(to))


def dropout(x: Tensor, *, ratio: float, n_outputs: int, training: bool) -> Any:
    """Drop positions in training mode; return the mask too where it is asked for."""
    import torch

    if not training:
        return x if n_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    mask = torch.rand_like(x) >= ratio
    y = x * mask / (1.0 - ratio)
    return y if n_outputs == 1 else (y, mask)
