"""Which parts of a network got faster, as one engine times them before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.engines.engine import Layer
    from obc_onnx.graph.model import Graph

LAYOUT = "changes of layout"
"""What an engine computes for no node of the file."""
_TRIFLE = 0.02
"""Share of its time by which a part has to change to count as another one."""


@dataclass(frozen=True)
class NodeTime:
    """The time of what is computed as one, before and after.

    Attributes:
        node: How people call its first node.
        n_nodes: How many nodes it has, in the original.
        before: Milliseconds of one run of the original.
        after: Milliseconds of one run of the result.
    """

    node: str
    n_nodes: int
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Milliseconds that were saved."""
        return self.before - self.after

    @property
    def is_faster(self) -> bool:
        """Whether that is more than a trifle."""
        return self.gain > _TRIFLE * self.before


def compared(graph: Graph, before: Sequence[Layer], after: Sequence[Layer]) -> list[NodeTime]:
    """Bring together what layers of two models have in common.

    An engine may fuse nodes of one model that it leaves apart in the other: layers that share a
    node, directly or by others, are one part.

    Args:
        graph: The original.
        before: What the engine tells of it.
        after: What it tells of the result, whose nodes are called as in the original.
    Returns:
        The parts, the one that takes longest before comes first.
    """
    part_of: dict[str, str] = {}

    def root(key: str) -> str:
        while part_of.setdefault(key, key) != key:
            key = part_of[key]
        return key

    for layer in (*before, *after):
        for key in layer.nodes:
            part_of[root(key)] = root(layer.nodes[0])
    sums: dict[str, list[float]] = {}
    for side, layers in enumerate((before, after)):
        for layer in layers:
            key = root(layer.nodes[0]) if layer.nodes else ""
            sums.setdefault(key, [0.0, 0.0])[side] += layer.ms
    members: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.key in part_of:
            members.setdefault(root(node.key), []).append(node.label)
    found = [
        NodeTime(members[key][0], len(members[key]), *times)
        if key in members
        else NodeTime(LAYOUT, 0, *times)
        for key, times in sums.items()
    ]
    return sorted(found, key=lambda one: one.before, reverse=True)
