"""Operators that choose positions by what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply
from obc_onnx.ops.reduce import Softmax, along, span_of, without

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class Hardmax(Softmax):
    """One at the first maximum, zero elsewhere; spans axes as Softmax does."""

    op_types = ("Hardmax",)

    def forward(self, context: ForwardContext) -> Call:
        """Put a one where torch's argmax is."""
        return Call(hardmax, span_of(context.node))


class ArgExtremum(FreeOfMacs):
    """ArgMax and ArgMin."""

    op_types = ("ArgMax", "ArgMin")

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axis, whose positions are counted, and drop it."""
        x = context.value(0)
        axis = context.axis(0, context.node.integer("axis", 0))
        context.freeze([x.axes[axis]], "counted positions")
        return [Value(without(context, x.axes, {axis}))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's argmax or argmin, from behind where the last one counts."""
        node = context.node
        constants = {
            "largest": node.op_type == "ArgMax",
            "axis": node.integer("axis", 0),
            "keepdims": node.flag("keepdims", default=True),
            "last": bool(node.integer("select_last_index", 0)),
        }
        return Call(arg_extremum, constants)


class TopK(FreeOfMacs):
    """The largest or smallest positions of an axis; k is an attribute in old opsets, then an input.

    Outputs the values, and where they are.
    """

    op_types = ("TopK",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axis, and make one of k positions in its place."""
        x, node = context.value(0), context.node
        axis = node.integer("axis", -1) % len(x.axes)
        context.freeze([x.axes[axis]], "the axis that is chosen from")
        fixed = "k" in node.attributes or context.integers(1) is not None
        size = context.shape()[axis]
        chosen = context.written(size, "chosen positions") if fixed else context.varying(size)
        return [Value((*x.axes[:axis], chosen, *x.axes[axis + 1 :]))] * len(node.outputs)

    def forward(self, context: ForwardContext) -> Call:
        """Sort, and take the first."""
        node = context.node
        constants: dict[str, Any] = {
            "axis": node.integer("axis", -1),
            "largest": node.flag("largest", default=True),
        }
        k = (node.integer("k", 0),) if "k" in node.attributes else context.integers(1)
        if k is None:
            return Call(top_k, constants, (0, 1))
        return Call(top_k, {"k": k[0], **constants})


class NonZero(FreeOfMacs):
    """Where elements are not zero: one row of positions for each axis."""

    op_types = ("NonZero",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze every axis, whose positions are counted; numbers are handed on."""
        x = context.value(0)
        known = apply(lambda n: np.stack(np.nonzero(n)), context.numbers(0)) if x.axes else None
        context.freeze(x.axes, "counted positions")
        rank, n_found = context.shape()
        fixed = known is not None
        found = context.fixed(n_found, "the output") if fixed else context.varying(n_found)
        return [Value((context.fixed(rank, "the output"), found), known)]

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Run torch's nonzero."""
        return Call(non_zero)


class Compress(FreeOfMacs):
    """The positions of one axis, or of the flattened tensor, for which a condition holds."""

    op_types = ("Compress",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze what is chosen from; pass the other axes through."""
        x, condition = context.value(0), context.value(1)
        axis = _axis_of(context.node, len(x.axes))
        context.freeze(condition.axes, "a condition")
        context.freeze(x.axes if axis is None else [x.axes[axis]], "the axis that is chosen from")
        chosen = context.varying(context.shape()[axis or 0])
        if axis is None:
            return [Value((chosen,))]
        return [Value((*x.axes[:axis], chosen, *x.axes[axis + 1 :]))]

    def forward(self, context: ForwardContext) -> Call:
        """Select where the condition holds; it may be shorter than the axis."""
        return Call(compress, {"axis": _axis_of(context.node, context.rank())}, (0, 1))


class Unique(FreeOfMacs):
    """Distinct elements, or distinct slices along an axis.

    Outputs them, the first position of each, for each position which it is, and how often each is.
    """

    op_types = ("Unique",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze every axis: each element decides what is distinct."""
        x = context.value(0)
        context.freeze(x.axes, "compared elements")
        axis = _axis_of(context.node, len(x.axes))
        outputs = [
            Value(tuple(context.varying(size) for size in shape or ()))
            for shape in context.output_shapes
        ]
        if axis is not None:
            found = outputs[0].axes[axis]
            outputs[0] = Value((*x.axes[:axis], found, *x.axes[axis + 1 :]))
        return outputs

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's unique, and find the first position of each."""
        node = context.node
        constants = {
            "axis": _axis_of(node, context.rank()),
            "ascending": bool(node.integer("sorted", 1)),
            "n_outputs": len(node.outputs),
        }
        return Call(unique, constants)


class OneHot(FreeOfMacs):
    """A new axis with one value at the position that an index names, another elsewhere.

    Inputs indices, depth, and the pair of the other value and that value.
    """

    op_types = ("OneHot",)
    held = (2,)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the axes of the indices through; the new one is frozen."""
        indices, depth = context.value(0), context.integers(1)
        context.freeze(context.value(2).axes, "a pair of values")
        axis = context.node.integer("axis", -1) % (len(indices.axes) + 1)
        size = context.shape()[axis]
        new = context.varying(size) if depth is None else context.written(size, "named positions")
        return [Value((*indices.axes[:axis], new, *indices.axes[axis:]))]

    def forward(self, context: ForwardContext) -> Call:
        """Compare indices with positions."""
        constants: dict[str, Any] = {"axis": context.node.integer("axis", -1)}
        return Call(one_hot, constants, (0, 1, 2))


def _axis_of(node: Node, rank: int) -> int | None:
    """Return the axis that a node names, None where it takes the tensor as flattened."""
    return node.integer("axis", 0) % rank if "axis" in node.attributes else None


def hardmax(x: Tensor, *, axis: int, flattens: bool) -> Tensor:
    """Compute Hardmax. Source: the ONNX operator page of Hardmax."""
    return along(x, _one_at_maximum, axis=axis, flattens=flattens)


def _one_at_maximum(x: Tensor, axis: int) -> Tensor:
    import torch

    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def arg_extremum(x: Tensor, *, largest: bool, axis: int, keepdims: bool, last: bool) -> Tensor:
    """Compute ArgMax or ArgMin. Source: the ONNX operator pages of ArgMax and ArgMin."""
    x = x.flip(axis) if last else x
    index = x.argmax(axis, keepdim=keepdims) if largest else x.argmin(axis, keepdim=keepdims)
    return x.shape[axis] - 1 - index if last else index


def top_k(x: Tensor, k: Tensor | int, *, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Compute TopK. Of equal elements the first come first, which torch's topk does not promise.

    Source: the ONNX operator page of TopK.
    """
    values, indices = x.sort(dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


def non_zero(x: Tensor) -> Tensor:
    """Compute NonZero, shape [rank, n]. Source: the ONNX operator page of NonZero."""
    return x.nonzero().T


def compress(x: Tensor, condition: Tensor, *, axis: int | None) -> Tensor:
    """Compute Compress. Source: the ONNX operator page of Compress."""
    index = condition.nonzero().reshape(-1)
    return x.reshape(-1)[index] if axis is None else x.index_select(axis, index)


def unique(
    x: Tensor, *, axis: int | None, ascending: bool, n_outputs: int
) -> Tensor | tuple[Tensor, ...]:
    """Compute Unique. Source: the ONNX operator page of Unique.

    Args:
        x: Any shape.
        axis: Along which slices are compared; None to compare elements.
        ascending: Whether to sort, and not to keep the order of first positions.
        n_outputs: With 1 the result is a tensor, otherwise so many of values, first positions,
            inverse and counts.
    """
    import torch

    along, flat = (0, x.reshape(-1)) if axis is None else (axis, x)
    values, inverse, counts = torch.unique(
        flat, sorted=True, return_inverse=True, return_counts=True, dim=along
    )
    place = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, place, "amin")
    if not ascending:
        order = first.argsort()
        values, first, counts = values.index_select(along, order), first[order], counts[order]
        inverse = order.argsort()[inverse]
    return values if n_outputs == 1 else (values, first, inverse, counts)[:n_outputs]


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int) -> Tensor:
    """Compute OneHot. Source: the ONNX operator page of OneHot.

    Args:
        indices: Any shape; negative ones count from the end, and what is out of range names none.
        depth: The size of the new axis, one element.
        values: The value of positions that are not named, and that of those that are, shape [2].
        axis: Where the new axis comes.
    """
    import torch

    size = int(depth.reshape(()))
    named = torch.where(indices < 0, indices + size, indices).unsqueeze(axis)
    view = [1] * named.ndim
    view[axis] = size
    is_named = torch.arange(size, device=indices.device).reshape(view) == named
    return torch.where(is_named, values[1], values[0])


RULES: tuple[Rule, ...] = (
    ArgExtremum(),
    Compress(),
    Hardmax(),
    NonZero(),
    OneHot(),
    TopK(),
    Unique(),
)
