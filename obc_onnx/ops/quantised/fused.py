"""QAttention and DynamicQuantizeLSTM: whole layers on quantised weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from obc_onnx.ops.attention.contrib import ContribAttention
from obc_onnx.ops.frozen import Frozen
from obc_onnx.ops.quantised.products import QuantizedProduct, Slots
from obc_onnx.ops.quantised.requantise import as_floats

if TYPE_CHECKING:
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Call, Rule, Shape
    from obc_onnx.ops.base.value import Value

_X, _W = 0, 1
_X_SCALE, _X_ZERO = 3, 6
_W_SCALE, _W_ZERO = 4, 7


class _SelfAttention(ContribAttention):
    """Attention whose queries, keys and values are of one width."""

    names_sizes = False


class QAttention(QuantizedProduct):
    """Attention of a quantised tensor by quantised weights.

    Inputs are x, weights, a bias, scales of x and of the weights, a mask, their zero points, and
    earlier keys and values.
    """

    op_types = ("QAttention",)
    domains = ("com.microsoft",)
    held = (3, 4)
    plain = _SelfAttention()
    slots = Slots((0, 1), (6, 7), (3, 4), others=(2, 5, 8))

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as attention on floats; scales of columns go with their columns."""
        outputs = super().couple(context)
        for slot in (_W_SCALE, _W_ZERO):
            value = context.optional(slot)
            if value is not None and value.axes and value.axes[0].size > 1:
                context.unify(value.axes[0], context.value(_W).axes[1])
        return outputs

    def forward(self, context: ForwardContext) -> Call:
        """Attend in floats."""
        prepared = {
            _X: as_floats(context, _X, _X_SCALE, _X_ZERO),
            _W: as_floats(context, _W, _W_SCALE, _W_ZERO, axis=1),
        }
        return replace(super().forward(context), prepared=prepared)


class DynamicQuantizeLSTM(Frozen):
    """LSTM on quantised weights; W is [directions, input, 4 hidden], R [directions, hidden, ...].

    What x and the state are rounded to follows their range in each step.
    """

    op_types = ("DynamicQuantizeLSTM",)
    domains = ("com.microsoft",)
    why = "a state that is quantised again in each step"

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
