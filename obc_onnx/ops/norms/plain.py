"""Norms without parameters: over any axes, along one axis, and over windows of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.norms.batch import MEAN_AND_VARIANCE

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_EPSILON = 1e-9
"""What MeanVarianceNormalization adds to the standard deviation."""


class MeanVarianceNormalization(FreeOfMacs):
    """Normalisation over any axes."""

    op_types = ("MeanVarianceNormalization",)
    _default = (0, 2, 3)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Mark the axes inexact."""
        x = context.value(0)
        axes = context.node.integers("axes") or self._default
        standardised = [x.axes[axis] for axis in context.distinct_axes(0, axes)]
        context.mark_inexact(standardised, MEAN_AND_VARIANCE)
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Subtract the mean, and divide by the standard deviation."""
        return Call(standardise, {"axes": context.node.integers("axes") or self._default})


class LpNormalization(FreeOfMacs):
    """Division by the norm along one axis: a sum, to which masked positions add nothing."""

    op_types = ("LpNormalization",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Read the axis, and pass it through."""
        x = context.value(0)
        context.reads(0, context.axis(0, context.node.integer("axis", -1)))
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Divide by torch's vector norm."""
        node = context.node
        return Call(lp_normalise, {"axis": node.integer("axis", -1), "p": node.integer("p", 2)})


class LocalResponseNormalization(FreeOfMacs):
    """Division by the squares of neighbouring channels."""

    op_types = ("LRN",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Mark the channels inexact: without some of them others are neighbours."""
        x = context.value(0)
        context.mark_inexact([x.axes[1]], "window over channels")
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Sum squares over windows."""
        node = context.node
        defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
        numbers = {name: node.number(name, value) for name, value in defaults.items()}
        return Call(local_response_norm, {"size": node.integer("size", 1), **numbers})


def standardise(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """Compute MeanVarianceNormalization.

    Source: the ONNX operator page of MeanVarianceNormalization.
    """
    deviation = x.var(axes, correction=0, keepdim=True).sqrt()
    return (x - x.mean(axes, keepdim=True)) / (deviation + _EPSILON)


def lp_normalise(x: Tensor, *, axis: int, p: int) -> Tensor:
    """Compute LpNormalization; what is all zeros stays so.

    Source: the ONNX operator page of LpNormalization.
    """
    import torch

    norm: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / norm.where(norm != 0, torch.ones_like(norm))


def local_response_norm(x: Tensor, *, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Compute LRN of [batch, channels, ...]. Source: the ONNX operator page of LRN.

    Of an even `size` the larger part lies behind the channel.
    """
    from torch.nn import functional

    before, after = (size - 1) // 2, size // 2
    squares = functional.pad(x * x, [0, 0] * (x.ndim - 2) + [before, after])
    total = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * total) ** beta


RULES: tuple[Rule, ...] = (
    LocalResponseNormalization(),
    LpNormalization(),
    MeanVarianceNormalization(),
)
