"""Outputs of a model that have a vocabulary along an axis, such as logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import leaves
from obc_onnx.errors import RequestError
from obc_onnx.graph.node_lists import NewNode
from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.stripping.tables import Table

    Indices = NDArray[np.int64]

_WHERE_SINCE = 9
"""The opset."""


@dataclass(frozen=True)
class Head:
    """An output whose positions along an axis are ids.

    Attributes:
        output: Its name.
        axis: The axis.
        rank: How many axes the output has.
        size: How many positions that had.
        tied: Whether weights of an embedding make it.
        narrow: Whether it loses positions; else those are put back.
    """

    output: str
    axis: int
    rank: int
    size: int
    tied: bool
    narrow: bool

    def of_kept(self, array: NDArray[Any], kept: Indices) -> NDArray[Any]:
        """Return the positions that stay of the output as it was."""
        return array.take(kept, self.axis)


def find_heads(
    coupling: Coupling, tables: Sequence[Table], *, untied: bool, narrow: bool
) -> list[Head]:
    """Find the outputs that are made with the weights of embeddings, along their vocabulary.

    Args:
        coupling: Of the model.
        tables: Its embeddings.
        untied: Whether outputs count too that are as long along an axis, and have other weights.
        narrow: What becomes of all of them, see `Head`.
    """
    found = []
    for port in coupling.graph.outputs:
        axes = coupling.axes.get(port.name, ())
        for axis, expr in enumerate(axes):
            tied = any(_is_tied(coupling, table, expr) for table in tables)
            own = untied and any(_is_made(coupling, table, expr) for table in tables)
            if tied or own:
                found.append(Head(port.name, axis, len(axes), expr.size, tied, narrow))
    if narrow and not found:
        raise RequestError(
            "`Vocabulary.narrow_head` is of outputs with an axis of the vocabulary that the "
            "weights of an embedding make: there is none; `Vocabulary.untied_head` takes in those "
            "with weights of their own"
        )
    return found


def finished(graph: Graph, heads: Sequence[Head], kept: Indices) -> Graph:
    """Give outputs that were cut their old positions back, or declare them as long as they are.

    What was cut is the lowest finite number of the output's type.

    Args:
        graph: In which the outputs have the positions that stay.
        heads: Those outputs.
        kept: Ids that stay, sorted.
    """
    sizes = {(head.output, head.axis): len(kept) for head in heads if head.narrow}
    graph = graph.insert(sizes=sizes) if sizes else graph
    for head in heads:
        if not head.narrow:
            graph = _put_back(graph, head, kept)
    return graph


def lowest(kind: np.dtype[Any]) -> NDArray[Any]:
    """Return the lowest finite number of a float type, shape []."""
    return np.asarray(np.finfo(kind).min, kind)


def _put_back(graph: Graph, head: Head, kept: Indices) -> Graph:
    """Spread what is left of an output, and put the lowest number between."""
    kind = ElementTypes(graph)[head.output]
    if not np.issubdtype(kind, np.floating) or graph.opset < _WHERE_SINCE:
        raise RequestError(
            f"output '{head.output}' is of type {kind.name} and opset {graph.opset}: what is cut "
            f"of it can only be put back into float16 to float64, and from opset {_WHERE_SINCE} "
            f"on; choose `Vocabulary.narrow_head`"
        )
    if any(head.output in node.captures for node in graph.nodes):
        raise RequestError(
            f"output '{head.output}' is used by a subgraph too, so that what is cut of it cannot "
            f"be put back: choose `Vocabulary.narrow_head`"
        )
    places, stays = np.zeros(head.size, np.int32), np.zeros(head.size, np.bool_)
    places[kept], stays[kept] = np.arange(len(kept)), True
    arrays: dict[str, NDArray[Any]] = {}
    shown = stays.reshape(-1, *[1] * (head.rank - 1 - head.axis))
    for part, array in (("places", places), ("stays", shown), ("lowest", lowest(kind))):
        arrays[graph.fresh_name(f"{head.output}.{part}", arrays)] = array
    index, mask, low = arrays
    inner, spread = (
        graph.fresh_name(f"{head.output}.{part}", arrays) for part in ("kept", "spread")
    )
    nodes = [
        NewNode("Gather", (inner, index), spread, kind, attributes={"axis": head.axis}),
        NewNode("Where", (mask, spread, low), head.output, kind),
    ]
    return graph.insert(nodes, arrays, renamed={head.output: inner})


def _is_tied(coupling: Coupling, table: Table, expr: Expr) -> bool:
    """Say whether an axis is the vocabulary of a table, or is made by weights that equal it."""
    own = coupling.axes[table.name][table.lookup.axis]
    if not set(leaves(own)).isdisjoint(leaves(expr)):
        return True
    rows = coupling.graph.initializers.get(table.name)
    if rows is None or expr.size != table.rows:
        return False
    rows = np.moveaxis(rows, table.lookup.axis, 0).reshape(table.rows, -1)
    return any(
        weight.dtype == rows.dtype and np.array_equal(weight, rows)
        for weight in _weights(coupling, expr)
    )


def _is_made(coupling: Coupling, table: Table, expr: Expr) -> bool:
    """Say whether weights make an axis that is as long as a table."""
    return expr.size == table.rows and any(True for _ in _weights(coupling, expr))


def _weights(coupling: Coupling, expr: Expr) -> Iterator[NDArray[Any]]:
    """Yield the weights that make an axis, shape [positions, elements]."""
    graph, axes = coupling.graph, coupling.axes
    roles = (role for role in coupling.roles if role.kind == "writes")
    places = ((role.node.inputs[role.slot], role.axis) for role in roles)
    operands = (name for name, axis in places if axes[name][axis] == expr)
    sources = (name for operand in operands for name in coupling.sources(operand))
    for name in dict.fromkeys(sources):
        for axis, own in enumerate(axes[name]):
            if own == expr:
                yield np.moveaxis(graph.initializers[name], axis, 0).reshape(expr.size, -1)
