"""Operators that arrange the same positions otherwise: reshapes and transposes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from obc_onnx.axes import product
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.context import Fixed, Value
from obc_onnx.ops.rule import Call, FreeOfMacs

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes import Expr
    from obc_onnx.ops.context import CoupleContext, ForwardContext, ResizeContext


class Transpose(FreeOfMacs):
    """Permute axes."""

    op_types = ("Transpose",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Permute the expressions."""
        axes = context.value(0).axes
        order = context.node.integers("perm") or tuple(reversed(range(len(axes))))
        return [Value(tuple(axes[i] for i in order))]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.permute."""
        order = context.node.integers("perm") or tuple(reversed(range(context.rank())))
        return Call(permute, {"order": order})


class Flatten(FreeOfMacs):
    """Merge the axes before and from `axis` into two."""

    op_types = ("Flatten",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Multiply the expressions on both sides."""
        axes = context.value(0).axes
        axis = context.node.integer("axis", 1)
        at = axis + len(axes) if axis < 0 else axis
        one = context.system.dim(1)
        return [Value((product([one, *axes[:at]]), product([one, *axes[at:]])))]

    def forward(self, context: ForwardContext) -> Call:
        """Reshape to two axes."""
        return Call(flatten, {"axis": context.node.integer("axis", 1)})


class Reshape(FreeOfMacs):
    """Lay positions out anew; the target may be computed from sizes read by Shape."""

    op_types = ("Reshape",)
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Equate the product of the input's axes with the product of the output's."""
        x, target = context.value(0), context.value(1)
        shape = context.shape()
        if target.numbers is None or len(target.numbers) != len(shape) or 0 in (*x.shape, *shape):
            context.freeze(x.axes, "the input")
            context.freeze_sizes(target)
            return [Value(tuple(context.fixed(size, "an output axis") for size in shape))]
        axes: list[Expr] = [context.system.dim(size) for size in shape]
        for i, number in enumerate(target.numbers):
            if isinstance(number, Fixed) and self._copies(context, number.value):
                axes[i] = x.axes[i]
            elif not isinstance(number, Fixed) or number.value > 0:
                context.claim(number, axes[i], 1)
        one = context.system.dim(1)
        context.unify(product([one, *x.axes]), product([one, *axes]))
        numbers = x.numbers if len(shape) <= 1 else None
        if numbers is None:
            context.freeze_sizes(x)
        return [Value(tuple(axes), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Reshape; a constant target is fixed in the code."""
        constants: dict[str, object] = {"allowzero": bool(context.node.integer("allowzero", 0))}
        target = context.integers(1)
        if target is None:
            return Call(reshape, constants, (0, 1))
        return Call(reshape, {"target": target, **constants})

    def resize(self, context: ResizeContext) -> None:
        """Write the new sizes of the axes that shrink; 0 and -1 follow by themselves."""
        target, output = context.inputs[1], context.node.outputs[0]
        if target is None or target.numbers is None:
            return
        sizes: list[int | None] = []
        for i, number in enumerate(target.numbers):
            after = context.size(output, i)
            written = isinstance(number, Fixed) and number.value > 0
            sizes.append(after if written and after != context.before(output, i) else None)
        if any(size is not None for size in sizes):
            context.set_sizes(1, sizes)

    @staticmethod
    def _copies(context: CoupleContext, number: int) -> bool:
        return number == 0 and not context.node.integer("allowzero", 0)


class Squeeze(FreeOfMacs):
    """Drop axes of size 1."""

    op_types = ("Squeeze",)
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Drop the expressions of those axes; numbers stay as they are."""
        x = context.value(0)
        axes = context.node.integers("axes") or context.integers(1)
        rank = len(x.axes)
        if axes is None and context.node.has_input(1):
            context.freeze(x.axes, "the input")
            context.freeze_sizes(x)
            return [Value(tuple(context.fixed(n, "an output axis") for n in context.shape()))]
        if axes:
            dropped = {axis % rank for axis in axes}
        else:  # with one position left an axis would be dropped too
            context.freeze(x.axes, "an axis that it drops at size 1")
            dropped = {i for i, axis in enumerate(x.axes) if axis.size == 1}
        kept = tuple(axis for i, axis in enumerate(x.axes) if i not in dropped)
        return [Value(kept, x.numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.squeeze."""
        axes = context.node.integers("axes") or context.integers(1)
        if axes is None and context.node.has_input(1):
            raise UnsupportedOperatorError(f"{context.node.label}: the twin needs constant axes")
        return Call(squeeze, {"axes": axes})


class Unsqueeze(FreeOfMacs):
    """Insert axes of size 1."""

    op_types = ("Unsqueeze",)
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Insert single positions; numbers stay as they are."""
        x = context.value(0)
        axes = context.node.integers("axes") or context.integers(1)
        rank = len(context.shape())
        if axes is None:
            context.freeze(x.axes, "the input")
            context.freeze_sizes(x)
            return [Value(tuple(context.fixed(n, "an output axis") for n in context.shape()))]
        inserted = {axis % rank for axis in axes}
        left = iter(x.axes)
        new = tuple(context.system.dim(1) if i in inserted else next(left) for i in range(rank))
        return [Value(new, x.numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.unsqueeze for each axis."""
        axes = context.node.integers("axes") or context.integers(1)
        if axes is None:
            raise UnsupportedOperatorError(f"{context.node.label}: the twin needs constant axes")
        return Call(unsqueeze, {"axes": axes})


def permute(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    """Permute axes."""
    return x.permute(order)


def flatten(x: Tensor, *, axis: int) -> Tensor:
    """Merge the axes before `axis`, and those from it on."""
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), -1)


def reshape(x: Tensor, target: Tensor | tuple[int, ...], *, allowzero: bool) -> Tensor:
    """Compute Reshape: 0 copies a size unless `allowzero`, -1 is what is left."""
    sizes = list(target) if isinstance(target, tuple) else target.tolist()
    if not allowzero:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def squeeze(x: Tensor, *, axes: tuple[int, ...] | None) -> Tensor:
    """Drop the given axes of size 1, or all of them."""
    return x.squeeze(axes) if axes else x.squeeze()


def unsqueeze(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """Insert axes of size 1; positions count in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x
