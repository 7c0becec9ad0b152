"""Gemm and MatMul."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from obc_onnx.ops.broadcast import broadcast_axes
from obc_onnx.ops.context import Tap
from obc_onnx.ops.rule import Call, Rule
from obc_onnx.ops.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes import Expr
    from obc_onnx.node import Node
    from obc_onnx.ops.context import CoupleContext, ForwardContext
    from obc_onnx.ops.rule import Shape


_MATRIX_RANK = 2
_ADDEND = 2
"""The slot of what Gemm adds, which may be anything but a bias."""


class Gemm(Rule):
    """Y = alpha A' B' + beta C, with A and B transposed as the node says."""

    op_types = ("Gemm",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the contracted axes of A and B, and C to the output by broadcasting."""
        a, b = context.value(0), context.value(1)
        contracted_a = 0 if context.node.integer("transA", 0) else 1
        contracted_b = 1 if context.node.integer("transB", 0) else 0
        context.unify(a.axes[contracted_a], b.axes[contracted_b])
        axes: tuple[Expr, ...] = (a.axes[1 - contracted_a], b.axes[1 - contracted_b])
        c = context.optional(2)
        bias = None
        if c is not None:
            axes = broadcast_axes(context, [axes, c.axes])
            bias = 2 if c.constant and c.shape[-1:] == (axes[1].size,) else None
        _couple_product(context, (a, b), (contracted_a, contracted_b), bias)
        return [Value(axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.addmm in the general case and functional.linear in the usual one."""
        node = context.node
        constants = {
            "alpha": node.number("alpha", 1.0),
            "beta": node.number("beta", 1.0),
            "trans_a": bool(node.integer("transA", 0)),
            "trans_b": bool(node.integer("transB", 0)),
        }
        return Call(gemm, constants, context.given(0, 1, 2))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:
        """Every output element takes one product per contracted position."""
        return math.prod(outputs[0]) * inputs[0][0 if node.integer("transA", 0) else 1]


class MatMul(Rule):
    """Matrix product with broadcast batch axes, as numpy.matmul."""

    op_types = ("MatMul",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the contracted axes, and the batch axes by broadcasting."""
        a, b = context.value(0), context.value(1)
        contracted_a = len(a.axes) - 1
        contracted_b = max(len(b.axes) - 2, 0)
        context.unify(a.axes[contracted_a], b.axes[contracted_b])
        batch = broadcast_axes(context, [a.axes[:-2], b.axes[:-2]])
        rows = (a.axes[-2],) if len(a.axes) > 1 else ()
        columns = (b.axes[-1],) if len(b.axes) > 1 else ()
        _couple_product(context, (a, b), (contracted_a, contracted_b), None)
        return [Value((*batch, *rows, *columns))]

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Run torch.matmul."""
        import torch

        return Call(torch.matmul, inputs=(0, 1))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every output element takes one product per contracted position."""
        return math.prod(outputs[0]) * inputs[0][-1]


def _couple_product(
    context: CoupleContext,
    operands: tuple[Value, Value],
    contracted: tuple[int, int],
    bias: int | None,
) -> None:
    """Record the roles of a product of two operands, of which either may hold weights.

    A weight's written axis is the last output axis for the right operand, the one before for the
    left. Weights with batch axes are sliced but never recombined.
    """
    n_out = len(context.shape())
    weights = [
        slot for slot in (0, 1) if operands[slot].constant and not operands[1 - slot].constant
    ]
    if not weights:
        context.reads(0, contracted[0])
        return
    slot = weights[0]
    weight, through = operands[slot], contracted[1 - slot]
    dense = len(weight.axes) == _MATRIX_RANK
    read = contracted[slot]
    mixes: list[Expr] = [weight.axes[read]] if dense else []
    context.reads(slot, read, mixes=mixes, tap=Tap("input", 1 - slot, through))
    if len(weight.axes) > 1:
        written = next(a for a in (len(weight.axes) - 1, len(weight.axes) - 2) if a != read)
        two_sided = len(operands[1 - slot].axes) > 1
        out_axis = n_out - 2 if slot == 0 and two_sided else n_out - 1
        mixes = [weight.axes[written]] if dense else []
        along = bias if out_axis == n_out - 1 else None  # a bias lies along the last axis
        mixed = along is None and context.node.has_input(_ADDEND)
        tap = None if mixed else Tap("output", 0, out_axis)
        context.writes(slot, written, tap=tap, mixes=mixes, bias=along)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    trans_a: bool,
    trans_b: bool,
) -> Tensor:
    """Compute Gemm. Source: the ONNX operator page of Gemm."""
    from torch.nn import functional

    if trans_b and not trans_a and alpha == 1.0 and beta == 1.0 and (c is None or c.ndim == 1):
        return functional.linear(a, b, c)
    y = (a.T if trans_a else a) @ (b.T if trans_b else b)
    y = y if alpha == 1.0 else alpha * y
    return y if c is None else y + (c if beta == 1.0 else beta * c)


RULES: tuple[Rule, ...] = (
    Gemm(),
    MatMul(),
)
