"""Find the operands of sums that the sum could do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.graph.node import holds_weights, is_float
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.ops.base.effect import Effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node

    Branches = Mapping[str, str]


@dataclass(frozen=True)
class Branch:
    """An operand that a sum could do without.

    Attributes:
        sum: The value that the sum gives, and the key of its node.
        output: The operand that goes.
        slot: Where it enters the sum.
        label: How messages call the sum.
        nodes: Keys of the nodes that become dead where it goes alone, the sum not among them.
    """

    sum: str
    output: str
    slot: int
    label: str
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What scores and messages call it; no group is called so."""
        return f"{self.sum} without {self.output}"

    @property
    def stays(self) -> int:
        """The slot of the other operand."""
        return 1 - self.slot


def find_branches(coupling: Coupling) -> tuple[Branch, ...]:
    """Find the branches of a graph, in its order.

    Where either operand of a sum could go, there are two.

    Args:
        coupling: Of the graph.
    """
    reach, costed = _Reach(coupling.graph), {node.key for node in coupling.costed}
    types = ElementTypes(coupling.graph)
    found = []
    for node in coupling.graph.nodes:
        if not _is_sum(coupling, node) or not is_float(types[node.key]):
            continue
        for slot, name in enumerate(node.inputs):
            dead = reach.needed_alone(node, slot)
            if any(own.key in costed or _holds(coupling.graph, own) for own in dead):
                keys = tuple(own.key for own in dead)
                found.append(Branch(node.key, name, slot, node.label, keys))
    return tuple(found)


def chosen(coupling: Coupling, wanted: Branches) -> tuple[Branch, ...]:
    """Return the branches that a plan names.

    Args:
        coupling: Of the whole graph.
        wanted: For each sum the operand that goes.
    Raises:
        RequestError: One of them is no branch of the graph.
    """
    known = {(branch.sum, branch.output): branch for branch in find_branches(coupling)}
    for sum_, output in wanted.items():
        if (sum_, output) not in known:
            raise RequestError(_why_unknown(known.values(), sum_, output))
    return tuple(branch for key, branch in known.items() if wanted.get(key[0]) == key[1])


def _why_unknown(known: Iterable[Branch], sum_: str, output: str) -> str:
    own = [f"'{branch.output}'" for branch in known if branch.sum == sum_]
    if own:
        return f"the plan takes '{output}' out of sum '{sum_}', which can do without {own[0]} alone"
    return (
        f"the plan takes '{output}' out of '{sum_}', but this model has no sum of that name that "
        f"can do without an operand: `inspect` lists those"
    )


def _is_sum(coupling: Coupling, node: Node) -> bool:
    """Say whether a node adds two computed values, either of which could stand in for the sum.

    A sum that nothing reads is dead, with all that it is computed from.
    """
    graph = coupling.graph
    if not graph.consumers.get(node.key) and not graph.escapes(node.key):
        return False
    if Effect.ADDS not in coupling.rules.effect(node) or node.key not in coupling.axes:
        return False
    first, second = node.inputs
    axes = [coupling.axes.get(name) for name in (first, second)]
    constant = any(
        coupling.values[name].constant for name in (first, second) if name in coupling.values
    )
    return first != second and not constant and axes == [coupling.axes[node.key]] * 2


def _holds(graph: Graph, node: Node) -> bool:
    """Say whether a node holds weights."""
    held = (graph.initializers[name] for name in node.inputs if name in graph.initializers)
    return any(holds_weights(array.dtype) and np.size(array) > 1 for array in held)


class _Reach:
    """What outputs of a graph are computed from."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._place = {node.key: place for place, node in enumerate(graph.nodes)}
        self._readers = {
            node.key: sum(len(graph.consumers.get(name, ())) for name in node.outputs if name)
            for node in graph.nodes
        }

    def needed_alone(self, node: Node, slot: int) -> list[Node]:
        """List the nodes that are there for one input of a node alone, in the graph's order."""
        graph, left = self._graph, dict[str, int]()
        dead: dict[str, Node] = {}
        queue = [node.inputs[slot]]
        for name in queue:
            own = graph.producers.get(name)
            if own is None:
                continue
            left[own.key] = left.get(own.key, self._readers[own.key]) - 1
            if left[own.key] == 0 and not any(graph.escapes(o) for o in own.outputs if o):
                dead[own.key] = own
                queue += [used for used in own.inputs if used]
        return sorted(dead.values(), key=lambda own: self._place[own.key])
