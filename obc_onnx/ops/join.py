"""Concat and Split: put axes together, and take them apart."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from obc_onnx.axes.expressions import MOST_REPEATED, is_repetitive, join
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_ints
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_SIZES_AS_INPUT_SINCE = 13


class Concat(FreeOfMacs):
    """Join tensors along an axis."""

    op_types = ("Concat",)
    effects: ClassVar = {"Concat": Effect.JOINS}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Concatenate the expressions of the axis; tie the other axes."""
        inputs = [context.value(slot) for slot in range(len(context.node.inputs))]
        rank = len(inputs[0].axes)
        axis = context.node.integer("axis", 1) % rank
        for value in inputs[1:]:
            for i in range(rank):
                if i != axis:
                    context.unify(inputs[0].axes[i], value.axes[i])
        axes = list(inputs[0].axes)
        joined = join([value.axes[axis] for value in inputs])
        if is_repetitive(joined):
            context.freeze([joined], f"a concatenation of more than {MOST_REPEATED} parts")
            joined = context.fixed(joined.size, "a long concatenation")
        axes[axis] = joined
        numbers = apply(lambda *n: np.concatenate(n, axis), *(value.numbers for value in inputs))
        return [Value(tuple(axes), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.cat."""
        slots = tuple(range(len(context.node.inputs)))
        return Call(concatenate, {"axis": context.node.integer("axis", 1)}, slots)


class Split(FreeOfMacs):
    """Cut a tensor along an axis into consecutive parts."""

    op_types = ("Split",)
    effects: ClassVar = {"Split": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Cut the expression of the axis; parts that are equal by default are spelled out."""
        x, node = context.value(0), context.node
        axis = node.integer("axis", 0) % len(x.axes)
        sizes = [context.shape(i)[axis] for i in range(len(node.outputs))]
        if context.system.is_open(x.axes[axis]):
            parts = [context.fixed(size, "a part of an open axis") for size in sizes]
        else:
            parts = context.cut(x.axes[axis], list(accumulate(sizes)))
        if node.has_input(1) and context.value(1).numbers is None:
            context.freeze([x.axes[axis]], "computed part sizes")
        elif node.has_input(1) or node.opset >= _SIZES_AS_INPUT_SINCE:
            context.spell(1, *parts, because=(x.axes[axis],), drops=("num_outputs",))
        else:
            context.spell("split", *parts, because=(x.axes[axis],))
        cut = [Value((*x.axes[:axis], part, *x.axes[axis + 1 :])) for part in parts]
        if x.numbers is None:
            return cut
        pieces = np.split(x.numbers, list(accumulate(sizes))[:-1], axis)
        return [Value(v.axes, n) for v, n in zip(cut, pieces, strict=True)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.split."""
        node = context.node
        sizes = node.integers("split") or context.integers(1)
        constants: dict[str, Any] = {"axis": node.integer("axis", 0), "n_parts": len(node.outputs)}
        if sizes is None:
            return Call(split, constants, context.given(0, 1), numbers=(1,))
        return Call(split, {"sizes": sizes, **constants})


def concatenate(*tensors: Tensor, axis: int) -> Tensor:
    """Join tensors along an axis."""
    import torch

    return torch.cat(tensors, axis)


def split(
    x: Tensor, sizes: Tensor | tuple[int, ...] | None = None, *, axis: int, n_parts: int
) -> tuple[Tensor, ...] | Tensor:
    """Cut into the given sizes, or into `n_parts` of which only the last may be smaller."""
    import torch

    if sizes is None:
        return _all_parts(torch.split(x, -(-x.shape[axis] // n_parts), axis), n_parts)
    return _all_parts(torch.split(x, as_ints(sizes), axis), n_parts)


def _all_parts(parts: tuple[Tensor, ...], n_parts: int) -> tuple[Tensor, ...] | Tensor:
    return parts if n_parts > 1 else parts[0]


RULES: tuple[Rule, ...] = (
    Concat(),
    Split(),
)
