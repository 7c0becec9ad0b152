"""Embeddings: tables of constants of which ids, that a model is given, pick rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.errors import RequestError
from obc_onnx.graph.node import holds_weights
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.stripping.ids import find_ids

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.ops.base.context import Lookup
    from obc_onnx.stripping.ids import Ids


@dataclass(frozen=True)
class Table:
    """An embedding: a table of constants that ids pick rows from.

    Attributes:
        lookup: The node and its slots.
        name: Of the table.
        rows: How many it has.
        ids: What picks from it.
    """

    lookup: Lookup
    name: str
    rows: int
    ids: Ids


def tables_of(coupling: Coupling) -> list[Table]:
    """List the embeddings of a model that are read by what its integer inputs are given.

    A table of other numbers than weights is none: it gives ids, or sizes.
    """
    found, ids, types = [], find_ids(coupling.graph, coupling.rules), ElementTypes(coupling.graph)
    for lookup in coupling.lookups:
        name, own = lookup.node.inputs[lookup.table], ids.get(lookup.node.inputs[lookup.ids])
        if own is not None and own.inputs and holds_weights(types[name]):
            rows = coupling.shapes[name][lookup.axis]
            found.append(Table(lookup, name, rows, own))
    return found


def inputs_of_ids(tables: Sequence[Table], named: Sequence[str], largest: int) -> tuple[str, ...]:
    """Say which inputs of a model hold the ids of a vocabulary.

    Args:
        tables: Its embeddings.
        named: Inputs as a user names them.
        largest: The largest id; a table of fewer rows is none of the vocabulary.
    Raises:
        RequestError: None does, or several may.
    """
    direct = [table for table in tables if not table.ids.computed]
    reached = {name for table in direct for name in table.ids.inputs}
    for name in named:
        if name not in reached:
            raise RequestError(
                f"input '{name}' has no embedding that its ids pick rows from: "
                f"{_what_there_is(tables)}"
            )
    if named:
        return tuple(named)
    fitting = [table for table in direct if table.rows > largest]
    inputs = list(dict.fromkeys(name for table in fitting for name in sorted(table.ids.inputs)))
    if not inputs:
        raise RequestError(
            f"no embedding has a row for id {largest}: {_what_there_is(tables)}"
            if direct
            else f"there is no embedding whose vocabulary can be cut: {_what_there_is(tables)}"
        )
    if len(inputs) > 1:
        raise RequestError(
            f"several inputs pick rows of embeddings: {_what_there_is(fitting)}; name those that "
            f"hold ids of this vocabulary as `Vocabulary.inputs`"
        )
    return tuple(inputs)


def chosen_of(tables: Iterable[Table], inputs: frozenset[str]) -> tuple[list[Table], list[str]]:
    """Find the embeddings that ids of some inputs pick from, and say which others stay whole.

    Args:
        tables: All embeddings of a model.
        inputs: Those that hold ids of the vocabulary.
    Returns:
        What can be cut, and sentences about what cannot.
    Raises:
        RequestError: An embedding is read by ids of other inputs too, or not by all ids.
    """
    chosen, left = [], []
    for table in tables:
        if inputs.isdisjoint(table.ids.inputs):
            continue
        if table.ids.computed:
            left.append(
                f"embedding '{table.name}' of {table.rows} rows stays whole: "
                f"{table.ids.computed[0]} computes what picks from it"
            )
            continue
        others = sorted(table.ids.inputs - inputs)
        if others:
            raise RequestError(
                f"embedding '{table.name}' is read by ids of input '{others[0]}' too: name that "
                f"as one of `Vocabulary.inputs`"
            )
        if table.ids.most < table.rows - 1:
            raise RequestError(
                f"embedding '{table.name}' has {table.rows} rows, but a node in front of "
                f"{table.lookup.node.label} turns ids into a type that ends at {table.ids.most}"
            )
        chosen.append(table)
    return chosen, left


def _what_there_is(tables: Collection[Table]) -> str:
    """Describe embeddings in half a sentence."""
    if not tables:
        return "no Gather or its like picks rows of a constant table by an integer input"
    said = []
    for table in tables:
        how = f", by way of {table.ids.computed[0]}" if table.ids.computed else ""
        said.append(
            f"input '{', '.join(sorted(table.ids.inputs))}' picks of {table.rows} rows of "
            f"'{table.name}'{how}"
        )
    return "; ".join(said)
