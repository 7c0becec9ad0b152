"""Write the graph without the removed units, and its masked twin for the oracle.

Both follow from the coupling alone. No operator is named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes import leaves, mask
from obc_onnx.memory import make_room
from obc_onnx.respelling import respell
from obc_onnx.shapes import ElementTypes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling import Coupling, Keep
    from obc_onnx.graph import Graph


def remove_units(coupling: Coupling, keep: Keep) -> Graph:
    """Return the graph with only the kept units.

    Args:
        coupling: Of the graph to cut.
        keep: For each dim that loses units, which units stay, shape [n_units]; at least one each.
    Returns:
        A new graph; the original is left as it is. With nothing to remove, an equal one.
    """
    graph = coupling.graph
    sliced = slice_initializers(graph.initializers, coupling.kept_positions(keep))
    return respell(coupling, keep, sliced)


def slice_initializers(
    arrays: dict[str, NDArray[Any]], kept: dict[str, dict[int, NDArray[np.int64]]]
) -> dict[str, NDArray[Any]]:
    """Take the kept positions of every initializer that shrinks.

    Args:
        arrays: Initializers by name.
        kept: For each initializer, for each axis that shrinks, the kept indices.
    """
    make_room(sum(arrays[name].nbytes for name in kept))
    sliced = {}
    for name, axes in kept.items():
        array = arrays[name]
        for axis, positions in axes.items():
            array = array.take(positions, axis)
        sliced[name] = array
    return sliced


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
    by_key = {node.key: node for node in graph.nodes}
    arrays: dict[str, NDArray[Any]] = {}
    rewired, computed = {}, {}
    for (key, slot), allowed in masks.items():
        name = by_key[key].inputs[slot]
        if name in graph.initializers:
            masked = graph.fresh_name(f"{name}.masked.{key}.{slot}", arrays)
            array = graph.initializers[name]
            arrays[masked] = array * allowed.astype(array.dtype)
            rewired[key, slot] = masked
        else:
            computed[key, slot] = allowed
    masked_graph = graph.edit(arrays, None, rewired)
    names = {place: by_key[place[0]].inputs[place[1]] for place in computed}
    types = ElementTypes(graph)
    operands = {place: allowed.astype(types[names[place]]) for place, allowed in computed.items()}
    return masked_graph.insert_before("Mul", operands) if operands else masked_graph
