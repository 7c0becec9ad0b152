"""Attention and MultiHeadAttention as ONNX Runtime's optimizer writes them."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from obc_onnx.axes.expressions import join, product
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.attention.attend import attend_masked, behind, pack, unpack
from obc_onnx.ops.attention.standard import (
    OTHER_FORM,
    Heads,
    count_products,
    past_length,
    pin_scale,
    tie_batch,
    tie_bias,
    tie_heads,
    total_positions,
)
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_FILTER = -10000.0
"""What stands by default for the score of a key that is masked."""


class ContribAttention(Rule):
    """Self-attention with its projections: X, weights, bias, mask, past, bias of the scores."""

    op_types = ("Attention",)
    ranks: ClassVar = {1: 2, 2: 1}
    domains = ("com.microsoft",)
    names_sizes: ClassVar[bool] = True
    """Whether queries and keys may have another width than values."""

    def couple(self, context: CoupleContext) -> list[Value]:
        """Cut the projected axis into queries, keys and values, each of heads x width."""
        if not self._is_plain(context.node):
            return OTHER_FORM.couple(context)
        x, weights, past = context.value(0), context.value(1), context.optional(4)
        heads = self._heads(context, weights)
        has_cache = past is not None or len(context.node.outputs) > 1
        if has_cache or not self.names_sizes:  # keys and values share a cache
            context.unify(heads.width, heads.value_width)
        self._couple_projection(context, x, weights, heads)
        batch, positions, _ = x.axes
        total = positions
        if past is not None:
            total = join([past.axes[3], positions])
            context.freeze(past.axes[:1], "keys and values")
            context.unify(past.axes[1], batch)
            context.unify(past.axes[2], heads.queries)
            context.unify(past.axes[4], heads.width)
        _couple_scores(context, 3, 5, (batch, heads.queries, positions, total))
        pin_scale(context, heads.width)
        context.spell("num_heads", heads.queries, scalar=True)
        if self.names_sizes:
            widths = (heads.width, heads.value_width)
            context.spell("qkv_hidden_sizes", *_parts(heads), because=widths)
        pair = context.fixed(2, "keys and values")
        outputs = [
            Value((batch, positions, product([heads.queries, heads.value_width]))),
            Value((pair, batch, heads.queries, total, heads.width)),
        ]
        return outputs[: len(context.node.outputs)]

    def forward(self, context: ForwardContext) -> Call:
        """Project, and attend."""
        node = context.node
        if not self._is_plain(node):
            raise UnsupportedOperatorError(f"{node.label}: the twin knows no such form")
        constants = {
            **_constants(node),
            "sizes": node.integers("qkv_hidden_sizes"),
            "with_cache": len(node.outputs) > 1,
        }
        return Call(projected_attention, constants, context.given(*range(6)))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Count the projection and the two products; queries are as wide as keys."""
        x, weights, y = inputs[0], inputs[1], outputs[0]
        queries = (*x[:2], (weights[1] - y[2]) // 2)
        n_keys = x[1] + past_length(inputs, 4, 3)
        return math.prod(x) * weights[1] + count_products(queries, y, n_keys)

    @staticmethod
    def _is_plain(node: Node) -> bool:
        return not any(node.integer(n, 0) for n in ("do_rotary", "past_present_share_buffer"))

    @staticmethod
    def _heads(context: CoupleContext, weights: Value) -> Heads:
        n_heads, size = context.node.integer("num_heads", 1), weights.shape[1]
        sizes = context.node.integers("qkv_hidden_sizes") or (size // 3,) * 3
        return Heads.make(context, n_heads, n_heads, sizes[0] // n_heads, sizes[2] // n_heads)

    @staticmethod
    def _couple_projection(context: CoupleContext, x: Value, weights: Value, heads: Heads) -> None:
        """Record the roles of the weights; what they make is in no output, so they are tapped."""
        bias = context.optional(2)
        projected = join(_parts(heads))
        context.unify(x.axes[2], weights.axes[0])
        context.unify(weights.axes[1], projected)
        context.reads(1, 0, mixes=[weights.axes[0]], tap=Tap("input", 0, 2))
        context.reads(1, 1, mixes=[projected])
        taps = [Tap("input", 1, 1)]
        if bias is not None:
            context.unify(bias.axes[0], projected)
            context.reads(2, 0)
            taps.append(Tap("input", 2, 0))
        for tap in taps:
            context.writes(1, 1, mixes=[projected], bias=None if bias is None else 2, tap=tap)


class MultiHeadAttention(Rule):
    """Attention: query, key, value, bias of all three, mask, bias of the scores, past."""

    op_types = ("MultiHeadAttention",)
    ranks: ClassVar = {3: 1}
    domains = ("com.microsoft",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie heads and widths of queries, keys, values, caches and the bias."""
        q, k, v, bias = (context.optional(slot) for slot in range(4))
        if q is None or k is None or v is None or not self._is_plain(context.node):
            return OTHER_FORM.couple(context)
        past_key, past_value = context.optional(6), context.optional(7)
        heads = self._heads(context, q, v)
        if past_key is not None or len(k.axes) != len(q.axes):  # ONNX Runtime takes no other
            context.unify(heads.width, heads.value_width)
        tie_batch(context, [q, k, v, past_key, past_value])
        tie_heads(context, q, heads.queries, heads.width)
        for keys, values in ((k, v), (past_key, past_value)):
            tie_heads(context, keys, heads.queries, heads.width)
            tie_heads(context, values, heads.queries, heads.value_width)
        total = total_positions(past_key, k)
        context.freeze([total_positions(past_value, v)], "the key positions")
        context.reads(0, 2)
        if bias is not None:
            context.unify(bias.axes[0], join(_parts(heads)))
            context.reads(3, 0)
        scores = (q.axes[0], heads.queries, q.axes[1], total)
        _couple_scores(context, 4, 5, scores)
        pin_scale(context, heads.width)
        context.spell("num_heads", heads.queries, scalar=True)
        outputs = [
            Value((*q.axes[:2], product([heads.queries, heads.value_width]))),
            Value((q.axes[0], heads.queries, total, heads.width)),
            Value((q.axes[0], heads.queries, total, heads.value_width)),
            Value(scores),
        ]
        return outputs[: len(context.node.outputs)]

    def forward(self, context: ForwardContext) -> Call:
        """Add the bias, and attend."""
        node = context.node
        if not (self._is_plain(node) and node.has_input(1) and node.has_input(2)):
            raise UnsupportedOperatorError(f"{node.label}: the twin knows no such form")
        constants = {**_constants(node), "n_outputs": len(node.outputs)}
        return Call(multi_head_attention, constants, context.given(*range(8)))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Count the two products."""
        n_keys = inputs[1][-2] + past_length(inputs, 6, 2)
        return count_products(inputs[0], outputs[0], n_keys)

    @staticmethod
    def _is_plain(node: Node) -> bool:
        """Say whether the caches, if there are any, grow with each run."""
        return not (node.has_input(8) or node.has_input(9))

    @staticmethod
    def _heads(context: CoupleContext, q: Value, v: Value) -> Heads:
        n_heads = context.node.integer("num_heads", 1)
        value_width = v.shape[2] // n_heads if len(v.axes) == len(q.axes) else v.shape[3]
        return Heads.make(context, n_heads, n_heads, q.shape[2] // n_heads, value_width)


def _parts(heads: Heads) -> tuple[Expr, Expr, Expr]:
    """Return the axes of queries, keys and values of an attention in which no head is shared."""
    own = product([heads.queries, heads.width])
    return own, own, product([heads.queries, heads.value_width])


def _couple_scores(
    context: CoupleContext, mask_slot: int, bias_slot: int, scores: Sequence[Expr]
) -> None:
    """Tie what is added to the scores of [batch, heads, queries, keys], and keep the keys."""
    mask = context.optional(mask_slot)
    if mask is not None:
        context.freeze([scores[0], *mask.axes], "the mask")
    tie_bias(context, bias_slot, scores[:-1])
    context.freeze(scores[3:], "the key positions")
    if context.node.integer("unidirectional", 0):
        context.freeze([scores[2]], "the query positions")


def _constants(node: Node) -> dict[str, Any]:
    return {
        "n_heads": node.integer("num_heads", 1),
        "scale": node.number("scale", 0.0) or None,
        "causal": bool(node.integer("unidirectional", 0)),
        "filtered": node.number("mask_filter_value", _FILTER),
    }


def projected_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    scores_bias: Tensor | None = None,
    *,
    sizes: tuple[int, ...] | None,
    with_cache: bool,
    n_heads: int,
    **options: Any,
) -> Any:
    """Compute Attention of ONNX Runtime.

    Args:
        x: Shape [batch, positions, features].
        weights: Of queries, keys and values side by side, shape [features, sum of `sizes`].
        bias: Shape [sum of `sizes`].
        mask: As in `usable_keys`.
        past: Keys and values in front, shape [2, batch, heads, positions, width].
        scores_bias: Broadcast to [batch, heads, queries, keys].
        sizes: Of queries, keys and values; None where they are equal.
        with_cache: Whether to return the keys and values too, shaped as `past`.
        n_heads: Number of heads.
        options: As in `attend_masked`.
    """
    import torch

    projected = torch.matmul(x, weights)
    projected = projected if bias is None else projected + bias
    equal = projected.shape[2] // 3
    parts = torch.split(projected, list(sizes or (equal, equal, equal)), 2)
    q, k, v = (unpack(part, n_heads) for part in parts)
    if past is not None:
        k, v = behind(past[0], k), behind(past[1], v)
    n_past = k.shape[2] - q.shape[2]
    y, _ = attend_masked(q, k, v, mask, scores_bias, n_past=n_past, **options)
    return (pack(y), torch.stack([k, v])) if with_cache else pack(y)


def multi_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scores_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    n_heads: int,
    n_outputs: int,
    **options: Any,
) -> Any:
    """Compute MultiHeadAttention of ONNX Runtime.

    Args:
        q: Shape [batch, queries, heads x width].
        k: Shape [batch, keys, heads x width] or [batch, heads, keys, width].
        v: Likewise, with a width of its own.
        bias: Of queries, keys and values side by side; of the queries only where `k` has four axes.
        mask: As in `usable_keys`.
        scores_bias: Broadcast to [batch, heads, queries, keys].
        past_key: Keys in front, shape [batch, heads, positions, width].
        past_value: Values in front.
        n_heads: Number of heads.
        n_outputs: How many of output, keys, values and scores to return.
        options: As in `attend_masked`.
    """
    if bias is not None:
        ends = list(accumulate((q.shape[2], q.shape[2])))
        own, of_keys, of_values = bias.tensor_split(ends)
        q = q + own
        if k.ndim == q.ndim:
            k, v = k + of_keys, v + of_values
    if k.ndim == q.ndim:
        k, v = unpack(k, n_heads), unpack(v, n_heads)
    k, v = behind(past_key, k), behind(past_value, v)
    n_past = 0 if past_key is None else past_key.shape[2]
    queries = unpack(q, n_heads)
    y, scores = attend_masked(queries, k, v, mask, scores_bias, n_past=n_past, **options)
    outputs = (pack(y), k, v, scores)
    return outputs[0] if n_outputs == 1 else outputs[:n_outputs]


RULES: tuple[Rule, ...] = (
    ContribAttention(),
    MultiHeadAttention(),
)
