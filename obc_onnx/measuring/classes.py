"""Where classifiers have their classes, and whether they end in a Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.graph.node import CLASSES_RANK
from obc_onnx.ops.base.effect import NO_EFFECT, Effect

if TYPE_CHECKING:
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node, Port
    from obc_onnx.ops.base.rule import RuleSet

_SPREADS = Effect.BROADCASTS | Effect.IN_ORDER
"""What brings sums back to the shape of what was summed."""


def ends_in_softmax(graph: Graph, rules: RuleSet) -> bool:
    """Say whether the first output holds probabilities: a softmax, then nothing but layout.

    Args:
        graph: The model.
        rules: What is known of operators.
    """
    return _softmax_behind(graph, rules, graph.outputs[0].name, Effect.IN_ORDER) is not None


def class_axis(graph: Graph, rules: RuleSet) -> int | None:
    """Say along which axis of the first output the classes lie.

    Args:
        graph: The model.
        rules: What is known of operators.
    Returns:
        The last one of [samples, classes], or that of the Softmax that gives the output; None where
        nothing tells, as for the logits of a picture's pixels.
    """
    port = graph.outputs[0]
    if port.shape is None or len(port.shape) == CLASSES_RANK:
        return -1
    return softmax_axis(graph, rules, port)


def softmax_axis(graph: Graph, rules: RuleSet, port: Port) -> int | None:
    """Say along which axis of an output a softmax makes numbers add up to 1.

    Args:
        graph: The model.
        rules: What is known of operators.
        port: The output.
    Returns:
        An axis, which may count from the end; None where no softmax gives the output, or where
        what follows it hides the axis, or it takes several as one.
    """
    rank = len(port.shape or ())
    if rank == CLASSES_RANK:
        return None if _softmax_behind(graph, rules, port.name, Effect.IN_ORDER) is None else -1
    node = _softmax_behind(graph, rules, port.name, Effect.IN_PLACE)
    rule = None if node is None else rules.find(node)
    return None if node is None or rule is None else rule.normalised_axis(node, rank)


def _softmax_behind(graph: Graph, rules: RuleSet, name: str, passed: Effect) -> Node | None:
    """Go back from a value past some effects to a softmax, None where none is."""
    node = _source(graph, rules, name, passed)
    if node is None or Effect.SHARES in rules.effect(node):
        return node
    return node if _spells_softmax(graph, rules, node) else None


def _spells_softmax(graph: Graph, rules: RuleSet, node: Node) -> bool:
    """Say whether a node divides exponentials by their sums over the last axis, as JAX does."""
    if Effect.DIVIDES not in rules.effect(node):
        return False
    powers = _source(graph, rules, node.inputs[0], NO_EFFECT)
    total = _source(graph, rules, node.inputs[1], _SPREADS)
    if powers is None or Effect.EXPONENTIATES not in rules.effect(powers):
        return False
    if total is None or Effect.SUMS not in rules.effect(total):
        return False
    axes = total.integers("axes")
    if axes is None and total.has_input(1) and total.inputs[1] in graph.initializers:
        axes = tuple(graph.initializers[total.inputs[1]].reshape(-1).tolist())
    return total.inputs[0] == powers.key and axes in {(-1,), (CLASSES_RANK - 1,)}


def _source(graph: Graph, rules: RuleSet, name: str, passed: Effect) -> Node | None:
    """Go back from a value past some effects; None where no node computes it."""
    node = graph.producers.get(name)
    while node is not None and rules.effect(node) & passed:
        node = graph.producers.get(node.inputs[0])
    return node
