"""Write the graph with zeros where removed units are read: the oracle for the graph without them.

It follows from the coupling alone. No operator is named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import leaves, mask
from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph


def mask_reads(coupling: Coupling, keep: Keep) -> Graph:
    """Return the original graph with zeros wherever a removed unit is read.

    The pruned graph has to give the same outputs. What reads is masked and not what writes: a bias
    or a norm would bring a silenced channel back. A contraction of two computed values is masked by
    a multiplication in front of one of them.
    """
    graph = coupling.graph
    masks: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for role in coupling.roles:
        name = role.node.inputs[role.slot]
        axes = coupling.axes[name]
        if role.kind != "reads" or not any(dim in keep for dim in leaves(axes[role.axis])):
            continue
        shape = [1] * len(axes)
        shape[role.axis] = axes[role.axis].size
        own = mask(axes[role.axis], keep).reshape(shape)
        place = (role.node.key, role.slot)
        masks[place] = np.logical_and(masks[place], own) if place in masks else own
    arrays: dict[str, NDArray[Any]] = {}
    rewired, computed = {}, {}
    for (key, slot), allowed in masks.items():
        name = graph.producers[key].inputs[slot]
        if name in graph.initializers:
            masked = graph.fresh_name(f"{name}.masked.{key}.{slot}", arrays)
            array = graph.initializers[name]
            arrays[masked] = array * allowed.astype(array.dtype)
            rewired[key, slot] = masked
        else:
            computed[key, slot] = allowed
    masked_graph = graph.edit(arrays, None, rewired)
    names = {place: graph.producers[place[0]].inputs[place[1]] for place in computed}
    types = ElementTypes(graph)
    operands = {place: allowed.astype(types[names[place]]) for place, allowed in computed.items()}
    return masked_graph.insert_before("Mul", operands) if operands else masked_graph
