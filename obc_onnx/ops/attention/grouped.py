"""GroupQueryAttention of ONNX Runtime: attention over a cache, with heads that share keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.expressions import join, product
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.attention.attend import allowed_keys, attend, forbid, pack, unpack
from obc_onnx.ops.attention.rotary import rotate
from obc_onnx.ops.attention.standard import (
    OTHER_FORM,
    Heads,
    count_products,
    past_length,
    tie_batch,
    tie_bias,
    tie_heads,
)
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_QUANTISED = 12
"""The first slot of what only other forms have: scales of caches, and norms."""
_OUTPUTS = 3
"""The result, keys and values; those of a fourth are scores."""


class GroupQueryAttention(Rule):
    """Attention: query, key, value, caches, lengths, total length, rotation, positions, biases.

    The width of a head has to be a multiple of 8, or of 16 where it is rotated, so it stays.
    """

    op_types = ("GroupQueryAttention",)
    domains = ("com.microsoft",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie heads of queries, keys, values and caches."""
        if not self._is_plain(context.node):
            return OTHER_FORM.couple(context)
        q, k = context.value(0), context.optional(1)
        heads = self._heads(context, q, packed=k is None)
        if k is None:
            parts = (heads.queries, heads.shared, heads.shared)
            context.unify(q.axes[2], join([product([part, heads.width]) for part in parts]))
        else:
            tie_heads(context, q, heads.queries, heads.width)
        held = [context.optional(slot) for slot in range(1, 5)]
        tie_batch(context, [q, *held])
        for value in held:
            tie_heads(context, value, heads.shared, heads.width)
            context.freeze(() if value is None else value.axes[-2:-1], "the positions")
        context.freeze(q.axes[:2], "the positions")
        for value in [context.optional(slot) for slot in range(5, 10)]:
            context.freeze(() if value is None else value.axes, "a length or a rotation")
        tie_bias(context, 10, (q.axes[0], heads.queries, q.axes[1]))
        sink = context.optional(11)
        if sink is not None:
            context.unify(sink.axes[0], heads.queries)
        context.spell("num_heads", heads.queries, scalar=True)
        context.spell("kv_num_heads", heads.shared, scalar=True)
        return self._outputs(context, q, heads)

    def forward(self, context: ForwardContext) -> Call:
        """Rotate, put keys and values into the cache, and attend."""
        node = context.node
        scores = node.integer("qk_output", 0) or len(node.outputs) > _OUTPUTS
        if scores or not self._is_plain(node):
            raise UnsupportedOperatorError(f"{node.label}: the twin knows no such form")
        constants = {
            "n_heads": (node.integer("num_heads", 1), node.integer("kv_num_heads", 1)),
            "scale": node.number("scale", 0.0) or None,
            "softcap": node.number("softcap", 0.0),
            "reach": (
                max(node.integer("local_window_size", -1) - 1, -1),
                0 if node.integer("causal", 1) else -1,
            ),
            "interleaved": node.flag("rotary_interleaved", default=False),
            "smooth": bool(node.integer("smooth_softmax", 0)),
            "n_outputs": len(node.outputs),
        }
        return Call(group_query_attention, constants, context.given(*range(_QUANTISED)))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Count the two products, over all of the cache."""
        cached = past_length(inputs, 3, 2) + inputs[0][1]
        n_keys = outputs[1][2] if len(outputs) > 1 and outputs[1] else cached
        return count_products(outputs[0], outputs[0], n_keys)

    @staticmethod
    def _is_plain(node: Node) -> bool:
        """Say whether the cache holds floats, and grows."""
        others = any(node.has_input(slot) for slot in range(_QUANTISED, len(node.inputs)))
        return not (others or node.integer("sliding_window_cache", 0))

    @staticmethod
    def _heads(context: CoupleContext, q: Value, *, packed: bool) -> Heads:
        n_queries = context.node.integer("num_heads", 1)
        n_shared = context.node.integer("kv_num_heads", 1)
        size = q.shape[2] // (n_queries + 2 * n_shared if packed else n_queries)
        heads = Heads.make(context, n_queries, n_shared, size, size)
        context.freeze([heads.width], "a width that has to be a multiple of 8")
        return heads

    @staticmethod
    def _outputs(context: CoupleContext, q: Value, heads: Heads) -> list[Value]:
        batch, positions, _ = q.axes
        outputs = [Value((batch, positions, product([heads.queries, heads.width])))]
        if len(context.node.outputs) > 1:
            total = context.fixed(context.shape(1)[2], "the key positions")
            cache = Value((batch, heads.shared, total, heads.width))
            outputs += [cache, cache, Value((batch, heads.queries, positions, total))]
        return outputs[: len(context.node.outputs)]


def group_query_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cosines: Tensor | None = None,
    sines: Tensor | None = None,
    positions: Tensor | None = None,
    scores_bias: Tensor | None = None,
    sink: Tensor | None = None,
    *,
    n_heads: tuple[int, int],
    scale: float | None,
    softcap: float,
    reach: tuple[int, int],
    interleaved: bool,
    smooth: bool,
    n_outputs: int,
) -> Any:
    """Compute GroupQueryAttention of ONNX Runtime.

    Args:
        q: Shape [batch, queries, heads x width], with keys and values behind where `k` is None.
        k: Shape [batch, queries, shared heads x width].
        v: Likewise.
        past_key: Shape [batch, shared heads, positions, width].
        past_value: Likewise.
        lengths: The position of the last key of each sample, shape [batch].
        total: The largest number of keys of a sample.
        cosines: Of the rotation of queries and keys, shape [largest position, half].
        sines: Likewise.
        positions: Of the queries, shape [batch, queries]; in the first run the first of them all.
        scores_bias: Broadcast to [batch, heads, queries, keys].
        sink: The score of a key without a value, shape [heads].
        n_heads: Query heads and shared heads.
        scale: Of the scores; None for 1 / sqrt(width).
        softcap: Bound of the scores, 0 for none.
        reach: How many keys before and behind its place a query may use, -1 for all.
        interleaved: How features are paired, as in `rotate`.
        smooth: Whether there is a key without a value whose score is 0.
        n_outputs: How many of output, keys and values to return.
    """
    import torch
    from torch.nn import functional

    q, k, v = split_heads(q, k, v, n_heads)
    n_queries, ends = q.shape[2], lengths.long() + 1
    is_first = n_queries == int(total)
    step = torch.arange(n_queries, device=q.device)
    places = step + (ends - ends if is_first else ends - n_queries)[:, None]
    if cosines is not None and sines is not None:
        rows = places if positions is None else positions
        if positions is not None and is_first:
            rows = (positions.reshape(-1)[0] + step).expand_as(places)
        q, k = (rotate(x, cosines[rows], sines[rows], interleaved=interleaved) for x in (q, k))
    k, v = (put(past, x, places, int(total)) for past, x in ((past_key, k), (past_value, v)))
    allowed = allowed_keys(places, k.shape[2], before=reach[0], after=reach[1], ends=ends)
    bias = forbid(None, ~allowed, -math.inf, q)
    if scores_bias is not None:
        bias = bias + functional.pad(scores_bias, (0, k.shape[2] - scores_bias.shape[3]))
    if smooth and sink is None:
        sink = q.new_zeros(n_heads[0])
    y, _ = attend(q, k, v, bias, scale=scale, softcap=softcap, sink=sink)
    return pack(y) if n_outputs == 1 else (pack(y), k, v)[:n_outputs]


def split_heads(
    q: Tensor, k: Tensor | None, v: Tensor | None, n_heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn packed queries, keys and values, which may all be in `q`, into four axes each."""
    import torch

    n_queries, n_shared = n_heads
    if k is None or v is None:
        width = q.shape[2] // (n_queries + 2 * n_shared)
        q, k, v = torch.split(q, [width * n for n in (n_queries, n_shared, n_shared)], 2)
    return unpack(q, n_queries), unpack(k, n_shared), unpack(v, n_shared)


def put(past: Tensor | None, x: Tensor, places: Tensor, n_places: int) -> Tensor:
    """Put keys or values into a cache; what is behind them is zero.

    Args:
        past: Shape [batch, heads, positions, width].
        x: Shape [batch, heads, queries, width].
        places: Where in the cache they belong, shape [batch, queries].
        n_places: How many the cache has at least.
    """
    import torch

    size = n_places if past is None else max(n_places, past.shape[2])
    cache = x.new_zeros(*x.shape[:2], size, x.shape[3])
    if past is not None:
        old = torch.arange(past.shape[2], device=x.device) < places[:, :1]
        cache[:, :, : past.shape[2]] = past * old[:, None, :, None]
    return cache.scatter(2, places[:, None, :, None].expand_as(x), x)


RULES: tuple[Rule, ...] = (GroupQueryAttention(),)
