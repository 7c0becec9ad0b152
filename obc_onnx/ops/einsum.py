"""Einsum: sums of products along axes that go by letters."""

from __future__ import annotations

import math
from string import ascii_letters
from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.linear import couple_product

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_ELLIPSIS = "..."
_PAIR = 2


class Einsum(Rule):
    """A letter is one axis of every operand that has it, and is contracted if the result lacks it.

    Operands are multiplied from left to right, two at a time, as in ONNX Runtime.
    """

    op_types = ("Einsum",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the axes of each letter by broadcasting; of a diagonal nothing is removed."""
        operands = [context.value(slot) for slot in range(len(context.inputs))]
        terms, result = _parse(context.node, [len(value.axes) for value in operands])
        for term, value in zip(terms, operands, strict=True):
            diagonal = [a for a, x in zip(value.axes, term, strict=True) if term.count(x) > 1]
            context.freeze(diagonal, "a diagonal")
        return [Value(couple_product(context, terms, result))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.einsum on two operands at a time."""
        slots = tuple(range(len(context.node.inputs)))
        terms, result = _parse(context.node, [context.rank(slot) for slot in slots])
        return Call(einsum, {"terms": terms, "result": result}, slots)

    def is_linear(self, node: Node) -> bool:
        """Say whether a weight and an input are all that is multiplied."""
        return len(node.inputs) == _PAIR

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Add up the products of two operands."""
        terms, result = _parse(node, [len(shape) for shape in inputs])
        left, total = _sizes(terms[0], inputs[0]), 0
        for step, shape in zip(_steps(terms, result), inputs[1:], strict=True):
            right = _sizes(step.right, shape)
            total += step.macs(left, right)
            left = {letter: max(left.get(letter, 1), right.get(letter, 1)) for letter in step.kept}
        return total


class _Step(NamedTuple):
    """A product of two operands; each is the letters of its axes, as is what is kept."""

    left: str
    right: str
    kept: str

    def macs(self, left: Mapping[str, int], right: Mapping[str, int]) -> int:
        """Count products that are accumulated, from the size of each letter on both sides.

        What one side alone has is summed before; where nothing else is contracted, this is a Mul.
        """
        contracted = set(self.left).intersection(self.right).difference(self.kept)
        if not contracted:
            return 0
        letters = contracted.union(self.kept)
        return math.prod(max(left.get(letter, 1), right.get(letter, 1)) for letter in letters)


def _parse(node: Node, ranks: Sequence[int]) -> tuple[tuple[str, ...], str]:
    """Read the equation.

    Args:
        node: The node.
        ranks: The number of axes of each operand.
    Returns:
        A letter for each axis of each operand, and of the result. An ellipsis, which stands for the
        same number of axes everywhere, becomes letters that the equation does not use.
    """
    equation = node.text("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(_ELLIPSIS, "").replace(",", "")
        right = _ELLIPSIS + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    hidden = [
        rank - len(term.replace(_ELLIPSIS, ""))
        for term, rank in zip(terms, ranks, strict=True)
        if _ELLIPSIS in term
    ]
    spare = [letter for letter in ascii_letters if letter not in equation]
    filling = "".join(spare[: max(hidden, default=0)])
    return tuple(t.replace(_ELLIPSIS, filling) for t in terms), right.replace(_ELLIPSIS, filling)


def _steps(terms: Sequence[str], result: str) -> Iterator[_Step]:
    """Go through the operands from left to right; each step keeps what is needed later on."""
    left = terms[0]
    for i, right in enumerate(terms[1:], start=2):
        needed = set(result).union(*terms[i:])
        kept = "".join(letter for letter in dict.fromkeys(left + right) if letter in needed)
        yield _Step(left, right, result if i == len(terms) else kept)
        left = kept


def _sizes(term: str, shape: Shape) -> dict[str, int]:
    return dict(zip(term, shape, strict=True))


def einsum(*operands: Tensor, terms: tuple[str, ...], result: str) -> Tensor:
    """Compute Einsum. Source: the ONNX operator page of Einsum.

    Args:
        operands: One or more.
        terms: A letter for each axis of each operand; size 1 is broadcast.
        result: A letter for each axis of the output.
    """
    import torch

    if len(operands) == 1:
        return torch.einsum(f"{terms[0]}->{result}", operands[0])
    value = operands[0]
    for step, operand in zip(_steps(terms, result), operands[1:], strict=True):
        value = torch.einsum(f"{step.left},{step.right}->{step.kept}", value, operand)
    return value


RULES: tuple[Rule, ...] = (Einsum(),)
