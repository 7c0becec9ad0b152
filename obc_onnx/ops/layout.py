"""Operators that arrange the same positions otherwise: reshapes and transposes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.axes.expressions import Dim, product
from obc_onnx.axes.sizes import Sized
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_ints
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_AXES_AS_INPUT_SINCE = 13


class Transpose(FreeOfMacs):
    """Permute axes."""

    op_types = ("Transpose",)
    effects: ClassVar = {"Transpose": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Permute the expressions."""
        x = context.value(0)
        order = context.node.integers("perm") or tuple(reversed(range(len(x.axes))))
        numbers = apply(lambda known: known.transpose(order), x.numbers)
        return [Value(tuple(x.axes[i] for i in order), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.permute."""
        order = context.node.integers("perm") or tuple(reversed(range(context.rank())))
        return Call(permute, {"order": order})


class Flatten(FreeOfMacs):
    """Merge the axes before and from `axis` into two."""

    op_types = ("Flatten",)
    effects: ClassVar = {"Flatten": Effect.MOVES | Effect.IN_ORDER}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Multiply the expressions on both sides."""
        x = context.value(0)
        axis = context.node.integer("axis", 1)
        at = axis + len(x.axes) if axis < 0 else axis
        one = context.system.dim(1)
        axes = (product([one, *x.axes[:at]]), product([one, *x.axes[at:]]))
        shape = tuple(axis.size for axis in axes)
        return [Value(axes, apply(lambda known: known.reshape(shape), x.numbers))]

    def forward(self, context: ForwardContext) -> Call:
        """Reshape to two axes."""
        return Call(flatten, {"axis": context.node.integer("axis", 1)})


class Reshape(FreeOfMacs):
    """Lay positions out again; the target may be computed from sizes read by Shape."""

    op_types = ("Reshape",)
    effects: ClassVar = {"Reshape": Effect.MOVES | Effect.IN_ORDER}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Equate the product of the input's axes with the product of the output's.

        A 0 copies an axis. What else is spelled out is the size of an axis; where that is only
        known when the model runs, 0 or -1 stand for it as well.
        """
        x, shape = context.value(0), context.shape()
        target = context.value(1).numbers
        if target is None or target.size != len(shape) or 0 in (*x.shape, *shape):
            context.freeze(x.axes, "the input")
            return [context.opaque("an output axis")]
        copies = not context.node.integer("allowzero", 0)
        axes: list[Expr] = [context.system.dim(size) for size in shape]
        wanted: list[Expr | None] = []
        for i, number in enumerate(target.flat):
            if not isinstance(number, Sized) and number == 0 and copies:
                axes[i] = x.axes[i]
            elif not isinstance(number, Sized) and number > 0:
                context.written_dims.add(axes[i])
            spelled = isinstance(number, Sized) or number > 0
            wanted.append(axes[i] if spelled else None)
        context.spell(1, *wanted, copied=x.axes if copies else (), infers=-1 not in target)
        one = context.system.dim(1)
        context.unify(product([one, *x.axes]), product([one, *axes]))
        return [Value(tuple(axes), apply(lambda known: known.reshape(shape), x.numbers))]

    def forward(self, context: ForwardContext) -> Call:
        """Reshape; a constant target is fixed in the code."""
        constants: dict[str, object] = {"allowzero": bool(context.node.integer("allowzero", 0))}
        target = context.integers(1)
        if target is None:
            return Call(reshape, constants, (0, 1), numbers=(1,))
        return Call(reshape, {"target": target, **constants})


class Squeeze(FreeOfMacs):
    """Drop axes of size 1."""

    op_types = ("Squeeze",)
    effects: ClassVar = {"Squeeze": Effect.MOVES | Effect.IN_ORDER}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Drop the expressions of those axes.

        Where the node names none, it is given the names of those that it drops now: an axis with
        one unit left would go too. An open axis may have one when the model runs.
        """
        x, node = context.value(0), context.node
        axes = node.integers("axes") or context.integers(1)
        if axes is None and node.has_input(1):
            context.freeze(x.axes, "the input")
            return [context.opaque("an output axis")]
        rank = len(x.axes)
        dropped = {axis % rank for axis in axes or ()}
        if not axes:
            dropped = {i for i, axis in enumerate(x.axes) if axis.size == 1}
            place = "axes" if node.opset < _AXES_AS_INPUT_SINCE else 1
            context.spell(place, *sorted(dropped), because=x.axes)
            is_open = [a for a in x.axes if isinstance(a, Dim) and context.system.is_open(a)]
            context.freeze(is_open, "an axis that goes where it has one position")
        kept = tuple(axis for i, axis in enumerate(x.axes) if i not in dropped)
        shape = tuple(axis.size for axis in kept)
        return [Value(kept, apply(lambda known: known.reshape(shape), x.numbers))]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.squeeze."""
        axes = context.node.integers("axes") or context.integers(1)
        if axes is None and context.node.has_input(1):
            return Call(squeeze, inputs=(0, 1))
        return Call(squeeze, {"axes": axes})


class Unsqueeze(FreeOfMacs):
    """Insert axes of size 1."""

    op_types = ("Unsqueeze",)
    effects: ClassVar = {"Unsqueeze": Effect.MOVES | Effect.IN_ORDER}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Insert single positions."""
        x = context.value(0)
        axes = context.node.integers("axes") or context.integers(1)
        rank = len(context.shape())
        if axes is None:
            context.freeze(x.axes, "the input")
            return [context.opaque("an output axis")]
        inserted = {axis % rank for axis in axes}
        left = iter(x.axes)
        new = tuple(context.system.dim(1) if i in inserted else next(left) for i in range(rank))
        shape = tuple(axis.size for axis in new)
        return [Value(new, apply(lambda known: known.reshape(shape), x.numbers))]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.unsqueeze for each axis."""
        axes = context.node.integers("axes") or context.integers(1)
        return Call(unsqueeze, inputs=(0, 1)) if axes is None else Call(unsqueeze, {"axes": axes})


def permute(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    """Permute axes."""
    return x.permute(order)


def flatten(x: Tensor, *, axis: int) -> Tensor:
    """Merge the axes before `axis`, and those from it on."""
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


def reshape(x: Tensor, target: Tensor | tuple[int, ...], *, allowzero: bool) -> Tensor:
    """Compute Reshape: 0 copies a size unless `allowzero`, -1 is what is left."""
    sizes = as_ints(target)
    if not allowzero:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def squeeze(x: Tensor, axes: Tensor | tuple[int, ...] | None) -> Tensor:
    """Drop the given axes of size 1, or all of them."""
    dropped = _axes(axes)
    return x.squeeze(dropped) if dropped else x.squeeze()


def unsqueeze(x: Tensor, axes: Tensor | tuple[int, ...]) -> Tensor:
    """Insert axes of size 1; positions count in the result."""
    inserted = _axes(axes)
    rank = x.ndim + len(inserted)
    for axis in sorted(axis % rank for axis in inserted):
        x = x.unsqueeze(axis)
    return x


def _axes(axes: Tensor | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if axes is None else tuple(as_ints(axes))


RULES: tuple[Rule, ...] = (
    Flatten(),
    Reshape(),
    Squeeze(),
    Transpose(),
    Unsqueeze(),
)
