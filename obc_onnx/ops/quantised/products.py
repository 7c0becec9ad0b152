"""Convolutions and products of quantised operands.

Each is coupled as its plain counterpart. What a removed unit is read by is masked with stored
zeros, which stand for the real number 0 only where the zero point is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.axes.expressions import leaves
from obc_onnx.ops.base.broadcast import broadcast_axes
from obc_onnx.ops.base.counterpart import couple_as, forward_as
from obc_onnx.ops.base.rule import Call, Quantisation, Rule
from obc_onnx.ops.conv import Conv
from obc_onnx.ops.linear import Gemm, MatMul
from obc_onnx.ops.quantised.linear import dynamic_quantize
from obc_onnx.ops.quantised.requantise import (
    above_zero,
    centred,
    refuse_channels_last,
    rescaled,
    scaled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext, Role
    from obc_onnx.ops.base.rule import Shape
    from obc_onnx.ops.base.value import Value

_MULTIPLIES_BYTES_SINCE = 14
"""The opset from which on Mul, which masks what is computed, takes integers of 8 bits."""


@dataclass(frozen=True)
class Slots:
    """Where a product has what.

    Attributes:
        factors: The two operands that are contracted.
        zeros: The zero point of each; None for a factor that is not quantised.
        scales: The scale of each; None where a later node has it.
        beside: For each scale and zero point that may hold one number per channel, the axis of the
            output along which they lie.
        others: What else the plain operator takes, from its slot 2 on.
        whole: Which of the others holds whole numbers.
        addend: What is added only here.
    """

    factors: tuple[int, int]
    zeros: tuple[int | None, int]
    scales: tuple[int | None, int | None]
    beside: Mapping[int, int] = field(default_factory=dict)
    others: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    addend: int | None = None


class QuantizedProduct(Rule):
    """A contraction of two factors, with scales and zero points beside them."""

    plain: ClassVar[Rule]
    """The rule of the same contraction of floats."""
    slots: ClassVar[Slots]
    zero_axes: ClassVar[tuple[int, int]] = (-2, -1)
    """Along which axis of each factor its zero points lie."""
    shows_products: ClassVar[bool] = True
    """Whether what the twin multiplies lies above the zero points, so that taps see it."""

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as the plain operator; freeze what is read where no mask stands for removal."""
        slots, n_before = self.slots, len(context.roles)
        channels_last = bool(context.node.integer("channels_last", 0))
        outputs = couple_as(
            self.plain, context, slots.factors + slots.others, channels_last=channels_last
        )
        y = outputs[0]
        added = context.optional(slots.addend) if slots.addend is not None else None
        if added is not None:
            context.unify(added.axes[-1], y.axes[-1])
        for slot, axis in slots.beside.items():
            _couple_beside(context, slot, y, -1 if channels_last else axis)
        roles = context.roles[n_before:]
        del context.roles[n_before:]
        for role in roles:
            if role.kind == "reads":
                self._couple_read(context, role)
            else:
                self._couple_written(context, role)
        return outputs

    def forward(self, context: ForwardContext) -> Call:
        """Compute the plain operator on what lies above the zero points."""
        slots = self.slots
        operands = zip(slots.factors, slots.zeros, self.axes_of_zeros(context.node), strict=True)
        prepared = {
            slot: above_zero(context, slot, zero, axis)
            for slot, zero, axis in operands
            if zero is not None
        } | {slot: above_zero(context, slot) for slot in context.given(*slots.whole)}
        call = forward_as(self.plain, context, slots.factors + slots.others)
        return replace(call, prepared=prepared)

    def quantisation(self, node: Node, slot: int) -> Quantisation | None:
        """Say where scale and zero point of a factor are."""
        slots = self.slots
        if slot not in slots.factors:
            return None
        which = slots.factors.index(slot)
        axis = self.axes_of_zeros(node)[which]
        return Quantisation(slots.scales[which], slots.zeros[which], axis)

    def axes_of_zeros(self, node: Node) -> tuple[int, int]:  # noqa: ARG002
        """Say along which axis of each factor its scales and zero points lie."""
        return self.zero_axes

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:
        """Count as the plain operator does."""
        operands = self.slots.factors + self.slots.others
        own = [inputs[slot] if slot < len(inputs) else () for slot in operands]
        return self.plain.macs(node, own, outputs)

    def _couple_read(self, context: CoupleContext, role: Role) -> None:
        """Record where the contracted axis can be masked: in either factor, or nowhere.

        Where it cannot, it stays; but for one that is inexact anyway, which no mask stands for.
        """
        data = role.tap
        if not self._masks(context, role.slot):
            axis = context.system.resolve(context.value(role.slot).axes[role.axis])
            if data is not None and self._masks(context, data.slot):
                context.reads(data.slot, data.axis)
            elif all(context.system.inexact(dim) is not None for dim in leaves(axis)):
                return
            else:
                stored = context.arrays[role.slot] is not None
                what = "weights whose zero point is" if stored else "operands whose zero points are"
                context.freeze([axis], f"{what} not 0")
        zero = None if data is None else self._zero(data.slot)
        shown = self.shows_products or (zero is not None and _is_zero(context, zero))
        context.roles.append(role if shown else replace(role, tap=None))

    def _couple_written(self, context: CoupleContext, role: Role) -> None:
        """Record what makes channels; the output shows it together with what is added to it."""
        slot = self.slots.addend
        if slot is not None and context.node.has_input(slot):
            lies = role.slot == self.slots.factors[1] and context.value(slot).constant
            role = replace(role, bias=slot) if lies else replace(role, tap=None)
        context.roles.append(role)

    def _zero(self, slot: int) -> int | None:
        """Return where the zero point of an operand is; what is not contracted has none."""
        slots = self.slots
        return dict(zip(slots.factors, slots.zeros, strict=True)).get(slot)

    def _masks(self, context: CoupleContext, factor: int) -> bool:
        """Say whether zeros in place of some of a factor are what removal leaves of it."""
        zero, node = self._zero(factor), context.node
        if zero is None:
            return True
        computed = context.arrays[factor] is None
        if computed and (node.domain or node.opset < _MULTIPLIES_BYTES_SINCE):
            return False
        return _is_zero(context, zero)


class QLinearConv(QuantizedProduct):
    """Convolution of x by w; inputs x, its scale and zero point, w's, y's, and a bias."""

    op_types = ("QLinearConv",)
    ranks: ClassVar = {8: 1}
    domains = ("", "com.microsoft")
    held = (1, 4, 6)
    plain = Conv()
    slots = Slots((0, 3), (2, 5), (1, 4), {4: 1, 5: 1}, others=(8,), whole=(8,))
    zero_axes = (0, 0)

    def forward(self, context: ForwardContext) -> Call:
        """Convolve, and round."""
        refuse_channels_last(context.node)
        return replace(super().forward(context), result=_rounded(context, 6, (1, 1)))


class ConvInteger(QuantizedProduct):
    """Convolution of x by w in int32; inputs x, w, and their zero points."""

    op_types = ("ConvInteger",)
    plain = Conv()
    slots = Slots((0, 1), (2, 3), (None, None), {3: 1})
    zero_axes = (0, 0)


class QLinearMatMul(QuantizedProduct):
    """Matrix product; inputs a, its scale and zero point, b's, and y's."""

    op_types = ("QLinearMatMul",)
    held = (1, 4, 6)
    plain = MatMul()
    slots = Slots((0, 3), (2, 5), (1, 4), {1: -2, 2: -2, 4: -1, 5: -1})

    def forward(self, context: ForwardContext) -> Call:
        """Multiply, and round."""
        return replace(super().forward(context), result=_rounded(context, 6, (-2, -1)))


class MatMulInteger(QuantizedProduct):
    """Matrix product in int32; inputs a, b, and their zero points."""

    op_types = ("MatMulInteger",)
    plain = MatMul()
    slots = Slots((0, 1), (2, 3), (None, None), {2: -2, 3: -1})


class QGemm(QuantizedProduct):
    """Gemm; inputs a, its scale and zero point, b's, c in int32, and y's, or floats as output."""

    op_types = ("QGemm",)
    domains = ("com.microsoft",)
    held = (1, 4, 7)
    plain = Gemm()
    slots = Slots((0, 3), (2, 5), (1, 4), {4: -1, 5: -1}, others=(6,), whole=(6,))

    def axes_of_zeros(self, node: Node) -> tuple[int, int]:
        """Follow the columns of the second factor, which may be transposed."""
        return self.zero_axes[0], 0 if node.integer("transB", 0) else -1

    def forward(self, context: ForwardContext) -> Call:
        """Multiply and add in whole numbers; alpha belongs to the scale."""
        call, node = super().forward(context), context.node
        constants = {**call.constants, "alpha": 1.0, "beta": 1.0}
        factor = node.number("alpha", 1.0)
        if node.has_input(7):
            result = _rounded(context, 7, (-2, -1), factor)
        else:
            result = Call(scaled, {"axes": (-2, -1), "factor": factor}, order=(1, 4))
        return replace(call, constants=constants, result=result)


class MatMulIntegerToFloat(QuantizedProduct):
    """Matrix product in floats; inputs a, b, their scales, their zero points, and a bias."""

    op_types = ("MatMulIntegerToFloat",)
    domains = ("com.microsoft",)
    held = (2, 3)
    plain = MatMul()
    slots = Slots((0, 1), (4, 5), (2, 3), {2: -2, 3: -1, 4: -2, 5: -1}, addend=6)
    shows_products = False

    def forward(self, context: ForwardContext) -> Call:
        """Multiply what lies above the zero points, and scale."""
        return Call(matmul_to_float, inputs=context.given(0, 1, 2, 3, 4, 5, 6))


class DynamicQuantizeMatMul(QuantizedProduct):
    """Matrix product of floats, quantised as it runs, and b; inputs a, b, b's scale and zero point.

    A bias may follow.
    """

    op_types = ("DynamicQuantizeMatMul",)
    domains = ("com.microsoft",)
    held = (2,)
    plain = MatMul()
    slots = Slots((0, 1), (None, 3), (None, 2), {2: -1, 3: -1}, addend=4)
    shows_products = False

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as a product; without a position the range of a may be another one."""
        context.mark_inexact(context.value(0).axes, "range")
        return super().couple(context)

    def forward(self, context: ForwardContext) -> Call:
        """Quantise a, multiply what lies above the zero points, and scale."""
        return Call(dynamic_quantize_matmul, inputs=context.given(0, 1, 2, 3, 4))


def _couple_beside(context: CoupleContext, slot: int, y: Value, axis: int) -> None:
    """Tie scales or zero points to what they lie along; a single number lies along nothing."""
    parameter = context.optional(slot)
    if parameter is None or all(expr.size == 1 for expr in parameter.axes):
        return
    if len(parameter.axes) == 1:
        context.unify(parameter.axes[0], y.axes[axis])
    else:
        broadcast_axes(context, [y.axes, parameter.axes])


def _is_zero(context: CoupleContext, slot: int) -> bool:
    """Say whether a zero point is known to be 0; so is one that is left out."""
    if not context.node.has_input(slot):
        return True
    array = context.arrays[slot]
    return array is not None and not array.any()


def _rounded(
    context: ForwardContext, y_scale: int, axes: tuple[int, int], factor: float = 1.0
) -> Call:
    """Round the sum of products to the scale and zero point of the output."""
    constants = {"axes": axes, "factor": factor, "data_type": context.data_type(y_scale + 1)}
    return Call(rescaled, constants, order=(1, 4, y_scale, y_scale + 1))


def matmul_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute MatMulIntegerToFloat of ONNX Runtime."""
    product = centred(a, a_zero, axis=-2) @ centred(b, b_zero, axis=-1)
    y = scaled(product, a_scale, b_scale, axes=(-2, -1), factor=1.0)
    return y if bias is None else y + bias


def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute DynamicQuantizeMatMul of ONNX Runtime."""
    whole, a_scale, a_zero = dynamic_quantize(a)
    return matmul_to_float(whole, b, a_scale, b_scale, a_zero, b_zero, bias)


RULES: tuple[Rule, ...] = (
    ConvInteger(),
    DynamicQuantizeMatMul(),
    MatMulInteger(),
    MatMulIntegerToFloat(),
    QGemm(),
    QLinearConv(),
    QLinearMatMul(),
)
