"""Leave branches out of a graph: who reads their values reads what stands in for those.

What is left has the axes and groups of the whole, fewer of them. So the same `Keep` says of either
which units stay, and names in a plan mean the same with and without branches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from obc_onnx.branches.find import chosen

if TYPE_CHECKING:
    from collections.abc import Container

    from obc_onnx.branches.find import StandIns
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.coupling.patch import Patch
    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.context import Role


def bypassed(coupling: Coupling, stand_ins: StandIns) -> Coupling:
    """Return the coupling of a graph without some branches; the same one where there are none.

    It holds no less than an analysis of that graph: what only a dead node has tied stays tied.

    Args:
        coupling: Of the whole graph.
        stand_ins: For each value that goes, what is read in its place.
    Raises:
        RequestError: One of them is no branch of the graph.
    """
    if not stand_ins:
        return coupling
    whole = coupling.graph
    graph = whole.bypass({own.value: own.stand_in for own in chosen(coupling, stand_ins)})
    graph = graph.known_as(whole)
    alive = _Alive(graph, stand_ins)
    values = {name: value for name, value in coupling.values.items() if alive.has(name)}
    dims = [alive.group(group) for group in coupling.groups]
    groups = tuple(group for group in dims if group.members)
    return replace(
        coupling,
        graph=graph,
        axes={name: axes for name, axes in coupling.axes.items() if alive.has(name)},
        values=values,
        roles=alive.roles(coupling.roles),
        groups=groups,
        patches=tuple(patch for patch in coupling.patches if alive.holds(patch)),
        renumberings=tuple(
            replace(own, node=graph.producers[own.node.key])
            for own in coupling.renumberings
            if alive.works(own.node.key)
        ),
    )


def without_gone(coupling: Coupling, keep: Keep) -> Keep:
    """Return what `keep` says of the groups that a graph has."""
    dims = {group.dim for group in coupling.groups}
    return {dim: kept for dim, kept in keep.items() if dim in dims}


class _Alive:
    """What a graph still has of a larger one.

    Where subgraphs or outputs read a value that went, its node is left, and only hands on.
    """

    def __init__(self, graph: Graph, gone: Container[str]) -> None:
        self._graph, self._gone = graph, gone
        self._names = graph.producers.keys() | graph.initializers.keys()
        self._names |= {port.name for port in graph.inputs}

    def has(self, name: str) -> bool:
        return name in self._names

    def works(self, key: str) -> bool:
        """Say whether a node is there, and does what it did."""
        return key in self._graph.producers and key not in self._gone

    def roles(self, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        """Return the roles of nodes that are left, as these read now."""
        nodes = self._graph.producers
        left = (role for role in roles if self.works(role.node.key))
        return tuple(replace(role, node=nodes[role.node.key]) for role in left)

    def group(self, group: Group) -> Group:
        return replace(group, members=self.roles(group.members))

    def holds(self, patch: Patch) -> bool:
        """Say whether all that a patch passes is there."""
        return all(self.works(key) for key in (patch.key, *(k for k, _ in patch.route)))
