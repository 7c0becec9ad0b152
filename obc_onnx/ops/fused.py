"""Contractions that ONNX Runtime's optimizer fuses with what is around them.

An activation behind a convolution or a product hides what the weights make. It can still be scored
where the activation is homogeneous, so that y . dL/dy is that of its input: at Relu and LeakyRelu.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.activation import (
    celu,
    clip,
    elu,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    selu,
    thresholded_relu,
)
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.conv import Conv, conv
from obc_onnx.ops.linear import Gemm, MatMul, gemm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext, Role
    from obc_onnx.ops.base.rule import Shape

_HOMOGENEOUS = ("", "Relu", "LeakyRelu")
_PLAIN = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Softplus": "softplus", "Softsign": "softsign",
    "Tanh": "tanh",
}  # fmt: skip
_PARAMETRIC: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "Celu": (celu, ("alpha",)),
    "Clip": (clip, ("low", "high")),
    "Elu": (elu, ("alpha",)),
    "HardSigmoid": (hard_sigmoid, ("alpha", "beta")),
    "HardSwish": (hard_swish, ()),
    "LeakyRelu": (leaky_relu, ("alpha",)),
    "Selu": (selu, ("alpha", "gamma")),
    "ThresholdedRelu": (thresholded_relu, ("alpha",)),
}
"""Functions, and what their parameters are called in the order in which nodes have them."""
_ADDEND = 3
"""The slot of what FusedConv adds in front of the activation."""


class FusedConv(Conv):
    """act(Conv(X, W, B) + Z)."""

    op_types = ("FusedConv",)
    domains = ("com.microsoft",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as Conv does, and tie Z to the output."""
        seen = replace(context, roles=[])
        (y,) = super().couple(seen)
        z = context.optional(_ADDEND)
        context.roles.extend(_behind(seen, hidden=z is not None))
        if z is not None:
            for own, other in zip(y.axes, z.axes, strict=True):
                context.unify(own, other)
        return [y]

    def is_linear(self, node: Node) -> bool:  # noqa: ARG002
        """Say no: the output is that of an activation."""
        return False

    def halves(self, node: Node, slot: int, shape: Shape) -> None:
        """Say that there are none: the first would be activated."""

    def forward(self, context: ForwardContext) -> Call:
        """Convolve, add, and activate."""
        node = context.node
        numbers = tuple(map(float, node.attributes.get("activation_params", ())))
        constants = {**super().forward(context).constants, "activation": _activation(node, numbers)}
        return Call(fused_conv, constants, context.given(0, 1, 2, _ADDEND))


class FusedGemm(Gemm):
    """act(alpha A' B' + beta C)."""

    op_types = ("FusedGemm",)
    domains = ("com.microsoft",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as Gemm does."""
        seen = replace(context, roles=[])
        outputs = super().couple(seen)
        context.roles.extend(_behind(seen, hidden=False))
        return outputs

    def is_linear(self, node: Node) -> bool:  # noqa: ARG002
        """Say no: the output is that of an activation."""
        return False

    def halves(self, node: Node, slot: int, shape: Shape) -> None:
        """Say that there are none: the first would be activated."""

    def forward(self, context: ForwardContext) -> Call:
        """Multiply, add, and activate."""
        node = context.node
        call = super().forward(context)
        names = ("activation_alpha", "activation_beta", "activation_gamma")
        numbers = tuple(node.number(name, 0.0) for name in names if name in node.attributes)
        constants = {**call.constants, "activation": _activation(node, numbers)}
        return Call(fused_gemm, constants, call.inputs)


class FusedMatMul(MatMul):
    """alpha A' B', where the operands may be transposed.

    Transposing the last two axes comes with transA; with transBatchA the first axis goes behind the
    other batch axes, in front of the last.
    """

    op_types = ("FusedMatMul",)
    domains = ("com.microsoft",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple the transposed operands as MatMul does."""
        node = context.node
        operands = [context.value(slot) for slot in (0, 1)]
        orders = [_order(node, slot, len(value.axes)) for slot, value in enumerate(operands)]
        transposed = [
            Value(tuple(value.axes[axis] for axis in order), None, value.constant)
            for value, order in zip(operands, orders, strict=True)
        ]
        seen = replace(context, inputs=tuple(transposed), roles=[])
        outputs = super().couple(seen)
        for role in seen.roles:
            tap = role.tap
            if tap is not None and tap.at == "input":
                tap = replace(tap, axis=orders[tap.slot][tap.axis])
            context.roles.append(replace(role, axis=orders[role.slot][role.axis], tap=tap))
        return outputs

    def halves(self, node: Node, slot: int, shape: Shape) -> None:
        """Say that there are none: batch axes may be turned."""

    def forward(self, context: ForwardContext) -> Call:
        """Transpose, and multiply."""
        node = context.node
        orders = tuple(_order(node, slot, context.rank(slot)) for slot in (0, 1))
        return Call(fused_matmul, {"orders": orders, "alpha": node.number("alpha", 1.0)}, (0, 1))

    def is_linear(self, node: Node) -> bool:
        """Say whether nothing is scaled."""
        return node.number("alpha", 1.0) == 1.0

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:
        """Count those of the transposed operands."""
        transposed = [
            tuple(shape[axis] for axis in _order(node, slot, len(shape)))
            for slot, shape in enumerate(inputs)
        ]
        return super().macs(node, transposed, outputs)


class TransposeMatMul(FusedMatMul):
    """What FusedMatMul was called before it could transpose batch axes."""

    op_types = ("TransposeMatMul",)


def _behind(seen: CoupleContext, *, hidden: bool) -> list[Role]:
    """Return what was recorded, without taps on the output where that shows something else."""
    if not hidden and seen.node.text("activation", "") in _HOMOGENEOUS:
        return seen.roles
    return [
        replace(role, tap=None) if role.tap is not None and role.tap.at == "output" else role
        for role in seen.roles
    ]


def _order(node: Node, slot: int, rank: int) -> tuple[int, ...]:
    """Return the axes of an operand in the order in which it is multiplied."""
    order = list(range(rank))
    name = "AB"[slot]
    if rank > 1 and node.integer(f"transBatch{name}", 0):
        order = [*order[1:-1], 0, order[-1]]
    if rank > 1 and node.integer(f"trans{name}", 0):
        order = [*order[:-2], order[-1], order[-2]]
    return tuple(order)


def _activation(node: Node, numbers: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    name = node.text("activation", "")
    if name and name not in _PLAIN and name not in _PARAMETRIC:
        raise UnsupportedOperatorError(f"{node.label}: the twin knows no activation '{name}'")
    return name, numbers


def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: tuple[str, tuple[float, ...]],
    **geometry: Any,
) -> Tensor:
    """Compute FusedConv of ONNX Runtime; `geometry` is that of `conv`."""
    y = conv(x, w, b, **geometry)
    return activate(y if z is None else y + z, *activation)


def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: tuple[str, tuple[float, ...]],
    **options: Any,
) -> Tensor:
    """Compute FusedGemm of ONNX Runtime; `options` are those of `gemm`."""
    return activate(gemm(a, b, c, **options), *activation)


def activate(x: Tensor, name: str, numbers: tuple[float, ...]) -> Tensor:
    """Compute an activation that is named as its operator.

    Args:
        x: Any tensor.
        name: The operator; "" for none.
        numbers: Its parameters, in their order.
    """
    from torch.nn import functional

    if not name:
        return x
    if name in _PLAIN:
        y: Tensor = getattr(functional, _PLAIN[name])(x)
        return y
    function, names = _PARAMETRIC[name]
    return function(x, **dict(zip(names, numbers, strict=True)))


def fused_matmul(
    a: Tensor, b: Tensor, *, orders: tuple[tuple[int, ...], tuple[int, ...]], alpha: float
) -> Tensor:
    """Compute FusedMatMul of ONNX Runtime.

    Args:
        a: The left operand.
        b: The right operand.
        orders: The axes of each in the order in which they are multiplied.
        alpha: Of the product.
    """
    import torch

    y = torch.matmul(a.permute(orders[0]), b.permute(orders[1]))
    return y if alpha == 1.0 else alpha * y


RULES: tuple[Rule, ...] = (
    FusedConv(),
    FusedGemm(),
    FusedMatMul(),
    TransposeMatMul(),
)
