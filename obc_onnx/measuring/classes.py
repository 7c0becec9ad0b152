"""Where classifiers have their classes, and whether they end in a Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.graph.node import CLASSES_RANK

if TYPE_CHECKING:
    from collections.abc import Container

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node, Port

_OF_ONE_AXIS = 13
"""The opset since which a Softmax looks at one axis, and not at all that follow."""
_KEEPS_AXES = frozenset({"Cast", "Identity"})
_PASSES_ON = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})

_SPREADS = frozenset({"Expand", *_PASSES_ON, "Unsqueeze"})
"""What brings sums back to the shape of what was summed."""


def ends_in_softmax(graph: Graph) -> bool:
    """Say whether the first output holds probabilities: a Softmax, then nothing but layout."""
    return _softmax_behind(graph, graph.outputs[0].name, _PASSES_ON) is not None


def class_axis(graph: Graph) -> int | None:
    """Say along which axis of the first output the classes lie.

    Returns:
        The last one of [samples, classes], or that of the Softmax that gives the output; None where
        nothing tells, as for the logits of a picture's pixels.
    """
    port = graph.outputs[0]
    if port.shape is None or len(port.shape) == CLASSES_RANK:
        return -1
    return softmax_axis(graph, port)


def softmax_axis(graph: Graph, port: Port) -> int | None:
    """Say along which axis of an output a Softmax makes numbers add up to 1.

    Returns:
        An axis, which may count from the end; None where no Softmax gives the output, or where
        what follows it or its opset hides the axis.
    """
    rank = len(port.shape or ())
    if rank == CLASSES_RANK:
        return None if _softmax_behind(graph, port.name, _PASSES_ON) is None else -1
    node = _softmax_behind(graph, port.name, _KEEPS_AXES)
    if node is None or node.op_type != "Softmax":
        return None
    if node.opset >= _OF_ONE_AXIS:
        return node.integer("axis", -1)
    return -1 if node.integer("axis", 1) in (-1, rank - 1) else None


def _softmax_behind(graph: Graph, name: str, passed: Container[str]) -> Node | None:
    """Go back from a value through some operators to a Softmax, None where none is."""
    node = _source(graph, name, passed)
    if node is None or node.op_type == "Softmax":
        return node
    return node if _spells_softmax(graph, node) else None


def _spells_softmax(graph: Graph, node: Node) -> bool:
    """Say whether a node divides exponentials by their sums over the last axis, as JAX does."""
    if node.op_type != "Div":
        return False
    powers = _source(graph, node.inputs[0], ())
    total = _source(graph, node.inputs[1], _SPREADS)
    if powers is None or total is None or powers.op_type != "Exp" or total.op_type != "ReduceSum":
        return False
    axes = total.integers("axes")
    if axes is None and total.has_input(1) and total.inputs[1] in graph.initializers:
        axes = tuple(graph.initializers[total.inputs[1]].reshape(-1).tolist())
    return total.inputs[0] == powers.key and axes in {(-1,), (CLASSES_RANK - 1,)}


def _source(graph: Graph, name: str, passed: Container[str]) -> Node | None:
    """Go back from a value through some operators; None where no node computes it."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in passed:
        node = graph.producers.get(node.inputs[0])
    return node
