"""Pooling over spatial axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.padding import explicit_pads, same_pads
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class _Pool(FreeOfMacs):
    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass batch and channels through; spatial axes are frozen."""
        x = context.value(0)
        context.freeze(x.axes[2:], "a spatial axis")
        if len(context.node.outputs) > 1:
            context.freeze(x.axes, "channels that the positions of maxima count")
        spatial = (context.fixed(size, "a spatial axis") for size in context.shape()[2:])
        return [Value((*x.axes[:2], *spatial))] * len(context.node.outputs)


class WindowPool(_Pool):
    """MaxPool, AveragePool and LpPool."""

    op_types = ("MaxPool", "AveragePool", "LpPool")
    effects: ClassVar = {"AveragePool": Effect.AVERAGES}

    def forward(self, context: ForwardContext) -> Call:
        """Pad as ONNX does, then pool without padding."""
        node = context.node
        kernel = node.integers("kernel_shape") or ()
        rank = len(kernel)
        _refuse_dilated_same(node)
        constants = {
            "kernel": kernel,
            "strides": node.integers("strides") or (1,) * rank,
            "dilations": node.integers("dilations") or (1,) * rank,
            "pads": explicit_pads(node, rank),
            "auto_pad": node.text("auto_pad", "NOTSET"),
            "ceil_mode": bool(node.integer("ceil_mode", 0)),
        }
        if node.op_type == "MaxPool" and len(node.outputs) > 1:
            by_column = bool(node.integer("storage_order", 0))
            return Call(max_pool_with_places, {**constants, "by_column": by_column})
        if node.op_type == "MaxPool":
            return Call(max_pool, constants)
        if node.op_type == "LpPool":
            return Call(lp_pool, {**constants, "p": node.number("p", 2.0)})
        constants["count_include_pad"] = bool(node.integer("count_include_pad", 0))
        return Call(average_pool, constants)


class GlobalPool(_Pool):
    """GlobalAveragePool, GlobalMaxPool and GlobalLpPool."""

    op_types = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    effects: ClassVar = {"GlobalAveragePool": Effect.AVERAGES}

    def forward(self, context: ForwardContext) -> Call:
        """Reduce every axis behind the channels."""
        node = context.node
        if node.op_type == "GlobalLpPool":
            return Call(global_lp_pool, {"p": node.number("p", 2.0)})
        average = node.op_type == "GlobalAveragePool"
        return Call(global_average_pool if average else global_max_pool)


class MaxUnpool(FreeOfMacs):
    """Elements put back to where a MaxPool found them; inputs X, their places, and a shape."""

    op_types = ("MaxUnpool",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze channels and spatial axes: places count elements of the whole output."""
        x, places = context.value(0), context.value(1)
        for axis, other in zip(x.axes, places.axes, strict=True):
            context.unify(axis, other)
        context.freeze(x.axes[1:], "an axis that places count")
        spatial = (context.fixed(size, "a spatial axis") for size in context.shape()[2:])
        return [Value((*x.axes[:2], *spatial))]

    def forward(self, context: ForwardContext) -> Call:
        """Scatter into zeros."""
        node = context.node
        kernel = node.integers("kernel_shape") or ()
        constants = {
            "kernel": kernel,
            "strides": node.integers("strides") or (1,) * len(kernel),
            "pads": explicit_pads(node, len(kernel)),
        }
        return Call(max_unpool, constants, context.given(0, 1, 2))


def _refuse_dilated_same(node: Node) -> None:
    """Refuse what ONNX Runtime pads as if there were no dilations.

    Raises:
        UnsupportedOperatorError: The node has both SAME padding and dilations.
    """
    dilated = any(dilation != 1 for dilation in node.integers("dilations") or ())
    if dilated and node.text("auto_pad", "NOTSET").startswith("SAME"):
        raise UnsupportedOperatorError(
            f"{node.label}: ONNX Runtime pads auto_pad SAME as if there were no dilations; write "
            f"the pads out"
        )


def _window_pads(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
    *,
    ceil_mode: bool,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pads of the operator, and how far the last windows reach beyond them.

    With `ceil_mode` a window may start inside the padded input and end outside of it, but not start
    in the end padding.
    """
    rank = len(kernel)
    size = tuple(x.shape[2:])
    if auto_pad.startswith("SAME"):
        return same_pads(size, kernel, strides, dilations, auto_pad), (0,) * rank
    extra = []
    for i in range(rank):
        window = (kernel[i] - 1) * dilations[i] + 1
        free = size[i] + pads[i] + pads[rank + i] - window
        steps = -(-free // strides[i]) if ceil_mode else free // strides[i]
        if ceil_mode and steps * strides[i] >= size[i] + pads[i]:
            steps -= 1
        extra.append(max(steps * strides[i] - free, 0))
    return pads, tuple(extra)


def _pad(x: Tensor, pads: tuple[int, ...], extra: tuple[int, ...], value: float) -> Tensor:
    from torch.nn import functional

    rank = len(extra)
    sides = [side for i in reversed(range(rank)) for side in (pads[i], pads[rank + i] + extra[i])]
    return functional.pad(x, sides, value=value) if any(sides) else x


def max_pool(
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
    ceil_mode: bool,
) -> Tensor:
    """Compute MaxPool. Source: the ONNX operator page of MaxPool."""
    from torch.nn import functional

    pads, extra = _window_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode=ceil_mode)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    padded = _pad(_as_float(x), pads, extra, float("-inf"))
    return pool(padded, kernel, strides, 0, dilations).to(x.dtype)


def max_pool_with_places(
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
    ceil_mode: bool,
    by_column: bool,
) -> tuple[Tensor, Tensor]:
    """Compute MaxPool and where in the whole input each largest element was, counted flat.

    With `by_column` the last two spatial axes are counted the other way round. Source: the ONNX
    operator page of MaxPool.
    """
    import torch
    from torch.nn import functional

    pads, extra = _window_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode=ceil_mode)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    padded = _pad(_as_float(x), pads, extra, float("-inf"))
    y, flat = pool(padded, kernel, strides, 0, dilations, return_indices=True)
    places = torch.unravel_index(flat, padded.shape[2:])
    inside = [place - pad for place, pad in zip(places, pads, strict=False)]
    order = [*range(len(kernel))]
    if by_column:
        order[-2:] = order[:-3:-1]
    planes = torch.arange(math.prod(x.shape[:2]), device=x.device)
    found = planes.reshape(*x.shape[:2], *[1] * len(kernel))
    for axis in order:
        found = found * x.shape[2 + axis] + inside[axis]
    return y.to(x.dtype), found


def _as_float(x: Tensor) -> Tensor:
    """Convert small integers, which torch pools on no device, and back without loss."""
    return x if x.is_floating_point() else x.float()


def average_pool(
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:
    """Compute AveragePool: the sum of a window over the number of elements that count.

    Padding counts only with `count_include_pad`; what `ceil_mode` adds never counts.
    Source: the ONNX operator page of AveragePool.
    """
    import torch
    from torch.nn import functional

    rank = len(kernel)
    pads, extra = _window_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode=ceil_mode)
    average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    if all(d == 1 for d in dilations) and not any(pads) and not any(extra):
        return average(x, kernel, strides)
    ones = torch.ones_like(x[:1, :1])
    counted = _pad(
        _pad(ones, pads, (0,) * rank, float(count_include_pad)), (0,) * 2 * rank, extra, 0.0
    )
    padded = _pad(x, pads, extra, 0.0)
    if all(d == 1 for d in dilations):
        return average(padded, kernel, strides) / average(counted, kernel, strides)
    return _over_windows(_sum, padded, kernel, strides, dilations) / _over_windows(
        _sum, counted, kernel, strides, dilations
    )


def lp_pool(
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
    ceil_mode: bool,
    p: float,
) -> Tensor:
    """Compute LpPool: the norm of each window. Source: the ONNX operator page of LpPool."""
    import torch

    def norm(values: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(values, p, 0)
        return found

    pads, extra = _window_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode=ceil_mode)
    return _over_windows(norm, _pad(x, pads, extra, 0.0), kernel, strides, dilations)


def _sum(values: Tensor) -> Tensor:
    return values.sum(0)


def _over_windows(
    combine: Callable[[Tensor], Tensor],
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Tensor:
    """Combine the elements of each window along one spatial axis after the other."""
    import torch

    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        steps = (x.shape[axis] - (k - 1) * dilation - 1) // stride + 1
        taps = [
            x.narrow(axis, i * dilation, (steps - 1) * stride + 1).index_select(
                axis, torch.arange(0, (steps - 1) * stride + 1, stride, device=x.device)
            )
            for i in range(k)
        ]
        x = combine(torch.stack(taps))
    return x


def global_average_pool(x: Tensor) -> Tensor:
    """Average over every axis behind the channels, keeping them with size 1."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """Take the maximum over every axis behind the channels, keeping them with size 1."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def global_lp_pool(x: Tensor, *, p: float) -> Tensor:
    """Take the norm over every axis behind the channels, keeping them with size 1."""
    import torch

    norm: Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), keepdim=True)
    return norm


def max_unpool(
    x: Tensor,
    places: Tensor,
    shape: Tensor | None = None,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
) -> Tensor:
    """Compute MaxUnpool. Source: the ONNX operator page of MaxUnpool.

    Args:
        x: Shape [batch, channels, ...].
        places: Where its elements go, as positions in the flattened output; same shape.
        shape: Of the output; without it the smallest that a pool could have made `x` from.
        kernel: Size of a window along each spatial axis.
        strides: Steps between windows.
        pads: As (begin..., end...).
    """
    rank = len(kernel)
    sizes = [
        (x.shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[rank + i]
        for i in range(rank)
    ]
    target = [*x.shape[:2], *sizes] if shape is None else shape.tolist()
    y = x.new_zeros(math.prod(target))
    return y.scatter(0, places.reshape(-1).to(x.device), x.reshape(-1)).reshape(target)


RULES: tuple[Rule, ...] = (
    GlobalPool(),
    MaxUnpool(),
    WindowPool(),
)
