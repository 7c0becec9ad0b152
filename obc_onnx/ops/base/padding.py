"""The arithmetic of `pads` and `auto_pad`, shared by convolution and pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obc_onnx.graph.node import Node


def explicit_pads(node: Node, rank: int) -> tuple[int, ...]:
    """Read `pads` as (begin..., end...), zeros where it is left out or `auto_pad` rules."""
    if node.text("auto_pad", "NOTSET") != "NOTSET":
        return (0,) * (2 * rank)
    return node.integers("pads") or (0,) * (2 * rank)


def same_pads(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    auto_pad: str,
) -> tuple[int, ...]:
    """Compute the pads of SAME_UPPER and SAME_LOWER, which make the output ceil(size / stride).

    Returns:
        (begin..., end...); an odd amount goes to the end for SAME_UPPER.
    """
    small, large = [], []
    for extent, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        out = -(-extent // stride)
        total = max((out - 1) * stride + (k - 1) * dilation + 1 - extent, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    return tuple([*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small])
