"""QAttention and DynamicQuantizeLSTM: whole layers on quantised weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from obc_onnx.axes import product
from obc_onnx.ops.context import Tap
from obc_onnx.ops.counterpart import WithoutTwin
from obc_onnx.ops.frozen import Frozen
from obc_onnx.ops.quantized_linear import QuantizedProduct, Slots
from obc_onnx.ops.value import Value

if TYPE_CHECKING:
    from obc_onnx.node import Node
    from obc_onnx.ops.context import CoupleContext
    from obc_onnx.ops.rule import Rule, Shape

_X, _W, _BIAS, _MASK, _PAST = range(5)
_W_SCALE, _W_ZERO = 4, 7


class _SelfAttention(WithoutTwin):
    """Attention of positions to each other; inputs x, the weights of queries, keys and values.

    A bias, a mask and the keys and values of earlier positions may follow.
    """

    op_types = ()

    def couple(self, context: CoupleContext) -> list[Value]:
        """Let heads go; their width is what scores are summed over, which nothing can mask."""
        x, w = context.value(_X), context.value(_W)
        n_heads = context.node.integer("num_heads", 1)
        width = w.axes[1].size // (3 * n_heads)
        parts, heads, inner = context.factored(w.axes[1], 3, n_heads, width)
        context.unify(x.axes[2], w.axes[0])
        context.unify(context.value(_BIAS).axes[0], w.axes[1])
        context.freeze([parts], "queries, keys and values")
        context.freeze([inner], "the width that scores are summed over")
        context.freeze([x.axes[1]], "positions that see each other")
        context.spell("num_heads", heads, scalar=True)
        mask, past = context.optional(_MASK), context.optional(_PAST)
        if mask is not None:
            context.freeze(mask.axes, "a mask")
        outputs = [Value((*x.axes[:2], product([heads, inner])))]
        if past is not None:
            context.freeze([past.axes[0], past.axes[3]], "earlier positions")
            for own, axis in zip(
                past.axes[1:], (x.axes[0], heads, past.axes[3], inner), strict=True
            ):
                context.unify(own, axis)
        if len(context.node.outputs) > 1:
            two, _, _, n_positions, _ = context.shape(1)
            kept = context.fixed(two, "keys and values")
            positions = context.fixed(n_positions, "positions")
            outputs.append(Value((kept, x.axes[0], heads, positions, inner)))
        context.reads(_W, 0, mixes=[w.axes[0]], tap=Tap("input", _X, 2))
        context.writes(_W, 1, tap=None, bias=_BIAS)
        return outputs

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Project every position; multiply it with all, for scores and for what they weigh."""
        batch, n_positions, _ = inputs[_X]
        past = inputs[_PAST][3] if inputs[_PAST] else 0
        projected = batch * n_positions * math.prod(inputs[_W])
        return projected + 2 * math.prod(outputs[0]) * (n_positions + past)


class QAttention(QuantizedProduct):
    """Attention of a quantised tensor by quantised weights.

    Inputs are x, weights, a bias, scales of x and of the weights, a mask, their zero points, and
    earlier keys and values.
    """

    op_types = ("QAttention",)
    domains = ("com.microsoft",)
    held = (3, 4)
    plain = _SelfAttention()
    slots = Slots((0, 1), (6, 7), others=(2, 5, 8))

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as attention on floats; scales of columns go with their columns."""
        outputs = super().couple(context)
        for slot in (_W_SCALE, _W_ZERO):
            value = context.optional(slot)
            if value is not None and value.axes and value.axes[0].size > 1:
                context.unify(value.axes[0], context.value(_W).axes[1])
        return outputs


class DynamicQuantizeLSTM(Frozen):
    """LSTM on quantised weights; W is [directions, input, 4 hidden], R [directions, hidden, ...].

    What x and the state are rounded to follows their range in each step.
    """

    op_types = ("DynamicQuantizeLSTM",)
    domains = ("com.microsoft",)
    why = "a state that is quantised anew in each step"

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze everything, and hand on the batch."""
        batch = context.value(_X).axes[1]
        outputs = super().couple(context)
        return [
            replace(value, axes=(*value.axes[:-2], batch, value.axes[-1])) if value.axes else value
            for value in outputs
        ]

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """At every step of every sequence, one product per element of W and of R."""
        return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


RULES: tuple[Rule, ...] = (
    DynamicQuantizeLSTM(),
    QAttention(),
)
