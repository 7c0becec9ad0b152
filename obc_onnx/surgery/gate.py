"""Write the graph with branches scaled to zero: the oracle for the graph without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.graph.node_lists import NewNode
from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from obc_onnx.branches.find import StandIns
    from obc_onnx.graph.model import Graph


def gated(graph: Graph, stand_ins: StandIns) -> Graph:
    """Return a graph in which values V are U + 0 * (V - U): whoever reads them reads that.

    Nothing is dead in it. It is written as U + 0 * V, which is the same for finite numbers.

    Args:
        graph: The whole one, or one in which units are masked.
        stand_ins: For each value V what stands in for it, U.
    """
    types, taken = ElementTypes(graph), set[str]()
    values, zeros = {}, {}
    for value, other in stand_ins.items():
        full, zero, scaled = (
            graph.fresh_name(f"{value}.{part}", taken) for part in ("full", "zero", "scaled")
        )
        taken.update((full, zero, scaled))
        zeros[zero] = np.zeros((), types[value])
        product = NewNode("Mul", (full, zero), scaled, types[value])
        values[value] = (full, [product, NewNode("Add", (other, scaled), value, types[value])])
    return graph.redefine(values, zeros) if values else graph
