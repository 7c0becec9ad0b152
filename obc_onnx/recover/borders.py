"""Where a cut network is compared with its original on the way: the narrow places of a graph.

A *border* is a value that all information passes through, so that two networks that agree on it may
go different ways in front of it. There are two kinds:

- sums of two computed values of equal axes: what residual blocks write;
- values behind some product that separate the graph: articulation points of the graph of
  computations, such as every value of a chain, and the joint outputs of parallel branches.

Of values that follow each other, with no product and no join in between, the first is a border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

from obc_onnx.graph.node import is_float
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.ops.base.effect import Effect
from obc_onnx.recover.targets import kept_along

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.surgery.cut import Cut

_MOST = 16
"""Borders, at most: each takes memory and time, and neighbours say much the same."""


@dataclass(frozen=True)
class Border:
    """A value at which both networks are compared.

    Attributes:
        name: Of the value, in both.
        kept: For each of its axes that shrinks, which positions stay.
    """

    name: str
    kept: Mapping[int, NDArray[np.int64]]


@dataclass(frozen=True)
class _Candidate:
    """A value that may be a border.

    Attributes:
        place: The last value up to it that a product or a join gives.
        depth: MACs of the most costly way to it.
    """

    name: str
    place: str
    depth: int


def find_borders(cut: Cut, most: int = _MOST) -> list[Border]:
    """Find the borders of a graph, in its order.

    Args:
        cut: The cut graph, with what stays at the batch that both networks run on.
        most: No more than this are taken, evenly by the MACs between them.
    """
    places = _one_for_each_place(_candidates(cut.coupling, cut.pruned))
    chosen = _evenly(places, most)
    return [Border(name, kept_along(cut.coupling, cut.keep, name)) for name in chosen]


def _candidates(coupling: Coupling, pruned: Graph) -> Iterator[_Candidate]:
    graph = coupling.graph
    types = ElementTypes(graph)
    separating = separators(graph, types)
    outputs = {port.name for port in graph.outputs}
    place: dict[str, str] = {}
    depth: dict[str, int] = {}
    for node in graph.nodes:
        macs, before = coupling.node_macs(node, {}), [n for n in node.inputs if n in place]
        origins = {place[name] for name in before}
        deepest = macs + max((depth[name] for name in before), default=0)
        for name in node.outputs:
            if not name or not is_float(types[name]):
                continue
            place[name] = name if macs or len(origins) != 1 else next(iter(origins))
            depth[name] = deepest
            known = name in coupling.axes and name in pruned.producers and name not in outputs
            is_sum = Effect.ADDS in coupling.rules.effect(node) and _adds_equals(coupling, name)
            if known and (is_sum or (deepest and name in separating)):
                yield _Candidate(name, place[name], deepest)


def _adds_equals(coupling: Coupling, name: str) -> bool:
    """Say whether a sum is one of computed values of its own axes."""
    axes, inputs = coupling.axes, coupling.graph.producers[name].inputs
    return all(axes.get(n) == axes[name] and not coupling.values[n].constant for n in inputs)


def separators(graph: Graph, types: ElementTypes) -> set[str]:
    """Find the values without which what is computed of floats falls apart.

    Sizes and masks of whole numbers count not: they pass no information on.
    """
    ties = nx.Graph()
    for node in graph.nodes:
        values = [
            name
            for name in {*node.inputs, *node.outputs, *node.captures}
            if name and name not in graph.held and is_float(types[name])
        ]
        ties.add_edges_from((("node", node.key), ("value", name)) for name in values)
    return {name for kind, name in nx.articulation_points(ties) if kind == "value"}


def _one_for_each_place(candidates: Iterator[_Candidate]) -> list[_Candidate]:
    """Take the first of those that follow each other."""
    places: dict[str, _Candidate] = {}
    for found in candidates:
        places.setdefault(found.place, found)
    return list(places.values())


def _evenly(places: list[_Candidate], most: int) -> list[str]:
    """Thin places out, so that about as many MACs are between any two of them."""
    left = sorted(places, key=lambda place: place.depth)
    while len(left) > most:
        depths = [0, *(place.depth for place in left)]
        gaps = [depths[i + 1] - depths[i] for i in range(len(left))]
        del left[min(range(len(left) - 1), key=lambda i: gaps[i] + gaps[i + 1])]
    return [place.name for place in left]
