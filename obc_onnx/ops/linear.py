"""Gemm and MatMul."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.ops.base.broadcast import broadcast_axes
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

    Halves = tuple[Mapping[str, Any], Mapping[str, Any]]
    Letter = str | int

_BIAS_OPTIONAL = 11
"""The opset since which Gemm may lack its bias."""
_MATRIX = 2


class Gemm(Rule):
    """Y = alpha A' B' + beta C, with A and B transposed as the node says."""

    op_types = ("Gemm",)
    ranks: ClassVar = {0: 2, 1: 2}
    bias_slot = 2

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the contracted axes of A and B, and C to the output by broadcasting."""
        node, c = context.node, context.optional(2)
        left = ("sum", "row") if node.integer("transA", 0) else ("row", "sum")
        right = ("column", "sum") if node.integer("transB", 0) else ("sum", "column")
        is_bias = c is not None and c.constant and c.shape[-1:] == context.shape()[-1:]
        bias = self.bias_slot if is_bias else None
        axes = couple_product(context, (left, right), ("row", "column"), bias, adds=c is not None)
        return [Value(axes if c is None else broadcast_axes(context, [axes, c.axes]))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.addmm in the general case and functional.linear in the usual one."""
        node = context.node
        operands = context.given(0, 1, 2) if node.number("beta", 1.0) else (0, 1)
        constants = {
            "alpha": node.number("alpha", 1.0),
            "beta": node.number("beta", 1.0),
            "trans_a": bool(node.integer("transA", 0)),
            "trans_b": bool(node.integer("transB", 0)),
        }
        return Call(gemm, constants, operands)

    def is_linear(self, node: Node) -> bool:
        """Say whether nothing is scaled."""
        return not self.is_scaled(node)

    def is_scaled(self, node: Node) -> bool:
        """Say whether alpha or beta does anything."""
        return not node.number("alpha", 1.0) == node.number("beta", 1.0) == 1.0

    def halves(self, node: Node, slot: int, shape: Shape) -> Halves | None:  # noqa: ARG002
        """Let the first turn what enters, and both their weights, as the one does."""
        if self.is_scaled(node) or node.opset < _BIAS_OPTIONAL:
            return None
        entry, own = ("transA", "transB") if slot else ("transB", "transA")
        turned = {own: node.integer(own, 0)}
        return {**turned, entry: node.integer(entry, 0)}, turned

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:
        """Every output element takes one product per contracted position."""
        return math.prod(outputs[0]) * inputs[0][0 if node.integer("transA", 0) else 1]


class MatMul(Rule):
    """Matrix product with broadcast batch axes, as numpy.matmul."""

    op_types = ("MatMul",)
    effects: ClassVar = {"MatMul": Effect.MULTIPLIES_MATRICES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the contracted axes, and the batch axes by broadcasting."""
        ranks = [len(context.value(slot).axes) for slot in (0, 1)]
        left = (*range(2 - ranks[0], 0), "row", "sum")[-ranks[0] :]
        right = (*range(2 - ranks[1], 0), "sum", "column")[: ranks[1]]
        kept = [letter for letter in ("row", "column") if letter in (*left, *right)]
        result = (*range(2 - max(ranks), 0), *kept)
        return [Value(couple_product(context, (left, right), result))]

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Run torch.matmul."""
        import torch

        return Call(torch.matmul, inputs=(0, 1))

    def is_linear(self, node: Node) -> bool:  # noqa: ARG002
        """Say so: there is nothing else."""
        return True

    def halves(self, node: Node, slot: int, shape: Shape) -> Halves | None:  # noqa: ARG002
        """Let both be products of matrices."""
        return ({}, {}) if len(shape) == _MATRIX else None

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every output element takes one product per contracted position."""
        return math.prod(outputs[0]) * inputs[0][-1]


def couple_product(
    context: CoupleContext,
    terms: Sequence[Sequence[Letter]],
    result: Sequence[Letter],
    bias: int | None = None,
    *,
    adds: bool = False,
) -> tuple[Expr, ...]:
    """Tie the axes of a sum of products by letters, as in the equation of an Einsum.

    What the result lacks is contracted, and one operand reads it: weights if they hold it. Weights
    write what they alone bring into the result, and scale what other operands hold too; those that
    scale are sliced but never recombined.

    Args:
        context: The node; its first inputs are the operands.
        terms: A letter for each axis of each operand; along size 1 an operand is broadcast.
        result: A letter for each axis of the output.
        bias: The slot of a bias, which lies along the last axis.
        adds: Whether anything is added to the products.
    Returns:
        The axes of the result.
    """
    operands = [context.value(slot) for slot in range(len(terms))]
    weights = {slot for slot, value in enumerate(operands) if value.constant}
    if len(weights) == len(terms):
        weights = set()
    places = _places(operands, terms)
    others = {letter: [p for p in found if p[0] not in weights] for letter, found in places.items()}
    shared = {letter for letter in result if others[letter]}

    def mixes(slot: int, axis: int) -> list[Expr]:
        return [operands[slot].axes[axis]] if shared.isdisjoint(terms[slot]) else []

    for letter, found in places.items():
        owned = [place for place in found if place[0] in weights]
        if letter not in result:
            place = (owned or found)[0]
            tap = Tap("input", *others[letter][0]) if owned and others[letter] else None
            context.reads(*place, mixes=mixes(*place), tap=tap)
            continue
        tap = Tap("output", 0, result.index(letter))
        along = bias if tap.axis == len(result) - 1 else None
        for place in owned:
            if letter in shared:
                context.scales(*place, tap)
            else:
                shown = None if adds and along is None else tap
                context.writes(*place, tap=shown, mixes=mixes(*place), bias=along)
    axes = {
        letter: broadcast_axes(context, [(operands[slot].axes[axis],) for slot, axis in found])[0]
        for letter, found in places.items()
    }
    return tuple(axes[letter] for letter in result)


def _places(
    operands: Sequence[Value], terms: Sequence[Sequence[Letter]]
) -> dict[Letter, list[tuple[int, int]]]:
    """List the (slot, axis) of each letter where an operand is not broadcast along it."""
    places: dict[Letter, list[tuple[int, int]]] = {}
    for slot, term in enumerate(terms):
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((slot, axis))
    for letter, found in places.items():
        wide = [(slot, axis) for slot, axis in found if operands[slot].axes[axis].size != 1]
        places[letter] = wide or found
    return places


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
