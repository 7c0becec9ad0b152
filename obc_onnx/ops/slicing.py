"""Slice and Pad: ranges of axes, and positions around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes import concat
from obc_onnx.ops.context import Value
from obc_onnx.ops.rule import Call, FreeOfMacs

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes import Expr
    from obc_onnx.graph import Node
    from obc_onnx.ops.context import CoupleContext, ForwardContext, ResizeContext


class Slice(FreeOfMacs):
    """Take a range of each axis; bounds are attributes in old opsets, inputs in new ones."""

    op_types = ("Slice",)
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Cut the expression where the range is consecutive and constant, freeze it elsewhere."""
        x = context.value(0)
        ranges = _ranges(context, x.shape)
        sliced = _sliced_axes(context, len(x.axes))
        for slot in range(1, len(context.inputs)):
            bounds = context.optional(slot)
            if bounds is not None:
                context.freeze_sizes(bounds)
        axes = list(x.axes)
        for axis, size in enumerate(context.shape()):
            if axis not in sliced:
                continue
            span = None if ranges is None else ranges[axis]
            if span is not None and span == range(x.shape[axis]):
                continue
            if span is not None and span.step == 1 and self._can_rewrite(context):
                stop = span.start + len(span)
                parts = context.cut(x.axes[axis], [span.start, stop, x.shape[axis]])
                axes[axis] = parts[1]
            else:
                context.freeze([x.axes[axis]], "a strided or computed range")
                axes[axis] = context.fixed(size, "a sliced axis")
        numbers = None
        if x.numbers is not None and ranges is not None and len(x.axes) == 1:
            numbers = tuple(x.numbers[i] for i in ranges.get(0, range(len(x.numbers))))
        else:
            context.freeze_sizes(x)
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
        return Call(slice_axes, inputs=context.given(*range(len(node.inputs))))

    def resize(self, context: ResizeContext) -> None:
        """Move the bounds to where the kept positions start and end."""
        node = context.node
        name = node.inputs[0]
        bounds = _bounds(node, context.arrays)
        if bounds is None:
            return
        starts, ends, axes = list(bounds[0]), list(bounds[1]), bounds[2]
        for i, axis in enumerate(axes):
            kept = context.kept(name, axis)
            if not kept.all():
                span = range(*slice(starts[i], ends[i], None).indices(kept.size))
                starts[i] = int(np.count_nonzero(kept[: span.start]))
                ends[i] = int(np.count_nonzero(kept[: span.stop]))
        if (starts, ends) == (list(bounds[0]), list(bounds[1])):
            return
        if "starts" in node.attributes:
            context.set_attribute("starts", starts)
            context.set_attribute("ends", ends)
        else:
            context.set_sizes(1, starts)
            context.set_sizes(2, ends)

    @staticmethod
    def _can_rewrite(context: CoupleContext) -> bool:
        return "starts" in context.node.attributes or (
            context.arrays[1] is not None and context.arrays[2] is not None
        )


class Pad(FreeOfMacs):
    """Add positions around each axis; amounts are an attribute in old opsets, then an input."""

    op_types = ("Pad",)
    held = (2,)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Put new positions around the axis; they can go again where they are constants."""
        x = context.value(0)
        pads = _pads(context.node, context.arrays, len(x.axes))
        constant = context.node.text("mode", "constant") == "constant"
        if pads is None:
            context.freeze(x.axes, "computed amounts")
            return [Value(tuple(context.fixed(n, "a padded axis") for n in context.shape()))]
        axes: list[Expr] = []
        for i, axis in enumerate(x.axes):
            before, after = pads[i], pads[i + len(x.axes)]
            if (before, after) == (0, 0):
                axes.append(axis)
            elif constant and min(before, after) >= 0:
                axes.append(concat([context.system.dim(before), axis, context.system.dim(after)]))
            else:
                context.freeze([axis], "a cropped, reflected or repeated axis")
                axes.append(context.fixed(context.shape()[i], "a padded axis"))
        return [Value(tuple(axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's pad; the amounts have to be constants."""
        node = context.node
        pads = _pads(node, context.arrays, context.rank())
        mode = node.text("mode", "constant")
        if pads is None:
            return Call(pad, {"mode": mode}, context.given(0, 1, 2, 3))
        constants: dict[str, Any] = {"pads": pads, "mode": mode}
        if "value" in node.attributes:
            constants["value"] = node.number("value", 0.0)
        elif node.has_input(2) and context.arrays[2] is not None:
            constants["value"] = float(context.arrays[2].reshape(-1)[0])
        return Call(pad, constants)

    def resize(self, context: ResizeContext) -> None:
        """Write the amounts of the padding that stays."""
        node = context.node
        x, y = node.inputs[0], node.outputs[0]
        rank = len(context.axes[x])
        pads = _pads(node, context.arrays, rank)
        if pads is None:
            return
        new = list(pads)
        for i in range(rank):
            if pads[i] > 0 or pads[i + rank] > 0:
                kept = context.kept(y, i)
                new[i] = int(np.count_nonzero(kept[: pads[i]]))
                new[i + rank] = int(np.count_nonzero(kept[kept.size - pads[i + rank] :]))
        if tuple(new) == pads:
            return
        if "pads" in node.attributes:
            context.set_attribute("pads", new)
            return
        where = _pad_axes(node, context.arrays, rank)
        context.set_sizes(1, [new[i] for i in where] + [new[i + rank] for i in where])


def _bounds(
    node: Node, arrays: tuple[Any, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Return starts, ends and axes of a Slice without strides; None where they are computed."""
    if "starts" in node.attributes:
        starts, ends = node.integers("starts") or (), node.integers("ends") or ()
        return starts, ends, node.integers("axes") or tuple(range(len(starts)))
    given = [arrays[slot] if slot < len(arrays) else None for slot in range(1, 4)]
    if given[0] is None or given[1] is None or (node.has_input(3) and given[2] is None):
        return None
    first, last = _as_ints(given[0]), _as_ints(given[1])
    where = list(range(len(first))) if given[2] is None else _as_ints(given[2])
    return tuple(first), tuple(last), tuple(where)


def _ranges(context: CoupleContext, shape: tuple[int, ...]) -> dict[int, range] | None:
    """Return the positions taken of each sliced axis, None where they are computed."""
    node = context.node
    bounds = _bounds(node, context.arrays)
    steps = None if "starts" in node.attributes else context.integers(4)
    if bounds is None or (node.has_input(4) and steps is None):
        return None
    starts, ends, axes = bounds
    ranges = {}
    for i, axis in enumerate(axes):
        at = axis % len(shape)
        cut = slice(starts[i], ends[i], steps[i] if steps else 1)
        ranges[at] = range(*cut.indices(shape[at]))
    return ranges


def _sliced_axes(context: CoupleContext, rank: int) -> set[int]:
    """Return the axes that a Slice names, all of them where they are computed."""
    own = context.node.integers("axes")
    if own is None and context.node.has_input(3):
        own = context.integers(3)
        return set(range(rank)) if own is None else {axis % rank for axis in own}
    if own is None:
        starts = context.node.integers("starts")
        own = tuple(range(context.value(1).shape[0] if starts is None else len(starts)))
    return {axis % rank for axis in own}


def _pad_axes(node: Node, arrays: tuple[Any, ...], rank: int) -> tuple[int, ...]:
    if node.has_input(3) and arrays[3] is not None:
        return tuple(int(axis) % rank for axis in arrays[3].reshape(-1))
    return tuple(range(rank))


def _pads(node: Node, arrays: tuple[Any, ...], rank: int) -> tuple[int, ...] | None:
    """Return (begin..., end...) over all axes, None where the amounts are computed."""
    own = node.integers("pads")
    if own is not None:
        return own
    if arrays[1] is None or (node.has_input(3) and arrays[3] is None):
        return None
    where = _pad_axes(node, arrays, rank)
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

    starts, ends = _as_ints(starts), _as_ints(ends)
    axes = list(range(len(starts))) if axes is None else _as_ints(axes)
    steps = [1] * len(starts) if steps is None else _as_ints(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        span = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, span.start, len(span))
        else:
            x = x.index_select(axis, torch.tensor(list(span), device=x.device, dtype=torch.long))
    return x


def pad(x: Tensor, pads: Any, value: Any = 0.0, axes: Any = None, *, mode: str) -> Tensor:
    """Compute Pad; negative amounts crop."""
    from torch.nn import functional

    amounts = _as_ints(pads)
    where = [axis % x.ndim for axis in (range(x.ndim) if axes is None else _as_ints(axes))]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(where):
        begin[axis], end[axis] = amounts[i], amounts[i + len(where)]
    if mode == "constant":
        sides = [s for i in reversed(range(x.ndim)) for s in (begin[i], end[i])]
        return functional.pad(x, sides, value=0.0 if value is None else float(value))
    return _pad_by_index(x, begin, end, mode)


def _pad_by_index(x: Tensor, begin: list[int], end: list[int], mode: str) -> Tensor:
    """Pad by repeating positions, on any axis: torch's own modes cover the last axes only."""
    import torch

    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    for axis in range(x.ndim):
        grow = (max(begin[axis], 0), max(end[axis], 0))
        index = np.pad(np.arange(x.shape[axis]), grow, mode=numpy_mode)  # type: ignore[call-overload]
        index = index[max(-begin[axis], 0) : index.size - max(-end[axis], 0)]
        if begin[axis] or end[axis]:
            x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return x


def _as_ints(values: Any) -> list[int]:
    return [int(v) for v in (values.reshape(-1) if hasattr(values, "reshape") else values)]
