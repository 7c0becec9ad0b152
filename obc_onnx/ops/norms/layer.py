"""Norms over the last axes.

Losing positions of a normalised axis changes the statistics: it is marked inexact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.base.broadcast import broadcast_axes, couple_parameters
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.norms.batch import MEAN_AND_VARIANCE, couple_scale

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

MEAN_SQUARE = "mean square"


class LayerNormalization(FreeOfMacs):
    """LayerNormalization and RMSNormalization: over all axes from `axis` on.

    SimplifiedLayerNormalization is what ONNX Runtime calls the second.

    Inputs X, Scale and, of the first only, B; both may be broadcast to X.
    """

    op_types = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")

    def couple(self, context: CoupleContext) -> list[Value]:
        """Mark the normalised axes inexact, and tie scale and bias by broadcasting."""
        x, scale, bias = context.value(0), context.value(1), context.optional(2)
        given = [x, scale] if bias is None else [x, scale, bias]
        first = context.axis(0, context.node.integer("axis", -1))
        centred = context.node.op_type == "LayerNormalization"
        context.mark_inexact(x.axes[first:], MEAN_AND_VARIANCE if centred else MEAN_SQUARE)
        broadcast_axes(context, [value.axes for value in given])
        if bias is None or (bias.constant and scale.constant and bias.shape == scale.shape):
            couple_scale(context, 1, 2, len(x.axes) - len(scale.axes))
        else:
            couple_parameters(context, given, len(x.axes))
        statistic = Value(single_positions(context, x.axes, first))
        return [Value(x.axes), statistic, statistic][: len(context.node.outputs)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's norm over the last axes."""
        node = context.node
        constants = {
            "axis": node.integer("axis", -1),
            "epsilon": node.number("epsilon", 1e-5),
        }
        if node.op_type != "LayerNormalization":
            return Call(
                rms_norm if len(node.outputs) == 1 else rms_norm_and_inverse, constants, (0, 1)
            )
        return Call(layer_norm, {**constants, "n_outputs": len(node.outputs)}, (0, 1, 2))


def single_positions(
    context: CoupleContext, axes: tuple[Expr, ...], first: int
) -> tuple[Expr, ...]:
    """Put single positions in place of the axes from `first` on."""
    return (*axes[:first], *(context.system.dim(1) for _ in axes[first:]))


def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int,
    epsilon: float,
    n_outputs: int,
) -> Tensor | tuple[Tensor, ...]:
    """Compute LayerNormalization. Source: the ONNX operator page of LayerNormalization.

    Args:
        x: Any shape.
        scale: Can be broadcast to `x`.
        bias: Can be broadcast to `x`.
        axis: The first of the axes that are normalised over.
        epsilon: Is added to the variance.
        n_outputs: With 1 the result is a tensor, otherwise so many of it and `statistics`.
    """
    y = normalise(x, scale, bias, axis=axis, epsilon=epsilon)
    return y if n_outputs == 1 else (y, *statistics(x, axis=axis, epsilon=epsilon))[:n_outputs]


def normalise(
    x: Tensor, scale: Tensor, bias: Tensor | None, *, axis: int, epsilon: float
) -> Tensor:
    """Normalise over the axes from `axis` on; arguments are those of `layer_norm`."""
    from torch.nn import functional

    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    y = functional.layer_norm(x, shape, eps=epsilon) * scale
    return y if bias is None else y + bias


def statistics(x: Tensor, *, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return mean and inverse standard deviation; normalised axes stay with one position."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = widened(x)
    inverse = (wide.var(axes, correction=0, keepdim=True) + epsilon).rsqrt()
    return wide.mean(axes, keepdim=True), inverse


def rms_norm(x: Tensor, scale: Tensor, *, axis: int, epsilon: float) -> Tensor:
    """Compute RMSNormalization. Source: the ONNX operator page of RMSNormalization.

    Args:
        x: Any shape.
        scale: Can be broadcast to `x`.
        axis: The first of the axes that are normalised over.
        epsilon: Is added to the mean of squares.
    """
    from torch.nn import functional

    shape = x.shape[axis:]
    if scale.shape == shape:
        return functional.rms_norm(x, shape, scale, epsilon)
    return functional.rms_norm(x, shape, eps=epsilon) * scale


def rms_norm_and_inverse(
    x: Tensor, scale: Tensor, *, axis: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Compute `rms_norm`, and one over the root of the mean of squares, as ONNX Runtime does."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    inverse = (widened(x).square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return rms_norm(x, scale, axis=axis, epsilon=epsilon), inverse


def widened(x: Tensor) -> Tensor:
    """Return at least float32: statistics are taken in it."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))


RULES: tuple[Rule, ...] = (LayerNormalization(),)
