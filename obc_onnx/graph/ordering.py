"""Nodes behind all that they read: some converters write another order, which runtimes sort."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from collections.abc import Sequence


def sort_nodes(model: onnx.ModelProto) -> bool:
    """Sort the nodes of a model, of its functions and of all subgraphs in place.

    Nodes keep their order as far as that can be. Where they go round in a circle they stay as they
    are: the ONNX checker refuses them.

    Returns:
        Whether any order has changed.
    """
    changed = False
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        changed = _sort(nodes) or changed
    return changed


def _sort(nodes: Any) -> bool:
    """Sort a repeated field of a message in place."""
    changed = False
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                changed = _sort(attribute.g.node) or changed
    order = _order(nodes)
    if order == sorted(order):
        return changed
    copies = []
    for number in order:
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[number])
        copies.append(copy)
    del nodes[:]
    nodes.extend(copies)
    return True


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """Number nodes so that each comes behind all that it reads, the first ones first."""
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [{makers[name] for name in _reads(node) if name in makers} for node in nodes]
    readers: dict[int, list[int]] = {}
    for i, own in enumerate(waits):
        for maker in own:
            readers.setdefault(maker, []).append(i)
    missing = [len(own) for own in waits]
    ready = [i for i, count in enumerate(missing) if not count]
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for reader in readers.get(number, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return order if len(order) == len(nodes) else list(range(len(nodes)))


def _reads(node: onnx.NodeProto) -> set[str]:
    """Name what a node reads, and what its subgraphs read from outside."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inside = attribute.g
            own = {port.name for port in (*inside.input, *inside.initializer)}
            own |= {name for inner in inside.node for name in inner.output}
            reads = {name for inner in inside.node for name in _reads(inner)}
            found |= (reads | {port.name for port in inside.output}) - own
    return found
