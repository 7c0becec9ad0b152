"""Find the layers that channels cannot narrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import leaves

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import Role

    Attributes = Mapping[str, Any]

_LEAST = 2
"""Below this rank there is nothing between all and one."""


@dataclass(frozen=True)
class Dense:
    """A layer that multiplies by a weight of its own, one axis of which keeps its width.

    Attributes:
        node: The layer.
        weight: The initializer.
        slot: Of the weight.
        reads: The axis of the weight that is contracted.
        writes: The other one; all others have size 1.
        entry: The slot of what is multiplied.
        along: The axis of that which is contracted.
        attributes: Of the two nodes that may stand for this one.
    """

    node: Node
    weight: str
    slot: int
    reads: int
    writes: int
    entry: int
    along: int
    attributes: tuple[Attributes, Attributes]


def find_dense(coupling: Coupling) -> tuple[Dense, ...]:
    """Find the layers that may be split, in the order of the graph.

    Args:
        coupling: Of the graph.
    """
    roles: dict[tuple[str, int], list[Role]] = {}
    for role in coupling.roles:
        roles.setdefault((role.node.key, role.slot), []).append(role)
    found = (_dense(coupling, own) for own in roles.values())
    return tuple(layer for layer in found if layer is not None)


def _dense(coupling: Coupling, roles: list[Role]) -> Dense | None:
    """Make a layer of what a weight does, None where it does anything else."""
    kinds = {role.kind: role for role in roles}
    if len(roles) != len(kinds) or kinds.keys() != {"reads", "writes"}:
        return None
    read, written = kinds["reads"], kinds["writes"]
    node, slot = read.node, read.slot
    weight = node.inputs[slot]
    if read.tap is None or read.tap.at != "input" or not _may_go(coupling, weight):
        return None
    rule, array = coupling.rules.find(node), coupling.graph.initializers[weight]
    width, height = (array.shape[axis] for axis in (read.axis, written.axis))
    attributes = None if rule is None else rule.halves(node, slot, array.shape)
    is_matrix = array.size == width * height and min(width, height) >= _LEAST
    is_matrix &= bool(np.isfinite(array).all())  # others have no directions
    if attributes is None or not is_matrix or not _keeps_width(coupling, weight, read, written):
        return None
    places = (read.axis, written.axis, read.tap.slot, read.tap.axis)
    return Dense(node, weight, slot, *places, attributes)


def _may_go(coupling: Coupling, weight: str) -> bool:
    """Say whether a weight is a stored one that nothing else uses."""
    graph = coupling.graph
    if weight not in graph.initializers or graph.is_shared(weight):
        return False
    is_numpy_float = np.issubdtype(graph.initializers[weight].dtype, np.floating)
    return bool(is_numpy_float) and graph.may_change(weight)


def _keeps_width(coupling: Coupling, weight: str, *roles: Role) -> bool:
    """Say whether channels cannot narrow a weight along one of its axes."""
    free = {group.dim for group in coupling.groups if group.inexact is None}
    axes = coupling.axes[weight]
    return any(free.isdisjoint(leaves(axes[role.axis])) for role in roles)
