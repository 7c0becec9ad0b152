"""Axes that nodes name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obc_onnx.graph.node import Node


def named_axes(node: Node, rank: int) -> tuple[int, ...]:
    """Read the attribute `axes`, counted from the start; all axes where it is left out."""
    return tuple(axis % rank for axis in node.integers("axes") or range(rank))
