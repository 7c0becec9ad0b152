"""Weights with units that do nothing, planted without the code that looks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import leaves, mask
from obc_onnx.graph.node import is_float

if TYPE_CHECKING:
    from collections.abc import Collection

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Group
    from obc_onnx.graph.model import Graph

    Array = np.ndarray


def owned(coupling: Coupling, name: str, dim: Dim, unit: int) -> Array:
    """Say which elements of an initializer a unit owns."""
    axes = coupling.axes[name]
    found = np.zeros([axis.size for axis in axes], np.bool_)
    for place, axis in enumerate(axes):
        if dim in leaves(axis):
            gone = ~mask(axis, {dim: np.arange(dim.size) != unit})
            found |= gone.reshape([-1 if other == place else 1 for other in range(len(axes))])
    return found


def reading(coupling: Coupling, group: Group) -> list[str]:
    """Name what reads a group."""
    return [role.node.inputs[role.slot] for role in group.members if role.kind == "reads"]


def plant(
    coupling: Coupling, group: Group, arrays: dict[str, Array], kinds: Collection[str]
) -> int:
    """Make unit 0 unread, unit 1 zero where it is written, and unit 3 the same as unit 2 there.

    Args:
        coupling: Of the graph.
        group: The group; it takes four units for all three.
        arrays: Float initializers, which are changed.
        kinds: Which of "unread", "zero" and "same" are planted.
    Returns:
        How many kinds there were weights for.
    """
    read = reading(coupling, group)
    unread = "unread" in kinds and all(name in arrays for name in read)
    planted = {"unread"} if unread else set[str]()
    for name in [name for name in arrays if name in coupling.axes]:
        first, second, third, fourth = (owned(coupling, name, group.dim, unit) for unit in range(4))
        array = arrays[name]
        if name in read:
            if unread:
                array[np.broadcast_to(first, array.shape)] = 0
        elif second.any():
            planted |= {"zero", "same"} & set(kinds)
            if "zero" in kinds:
                array[second] = 0
            if "same" in kinds:
                array[fourth] = array[third]
    return len(planted)


def floats(graph: Graph) -> dict[str, Array]:
    """Copy the float initializers of a graph."""
    return {n: a.copy() for n, a in graph.initializers.items() if is_float(a.dtype)}
