"""Sums, joins, pools and activations of quantised tensors, as ONNX Runtime has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.counterpart import WithoutTwin, couple_as
from obc_onnx.ops.elementwise import Binary, Unary, Where
from obc_onnx.ops.join import Concat
from obc_onnx.ops.pool import GlobalPool, WindowPool
from obc_onnx.ops.reduce import Softmax
from obc_onnx.ops.rule import FreeOfMacs, Rule

if TYPE_CHECKING:
    from obc_onnx.ops.context import CoupleContext
    from obc_onnx.ops.value import Value

_PLAIN: dict[str, tuple[Rule, tuple[int, ...]]] = {
    "NhwcMaxPool": (WindowPool(), (0,)),
    "QLinearAdd": (Binary(), (0, 3)),
    "QLinearAveragePool": (WindowPool(), (0,)),
    "QLinearGlobalAveragePool": (GlobalPool(), (0,)),
    "QLinearLeakyRelu": (Unary(), (0,)),
    "QLinearMul": (Binary(), (0, 3)),
    "QLinearSigmoid": (Unary(), (0,)),
    "QLinearWhere": (Where(), (0, 1, 4)),
}
"""What each does along axes, and where its operands are."""
_FIRST_JOINED, _PER_JOINED = 2, 3
"""QLinearConcat takes a tensor, a scale and a zero point for each part, after those of y."""


class _Map(WithoutTwin, FreeOfMacs):
    """The base: no operand is contracted, and the result is rounded."""

    domains = ("com.microsoft",)


class QuantizedMap(_Map):
    """What has a fixed number of operands."""

    op_types = tuple(_PLAIN)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as the operator on floats."""
        node = context.node
        plain, slots = _PLAIN[node.op_type]
        last = node.op_type.startswith("Nhwc") or bool(node.integer("channels_last", 0))
        return couple_as(plain, context, slots, channels_last=last)


class QLinearConcat(_Map):
    """A join of parts that each have a scale and a zero point."""

    op_types = ("QLinearConcat",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as a join of the parts."""
        slots = range(_FIRST_JOINED, len(context.node.inputs), _PER_JOINED)
        return couple_as(Concat(), context, slots)


class QLinearSoftmax(_Map):
    """Softmax of the opset that an attribute names."""

    op_types = ("QLinearSoftmax",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze what is normalised over."""
        return couple_as(Softmax(), context, (0,), opset=context.node.integer("opset", 1))


RULES: tuple[Rule, ...] = (
    QLinearConcat(),
    QLinearSoftmax(),
    QuantizedMap(),
)
