"""ONNX Runtime's operators that fuse a sum into a norm over the last axis.

Source: ONNX Runtime's page of contributed operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.broadcast import broadcast_axes
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.norms.batch import MEAN_AND_VARIANCE, couple_scale
from obc_onnx.ops.norms.layer import (
    MEAN_SQUARE,
    normalise,
    rms_norm,
    single_positions,
    statistics,
    widened,
)

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_DOMAIN = "com.microsoft"
_EPSILON = 1e-12


class SkipLayerNormalization(FreeOfMacs):
    """A sum of two tensors and a bias, normalised along the last axis.

    Inputs input, skip, gamma, beta of SkipLayerNormalization only, and bias. Outputs the result,
    its mean and inverse standard deviation, and the sum.
    """

    op_types = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    ranks: ClassVar = {2: 1, 3: 1, 4: 1}
    domains = (_DOMAIN,)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie all inputs by broadcasting, and mark the last axis inexact."""
        centred = _is_centred(context.node)
        given = {slot: v for slot, v in enumerate(context.inputs) if v is not None}
        axes = broadcast_axes(context, [value.axes for value in given.values()])
        context.mark_inexact(axes[-1:], MEAN_AND_VARIANCE if centred else MEAN_SQUARE)
        couple_scale(context, 2, 3 if centred else None, len(axes) - 1)
        for slot in (0, 1, 4 if centred else 3):
            if slot in given and given[slot].constant:
                lead = len(axes) - len(given[slot].axes)
                for axis, expr in enumerate(given[slot].axes):
                    if expr.size > 1:
                        context.scales(slot, axis, Tap("parameter", slot, lead + axis))
        statistic = Value(single_positions(context, axes, -1))
        outputs = [Value(axes), statistic, statistic, Value(axes)]
        return outputs[: len(context.node.outputs)]

    def forward(self, context: ForwardContext) -> Call:
        """Add, and run torch's norm.

        Raises:
            UnsupportedOperatorError: A mean is asked for where none is computed.
        """
        node = context.node
        constants: dict[str, Any] = {
            "epsilon": node.number("epsilon", _EPSILON),
            "n_outputs": len(node.outputs),
        }
        if _is_centred(node):
            return Call(skip_layer_norm, constants, (0, 1, 2, 3, 4))
        if any(node.outputs[1:2]):
            raise UnsupportedOperatorError(f"{node.label}: it has no mean to give")
        return Call(skip_rms_norm, constants, (0, 1, 2, 3))


class EmbedLayerNormalization(FreeOfMacs):
    """A sum of rows of tables, normalised along the last axis.

    Inputs token ids [batch, length] and segment ids; tables of words, positions and segments;
    gamma, beta, mask and position ids. Outputs the result [batch, length, hidden], the number of
    tokens that the mask leaves [batch], and the sum.
    """

    op_types = ("EmbedLayerNormalization",)
    ranks: ClassVar = {2: 2, 3: 2, 4: 2, 5: 1, 6: 1}
    domains = (_DOMAIN,)
    _words, _segments = 2, 4
    _gamma, _beta = 5, 6
    _mask, _positions = 7, 8

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the hidden axis of all tables, gamma and beta, and mark it inexact."""
        ids, hidden = context.value(0), context.value(self._words).axes[1]
        for slot, picked in enumerate((0, self._positions, 1), self._words):
            table = context.optional(slot)
            if table is not None:
                if context.optional(picked) is None:
                    context.freeze(table.axes[:1], "counted positions")
                else:
                    context.looks_up(slot, 0, picked)
                context.unify(table.axes[1], hidden)
                if table.constant:
                    context.writes(slot, 1, tap=None, mixes=[hidden])
        for slot in (self._gamma, self._beta):
            context.unify(context.value(slot).axes[0], hidden)
        beside = [context.optional(slot) for slot in (1, self._mask, self._positions)]
        broadcast_axes(context, [ids.axes, *(value.axes for value in beside if value is not None)])
        if beside[-1] is None:
            context.freeze(ids.axes[1:], "counted positions")
        context.mark_inexact([hidden], MEAN_AND_VARIANCE)
        couple_scale(context, self._gamma, self._beta, 2)
        total = Value((*ids.axes, hidden))
        return [total, Value(ids.axes[:1]), Value(total.axes)][: len(context.node.outputs)]

    def forward(self, context: ForwardContext) -> Call:
        """Gather, add, and run torch's norm."""
        node = context.node
        constants = {
            "epsilon": node.number("epsilon", _EPSILON),
            "n_outputs": len(node.outputs),
        }
        return Call(embed_layer_norm, constants, tuple(range(self._positions + 1)))


def _is_centred(node: Node) -> bool:
    return "Simplified" not in node.op_type


def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float,
    n_outputs: int,
) -> Tensor | tuple[Tensor, ...]:
    """Compute SkipLayerNormalization over the last axis.

    Source: ONNX Runtime's page of contributed operators.
    """
    total = x + skip if bias is None else x + skip + bias
    y = normalise(total, gamma, beta, axis=-1, epsilon=epsilon)
    if n_outputs == 1:
        return y
    return (y, *statistics(total, axis=-1, epsilon=epsilon), total)[:n_outputs]


def skip_rms_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float,
    n_outputs: int,
) -> Tensor | tuple[Tensor | None, ...]:
    """Compute SkipSimplifiedLayerNormalization over the last axis; of its outputs there is no mean.

    Source: ONNX Runtime's page of contributed operators.
    """
    total = x + skip if bias is None else x + skip + bias
    y = rms_norm(total, gamma, axis=-1, epsilon=epsilon)
    if n_outputs == 1:
        return y
    inverse = (widened(total).square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (y, None, inverse, total)[:n_outputs]


def embed_layer_norm(
    ids: Tensor,
    segment_ids: Tensor | None,
    words: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float,
    n_outputs: int,
) -> Tensor | tuple[Tensor, ...]:
    """Compute EmbedLayerNormalization; shapes are those of the rule.

    Source: ONNX Runtime's page of contributed operators. Positions count from 0 where they are not
    given; without a mask the number of tokens is 0.
    """
    import torch

    places = torch.arange(ids.shape[1], device=ids.device) if position_ids is None else position_ids
    total = words[ids.long()] + positions[places.long()]
    if segments is not None and segment_ids is not None:
        total = total + segments[segment_ids.long()]
    counted = torch.zeros_like(ids) if mask is None else mask == 1
    y = normalise(total, gamma, beta, axis=-1, epsilon=epsilon)
    outputs = (y, counted.sum(1, dtype=torch.int32), total)
    return y if n_outputs == 1 else outputs[:n_outputs]


RULES: tuple[Rule, ...] = (
    EmbedLayerNormalization(),
    SkipLayerNormalization(),
)
