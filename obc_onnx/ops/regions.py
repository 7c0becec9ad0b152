"""Operators that pool regions of images, or filter them at computed places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.axes.expressions import product
from obc_onnx.errors import DataError, UnsupportedOperatorError
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.padding import explicit_pads
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_PLANE = 4
"""Rank of a batch of images."""
_HALF_PIXEL_SINCE = 16
"""Before, RoiAlign did not shift its regions by half a position."""
_MOST_SAMPLES = 2**12
"""Along each side of a cell."""


class _Regions(FreeOfMacs):
    """Pool regions of images; the second input has a row for each region."""

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass the channels through; the first axis is that of the regions."""
        x, regions = context.value(0), context.value(1)
        context.freeze((x.axes[0], *x.axes[2:], *regions.axes[1:]), "an axis with regions")
        images = context.optional(2)
        if images is not None:
            context.unify(regions.axes[0], images.axes[0])
        pooled = [context.written(size, "a pooled axis") for size in context.shape()[2:]]
        return [Value((regions.axes[0], x.axes[1], *pooled))]


class RoiAlign(_Regions):
    """Average samples between the positions of regions; inputs X, rois and their images."""

    op_types = ("RoiAlign",)

    def forward(self, context: ForwardContext) -> Call:
        """Sample and average.

        Raises:
            UnsupportedOperatorError: The node takes the largest of weighted neighbours.
        """
        node = context.node
        if node.text("mode", "avg") != "avg":
            raise UnsupportedOperatorError(f"{node.label}: the twin averages regions only")
        usual = "half_pixel" if node.opset >= _HALF_PIXEL_SINCE else "output_half_pixel"
        transform = node.text("coordinate_transformation_mode", usual)
        constants = {
            "size": (node.integer("output_height", 1), node.integer("output_width", 1)),
            "n_samples": node.integer("sampling_ratio", 0),
            "scale": node.number("spatial_scale", 1.0),
            "half_pixel": transform == "half_pixel",
        }
        return Call(roi_align, constants, (0, 1, 2))


class MaxRoiPool(_Regions):
    """Take the largest value in each cell of a region; inputs X and rois."""

    op_types = ("MaxRoiPool",)

    def forward(self, context: ForwardContext) -> Call:
        """Crop each region and pool it."""
        node = context.node
        constants = {
            "size": node.integers("pooled_shape"),
            "scale": node.number("spatial_scale", 1.0),
        }
        return Call(max_roi_pool, constants, (0, 1))


class DeformConv(Rule):
    """Convolution at computed positions; inputs X, W, offset, B and mask.

    Channels are blocks x channels per block, as in Conv, and at the same time blocks that share
    their offsets x channels.
    """

    op_types = ("DeformConv",)
    ranks: ClassVar = {3: 1}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie channels as Conv does; freeze the blocks that share offsets, and all offsets."""
        node, x, w = context.node, context.value(0), context.value(1)
        out_channels, in_per_block = w.axes[:2]
        n_blocks, n_sharing = node.integer("group", 1), node.integer("offset_group", 1)
        block, written = context.factored(out_channels, n_blocks, out_channels.size // n_blocks)
        context.unify(x.axes[1], product([block, in_per_block]))
        context.spell("group", block, scalar=True)
        sharing, _ = context.factored(x.axes[1], n_sharing, x.axes[1].size // n_sharing)
        context.freeze([sharing], "channels that share offsets")
        bias = context.optional(3)
        if bias is not None:
            context.unify(bias.axes[0], out_channels)
        for computed in filter(None, (context.value(2), context.optional(4))):
            context.unify(x.axes[0], computed.axes[0])
            context.freeze(computed.axes[1:], "an offset")
        tap = Tap("output", 0, 1)
        context.writes(1, 0, tap=tap, mixes=[written], bias=None if bias is None else 3)
        mixes = [in_per_block] if n_sharing == 1 else []
        context.reads(1, 1, mixes=mixes, tap=Tap("input", 0, 1))
        context.freeze((*x.axes[2:], *w.axes[2:]), "a spatial axis")
        spatial = [context.fixed(size, "a spatial axis") for size in context.shape()[2:]]
        return [Value((x.axes[0], out_channels, *spatial))]

    def forward(self, context: ForwardContext) -> Call:
        """Sample each position of the kernel, then multiply.

        Raises:
            UnsupportedOperatorError: There are not two spatial axes.
        """
        node = context.node
        if context.rank() != _PLANE:
            raise UnsupportedOperatorError(f"{node.label}: the twin deforms images only")
        constants = {
            "strides": node.integers("strides") or (1, 1),
            "pads": explicit_pads(node, 2)[:2],
            "dilations": node.integers("dilations") or (1, 1),
            "n_blocks": node.integer("group", 1),
            "n_sharing": node.integer("offset_group", 1),
        }
        return Call(deform_conv, constants, context.given(0, 1, 2, 3, 4))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every output element takes one product per element of its filter."""
        return math.prod(outputs[0]) * math.prod(inputs[1][1:])


def roi_align(
    x: Tensor,
    rois: Tensor,
    images: Tensor,
    *,
    size: tuple[int, int],
    n_samples: int,
    scale: float,
    half_pixel: bool,
) -> Tensor:
    """Compute RoiAlign with averages. Source: the ONNX operator page of RoiAlign.

    Args:
        x: Shape [n, channels, height, width].
        rois: The corners of each region, x1, y1, x2, y2; shape [n_regions, 4].
        images: Which image a region lies in, shape [n_regions].
        size: Rows and columns of the result.
        n_samples: In each direction of a cell; 0 for as many as a cell has positions.
        scale: From the units of the corners to positions.
        half_pixel: Whether corners count from the edge of a position and not from its centre.
    """
    import torch

    corners = rois * scale - (0.5 if half_pixel else 0.0)
    start = corners[:, :2].flip(1)
    extent = corners[:, 2:].flip(1) - start
    extent = extent if half_pixel else extent.clamp(min=1.0)
    index = images.to(x.device).long()
    if n_samples > _MOST_SAMPLES:
        raise DataError(
            f"RoiAlign: sampling_ratio {n_samples} is above {_MOST_SAMPLES}, which the twin takes"
        )
    if n_samples:
        return _average_regions(x[index], start, extent, size, [n_samples, n_samples])
    parts = [x.new_zeros(0, x.shape[1], *size)]
    for i, image in enumerate(index.tolist()):
        counts = [_count_samples(extent[i, side].item(), size[side]) for side in (0, 1)]
        one = slice(i, i + 1)
        parts.append(_average_regions(x[image, None], start[one], extent[one], size, counts))
    return torch.cat(parts)


def _count_samples(extent: float, n_cells: int) -> int:
    """Say how many samples each cell along a side of a region gets: one for each position.

    Raises:
        DataError: The region is larger than any image.
    """
    if not extent / n_cells <= _MOST_SAMPLES:  # which nothing holds for that is no number
        raise DataError(
            f"RoiAlign: a region is {extent:g} positions long; the twin takes {_MOST_SAMPLES} for "
            f"each of its {n_cells} cells at most"
        )
    return math.ceil(extent / n_cells)


def _average_regions(
    x: Tensor, start: Tensor, extent: Tensor, size: tuple[int, int], counts: list[int]
) -> Tensor:
    """Average `counts` rows and columns of samples in each of `size` cells of a region.

    Samples outside of the image by more than a position are zero. One row of all cells is sampled
    after the other, so that memory does not grow with the samples of a cell along both sides.
    """
    import torch
    from torch.nn import functional

    total = x.new_zeros(x.shape[0], x.shape[1], *size)
    if min(counts) < 1:
        return total
    places, insides = zip(
        *(
            _places(start[:, side], extent[:, side], size[side] * counts[side], x.shape[2 + side])
            for side in (0, 1)
        ),
        strict=True,
    )
    for first in range(counts[0]):
        own = slice(first, None, counts[0])
        inside = insides[0][:, own, None] & insides[1][:, None, :]
        rows, columns = places[0][:, own, None], places[1][:, None, :]
        grid = torch.stack([columns.expand(inside.shape), rows.expand(inside.shape)], -1)
        sampled = functional.grid_sample(x, grid, "bilinear", "border", align_corners=False)
        total = total + functional.avg_pool2d(sampled * inside[:, None], (1, counts[1]))
    return total / counts[0]


def _places(start: Tensor, extent: Tensor, n_places: int, length: int) -> tuple[Tensor, Tensor]:
    """Spread samples along one side of each region.

    Returns:
        Where they lie in an image of some length, from -1 to 1, and whether that is inside of it;
        shape [n_regions, n_places].
    """
    import torch

    steps = (torch.arange(n_places, device=start.device, dtype=start.dtype) + 0.5) / n_places
    place = start[:, None] + steps * extent[:, None]
    inside = (place >= -1) & (place <= length)
    return (2 * place.clamp(0, length - 1) + 1) / length - 1, inside


def max_roi_pool(x: Tensor, rois: Tensor, *, size: tuple[int, int], scale: float) -> Tensor:
    """Compute MaxRoiPool. Source: the ONNX operator page of MaxRoiPool.

    Args:
        x: Shape [n, channels, height, width].
        rois: The image and the corners of each region, shape [n_regions, 5].
        size: Rows and columns of the result.
        scale: From the units of the corners to positions.
    """
    import torch
    from torch.nn import functional

    lowest = float("-inf")
    parts = [x.new_zeros(0, x.shape[1], *size)]
    corners = rois[:, 1:] * scale
    corners = corners.sign() * (corners.abs() + 0.5).floor()  # halves go away from zero
    regions = torch.cat([rois[:, :1], corners], 1).long().tolist()
    for image, left, top, right, bottom in regions:
        width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
        sides = [-left, left + width - x.shape[3], -top, top + height - x.shape[2]]
        region = functional.pad(x[image, None], sides, value=lowest)
        pooled = functional.adaptive_max_pool2d(region, size)
        parts.append(pooled.masked_fill(pooled == lowest, 0.0))
    return torch.cat(parts)


def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    n_blocks: int,
    n_sharing: int,
) -> Tensor:
    """Compute DeformConv over images. Source: the ONNX operator page of DeformConv.

    `pads` are those at the beginning; how many positions there are is read off the offsets.
    """
    import torch
    from torch.nn import functional

    n, n_channels = x.shape[:2]
    kernel, out = w.shape[2:], offset.shape[2:]
    offset = offset.reshape(n * n_sharing, *kernel, 2, *out)
    grids = []
    for side in (1, 0):
        view = [1] * 5
        view[1 + side], view[3 + side] = kernel[side], out[side]
        within = torch.arange(kernel[side], device=x.device)[:, None] * dilations[side]
        starts = torch.arange(out[side], device=x.device) * strides[side] - pads[side]
        place = (within + starts).reshape(view) + offset[:, :, :, side]
        grids.append((2 * place + 1) / x.shape[2 + side] - 1)
    grid = torch.stack(grids, -1).flatten(1, 3)
    parts = x.reshape(n * n_sharing, -1, *x.shape[2:])
    columns = functional.grid_sample(parts, grid, "bilinear", "zeros", align_corners=False)
    columns = columns.reshape(n, n_sharing, -1, math.prod(kernel), math.prod(out))
    if mask is not None:
        columns = columns * mask.reshape(n, n_sharing, 1, *columns.shape[3:])
    columns = columns.reshape(n, n_blocks, n_channels // n_blocks * math.prod(kernel), -1)
    y = (w.reshape(n_blocks, w.shape[0] // n_blocks, -1) @ columns).reshape(n, -1, *out)
    return y if b is None else y + b[:, None, None]


RULES: tuple[Rule, ...] = (DeformConv(), MaxRoiPool(), RoiAlign())
