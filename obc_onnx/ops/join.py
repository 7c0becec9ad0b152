"""Concat and Split: put axes together, and take them apart."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from obc_onnx.axes import concat
from obc_onnx.ops.context import Value
from obc_onnx.ops.rule import Call, FreeOfMacs

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.context import CoupleContext, ForwardContext, ResizeContext


class Concat(FreeOfMacs):
    """Join tensors along an axis."""

    op_types = ("Concat",)
    carries_numbers = True

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
        axes[axis] = concat([value.axes[axis] for value in inputs])
        known = [value.numbers for value in inputs if value.numbers is not None]
        if rank == 1 and len(known) == len(inputs):
            return [Value(tuple(axes), tuple(number for part in known for number in part))]
        for value in inputs:
            context.freeze_sizes(value)
        return [Value(tuple(axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.cat."""
        slots = tuple(range(len(context.node.inputs)))
        return Call(join, {"axis": context.node.integer("axis", 1)}, slots)


class Split(FreeOfMacs):
    """Cut a tensor along an axis into consecutive parts."""

    op_types = ("Split",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Cut the expression of the axis."""
        x = context.value(0)
        axis = context.node.integer("axis", 0) % len(x.axes)
        sizes = [context.shape(i)[axis] for i in range(len(context.node.outputs))]
        if context.node.has_input(1) and context.arrays[1] is None:
            context.freeze([x.axes[axis]], "computed part sizes")
        parts = context.cut(x.axes[axis], list(accumulate(sizes)))
        if not context.node.has_input(1) and "split" not in context.node.attributes:
            for part in parts[1:]:  # equal parts by definition: they have to stay equal
                if part.size == parts[0].size:
                    context.unify(parts[0], part)
                else:
                    context.freeze([x.axes[axis]], "uneven parts")
        return [Value((*x.axes[:axis], part, *x.axes[axis + 1 :])) for part in parts]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.split."""
        node = context.node
        constants: dict[str, Any] = {
            "axis": node.integer("axis", 0),
            "n_parts": len(node.outputs),
            "sizes": node.integers("split") or context.integers(1),
        }
        return Call(split, constants)

    def resize(self, context: ResizeContext) -> None:
        """Write the new part sizes."""
        node = context.node
        axis = node.integer("axis", 0) % len(context.axes[node.inputs[0]])
        sizes = [context.size(output, axis) for output in node.outputs]
        if sizes == [context.before(output, axis) for output in node.outputs]:
            return
        if node.has_input(1):
            context.set_sizes(1, sizes)
        elif "split" in node.attributes:
            context.set_attribute("split", sizes)


def join(*tensors: Tensor, axis: int) -> Tensor:
    """Join tensors along an axis."""
    import torch

    return torch.cat(tensors, axis)


def split(
    x: Tensor, *, axis: int, n_parts: int, sizes: tuple[int, ...] | None
) -> tuple[Tensor, ...] | Tensor:
    """Cut into the given sizes, or into `n_parts` of which only the last may be smaller."""
    import torch

    chunk = -(-x.shape[axis] // n_parts)
    parts = torch.split(x, list(sizes) if sizes else chunk, axis)
    return parts if n_parts > 1 else parts[0]
