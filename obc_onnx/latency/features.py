"""What the time of a node depends on, at widths that a runtime pads to its blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import count, leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.node import Node

    Axis = tuple[str, int]

N_FEATURES = 5
"""One for each run, MACs, elements that are read, that are written, and of weights."""


def prunable_axes(coupling: Coupling) -> frozenset[Axis]:
    """List the axes that may lose positions: a runtime works on those in blocks."""
    dims = {group.dim for group in coupling.groups}
    return frozenset(
        (name, axis)
        for name, axes in coupling.axes.items()
        for axis, expr in enumerate(axes)
        if not dims.isdisjoint(leaves(expr))
    )


class Features:
    """Counts for each node what its time may depend on.

    Args:
        coupling: Of a network.
        blocked: Axes whose sizes count as the next multiple of the block.
        block: Positions that a runtime computes at once.
    """

    def __init__(self, coupling: Coupling, blocked: frozenset[Axis], block: int) -> None:
        self._coupling, self._blocked, self._block = coupling, blocked, block
        self._nodes = {node.key: node for node in coupling.graph.nodes}
        self._known: dict[tuple[str, bytes], NDArray[np.float64]] = {}
        self._dims: dict[str, tuple[Dim, ...]] = {}

    def of(self, keys: Iterable[str], keep: Keep) -> NDArray[np.float64]:
        """Return the sum over some nodes, by their first outputs, shape [N_FEATURES].

        The first number is 1 where the network has any of them, whatever it is; those that it has
        not count nothing.
        """
        total = np.zeros(N_FEATURES)
        there = [self._nodes[key] for key in keys if key in self._nodes]
        for node in there:
            if node.key in self._coupling.axes:
                total += self._of_node(node, keep)
        total[0] = bool(there)
        return total

    def dims(self, key: str) -> tuple[Dim, ...]:
        """List the dims that lie on what a node reads and writes."""
        if key not in self._dims:
            node, axes = self._nodes.get(key), self._coupling.axes
            names = () if node is None else (*node.inputs, *node.outputs)
            found = (dim for name in names for axis in axes.get(name, ()) for dim in leaves(axis))
            self._dims[key] = tuple(dict.fromkeys(found))
        return self._dims[key]

    def _of_node(self, node: Node, keep: Keep) -> NDArray[np.float64]:
        cut = (keep[dim].tobytes() for dim in self.dims(node.key) if dim in keep)
        known = (node.key, b"|".join(cut))
        if known not in self._known:
            self._known[known] = self._counted(node, keep)
        return self._known[known]

    def _counted(self, node: Node, keep: Keep) -> NDArray[np.float64]:
        inputs = [self._shape(name, keep) for name in node.inputs]
        outputs = [self._shape(name, keep) for name in node.outputs]
        rule = self._coupling.rules.find(node)
        macs = 0 if rule is None else rule.macs(node, inputs, outputs)
        held = self._coupling.graph.initializers
        sizes = [
            math.prod(shape) if name else 0 for name, shape in zip(node.inputs, inputs, strict=True)
        ]
        weights = sum(size for name, size in zip(node.inputs, sizes, strict=True) if name in held)
        written = sum(math.prod(shape) for shape in outputs)
        return np.array([1.0, macs, sum(sizes) - weights, written, weights], np.float64)

    def _shape(self, name: str, keep: Mapping[Dim, NDArray[np.bool_]]) -> tuple[int, ...]:
        sizes = []
        for axis, expr in enumerate(self._coupling.axes.get(name, ())):
            size = count(expr, keep)
            if (name, axis) in self._blocked:
                size = -(-size // self._block) * self._block
            sizes.append(size)
        return tuple(sizes)
