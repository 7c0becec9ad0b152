"""Which nodes of a graph are there for one value alone."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node


class Reach:
    """What values of a graph are computed from."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.places = {node.key: place for place, node in enumerate(graph.nodes)}
        self._readers = {
            node.key: sum(len(graph.consumers.get(name, ())) for name in node.outputs if name)
            for node in graph.nodes
        }

    def needed_alone(self, node: Node, stand_in: str = "") -> Iterator[Node]:
        """Yield a node and those that are there for it alone, the last one of the graph first.

        Args:
            node: What nothing would read any more.
            stand_in: A value that would be read instead of it, and so stays.
        """
        graph, read = self._graph, Counter[str]()
        queue = [-self.places[node.key]]
        while queue:
            own = graph.nodes[-heappop(queue)]
            yield own
            for used in own.inputs:
                other = graph.producers.get(used)
                if other is None or used == stand_in:
                    continue
                read[other.key] += 1
                if read[other.key] == self._readers[other.key] and not self._escapes(other):
                    heappush(queue, -self.places[other.key])

    def _escapes(self, node: Node) -> bool:
        return any(self._graph.escapes(name) for name in node.outputs if name)
