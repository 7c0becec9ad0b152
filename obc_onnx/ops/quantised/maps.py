"""Sums, joins, pools and activations of quantised tensors, as ONNX Runtime has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.activation import ParametricUnary
from obc_onnx.ops.base.counterpart import couple_as, forward_as
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.elementwise import Binary, Unary, Where
from obc_onnx.ops.join import Concat
from obc_onnx.ops.pool import GlobalPool, WindowPool
from obc_onnx.ops.quantised.requantise import as_floats, as_whole, refuse_channels_last
from obc_onnx.ops.reduce import Softmax

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.value import Value


@dataclass(frozen=True)
class _Plain:
    """The operator on floats that a quantised one stands for, and where its operands are."""

    rule: Rule
    op_type: str
    slots: tuple[int, ...] = (0,)
    whole: tuple[int, ...] = ()
    """Operands without scale and zero point."""


_PLAIN: dict[str, _Plain] = {
    "QLinearAdd": _Plain(Binary(), "Add", (0, 3)),
    "QLinearAveragePool": _Plain(WindowPool(), "AveragePool"),
    "QLinearGlobalAveragePool": _Plain(GlobalPool(), "GlobalAveragePool"),
    "QLinearLeakyRelu": _Plain(ParametricUnary(), "LeakyRelu"),
    "QLinearMul": _Plain(Binary(), "Mul", (0, 3)),
    "QLinearSigmoid": _Plain(Unary(), "Sigmoid"),
    "QLinearWhere": _Plain(Where(), "Where", (0, 1, 4), whole=(0,)),
}
_MAX_POOL = _Plain(WindowPool(), "MaxPool")
_FIRST_JOINED, _PER_JOINED = 2, 3
"""QLinearConcat takes a tensor, a scale and a zero point for each part, after those of y."""
_OPSET = 13
"""That whose forms ONNX Runtime gives its own operators on quantised tensors."""


class _Map(FreeOfMacs):
    """The base: no operand is contracted, and the result is rounded."""

    domains = ("com.microsoft",)

    def rounded(self, context: ForwardContext, plain: _Plain, y_scale: int) -> Call:
        """Dequantise, compute, and quantise with the scale and zero point in slots of the node."""
        call = forward_as(
            plain.rule, context, plain.slots, op_type=plain.op_type, opset=self.opset(context.node)
        )
        quantised = [slot for slot in plain.slots if slot not in plain.whole]
        return replace(
            call,
            prepared={slot: as_floats(context, slot, slot + 1, slot + 2) for slot in quantised},
            result=as_whole(context, y_scale, y_scale + 1, quantised[0]),
        )

    def opset(self, node: Node) -> int:  # noqa: ARG002
        """Return the opset of the operator on floats."""
        return _OPSET


class QuantizedMap(_Map):
    """What has a fixed number of operands."""

    op_types = tuple(_PLAIN)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as the operator on floats."""
        plain = _PLAIN[context.node.op_type]
        last = bool(context.node.integer("channels_last", 0))
        return couple_as(plain.rule, context, plain.slots, channels_last=last)

    def forward(self, context: ForwardContext) -> Call:
        """Compute the operator on floats."""
        node = context.node
        plain = _PLAIN[node.op_type]
        refuse_channels_last(node)
        if node.integer("ceil_mode", 0) and node.integer("count_include_pad", 0):
            raise UnsupportedOperatorError(
                f"{node.label}: ONNX Runtime counts places beyond the padding, where the twin has "
                f"none; without count_include_pad it could be computed"
            )
        return self.rounded(context, plain, plain.slots[-1] + 3)


class NhwcMaxPool(FreeOfMacs):
    """MaxPool of whole numbers, channels last."""

    op_types = ("NhwcMaxPool",)
    domains = ("com.microsoft",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as the operator on floats."""
        return couple_as(_MAX_POOL.rule, context, _MAX_POOL.slots, channels_last=True)

    def forward(self, context: ForwardContext) -> Call:
        """Move the channels, pool, and move them back."""
        call = forward_as(
            _MAX_POOL.rule, context, _MAX_POOL.slots, op_type=_MAX_POOL.op_type, opset=_OPSET
        )
        return replace(
            call,
            prepared={0: Call(channels_second, order=(0,))},
            result=Call(channels_behind, order=()),
        )


class QLinearConcat(_Map):
    """A join of parts that each have a scale and a zero point."""

    op_types = ("QLinearConcat",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as a join of the parts."""
        return couple_as(Concat(), context, self._parts(context.node))

    def forward(self, context: ForwardContext) -> Call:
        """Join the parts as floats."""
        return self.rounded(context, _Plain(Concat(), "Concat", self._parts(context.node)), 0)

    @staticmethod
    def _parts(node: Node) -> tuple[int, ...]:
        return tuple(range(_FIRST_JOINED, len(node.inputs), _PER_JOINED))


class QLinearSoftmax(_Map):
    """Softmax of the opset that an attribute names."""

    op_types = ("QLinearSoftmax",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze what is normalised over."""
        return couple_as(Softmax(), context, (0,), opset=self.opset(context.node))

    def forward(self, context: ForwardContext) -> Call:
        """Compute Softmax of floats."""
        return self.rounded(context, _Plain(Softmax(), "Softmax"), 3)

    def opset(self, node: Node) -> int:
        """Return what the attribute names."""
        return node.integer("opset", 1)


def channels_second(x: Tensor) -> Tensor:
    """Reorder [batch, *spatial, channels] to [batch, channels, *spatial]."""
    return x.movedim(-1, 1)


def channels_behind(x: Tensor) -> Tensor:
    """Reorder [batch, channels, *spatial] to [batch, *spatial, channels]."""
    return x.movedim(1, -1)


RULES: tuple[Rule, ...] = (
    NhwcMaxPool(),
    QLinearConcat(),
    QLinearSoftmax(),
    QuantizedMap(),
)
