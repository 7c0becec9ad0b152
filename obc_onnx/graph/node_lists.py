"""The list of a graph's nodes, changed in one pass.

graphsurgeon's own `index` and `remove` compare a node with every other one, piece by piece, so that
changes all over a graph would take a time that grows with its square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from collections.abc import Mapping


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
