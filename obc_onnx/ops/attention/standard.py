"""Attention of the standard, and what every form of attention shares.

Heads and the width of a head are separate dims, so both can shrink. The width of queries and keys
is contracted, that of values is not. A softmax goes over the keys, so their positions stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.expressions import join, product
from obc_onnx.ops.attention.attend import (
    PACKED_RANK,
    additive,
    allowed_keys,
    attend,
    behind,
    default_scale,
    forbid,
    pack,
    unpack,
)
from obc_onnx.ops.base.broadcast import broadcast_axes
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape


@dataclass(frozen=True)
class Heads:
    """The dims of the heads of one attention.

    Attributes:
        shared: Heads of keys and values.
        per_shared: Query heads that use the same of them.
        width: Of a head of queries and keys.
        value_width: Of a head of values.
    """

    shared: Expr
    per_shared: Expr
    width: Expr
    value_width: Expr

    @classmethod
    def make(
        cls, context: CoupleContext, n_queries: int, n_shared: int, width: int, value_width: int
    ) -> Heads:
        """Make new dims, from the numbers of heads and their widths."""
        sizes = (n_shared, n_queries // n_shared, width, value_width)
        return cls(*(context.system.dim(size) for size in sizes))

    @property
    def queries(self) -> Expr:
        """All query heads: those that use the same keys and values lie side by side."""
        return product([self.shared, self.per_shared])


def tie_heads(context: CoupleContext, value: Value | None, heads: Expr, width: Expr) -> None:
    """Tie the heads and their width in a tensor that is given, packed into one axis or not."""
    if value is None:
        return
    if len(value.axes) == PACKED_RANK:
        context.unify(value.axes[2], product([heads, width]))
    else:
        context.unify(value.axes[1], heads)
        context.unify(value.axes[3], width)


def tie_batch(context: CoupleContext, values: Sequence[Value | None]) -> None:
    """Tie the first axes of all tensors that are given."""
    first, *others = [value.axes[0] for value in values if value is not None]
    for other in others:
        context.unify(first, other)


def tie_bias(context: CoupleContext, slot: int, rows: Sequence[Expr]) -> None:
    """Tie what is added to scores, or masks them, to [batch, heads, queries] with keys behind."""
    bias = context.optional(slot)
    if bias is not None:
        broadcast_axes(context, [rows, bias.axes[:-1]])
        context.freeze(bias.axes[-1:], "the key positions")


def pin_scale(context: CoupleContext, width: Expr) -> None:
    """Keep the scale of the scores, which by default follows the width of a head."""
    if context.node.attributes.get("scale") == 0.0:  # says to ONNX Runtime that it is left out
        context.freeze([width], "the default scale")
    scale = context.node.number("scale", default_scale(width.size))
    context.spell("scale", scale, scalar=True, because=(width,))


def total_positions(past: Value | None, present: Value) -> Expr:
    """Return the positions of a cache once those of [..., positions, width] are behind it."""
    own = present.axes[-2]
    return own if past is None else join([past.axes[2], own])


def past_length(inputs: list[Shape], slot: int, axis: int) -> int:
    """Return how many positions a cache holds, 0 where it is left out."""
    return inputs[slot][axis] if slot < len(inputs) and inputs[slot] else 0


def count_products(q: Shape, y: Shape, n_keys: int) -> int:
    """Count the products of queries with keys, and of probabilities with values."""
    return (math.prod(q) + math.prod(y)) * n_keys


class _OtherForm(Frozen):
    """What a rule hands on the forms of its operator to that it does not cover."""

    op_types = ()
    why = "a form without a rule"


OTHER_FORM = _OtherForm()


class FlexAttention(Frozen):
    """Attention with subgraphs that may change its scores."""

    op_types = ("FlexAttention",)
    domains = ("ai.onnx.preview",)
    why = "scores that a subgraph may change"


class Attention(Rule):
    """Scaled dot-product attention: Q, K, V, mask, past key and value, lengths of the keys."""

    op_types = ("Attention",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie heads and widths of queries, keys, values and caches, and contract the width."""
        q, k, v = (context.value(slot) for slot in range(3))
        past_key, past_value, lengths = (context.optional(slot) for slot in (4, 5, 6))
        heads = self._heads(context, q, k, v)
        tie_batch(context, [q, k, v, past_key, past_value, lengths])
        tie_heads(context, q, heads.queries, heads.width)
        for keys, values in ((k, v), (past_key, past_value)):
            tie_heads(context, keys, heads.shared, heads.width)
            tie_heads(context, values, heads.shared, heads.value_width)
        total = total_positions(past_key, k)
        context.freeze([total, total_positions(past_value, v)], "the key positions")
        if self._reach(context.node) != (-1, -1):
            context.freeze([q.axes[-2]], "the query positions")
        scores = (q.axes[0], heads.queries, q.axes[-2], total)
        tie_bias(context, 3, scores[:-1])
        context.reads(0, len(q.axes) - 1)
        pin_scale(context, heads.width)
        context.spell("q_num_heads", heads.queries, scalar=True)
        context.spell("kv_num_heads", heads.shared, scalar=True)
        unpacked = (heads.queries, q.axes[-2], heads.value_width)
        packed = (q.axes[-2], product([heads.queries, heads.value_width]))
        outputs = [
            Value((q.axes[0], *(packed if len(q.axes) == PACKED_RANK else unpacked))),
            Value((q.axes[0], heads.shared, total, heads.width)),
            Value((q.axes[0], heads.shared, total, heads.value_width)),
            Value(scores),
        ]
        return outputs[: len(context.node.outputs)]

    def forward(self, context: ForwardContext) -> Call:
        """Compute the two products and the softmax between them."""
        node = context.node
        constants = {
            "n_heads": (node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)),
            "scale": node.number("scale", 0.0) or None,
            "softcap": node.number("softcap", 0.0),
            "reach": self._reach(node),
            "stage": node.integer("qk_matmul_output_mode", 0),
            "n_outputs": len(node.outputs),
        }
        return Call(attention, constants, context.given(*range(7)))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every key takes part in one product with each element of the queries and the output."""
        n_keys = inputs[1][-2] + past_length(inputs, 4, 2)
        return count_products(inputs[0], outputs[0], n_keys)

    @staticmethod
    def _heads(context: CoupleContext, q: Value, k: Value, v: Value) -> Heads:
        if len(q.axes) != PACKED_RANK:
            return Heads.make(context, q.shape[1], k.shape[1], q.shape[3], v.shape[3])
        n_queries = context.node.integer("q_num_heads", 1)
        n_shared = context.node.integer("kv_num_heads", 1)
        widths = (q.shape[2] // n_queries, v.shape[2] // n_shared)
        return Heads.make(context, n_queries, n_shared, *widths)

    @staticmethod
    def _reach(node: Node) -> tuple[int, int]:
        """Return how many keys before and behind its place a query may use, -1 for all."""
        after = (
            0 if node.flag("is_causal", default=False) else node.integer("right_window_size", -1)
        )
        return node.integer("left_window_size", -1), after


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    n_heads: tuple[int, int],
    scale: float | None,
    softcap: float,
    reach: tuple[int, int],
    stage: int,
    n_outputs: int,
) -> Any:
    """Compute Attention. Source: the ONNX operator page of Attention.

    Args:
        q: Shape [batch, heads, queries, width], or packed.
        k: Shape [batch, shared heads, keys, width], or packed.
        v: Shape [batch, shared heads, keys, value width], or packed.
        mask: Broadcast to the scores: where a key may be used, or what is added to its score.
        past_key: Keys to put in front of `k`, never packed.
        past_value: Values to put in front of `v`, never packed.
        lengths: How many keys are used of each sample, shape [batch].
        n_heads: Query heads and shared heads of packed tensors.
        scale: Of the scores; None for 1 / sqrt(width).
        softcap: Scores are bounded to less than it, 0 for no bound.
        reach: How many keys before and behind its place a query may use, -1 for all.
        stage: Which of `attend`'s scores the fourth output is.
        n_outputs: How many of output, keys, values and scores to return.
    """
    import torch

    packed = q.ndim == PACKED_RANK
    if packed:
        q, k, v = unpack(q, n_heads[0]), unpack(k, n_heads[1]), unpack(v, n_heads[1])
    k, v = behind(past_key, k), behind(past_value, v)
    bias = _over_all_keys(additive(mask, q), k.shape[2])
    if lengths is not None or reach != (-1, -1):
        n_past = 0 if past_key is None else past_key.shape[2]
        first = n_past if lengths is None else lengths[:, None] - q.shape[2]
        places = first + torch.arange(q.shape[2], device=q.device)
        allowed = allowed_keys(places, k.shape[2], before=reach[0], after=reach[1], ends=lengths)
        bias = forbid(bias, ~allowed, -math.inf, q)
    y, scores = attend(q, k, v, bias, scale=scale, softcap=softcap)
    outputs = (pack(y) if packed else y, k, v, scores[stage])
    return outputs[0] if n_outputs == 1 else outputs[:n_outputs]


def _over_all_keys(bias: Tensor | None, n_keys: int) -> Tensor | None:
    """Forbid keys that a mask does not reach."""
    from torch.nn import functional

    if bias is None or bias.shape[-1] in {1, n_keys}:
        return bias
    return functional.pad(bias, (0, n_keys - bias.shape[-1]), value=-math.inf)


RULES: tuple[Rule, ...] = (
    Attention(),
    FlexAttention(),
)
