"""Write a graph with two layers in the place of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.coupling.model import Pair
from obc_onnx.graph.node_lists import NewNode
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.low_rank.factors import factors_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.low_rank.layers import Dense
    from obc_onnx.low_rank.moments import Moment

    Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Halves:
    """The two layers that stand for one, at full rank.

    Attributes:
        layer: The one.
        first: The weight that is multiplied first.
        second: That of the other.
    """

    layer: Dense
    first: NDArray[Any]
    second: NDArray[Any]

    @classmethod
    def of(cls, coupling: Coupling, layer: Dense, moment: Moment | None) -> Halves:
        """Split a weight.

        Args:
            coupling: Of the network.
            layer: One of its layers.
            moment: Of what it reads, see `moments_of`; None counts all inputs alike.
        """
        array = coupling.graph.initializers[layer.weight]
        width, height = array.shape[layer.reads], array.shape[layer.writes]
        first_out = layer.writes < layer.reads
        matrix = array.reshape((height, width) if first_out else (width, height))
        matrix = matrix if first_out else matrix.T
        second, first = factors_of(matrix.astype(np.float64), moment)

        def laid_out(half: NDArray[np.float64]) -> NDArray[Any]:
            shape = list(array.shape)
            shape[layer.writes], shape[layer.reads] = half.shape
            return (half if first_out else half.T).reshape(shape).astype(array.dtype)

        return cls(layer, laid_out(first), laid_out(second))


def split(coupling: Coupling, halves: Sequence[Halves], feed: Feed | None) -> Coupling:
    """Return the coupling of a network in which layers are split; it computes the same.

    It goes by the hash of the original, whose weights tell all of it.

    Args:
        coupling: Of the network.
        halves: Of the layers.
        feed: Samples, where only a run tells shapes.
    """
    graph = coupling.graph
    types, taken = ElementTypes(graph), set[str]()
    nodes, pairs = list[NewNode](), list[Pair]()
    entering, arrays = dict[str, Any](), dict[str, Any]()
    rewired, attributes = dict[tuple[str, int], str](), dict[str, dict[str, Any]]()

    def fresh(base: str) -> str:
        taken.add(name := graph.fresh_name(base, taken))
        return name

    for own in halves:
        layer, node = own.layer, own.layer.node
        first, second = fresh(f"{layer.weight}.first"), fresh(f"{layer.weight}.second")
        between = fresh(f"{node.key}.rank")
        inputs = {layer.entry: node.inputs[layer.entry], layer.slot: first}
        before, behind = layer.attributes
        operands = (inputs[0], inputs[1])
        nodes.append(NewNode(node.op_type, operands, between, types[node.key], node.key, before))
        entering[first], arrays[second] = own.first, own.second
        rewired |= {(node.key, layer.entry): between, (node.key, layer.slot): second}
        attributes[node.key] = {**dict.fromkeys(node.attributes), **behind}
        pairs.append(
            Pair(between, node.key, layer.weight, first, second, layer.reads, layer.writes)
        )
    changed = graph.insert(nodes, entering).edit(arrays, attributes, rewired).known_as(graph)
    shapes = {port.name: coupling.shapes[port.name] for port in graph.inputs}
    found, _ = analyse(changed, shapes, coupling.rules, Clock(), feed=feed)
    return replace(found, pairs=tuple(pairs))
