"""Write the graph with branches scaled to zero: the oracle for the graph without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from obc_onnx.branches.find import Branches
    from obc_onnx.graph.model import Graph


def gated(graph: Graph, branches: Branches) -> Graph:
    """Return a graph with a product by zero in front of sums.

    Args:
        graph: The whole one, or one in which units are masked.
        branches: For each sum (its first output) the operand that is scaled.
    """
    types = ElementTypes(graph)
    zeros = {
        (sum_, graph.producers[sum_].inputs.index(output)): np.zeros((), types[output])
        for sum_, output in branches.items()
    }
    return graph.insert_before("Mul", zeros) if zeros else graph
