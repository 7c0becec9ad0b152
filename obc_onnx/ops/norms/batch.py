"""Norms with statistics of a batch, of instances, and of groups of channels.

Where statistics are taken over an axis, losing positions of it changes them: it is marked inexact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.rule import Call, ChannelNorm, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

    Numbers = NDArray[np.float64]

MEAN_AND_VARIANCE = "mean and variance"
_SCALE_PER_CHANNEL_SINCE = 21
_EPSILON = 1e-5
"""Where a batch norm names none."""


def couple_scale(context: CoupleContext, scale: int, bias: int | None, lead: int) -> None:
    """Record the scale of a norm, with which a bias of the same shape counts as one.

    Args:
        context: The node.
        scale: The slot of the scale.
        bias: The slot of the bias, None where the operator has none.
        lead: The axis of the output along which the scale's first axis lies.
    """
    factor = context.value(scale)
    added = None if bias is None else context.optional(bias)
    as_one = added is None or (added.constant and added.shape == factor.shape)
    for axis, expr in enumerate(factor.axes if factor.constant else ()):
        if expr.size > 1:
            tap = Tap("output", 0, lead + axis) if as_one else None
            context.scales(scale, axis, tap, bias=None if added is None else bias)


class BatchNormalization(FreeOfMacs):
    """Per-channel normalisation with stored statistics; inputs X, scale, B, mean, var."""

    op_types = ("BatchNormalization",)
    held = (3, 4)

    def channel_norm(self, node: Node) -> ChannelNorm:
        """Name the slots; in training mode statistics are those of the run."""
        of_run = node.integer("training_mode", 0) or len(node.outputs) > 1
        return ChannelNorm(1, 2, 3, 4, node.number("epsilon", _EPSILON), stored=not of_run)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie scale, bias, mean and variance to axis 1 of X, and to those behind it in old opsets.

        In training mode statistics are taken over the other axes.
        """
        x, scale = context.value(0), context.value(1)
        for slot in range(1, 5):
            for i, axis in enumerate(context.value(slot).axes, 1):
                context.unify(x.axes[i], axis)
        if not self.channel_norm(context.node).stored:
            others = (x.axes[0], *x.axes[1 + len(scale.axes) :])
            context.mark_inexact(others, MEAN_AND_VARIANCE)
        couple_scale(context, 1, 2, 1)
        statistic = Value(scale.axes)
        return [Value(x.axes), *([statistic] * (len(context.node.outputs) - 1))]

    def forward(self, context: ForwardContext) -> Call:
        """Use stored statistics in evaluation mode, and update them in training mode.

        Raises:
            UnsupportedOperatorError: The node gives statistics as opsets before 14 define them.
        """
        node, slots = context.node, context.given(0, 1, 2, 3, 4)
        constants = {
            "epsilon": node.number("epsilon", _EPSILON),
            "momentum": node.number("momentum", 0.9),
        }
        if node.integer("training_mode", 0):
            return Call(batch_norm_of_run, constants, slots)
        if len(node.outputs) > 1:
            raise UnsupportedOperatorError(f"{node.label}: the twin computes its first output only")
        return Call(batch_norm, constants, slots, trains=True)


class InstanceNormalization(FreeOfMacs):
    """Normalisation of every channel of every sample; inputs X, scale, B."""

    op_types = ("InstanceNormalization",)
    ranks: ClassVar = {1: 1, 2: 1}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie scale and bias to axis 1 of X; the axes behind it may hold channels too."""
        x = context.value(0)
        for slot in (1, 2):
            context.unify(x.axes[1], context.value(slot).axes[0])
        context.mark_inexact(x.axes[2:], MEAN_AND_VARIANCE)
        couple_scale(context, 1, 2, 1)
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's group norm with as many groups as channels."""
        constants = {"epsilon": context.node.number("epsilon", 1e-5)}
        return Call(instance_norm, constants, (0, 1, 2))


class GroupNormalization(FreeOfMacs):
    """Normalisation of groups of channels; inputs X, scale, bias.

    Whole groups can be removed exactly, channels within each group cannot. Scale and bias have one
    position for each group before opset 21, and one for each channel since.
    """

    op_types = ("GroupNormalization",)
    ranks: ClassVar = {1: 1, 2: 1}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Write the channels as groups x channels of a group; tie scale and bias."""
        x = context.value(0)
        channels = x.axes[1]
        n_groups = context.node.integer("num_groups", 1)
        group, within = context.factored(channels, n_groups, channels.size // n_groups)
        context.spell("num_groups", group, scalar=True)
        for slot in (1, 2):
            per_channel = context.node.opset >= _SCALE_PER_CHANNEL_SINCE
            context.unify(channels if per_channel else group, context.value(slot).axes[0])
        context.mark_inexact([within, *x.axes[2:]], MEAN_AND_VARIANCE)
        couple_scale(context, 1, 2, 1)
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's group norm."""
        node = context.node
        constants = {
            "n_groups": node.integer("num_groups", 1),
            "epsilon": node.number("epsilon", 1e-5),
        }
        return Call(group_norm, constants, (0, 1, 2))


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float,
    momentum: float,
    training: bool,
) -> Tensor:
    """Compute BatchNormalization. ONNX keeps `momentum` of the old statistics, torch 1 - that.

    Args:
        x: Shape [batch, channels, ...].
        scale: Shape [channels]; [channels, ...] where every position has its own, which opsets
            before 9 call not spatial. The same holds for the other parameters.
        bias: What is added.
        mean: Stored mean.
        var: Stored variance.
        epsilon: Is added to the variance.
        momentum: How much of old statistics stays.
        training: Whether statistics are of `x`, and are stored.
    """
    import torch
    from torch.nn import functional

    # opset 15 lets parameters be wider, and torch takes such next to numbers of half the width
    mixes = x.element_size() < mean.element_size() == torch.float32.itemsize
    kind = mean.dtype if mixes else x.dtype
    own_mean, own_var, scale, bias = (p.to(kind).flatten() for p in (mean, var, scale, bias))
    flat = x if mean.ndim == 1 else x.flatten(1)
    y = functional.batch_norm(
        flat, own_mean, own_var, scale, bias, training, 1.0 - momentum, epsilon
    )
    if training and mean.dtype != kind:
        mean.copy_(own_mean.reshape(mean.shape))
        var.copy_(own_var.reshape(var.shape))
    return y.reshape(x.shape)


def affine_of(
    scale: Numbers, bias: Numbers, mean: Numbers, var: Numbers, epsilon: float
) -> tuple[Numbers, Numbers]:
    """Return the factor and the shift that BatchNormalization comes to with stored statistics."""
    import numpy as np

    factor = scale / np.sqrt(var + epsilon)
    return factor, bias - mean * factor


def batch_norm_of_run(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute BatchNormalization with the statistics of `x`, [batch, channels, ...].

    Returns:
        The output, and what is left of old statistics with the new ones; variances are those of a
        population. Source: the ONNX operator page of BatchNormalization.
    """
    import torch

    others = [axis for axis in range(x.ndim) if axis != 1]
    new_var, new_mean = torch.var_mean(x, others, correction=0)
    # torch.nn.functional refuses one number per channel, which ONNX allows
    y = torch.batch_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)  # noqa: FBT003
    kept, fresh = momentum, 1.0 - momentum
    return y, mean * kept + new_mean * fresh, var * kept + new_var * fresh


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    """Compute InstanceNormalization of [batch, channels, ...].

    Source: the ONNX operator page of InstanceNormalization.
    """
    return group_norm(x, scale, bias, n_groups=x.shape[1], epsilon=epsilon)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, n_groups: int, epsilon: float) -> Tensor:
    """Compute GroupNormalization of [batch, channels, ...].

    Source: the ONNX operator page of GroupNormalization. Scale and bias have as many positions as
    there are groups, or channels.
    """
    import torch

    times = x.shape[1] // len(scale)
    scale, bias = (p.repeat_interleave(times) if times > 1 else p for p in (scale, bias))
    return torch.group_norm(x, n_groups, scale, bias, epsilon)


RULES: tuple[Rule, ...] = (
    BatchNormalization(),
    GroupNormalization(),
    InstanceNormalization(),
)
