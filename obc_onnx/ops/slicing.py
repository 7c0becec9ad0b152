"""Slice and Pad: ranges of axes, and positions around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from obc_onnx.axes.expressions import join
from obc_onnx.axes.sizes import axes_of
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_ints
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value, apply, concrete

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.value import Wanted


class Slice(FreeOfMacs):
    """Take a range of each axis; bounds are attributes in old opsets, inputs in new ones."""

    op_types = ("Slice",)
    effects: ClassVar = {"Slice": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Cut the expression where the range is known, freeze it elsewhere."""
        x, shape = context.value(0), context.shape()
        bounds = _bounds(context, len(x.axes))
        if bounds is None:
            sliced = _sliced_axes(context, len(x.axes))
            context.freeze([x.axes[i] for i in sliced], "a computed range")
            fresh = context.opaque("a sliced axis").axes
            return [Value(tuple(fresh[i] if i in sliced else a for i, a in enumerate(x.axes)))]
        axes = list(x.axes)
        starts: list[Wanted] = []
        ends: list[Wanted] = []
        for bound in bounds:
            axes[bound.axis], start, end = _couple_range(context, bound, axes[bound.axis])
            starts, ends = [*starts, start], [*ends, end]
        names: tuple[int | str, ...] = (1, 2)
        if "starts" in context.node.attributes:
            names = ("starts", "ends")
        cut = tuple(x.axes[bound.axis] for bound in bounds)
        context.spell(names[0], *starts, because=cut)
        context.spell(names[1], *ends, because=cut)

        def sliced_numbers(known: NDArray[Any]) -> NDArray[Any]:
            where = (_range_along(bounds, i, size) for i, size in enumerate(known.shape))
            return known[np.ix_(*where)].reshape(shape)

        numbers = apply(sliced_numbers, x.numbers)
        return [Value(tuple(axes), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Index with constant bounds, or with bounds computed when it runs."""
        node = context.node
        if "starts" in node.attributes:
            bounds = {key: node.integers(key) for key in ("starts", "ends", "axes")}
            return Call(slice_axes, bounds)
        fixed = [context.integers(slot) for slot in range(1, len(node.inputs))]
        if all(f is not None or not node.has_input(i) for i, f in enumerate(fixed, 1)):
            names = ("starts", "ends", "axes", "steps")
            return Call(slice_axes, dict(zip(names, fixed, strict=False)))
        slots = context.given(*range(len(node.inputs)))
        return Call(slice_axes, inputs=slots, numbers=slots[1:])


class Pad(FreeOfMacs):
    """Add positions around each axis; amounts are an attribute in old opsets, then an input."""

    op_types = ("Pad",)
    held = (2,)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Put new positions around the axis; they can go again where they are constants."""
        x, node = context.value(0), context.node
        pads = _amounts(context, len(x.axes))
        if pads is None:
            context.freeze(x.axes, "computed amounts")
            return [context.opaque("a padded axis")]
        constant = node.text("mode", "constant") == "constant"
        axes: list[Expr] = list(x.axes)
        before: list[Wanted] = []
        after: list[Wanted] = []
        for axis, (start, end) in pads.items():
            before, after = [*before, start], [*after, end]
            if (start, end) == (0, 0):
                continue
            if start is None or end is None:
                context.freeze([axes[axis]], "an axis padded by a computed amount")
                axes[axis] = context.fixed(context.shape()[axis], "a padded axis")
                continue
            if constant and min(start, end) >= 0 and not context.system.is_open(axes[axis]):
                first, last = context.system.dim(start), context.system.dim(end)
                axes[axis] = join([first, axes[axis], last])
                before[-1], after[-1] = first, last
            else:
                context.freeze([axes[axis]], "a cropped, reflected or repeated axis")
                axes[axis] = context.fixed(context.shape()[axis], "a padded axis")
        context.spell("pads" if "pads" in node.attributes else 1, *before, *after)
        return [Value(tuple(axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's pad; the amounts have to be constants."""
        node = context.node
        pads = _pads(node, context.arrays, context.rank())
        mode = node.text("mode", "constant")
        if pads is None:
            return Call(pad, {"mode": mode}, context.given(0, 1, 2, 3), numbers=(1, 3))
        if mode == "wrap" and min(pads) < 0:
            raise UnsupportedOperatorError(
                f"{node.label} wraps and crops at once: ONNX Runtime has a form of its own for that"
            )
        constants: dict[str, Any] = {"pads": pads, "mode": mode}
        if "value" in node.attributes:
            constants["value"] = node.number("value", 0.0)
        elif node.has_input(2) and context.arrays[2] is None:
            return Call(pad_with, constants, order=(0, 2))
        elif node.has_input(2) and context.arrays[2] is not None:
            constants["value"] = float(context.arrays[2].reshape(-1)[0])
        return Call(pad, constants)


@dataclass(frozen=True)
class _Bound:
    """What a Slice takes of one axis."""

    axis: int
    start: int
    end: int
    step: int

    def span(self, size: int) -> range:
        return range(*slice(self.start, self.end, self.step).indices(size))


def _bounds(context: CoupleContext, rank: int) -> list[_Bound] | None:
    """Return what a Slice takes, in the order of its bounds; None where it is computed."""
    node = context.node
    if "starts" in node.attributes:
        starts, ends = node.integers("starts") or (), node.integers("ends") or ()
        axes, steps = node.integers("axes"), None
    else:
        given = [context.integers(slot) for slot in range(1, 5)]
        if any(n is None and node.has_input(slot) for slot, n in enumerate(given, 1)):
            return None
        starts, ends, axes, steps = given[0] or (), given[1] or (), given[2], given[3]
    where = [axis % rank for axis in axes or range(len(starts))]
    return [_Bound(*b) for b in zip(where, starts, ends, steps or (1,) * len(where), strict=True)]


def _couple_range(context: CoupleContext, bound: _Bound, axis: Expr) -> tuple[Expr, Wanted, Wanted]:
    """Cut one axis.

    Returns:
        What is taken, and what the start and the end have to be: sizes of axes, or what they are.
    """
    span = bound.span(axis.size)
    is_open = context.system.is_open(axis)
    if span == range(axis.size) and (not is_open or bound.end > axis.size):
        return axis, bound.start, _end(context, bound, axis)
    stays_empty = bound.start >= axis.size or 0 <= bound.end <= bound.start
    if not span and stays_empty and not is_open:
        return context.fixed(0, "an empty range"), bound.start, bound.end
    if is_open or not span:
        context.freeze([axis], "a range of an open axis" if is_open else "an empty range")
        return context.fixed(len(span), "a sliced axis"), bound.start, bound.end
    if bound.step == 1:
        first, taken, _ = context.cut(axis, [span.start, span.stop, axis.size])
        to_the_end = span.stop == axis.size
        both = join([first, taken])
        return taken, first, _end(context, bound, both) if to_the_end else both
    return _couple_stride(context, bound, axis, span)


def _couple_stride(
    context: CoupleContext, bound: _Bound, axis: Expr, span: range
) -> tuple[Expr, Wanted, Wanted]:
    """Take every so many positions of an axis, or all of them backwards."""
    if span == range(axis.size)[::-1]:
        return context.taken(axis, span), bound.start, bound.end
    if bound.step > 1 and axis.size % bound.step == 0 and span.start < bound.step:
        outer, inner = context.factored(axis, axis.size // bound.step, bound.step)
        if len(span) == outer.size:
            context.freeze([inner], "the stride")
            return outer, bound.start, _end(context, bound, axis)
    context.freeze([axis], "a strided range")
    return context.fixed(len(span), "a sliced axis"), bound.start, bound.end


def _end(context: CoupleContext, bound: _Bound, whole: Expr) -> Wanted:
    """Return what the end of a range up to the last position has to be.

    One that is written down stays right as the axis shrinks.
    """
    value = None if "ends" in context.node.attributes else context.value(2)
    computed = value is not None and any(True for _ in value.sized)
    return whole if computed and bound.end == whole.size else bound.end


def _range_along(bounds: list[_Bound], axis: int, size: int) -> list[int]:
    found = [bound.span(size) for bound in bounds if bound.axis == axis]
    return list(found[0] if found else range(size))


def _sliced_axes(context: CoupleContext, rank: int) -> set[int]:
    """Return the axes that a Slice with computed bounds names, all of them where unknown."""
    if not context.node.has_input(3):
        return set(range(context.value(1).shape[0]))
    axes = context.integers(3)
    return set(range(rank)) if axes is None else {axis % rank for axis in axes}


def _amounts(context: CoupleContext, rank: int) -> dict[int, tuple[Any, Any]] | None:
    """Return how much a Pad adds around each axis that it names.

    Returns:
        None where nothing is known; an amount that is only known when the model runs is None.
    """
    own = context.node.integers("pads") or _known_amounts(context)
    axes = context.integers(3)
    if own is None or (context.node.has_input(3) and axes is None):
        return None
    where = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    return {axis: (own[i], own[i + len(where)]) for i, axis in enumerate(where)}


def _known_amounts(context: CoupleContext) -> list[int | None] | None:
    numbers = context.value(1).numbers
    if numbers is None:
        return None
    context.consulted.add(1)
    amounts: list[int | None] = []
    for i, number in enumerate(numbers.flat):
        known = concrete(numbers.reshape(-1)[i : i + 1], context.system)
        if known is None:
            context.freeze(list(axes_of(number)), "a size in an amount")
        amounts.append(None if known is None else int(known[0]))
    return amounts


def _pads(node: Node, arrays: tuple[Any, ...], rank: int) -> tuple[int, ...] | None:
    """Return (begin..., end...) over all axes, None where the amounts are computed."""
    own = node.integers("pads")
    if own is not None:
        return own
    if arrays[1] is None or (node.has_input(3) and arrays[3] is None):
        return None
    where = [int(a) % rank for a in arrays[3].reshape(-1)] if node.has_input(3) else range(rank)
    amounts = [int(value) for value in arrays[1].reshape(-1)]
    pads = [0] * (2 * rank)
    for i, axis in enumerate(where):
        pads[axis], pads[axis + rank] = amounts[i], amounts[i + len(where)]
    return tuple(pads)


def slice_axes(
    x: Tensor,
    starts: Any,
    ends: Any,
    axes: Any = None,
    steps: Any = None,
) -> Tensor:
    """Compute Slice; bounds are integers or integer tensors, and may be negative or too large."""
    import torch

    starts, ends = as_ints(starts), as_ints(ends)
    axes = list(range(len(starts))) if axes is None else as_ints(axes)
    steps = [1] * len(starts) if steps is None else as_ints(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            x = x[(*[slice(None)] * (axis % x.ndim), slice(start, end, step))]
        else:
            span = range(*slice(start, end, step).indices(x.shape[axis]))
            x = x.index_select(axis, torch.tensor(list(span), device=x.device, dtype=torch.long))
    return x


def pad(x: Tensor, pads: Any, value: Any = 0.0, axes: Any = None, *, mode: str) -> Tensor:
    """Compute Pad; negative amounts crop."""
    from torch.nn import functional

    amounts = as_ints(pads)
    where = [axis % x.ndim for axis in (range(x.ndim) if axes is None else as_ints(axes))]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(where):
        begin[axis], end[axis] = amounts[i], amounts[i + len(where)]
    if mode == "constant":
        sides = [s for i in reversed(range(x.ndim)) for s in (begin[i], end[i])]
        return functional.pad(x, sides, value=0.0 if value is None else float(value))
    return _pad_by_index(x, begin, end, mode)


def pad_with(x: Tensor, value: Tensor, *, pads: tuple[int, ...], mode: str) -> Tensor:
    """Compute Pad by constant amounts with a value that is computed as the model runs."""
    return pad(x, pads, value.item(), mode=mode)


def _pad_by_index(x: Tensor, begin: list[int], end: list[int], mode: str) -> Tensor:
    """Pad by repeating positions, on any axis: torch's own modes cover the last axes only."""
    import torch

    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    for axis in (axis for axis in range(x.ndim) if begin[axis] or end[axis]):
        grow = (max(begin[axis], 0), max(end[axis], 0))
        index = np.pad(np.arange(x.shape[axis]), grow, mode=numpy_mode)  # type: ignore[call-overload]
        index = index[max(-begin[axis], 0) : index.size - max(-end[axis], 0)]
        x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return x


RULES: tuple[Rule, ...] = (
    Pad(),
    Slice(),
)
