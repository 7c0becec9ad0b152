"""Rows of embeddings that nobody asks for: which tables hold them, and the graph without them.

The vocabulary of a table is an axis like any. Two things alone keep it whole: ids pick from it, and
an output that it reaches is known outside. A table in front of the lookup numbers ids again, and
what an output lacks is put back behind it; so the coupling is solved without both, and cut.

Elsewhere units go that are zero where they are read. Rows of a vocabulary are not: so no node may
combine its positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import leaves, mask
from obc_onnx.coupling.inference import find_coupling
from obc_onnx.coupling.members import by_unit
from obc_onnx.coupling.model import Released
from obc_onnx.errors import RequestError
from obc_onnx.ops.base.effect import Effect
from obc_onnx.stripping.heads import Head, find_heads, finished
from obc_onnx.stripping.renumber import renumbered
from obc_onnx.stripping.tables import chosen_of, inputs_of_ids, tables_of
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.stripping.tables import Table

    Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What of a vocabulary is to stay.

    Attributes:
        ids: Those that stay, sorted, shape [n_ids].
        inputs: Inputs of the model that hold them; found where none is named.
        unknown: The id in place of which all others are taken; None lets a lookup of those fail.
        narrow_head: Whether outputs with an axis of the vocabulary lose positions.
        untied_head: Whether outputs are cut too that have weights of their own.
    """

    ids: Indices
    inputs: tuple[str, ...] = ()
    unknown: int | None = None
    narrow_head: bool = False
    untied_head: bool = False


@dataclass(frozen=True)
class Narrowed:
    """A graph with a smaller vocabulary.

    Attributes:
        graph: The result.
        tables: The embeddings that lost rows.
        heads: The outputs that were cut with them.
        ids: The ids that stay, sorted: those that were asked for, and those that the graph asks
            for itself.
        kept: For each initializer that shrank, for each axis, which positions stay.
        left: Sentences about embeddings that stay whole.
    """

    graph: Graph
    tables: tuple[Table, ...]
    heads: tuple[Head, ...]
    ids: Indices
    kept: dict[str, dict[int, Indices]]
    left: tuple[str, ...]


def cut_vocabulary(coupling: Coupling, wanted: Wanted) -> Narrowed:
    """Leave the rows of embeddings that are asked for, and number ids again in front of them.

    Args:
        coupling: Of the model.
        wanted: What stays.
    Raises:
        RequestError: No embedding can lose rows, or the ids do not fit.
    """
    graph, all_tables = coupling.graph, tables_of(coupling)
    inputs = inputs_of_ids(all_tables, wanted.inputs, int(wanted.ids.max(initial=0)))
    tables, left = chosen_of(all_tables, frozenset(inputs))
    kept = _kept_ids(tables, wanted)
    tables = [table for table in tables if len(kept) < table.rows]
    if not tables:
        raise RequestError(f"every row stays: all {len(kept)} ids of the vocabulary are kept")
    heads = find_heads(coupling, tables, untied=wanted.untied_head, narrow=wanted.narrow_head)
    released = Released(
        frozenset(table.lookup.place for table in tables),
        frozenset((head.output, head.axis) for head in heads),
    )
    solved = find_coupling(graph, coupling.shapes, coupling.rules, released)
    places = [(table.name, table.lookup.axis) for table in tables]
    places += [(head.output, head.axis) for head in heads]
    keep = _keep(solved, places, kept)
    _require_apart(solved, tables, keep)
    smaller = remove_units(solved, keep)
    smaller = renumbered(smaller, tables, kept, wanted.unknown)
    smaller = finished(smaller, heads, kept)
    positions = solved.kept_positions(keep)
    return Narrowed(smaller, tuple(tables), tuple(heads), kept, positions, tuple(left))


def _require_apart(coupling: Coupling, tables: Sequence[Table], keep: Keep) -> None:
    """Check that every node hands the positions of a vocabulary on, each for itself.

    Raises:
        RequestError: One does not, such as a sum over them, or picks some that go.
    """
    picked = {axis for axis in coupling.tied_axes if not mask(axis, keep).all()}
    for name, own in coupling.axes.items():
        if not picked.isdisjoint(own):
            raise RequestError(
                f"the vocabulary cannot be cut: '{name}' holds positions that the graph itself "
                f"picks, and not all of those stay"
            )
    dims = set(keep)
    axes = {table.lookup.place: table.lookup.axis for table in tables}
    for node in coupling.graph.nodes:
        if Effect.MEASURES in coupling.rules.effect(node):
            continue
        for slot, name in enumerate(node.inputs):
            read = _dims_of(coupling, name) & dims
            if (node.key, slot) in axes:
                read -= set(leaves(coupling.axes[name][axes[node.key, slot]]))
            if any(not read <= _dims_of(coupling, output) for output in filter(None, node.outputs)):
                raise RequestError(
                    f"the vocabulary cannot be cut: {node.label} combines all positions of "
                    f"'{name}' along it"
                )


def _kept_ids(tables: Sequence[Table], wanted: Wanted) -> Indices:
    """Return the ids that stay, with those that the graph itself asks for.

    Raises:
        RequestError: One is no row, or the id in place of unknown ones does not stay.
    """
    if not len(wanted.ids):
        raise RequestError("no id is to stay: name at least one")
    own = {number for table in tables for number in table.ids.constants}
    rows = min(table.rows for table in tables)
    smallest = min(tables, key=lambda table: table.rows)
    kept = np.union1d(wanted.ids, np.asarray([n % rows for n in own if -rows <= n < rows], int))
    if kept[0] < 0 or kept[-1] >= rows:
        wrong = kept[0] if kept[0] < 0 else kept[-1]
        raise RequestError(
            f"id {wrong} is no row of embedding '{smallest.name}', which has {rows}: ids are 0 to "
            f"{rows - 1}"
        )
    if wanted.unknown is not None and wanted.unknown not in kept:
        raise RequestError(
            f"`Vocabulary(unknown={wanted.unknown})` is not one of the ids that stay: add it to "
            f"them"
        )
    return kept.astype(np.int64)


def _keep(coupling: Coupling, places: Iterable[tuple[str, int]], kept: Indices) -> Keep:
    """Say which units of the axes of values stay; a table may be joined of several.

    Raises:
        RequestError: Something else keeps an axis whole, or it has no units of its own.
    """
    found: dict[Dim, NDArray[np.bool_]] = {}
    inexact = {group.dim: group.inexact for group in coupling.groups if group.inexact is not None}
    reasons = {**coupling.reasons, **inexact}
    for name, axis in places:
        expr = coupling.axes[name][axis]
        flags = np.zeros(expr.size, np.bool_)
        flags[kept] = True
        dims = dict.fromkeys(leaves(expr))
        own = {dim: by_unit(expr, dim, flags.astype(np.float64)) > 0 for dim in dims}
        reason = next((reasons[dim] for dim in dims if dim in reasons), "")
        if not reason and not np.array_equal(mask(expr, own), flags):
            reason = f"axis {axis} of '{name}' holds more than ids"
        if not reason and not all(units.any() for units in own.values()):
            reason = f"'{name}' is joined of several tables, and one would lose every row"
        if reason:
            raise RequestError(f"the vocabulary of '{name}' cannot be cut: {reason}")
        found |= own
    return found


def _dims_of(coupling: Coupling, name: str) -> set[Dim]:
    return {dim for axis in coupling.axes.get(name, ()) for dim in leaves(axis)}
