"""Graphs inside of nodes: the bodies of control flow, as messages hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from all_nodes(subgraph)


def outer_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a subgraph uses and does not make, however deep."""
    made = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    made |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        yield from (name for name in names_read(node) if name not in made)
    yield from (value.name for value in graph.output if value.name not in made)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, and what its subgraphs read from outside."""
    yield from (name for name in node.input if name)
    for subgraph in subgraphs(node):
        yield from outer_names(subgraph)
