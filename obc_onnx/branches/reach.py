"""Which nodes of a graph are there for one value alone."""

from __future__ import annotations

from collections import Counter
from functools import partial, reduce
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

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

    def counted_alone(self, wanted: Container[str]) -> list[int]:
        """Count for each node the `wanted` ones among those that are there for it alone.

        Those are what it dominates, backwards: for a node whose readers meet in another one, all
        runs together in that. Source: Cooper, Harvey and Kennedy, A Simple, Fast Dominance
        Algorithm, which passes once over a graph without circles.
        """
        nodes = self._graph.nodes
        end = len(nodes)  # where outputs of the graph meet
        meets, counts = [end] * (end + 1), [0] * (end + 1)
        for place in reversed(range(end)):
            readers = self._readers_of(nodes[place])
            meets[place] = reduce(partial(_meeting, meets), readers) if readers else end
        for place, node in enumerate(nodes):
            counts[place] += node.key in wanted
            counts[meets[place]] += counts[place]
        return counts[:-1]

    def _readers_of(self, node: Node) -> list[int]:
        """Return the places of the nodes that read one, none where it escapes."""
        if self._escapes(node):
            return []
        found = (self._graph.consumers.get(name, ()) for name in node.outputs if name)
        return sorted({self.places[reader.key] for uses in found for reader, _ in uses})

    def _escapes(self, node: Node) -> bool:
        return any(self._graph.escapes(name) for name in node.outputs if name)


def _meeting(meets: Sequence[int], first: int, second: int) -> int:
    """Return where two nodes meet, behind both or one of them."""
    while first != second:
        first, second = (meets[first], second) if first < second else (first, meets[second])
    return first
