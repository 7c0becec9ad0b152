"""Resize and Upsample: positions of axes sampled again, axis by axis."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.sizes import AxisSize, axes_of, value_of
from obc_onnx.ops.base.axes import named_axes
from obc_onnx.ops.base.host import as_ints
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

    Points = NDArray[np.floating[Any]]

_ROI, _SCALES, _SIZES = 1, 2, 3
_SLOTS_SINCE = 11
"""Before, scales came second, and nothing but the mode was for the node to choose."""
_CROP = "tf_crop_and_resize"


class Resize(FreeOfMacs):
    """Interpolate; an axis whose scale is 1 keeps its positions."""

    op_types = ("Resize", "Upsample")
    held = (1, 2)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass axes of scale 1 through, freeze those that are resampled."""
        x, shape = context.value(0), context.shape()
        for described in filter(None, context.inputs[1:]):
            context.freeze(described.axes, "the axes that are named")
        stays = _staying_axes(context, x)
        axes: list[Expr] = list(x.axes)
        for i, size in enumerate(shape):
            if i not in stays:
                context.freeze([axes[i]], "a resampled axis")
                axes[i] = context.fixed(size, "a resampled axis")
        sizes = context.optional(_SIZES)
        if sizes is not None and sizes.numbers is not None and sizes.numbers.size:
            named = zip(named_axes(context.node, len(axes)), sizes.numbers.flat, strict=True)
            context.spell(_SIZES, *(axes[i] if i in stays else value_of(n) for i, n in named))
        return [Value(tuple(axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Sample each axis as the node says."""
        node, old = context.node, _is_old(context.node)
        crops = node.text("coordinate_transformation_mode", "") == _CROP
        known = {
            "scales": _attribute_scales(node) or _floats(context, _scales_slot(node)),
            "sizes": context.integers(_SIZES) or None,
            "region": _floats(context, _ROI) if crops else None,
        }
        slots = {_scales_slot(node), _SIZES, *([_ROI] if crops else [])}
        computed = [s for s in context.given(*sorted(slots)) if context.arrays[s] is None]
        constants = {
            **{key: value for key, value in known.items() if value is not None},
            "mode": node.text("mode", "nearest"),
            "coordinates": "asymmetric"
            if old
            else node.text("coordinate_transformation_mode", "half_pixel"),
            "rounding": "by_scale" if old else node.text("nearest_mode", "round_prefer_floor"),
            "axes": node.integers("axes"),
            "policy": node.text("keep_aspect_ratio_policy", "stretch"),
            "antialias": bool(node.integer("antialias", 0)),
            "excludes_outside": bool(node.integer("exclude_outside", 0)),
            "cubic_coefficient": node.number("cubic_coeff_a", -0.75),
            "outside": node.number("extrapolation_value", 0.0),
        }
        return Call(upsample if old else resize, constants, (0, *computed), numbers=(_SIZES,))


def _is_old(node: Node) -> bool:
    return node.op_type == "Upsample" or node.opset < _SLOTS_SINCE


def _scales_slot(node: Node) -> int:
    return 1 if _is_old(node) else _SCALES


def _attribute_scales(node: Node) -> tuple[float, ...] | None:
    own = node.attributes.get("scales")
    return None if own is None else tuple(float(scale) for scale in own)


def _floats(context: ForwardContext, slot: int) -> tuple[float, ...] | None:
    """Return a constant input; None where it is computed, left out or empty."""
    array = context.arrays[slot] if slot < len(context.arrays) else None
    if array is None or array.size == 0:
        return None
    return tuple(np.asarray(array, np.float64).reshape(-1).tolist())


def _staying_axes(context: CoupleContext, x: Value) -> set[int]:
    """Find the axes whose positions stay what they are, however the model runs."""
    node, rank = context.node, len(x.axes)
    named = named_axes(node, rank)
    stays = set(range(rank)) - set(named)
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return stays  # one scale for all named axes
    whole = _are_unscaled(context, [x.axes[i] for i in named])
    if node.text("coordinate_transformation_mode", "") == _CROP:
        region = context.numbers(_ROI)
        ends = [] if region is None else region.reshape(2, -1).T.tolist()
        whole = [own and end == [0.0, 1.0] for own, end in zip(whole, ends, strict=False)]
    return stays | {i for i, own in zip(named, whole, strict=False) if own}


def _are_unscaled(context: CoupleContext, axes: Sequence[Expr]) -> list[bool]:
    """Say of each axis whether its scale is 1."""
    own, slot = _attribute_scales(context.node), _scales_slot(context.node)
    scales = context.optional(slot)
    if own is None and (scales is None or 0 in scales.shape):
        numbers = context.value(_SIZES).numbers
        sizes = [None] * len(axes) if numbers is None else numbers.tolist()
        return [_is_size_of(context, n, axis) for n, axis in zip(sizes, axes, strict=True)]
    found = context.numbers(slot) if own is None else np.asarray(own)
    return [False] * len(axes) if found is None else (found == 1.0).tolist()


def _is_size_of(context: CoupleContext, number: Any, axis: Expr) -> bool:
    """Say whether a number is the size of an axis whenever the model runs."""
    resolve, is_open = context.system.resolve, context.system.is_open
    if is_open(axis):
        return isinstance(number, AxisSize) and resolve(number.axis) == resolve(axis)
    if number is None or any(is_open(other) for other in axes_of(number)):
        return False
    return bool(value_of(number) == axis.size)


def upsample(x: Tensor, computed_scales: Tensor | None = None, **constants: Any) -> Tensor:
    """Compute Upsample, and Resize of opset 10, whose scales come second."""
    return resize(x, None, computed_scales, **constants)


def resize(
    x: Tensor,
    computed_region: Tensor | None = None,
    computed_scales: Tensor | None = None,
    computed_sizes: Tensor | tuple[int, ...] | None = None,
    *,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    region: Sequence[float] | None = None,
    axes: tuple[int, ...] | None,
    policy: str,
    outside: float,
    coordinates: str,
    **kernel: Any,
) -> Tensor:
    """Compute Resize, one axis after the other. Source: the ONNX operator page of Resize.

    Args:
        x: Any rank.
        computed_region: A region that is only known as the model runs.
        computed_scales: Scales likewise.
        computed_sizes: Sizes likewise.
        scales: For each axis that is named; left out where sizes are given.
        sizes: For each axis that is named.
        region: What to crop, as fractions (starts..., ends...) of the axes that are named.
        axes: Those that scales and sizes are for; None for all of them.
        policy: Whether all axes have the one scale that leaves none too large or too small.
        outside: What is put where a crop reaches beyond the input.
        coordinates: Which point of the input a position of the output stands for.
        kernel: How points between positions are made, as `_sample` takes it.
    """
    where = [axis % x.ndim for axis in axes or range(x.ndim)]
    if computed_sizes is not None and len(computed_sizes):
        sizes = as_ints(computed_sizes)
    if computed_scales is not None and computed_scales.numel():
        scales = computed_scales.tolist()
    if computed_region is not None and computed_region.numel():
        region = computed_region.tolist()
    if sizes is not None:
        scales = [size / x.shape[axis] for axis, size in zip(where, sizes, strict=True)]
        if policy != "stretch":
            shared = min(scales) if policy == "not_larger" else max(scales)
            scales = [shared] * len(where)
            sizes = [math.floor(shared * x.shape[axis] + 0.5) for axis in where]
    kind = x.dtype
    for place, (axis, scale) in enumerate(zip(where, scales or (), strict=True)):
        ends = (0.0, 1.0) if region is None else (region[place], region[place + len(where)])
        if scale == 1.0 and ends == (0.0, 1.0):
            continue  # without a look at the length, which may be open
        length = x.shape[axis]
        size = int(np.float32(length) * np.float32(scale)) if sizes is None else sizes[place]
        at = _coordinates(length, size, np.float32(scale), coordinates, ends)
        x = _sample(x, axis, at, scale, **kernel)
        if coordinates == _CROP:
            x = _replace(x, axis, (at < 0) | (at > length - 1), outside)
    return x.to(kind)  # whole numbers are cut off, as ONNX Runtime does


def _coordinates(
    length: int, size: int, scale: np.float32, coordinates: str, ends: tuple[float, float]
) -> Points:
    """Return the point of the input, in positions, for each position of the output.

    They are computed in float32 whatever the tensor holds, as rounding them is part of the result.
    """
    to = np.arange(size, dtype=np.float32)
    last, steps = np.float32(length - 1), np.float32(size - 1)
    half = np.float32(0.5)
    at = (to + half) / scale - half
    match coordinates:
        case "asymmetric":
            at = to / scale
        case "align_corners":
            at = to * last / max(steps, np.float32(1))
        case "tf_crop_and_resize":
            start, end = np.float32(ends[0]), np.float32(ends[1])
            if size > 1:
                at = start * last + to * (end - start) * last / steps
            else:
                at = to + half * (start + end) * last
        case "tf_half_pixel_for_nn":
            at = (to + half) / scale
        case "half_pixel_symmetric":
            adjusted = np.float32(size) / (scale * np.float32(length))
            offset = np.float32(length) / np.float32(2) * (np.float32(1) - adjusted)
            at = offset + (to + half) / scale - half
        case "pytorch_half_pixel" if size == 1:
            at = to
    return at


def _sample(
    x: Tensor, axis: int, at: Points, scale: float, *, mode: str, rounding: str, **kernel: Any
) -> Tensor:
    """Sample an axis at points; its ends are repeated beyond them."""
    import torch

    last = x.shape[axis] - 1
    if mode == "nearest":
        index = _nearest(at, scale, rounding).astype(np.int64).clip(0, last)
        return x.index_select(axis, torch.from_numpy(index).to(x.device))
    view = [-1] + [1] * (x.ndim - 1 - axis)
    x = x if x.is_floating_point() else x.float()
    terms = []
    for index, weight in _weights(at, last, scale, mode, **kernel):
        picked = x.index_select(axis, torch.from_numpy(index.clip(0, last)).to(x.device))
        terms.append(picked * torch.from_numpy(weight).to(x).reshape(view))
    return functools.reduce(operator.add, terms)


def _replace(x: Tensor, axis: int, where: NDArray[np.bool_], value: float) -> Tensor:
    import torch

    view = [-1] + [1] * (x.ndim - 1 - axis)
    return x.masked_fill(torch.from_numpy(where).to(x.device).reshape(view), value)


def _nearest(at: Points, scale: float, rounding: str) -> Points:
    match rounding:
        case "round_prefer_floor":
            at = at - np.float32(0.5)
        case "round_prefer_ceil":
            at = at + np.float32(0.5)
    up = rounding in {"ceil", "round_prefer_floor"} or (rounding == "by_scale" and scale < 1)
    rounded: Points = np.ceil(at) if up else np.floor(at)
    return rounded


def _weights(
    at: Points,
    last: int,
    scale: float,
    mode: str,
    *,
    antialias: bool,
    excludes_outside: bool,
    cubic_coefficient: float,
) -> Iterator[tuple[NDArray[np.int64], Points]]:
    """Yield positions that points are made of, one for each point, and their weights."""
    stretch = max(1.0, 1.0 / scale) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) * stretch
    first = np.floor(at - reach) + 1
    index = first + np.arange(math.ceil(2 * reach))[:, None]
    distance = np.abs((index - at) / stretch)
    if mode == "linear":
        weight = np.maximum(1 - distance, 0)
    else:
        weight = _cubic(distance, cubic_coefficient)
    if excludes_outside:
        weight = weight * ((index >= 0) & (index <= last))
    yield from zip(index.astype(np.int64), weight / weight.sum(0), strict=True)


def _cubic(distance: Points, a: float) -> Points:
    """Compute the kernel of Keys. Source: the ONNX operator page of Resize."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))  # noqa: PLR2004


RULES: tuple[Rule, ...] = (Resize(),)
