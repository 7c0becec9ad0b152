"""Activation functions with attributes or parameters, Clip and Dropout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.elementwise import PositionByPosition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class ParametricUnary(PositionByPosition):
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
        "Swish": ("swish", {"alpha": 1.0}),
        "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
    }
    op_types = tuple(_table)

    def forward(self, context: ForwardContext) -> Call:
        """Run the function of this module with the node's attributes."""
        name, defaults = self._table[context.node.op_type]
        constants = {key: context.node.number(key, value) for key, value in defaults.items()}
        return Call(globals()[name], constants)

    def changing(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Know where HardSigmoid is 0 and 1, and where HardSwish is 0."""
        if node.op_type == "HardSwish":
            return -3.0, math.inf
        if node.op_type == "HardSigmoid":
            _, defaults = self._table[node.op_type]
            alpha, beta = (node.number(name, defaults[name]) for name in ("alpha", "beta"))
            if alpha > 0:
                return -beta / alpha, (1 - beta) / alpha
        return super().changing(node, numbers)


class ContribUnary(ParametricUnary):
    """Functions of ONNX Runtime."""

    domains = ("com.microsoft",)
    _table: ClassVar[dict[str, tuple[str, dict[str, float]]]] = {
        "QuickGelu": ("swish", {"alpha": 1.702}),
    }
    op_types = tuple(_table)


class Gelu(PositionByPosition):
    """Gaussian error linear unit, exact or by tanh."""

    op_types = ("Gelu",)
    domains = ("", "com.microsoft")

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's gelu."""
        from torch.nn import functional

        return Call(functional.gelu, {"approximate": context.node.text("approximate", "none")})


class SwiGLU(PositionByPosition):
    """Swish of a gate, times a second tensor."""

    op_types = ("SwiGLU",)

    def forward(self, context: ForwardContext) -> Call:
        """Multiply Swish of the first input by the second."""
        return Call(swiglu, {"alpha": context.node.number("alpha", 1.0)}, (0, 1))


class BiasedGelu(PositionByPosition):
    """Gelu behind a bias: exact, or by tanh with a bias that may be left out."""

    op_types = ("BiasGelu", "FastGelu")
    domains = ("com.microsoft",)

    def forward(self, context: ForwardContext) -> Call:
        """Add, and run torch's gelu."""
        approximate = "tanh" if context.node.op_type == "FastGelu" else "none"
        return Call(biased_gelu, {"approximate": approximate}, context.given(0, 1))


class PRelu(PositionByPosition):
    """Leaky rectifier with a learned slope, broadcast to the input."""

    op_types = ("PRelu",)

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Multiply the negative part."""
        return Call(prelu, inputs=(0, 1))


class Clip(PositionByPosition):
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

    def changing(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Read the bounds, where they are constants."""
        low, high = node.number("min", -math.inf), node.number("max", math.inf)
        held = [numbers.get(node.read_at(slot)) for slot in (1, 2)]
        if any(array is not None and array.size != 1 for array in held):
            return super().changing(node, numbers)
        lowest, highest = (
            bound if array is None else float(array.item())
            for array, bound in zip(held, (low, high), strict=True)
        )
        return lowest, highest


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
        constants = {"ratio": node.number("ratio", 0.5), "n_outputs": len(node.outputs)}
        return Call(dropout, constants, context.given(0, 1), trains=True)


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
    import torch

    return torch.where(x > alpha, x, 0.0)


def swish(x: Tensor, *, alpha: float) -> Tensor:
    """Compute Swish: x times the sigmoid of alpha x."""
    return x * (alpha * x).sigmoid()


def swiglu(gate: Tensor, x: Tensor, *, alpha: float) -> Tensor:
    """Compute SwiGLU."""
    return swish(gate, alpha=alpha) * x


def biased_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str) -> Tensor:
    """Compute Gelu of x + bias."""
    from torch.nn import functional

    return functional.gelu(x if bias is None else x + bias, approximate=approximate)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Compute PRelu. torch's own takes one slope per channel only; ONNX broadcasts."""
    return x.clamp(min=0) + slope * x.clamp(max=0)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clamp between two numbers or scalar tensors; a bound that is left out does not bind."""
    return x if low is None and high is None else x.clamp(low, high)


def dropout(
    x: Tensor, given: Tensor | None = None, *, ratio: float, n_outputs: int, training: bool
) -> Any:
    """Drop positions in training mode; return the mask too where it is asked for.

    Args:
        x: Any shape.
        given: The share to drop, where it is an input.
        ratio: The share to drop else.
        n_outputs: Two with the mask.
        training: Whether anything is dropped.
    """
    import torch

    if not training:
        return x if n_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    share = x.new_tensor(ratio) if given is None else given.to(x.dtype)
    mask = torch.rand_like(x) >= share
    y = torch.where(mask, x / (1.0 - share), 0.0)
    return y if n_outputs == 1 else (y, mask)


RULES: tuple[Rule, ...] = (
    BiasedGelu(),
    Clip(),
    ContribUnary(),
    Dropout(),
    Gelu(),
    PRelu(),
    ParametricUnary(),
    SwiGLU(),
)
