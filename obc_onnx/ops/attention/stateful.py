"""Operators that hand a state from one run to the next: caches, convolutions and recurrences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.axes.expressions import product
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.attention.attend import default_scale, pack, unpack
from obc_onnx.ops.attention.standard import OTHER_FORM, Heads, pin_scale, tie_batch, tie_heads
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_EVERYWHERE = ("", "com.microsoft")


class TensorScatter(FreeOfMacs):
    """Write consecutive positions of a cache: past cache, update, first positions."""

    op_types = ("TensorScatter",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie all axes but that of the positions."""
        cache, update = context.value(0), context.value(1)
        at = context.node.integer("axis", -2) % len(cache.axes)
        context.freeze([cache.axes[at], update.axes[at]], "the positions")
        tie_batch(context, [cache, context.optional(2)])
        for axis, (own, other) in enumerate(zip(cache.axes, update.axes, strict=True)):
            if axis != at:
                context.unify(own, other)
        return [Value(cache.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Put the update into a copy of the cache."""
        node = context.node
        constants = {
            "axis": node.integer("axis", -2),
            "circular": node.text("mode", "linear") == "circular",
        }
        return Call(tensor_scatter, constants, context.given(0, 1, 2))


class CausalConvWithState(Rule):
    """Depthwise convolution of what came before: X, W, B, past state."""

    op_types = ("CausalConvWithState",)
    ranks: ClassVar = {2: 1}
    domains = _EVERYWHERE

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the channels of input, weights, bias and state."""
        if not self._is_plain(context.node):
            return OTHER_FORM.couple(context)
        x, w = context.value(0), context.value(1)
        bias, past = context.optional(2), context.optional(3)
        batch, channels, positions = x.axes
        context.unify(channels, w.axes[0])
        context.freeze([positions, *w.axes[1:]], "the positions")
        if bias is not None:
            context.unify(channels, bias.axes[0])
        if past is not None:
            context.unify(batch, past.axes[0])
            context.unify(channels, past.axes[1])
            context.freeze(past.axes[2:], "the positions")
        is_shown = context.node.text("activation", "none") == "none"
        tap = Tap("output", 0, 1) if is_shown else None
        context.writes(1, 0, tap=tap, bias=None if bias is None else 2)
        state = context.fixed(context.shape(1)[2], "the positions")
        return [Value(x.axes), Value((batch, channels, state))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's convolution behind the state."""
        node = context.node
        if not self._is_plain(node):
            raise UnsupportedOperatorError(f"{node.label}: the twin knows no such form")
        constants = {
            "silu": node.text("activation", "none") != "none",
            "dilation": node.integer("dilation", 1),
        }
        return Call(causal_conv_with_state, constants, context.given(0, 1, 2, 3))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every output element takes one product per element of its filter."""
        return math.prod(outputs[0]) * inputs[1][2]

    @staticmethod
    def _is_plain(node: Node) -> bool:
        """Say whether there is one axis of positions, behind that of the channels."""
        others = node.integer("channels_last", 0) or node.integer("state_window", 0)
        return not others and node.integer("ndim", 1) == 1


class LinearAttention(Rule):
    """Attention as a recurrence: query, key, value, past state, decay, rate of the update.

    Each head of keys and values has a state S of [width, value width], which a query reads as q' S.
    It takes up k v', or with the delta rule k times what S' k lacks of v. So queries and keys
    contract the width.
    """

    op_types = ("LinearAttention",)
    domains = _EVERYWHERE

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie heads and widths of queries, keys, values, states, decays and rates."""
        if not self._is_plain(context.node):
            return OTHER_FORM.couple(context)
        q, k, v = (context.value(slot) for slot in range(3))
        past, decay, rate = (context.optional(slot) for slot in (3, 4, 5))
        n_queries, n_shared = self._n_heads(context.node)
        widths = (q.shape[2] // n_queries, v.shape[2] // n_shared)
        heads = Heads.make(context, n_queries, n_shared, *widths)
        state = (heads.shared, heads.width, heads.value_width)
        tie_batch(context, [q, k, v, past, decay, rate])
        tie_heads(context, q, heads.queries, heads.width)
        tie_heads(context, k, heads.shared, heads.width)
        tie_heads(context, v, heads.shared, heads.value_width)
        for own, axis in zip(state, () if past is None else past.axes[1:], strict=False):
            context.unify(own, axis)
        if decay is not None:
            context.unify(decay.axes[2], _decaying(heads, decay.shape[2]))
        if rate is not None and rate.shape[2] > 1:
            context.unify(rate.axes[2], heads.shared)
        in_order = [value.axes[1] for value in (q, k, v, decay, rate) if value is not None]
        context.freeze(in_order, "the positions")
        context.reads(0, 2)
        context.reads(1, 2)
        pin_scale(context, heads.width)
        context.spell("q_num_heads", heads.queries, scalar=True)
        context.spell("kv_num_heads", heads.shared, scalar=True)
        y = (*q.axes[:2], product([heads.queries, heads.value_width]))
        return [Value(y), Value((q.axes[0], *state))]

    def forward(self, context: ForwardContext) -> Call:
        """Take one position after the other."""
        node = context.node
        if not self._is_plain(node):
            raise UnsupportedOperatorError(f"{node.label}: the twin knows no such form")
        constants = {
            "n_heads": self._n_heads(node),
            "scale": node.number("scale", 0.0) or None,
            "delta": self._corrects(node),
        }
        return Call(linear_attention, constants, context.given(*range(6)))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:
        """Count reading and taking up at every position, and comparing for the delta rule."""
        by_keys = 2 if self._corrects(node) else 1
        return (math.prod(inputs[0]) + by_keys * math.prod(inputs[1])) * outputs[1][3]

    @staticmethod
    def _is_plain(node: Node) -> bool:
        """Say whether heads are shared by queries, if at all, and only the last state is kept."""
        n_queries, n_shared = LinearAttention._n_heads(node)
        return n_queries % n_shared == 0 and not node.integer("state_window", 0)

    @staticmethod
    def _n_heads(node: Node) -> tuple[int, int]:
        return node.integer("q_num_heads", 1), node.integer("kv_num_heads", 1)

    @staticmethod
    def _corrects(node: Node) -> bool:
        return "delta" in node.text("update_rule", "gated_delta")


def _decaying(heads: Heads, size: int) -> Expr:
    """Return the axis of decays: one for each head, or for each feature of its keys."""
    per_head = size == heads.shared.size
    return heads.shared if per_head else product([heads.shared, heads.width])


def tensor_scatter(
    cache: Tensor,
    update: Tensor,
    starts: Tensor | None = None,
    *,
    axis: int,
    circular: bool,
) -> Tensor:
    """Compute TensorScatter. Source: the ONNX operator page of TensorScatter.

    Args:
        cache: Shape [batch, ..., places, ...], with the places along `axis`.
        update: The same with fewer places.
        starts: Where the update begins in each sample, shape [batch]; 0 where it is left out.
        axis: Of the places.
        circular: Whether what would lie behind the last place comes first.
    """
    import torch

    place = torch.arange(update.shape[axis], device=cache.device)
    places = place.expand(len(cache), -1) if starts is None else starts[:, None] + place
    if circular:
        places = places % cache.shape[axis]
    sample = torch.arange(len(cache), device=cache.device)[:, None]
    written = cache.movedim(axis, 1).index_put((sample, places), update.movedim(axis, 1))
    return written.movedim(1, axis)


def causal_conv_with_state(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    *,
    silu: bool,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """Compute CausalConvWithState. Source: the ONNX operator page of CausalConvWithState.

    Args:
        x: Shape [batch, channels, positions].
        w: Shape [channels, 1, taps].
        bias: Shape [channels].
        past: What came before, shape [batch, channels, (taps - 1) x dilation]; zeros if left out.
        silu: Whether x times its sigmoid follows.
        dilation: Distance of taps.
    Returns:
        The output, and the end of the input, which is the next `past`.
    """
    import torch
    from torch.nn import functional

    n_past = (w.shape[2] - 1) * dilation
    if past is None:
        past = x.new_zeros(*x.shape[:2], n_past)
    joined = torch.cat([past, x], 2)
    y = functional.conv1d(joined, w, bias, dilation=dilation, groups=w.shape[0])
    return functional.silu(y) if silu else y, joined[:, :, joined.shape[2] - n_past :]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    rate: Tensor | None = None,
    *,
    n_heads: tuple[int, int],
    scale: float | None,
    delta: bool,
) -> tuple[Tensor, Tensor]:
    """Compute LinearAttention. Source: the ONNX operator page of LinearAttention.

    Args:
        q: Shape [batch, positions, heads x width].
        k: Shape [batch, positions, shared heads x width].
        v: Shape [batch, positions, shared heads x value width].
        past: The state, shape [batch, shared heads, width, value width]; zeros if left out.
        decay: Logarithms, shape [batch, positions, shared heads] or [..., shared heads x width].
        rate: Of the update, shape [batch, positions, shared heads] or [batch, positions, 1].
        n_heads: Heads and shared heads.
        scale: Of the output; None for 1 / sqrt(width).
        delta: Whether the state takes up what it lacks of the values.
    Returns:
        The output, shape [batch, positions, heads x value width], and the last state.
    """
    import torch

    q, k, v = unpack(q, n_heads[0]), unpack(k, n_heads[1]), unpack(v, n_heads[1])
    state = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]) if past is None else past
    kept = None if decay is None else unpack(decay, n_heads[1]).exp()[..., None]
    rates = None if rate is None else unpack(rate, rate.shape[2])[..., None]
    scale = default_scale(q.shape[3]) if scale is None else scale
    outputs = []
    for t in range(q.shape[2]):
        key, value = k[:, :, t, :, None], v[:, :, t, None, :]
        if kept is not None:
            state = state * kept[:, :, t]
        if delta and rates is not None:
            value = rates[:, :, t] * (value - torch.matmul(key.transpose(-1, -2), state))
        state = state + torch.matmul(key, value)
        read = state.repeat_interleave(n_heads[0] // n_heads[1], 1)
        outputs.append(torch.matmul(scale * q[:, :, t, None, :], read))
    return pack(torch.cat(outputs, 2)), state


RULES: tuple[Rule, ...] = (
    CausalConvWithState(),
    LinearAttention(),
    TensorScatter(),
)
