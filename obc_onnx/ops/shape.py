"""Shapes as numbers, and tensors made to a shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from obc_onnx.axes.expressions import product
from obc_onnx.axes.sizes import AxisSize, Sized, axis_of
from obc_onnx.ops.base.dtypes import torch_dtype
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_ints, device_of, read_sizes
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class Shape(FreeOfMacs):
    """The sizes of a tensor, as integers."""

    op_types = ("Shape",)
    effects: ClassVar = {"Shape": Effect.MEASURES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Give the sizes as numbers that follow their axes."""
        x = context.value(0)
        start, end = context.node.integer("start", 0), context.node.attributes.get("end")
        axes = x.axes[slice(start, None if end is None else int(end))]
        numbers = np.empty(len(axes), object)
        numbers[:] = [AxisSize(axis) for axis in axes]
        return [Value((context.written(len(axes), "the output"),), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Read the sizes on the host."""
        return read_sizes(context.node)


class Size(FreeOfMacs):
    """The number of elements of a tensor."""

    op_types = ("Size",)
    effects: ClassVar = {"Size": Effect.MEASURES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Multiply the sizes of all axes."""
        numbers = np.empty((), object)
        numbers[()] = math.prod([AxisSize(axis) for axis in context.value(0).axes])
        return [Value((), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Count on the host."""
        return read_sizes(context.node)


class ConstantOfShape(FreeOfMacs):
    """A tensor of equal elements, whose shape is an input."""

    op_types = ("ConstantOfShape",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Make axes of the sizes that are asked for."""
        sizes = context.value(0).numbers
        if sizes is None:
            return [context.opaque("an axis")]
        axes = _axes_of_sizes(context, list(sizes.flat))
        context.spell(0, *axes)
        shape = tuple(axis.size for axis in axes)
        element = np.asarray(self._element(context.node))
        numbers = apply(lambda one: np.full(shape, one), element, shape=shape)
        return [Value(tuple(axes), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.full with the element's type."""
        element = self._element(context.node)
        data_type = onnx.helper.np_dtype_to_tensor_dtype(element.dtype)
        constants = {"element": element.item(), "data_type": data_type}
        return Call(full, constants, numbers=(0,), makes=True)

    @staticmethod
    def _element(node: Node) -> Any:
        value = node.attributes.get("value")
        return np.float32(0.0) if value is None else np.asarray(value).reshape(-1)[0]


class Expand(FreeOfMacs):
    """Broadcast to a shape, which is an input."""

    op_types = ("Expand",)
    effects: ClassVar = {"Expand": Effect.MOVES | Effect.BROADCASTS}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Make axes where single positions are repeated; tie the others to the shape."""
        x, shape = context.value(0), context.shape()
        target = context.value(1).numbers
        axes: list[Expr] = list(x.axes)
        if target is None:
            grown = [context.fixed(size, "a broadcast axis") for size in shape]
            for i in range(-len(axes), 0):
                if x.axes[i].size == shape[i]:
                    grown[i] = x.axes[i]
            return [Value(tuple(grown))]
        sizes = list(target.flat)
        made = _axes_of_sizes(context, [1] * (len(shape) - len(sizes)) + sizes)
        lead = len(shape) - len(axes)
        result = [
            x.axes[i - lead] if i >= lead and x.axes[i - lead].size == size else made[i]
            for i, size in enumerate(shape)
        ]
        asked = result[len(shape) - len(sizes) :]
        context.spell(
            1, *(None if _is_one(n) else axis for n, axis in zip(sizes, asked, strict=True))
        )
        return [Value(tuple(result), apply(lambda n: np.broadcast_to(n, shape), x.numbers))]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.expand; sizes of 1 keep what is there."""
        target = context.integers(1)
        if target is None:
            return Call(expand, inputs=(0, 1), numbers=(1,))
        return Call(expand, {"target": target})


class Tile(FreeOfMacs):
    """Repeat a tensor along its axes."""

    op_types = ("Tile",)
    effects: ClassVar = {"Tile": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Multiply each axis by its number of repetitions, which varies slowest."""
        x, repeats = context.value(0), context.value(1).numbers
        if repeats is None:
            context.freeze(x.axes, "an axis that may be repeated")
            return [context.opaque("a repeated axis")]
        times = _axes_of_sizes(context, list(repeats.flat))
        context.spell(1, *times)
        axes = tuple(product([n, axis]) for n, axis in zip(times, x.axes, strict=True))
        counts, shape = [axis.size for axis in times], tuple(axis.size for axis in axes)
        return [Value(axes, apply(lambda known: np.tile(known, counts), x.numbers, shape=shape))]

    def forward(self, context: ForwardContext) -> Call:
        """Run Tensor.repeat."""
        repeats = context.integers(1)
        if repeats is None:
            return Call(tile, inputs=(0, 1), numbers=(1,))
        return Call(tile, {"repeats": repeats})


class Range(FreeOfMacs):
    """Numbers from a start to a limit."""

    op_types = ("Range",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Give the numbers where all three are known; removing positions would change them."""
        known = [context.numbers(slot) for slot in range(3)]
        positions = context.opaque("counted positions")
        numbers = apply(
            lambda *ends: np.arange(*(end.reshape(()) for end in ends)),
            *known,
            shape=positions.shape,
        )
        return [Value(positions.axes, numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch.arange."""
        constants = {"data_type": context.data_type(0)}
        return Call(arange, constants, (0, 1, 2), numbers=(0, 1, 2), makes=True)


def _axes_of_sizes(context: CoupleContext, sizes: list[Any]) -> list[Expr]:
    """Make an axis for each size: that whose size it is, or a new one."""
    axes = []
    for number in sizes:
        axis = axis_of(number, context.system.dim)
        axes.append(context.system.dim(number.value) if axis is None else axis)
        if not isinstance(number, Sized):
            context.written_dims.add(axes[-1])
    return axes


def _is_one(number: Any) -> bool:
    return not isinstance(number, Sized) and bool(number == 1)


def full(
    shape: Tensor | tuple[int, ...], *, element: Any, data_type: int, beside: Tensor | None
) -> Tensor:
    """Make a tensor of equal elements.

    Args:
        shape: Its sizes, shape [rank], integers.
        element: What it holds.
        data_type: The ONNX type of the elements.
        beside: A tensor on the device where it is made; None for the host.
    """
    import torch

    return torch.full(
        as_ints(shape), element, dtype=torch_dtype(data_type), device=device_of(beside)
    )


def expand(x: Tensor, target: Tensor | tuple[int, ...]) -> Tensor:
    """Compute Expand: both shapes are broadcast, so the target may hold ones."""
    import torch

    return x.expand(torch.broadcast_shapes(x.shape, as_ints(target)))  # type: ignore[no-untyped-call]


def tile(x: Tensor, repeats: Tensor | tuple[int, ...]) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(as_ints(repeats))


def arange(
    start: Tensor | tuple[int, ...],
    limit: Tensor | tuple[int, ...],
    delta: Tensor | tuple[int, ...],
    *,
    data_type: int,
    beside: Tensor | None,
) -> Tensor:
    """Count from `start` up to, and without, `limit` in steps of `delta`."""
    import torch

    ends = [end[0] if isinstance(end, tuple) else end.item() for end in (start, limit, delta)]
    first, last, step = ends
    backwards = (last < first) if step > 0 else (last > first)
    return torch.arange(
        first,
        first if backwards else last,
        step,
        dtype=torch_dtype(data_type),
        device=device_of(beside),
    )


RULES: tuple[Rule, ...] = (
    ConstantOfShape(),
    Expand(),
    Range(),
    Shape(),
    Size(),
    Tile(),
)
