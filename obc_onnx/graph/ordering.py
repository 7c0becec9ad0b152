"""Nodes behind all that they read: some converters write another order, which runtimes sort."""

from __future__ import annotations

import heapq
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import onnx

from obc_onnx.graph.nested import names_read, subgraphs

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
    for subgraph in (own for node in nodes for own in subgraphs(node)):
        changed = _sort(subgraph.node) or changed
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
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for i, node in enumerate(nodes):
        sorter.add(i, *{makers[name] for name in names_read(node) if name in makers})
    try:
        sorter.prepare()
    except CycleError:
        return list(range(len(nodes)))
    ready, order = list[int](), list[int]()
    while sorter.is_active():
        for number in sorter.get_ready():
            heapq.heappush(ready, number)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return order
