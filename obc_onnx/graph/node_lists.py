"""The list of a graph's nodes, changed in one pass.

graphsurgeon's own `index` and `remove` compare a node with every other one, piece by piece, so that
changes all over a graph would take a time that grows with its square.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np


def by_key(surgeon: gs.Graph) -> dict[str, gs.Node]:
    """Find nodes by `Node.key`."""
    return {
        next(output.name for output in node.outputs if output.name): node for node in surgeon.nodes
    }


def detach(node: gs.Node) -> None:
    """Let a node neither take nor give a value; `drop_detached` removes all such nodes at once."""
    node.inputs.clear()
    node.outputs.clear()


def drop_detached(surgeon: gs.Graph) -> None:
    """Remove detached nodes."""
    surgeon.nodes = [node for node in surgeon.nodes if node.inputs or node.outputs]


def insert_in_front(surgeon: gs.Graph, added: Mapping[str, list[gs.Node]]) -> None:
    """Put new nodes in front of others, which are given by their keys."""
    places = {id(node): key for key, node in by_key(surgeon).items()}
    surgeon.nodes = [
        own for node in surgeon.nodes for own in (*added.get(places[id(node)], ()), node)
    ]


@dataclass(frozen=True)
class NewNode:
    """A node of one output that a graph is to gain.

    Attributes:
        op_type: Of the standard domain.
        inputs: Names of values.
        output: The name of what it computes.
        dtype: The type of that.
        before: The key of a node that it stands in front of; "" at the end.
        attributes: By name.
    """

    op_type: str
    inputs: tuple[str, ...]
    output: str
    dtype: np.dtype[Any]
    before: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


def insert_new(surgeon: gs.Graph, nodes: Sequence[NewNode], tensors: dict[str, gs.Tensor]) -> None:
    """Put new nodes where they say, in their order.

    Args:
        surgeon: The graph; it is changed in place.
        nodes: What to insert.
        tensors: Values by name; those that the nodes compute are added.
    """
    front: dict[str, list[gs.Node]] = {}
    behind: list[gs.Node] = []
    for new in nodes:
        place = front.setdefault(new.before, []) if new.before else behind
        place.append(_made(new, tensors))
    insert_in_front(surgeon, front)
    surgeon.nodes.extend(behind)


def insert_behind(
    surgeon: gs.Graph,
    values: Mapping[str, tuple[str, Sequence[NewNode]]],
    tensors: dict[str, gs.Tensor],
) -> None:
    """Let new nodes give some values.

    Args:
        surgeon: The graph; it is changed in place.
        values: For each value what its node is to give instead, and the nodes that go behind that
            one, of which the last one gives the value.
        tensors: Values by name; those that the nodes compute are added.
    """
    behind: dict[int, list[gs.Node]] = {}
    for name, (given, nodes) in values.items():
        tensor = tensors[name]
        (producer,) = tensor.inputs
        tensors[given] = gs.Variable(given, dtype=tensor.dtype)
        producer.outputs = [tensors[given] if o is tensor else o for o in producer.outputs]
        behind[id(producer)] = [_made(new, tensors) for new in nodes]
    surgeon.nodes = [own for n in surgeon.nodes for own in (n, *behind.get(id(n), ()))]


def _made(new: NewNode, tensors: dict[str, gs.Tensor]) -> gs.Node:
    result = tensors.setdefault(new.output, gs.Variable(new.output, dtype=new.dtype))
    inputs = [tensors[name] for name in new.inputs]
    return gs.Node(new.op_type, new.output, dict(new.attributes), inputs, [result])


def rename_value(surgeon: gs.Graph, old: str, new: str) -> gs.Variable:
    """Give what a node computes another name, for all nodes that use it; the old name is free.

    Args:
        surgeon: The graph; it is changed in place. Its outputs stay what they are called.
        old: The name of a value.
        new: A name that nothing has.
    Returns:
        The value of the new name.
    """
    tensor = surgeon.tensors()[old]
    renamed = gs.Variable(new, dtype=tensor.dtype)
    (producer,) = tensor.inputs
    for values in (producer.outputs, *(node.inputs for node in tensor.outputs)):
        for place, value in enumerate(values):
            if value is tensor:
                values[place] = renamed
    return renamed


def insert_copies(surgeon: gs.Graph, sources: Mapping[str, str]) -> dict[str, gs.Variable]:
    """Put copies of nodes with one output behind them.

    Args:
        surgeon: The graph; it is changed in place.
        sources: The key of what to copy, by the name of the value that the copy computes.
    Returns:
        Those values by name.
    """
    nodes, results = by_key(surgeon), dict[str, gs.Variable]()
    behind: dict[int, list[gs.Node]] = {}
    for name, key in sources.items():
        node = nodes[key]
        results[name] = gs.Variable(name, dtype=node.outputs[0].dtype)
        inputs, attributes = list(node.inputs), dict(node.attrs)
        twin = gs.Node(node.op, name, attributes, inputs, [results[name]], node.domain)
        behind.setdefault(id(node), []).append(twin)
    surgeon.nodes = [n for node in surgeon.nodes for n in (node, *behind.get(id(node), ())[::-1])]
    return results
