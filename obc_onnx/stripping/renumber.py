"""The table in front of embeddings that says which row an id has now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.graph.node_lists import NewNode
from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.stripping.tables import Table

    Indices = NDArray[np.int64]


def new_rows(rows: int, kept: Indices, unknown: int | None) -> Indices:
    """Return for each id its new row, shape [rows].

    What does not stay has the row of `unknown`, or the first that is none: then a lookup fails.
    """
    places = np.full(rows, len(kept), np.int64)
    places[kept] = np.arange(len(kept))
    if unknown is not None:
        places[places == len(kept)] = places[unknown]
    return places


def renumbered(graph: Graph, tables: Sequence[Table], kept: Indices, unknown: int | None) -> Graph:
    """Number ids again in front of tables that have lost rows.

    Tables of as many rows share what numbers them; those that read the same value share the node.

    Args:
        graph: In which the tables have the rows that stay.
        tables: As they were before.
        kept: Ids that stay, sorted.
        unknown: The id in place of which others are taken; None lets the lookup fail.
    """
    types, order = ElementTypes(graph), {node.key: place for place, node in enumerate(graph.nodes)}
    arrays: dict[str, Indices] = {}
    held: dict[tuple[int, str], str] = {}
    nodes: dict[tuple[str, int], NewNode] = {}
    rewired = {}
    for table in sorted(tables, key=lambda table: order[table.lookup.node.key]):
        node, slot = table.lookup.node, table.lookup.ids
        ids = node.inputs[slot]
        kind = types[ids]
        numbers = held.get((table.rows, kind.name))
        if numbers is None:
            numbers = graph.fresh_name(f"{table.name}.rows", arrays)
            held[table.rows, kind.name] = numbers
            arrays[numbers] = new_rows(table.rows, kept, unknown).astype(kind)
        new = nodes.get((ids, table.rows))
        if new is None:
            taken = {other.output for other in nodes.values()} | arrays.keys()
            name = graph.fresh_name(f"{ids}.rows", taken)
            new = nodes[ids, table.rows] = NewNode("Gather", (numbers, ids), name, kind, node.key)
        rewired[node.key, slot] = new.output
    return graph.insert(list(nodes.values()), arrays, rewired)
