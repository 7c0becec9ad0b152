"""Write the graph without the removed units, and its masked twin for the oracle.

Both follow from the coupling alone. No operator is named here: what a node spells out is adjusted
by its rule's `resize`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes import leaves, mask
from obc_onnx.ops.context import ResizeContext
from obc_onnx.shapes import infer_types

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from obc_onnx.coupling import Coupling, Keep
    from obc_onnx.graph import Graph, Node


def remove_units(coupling: Coupling, keep: Keep) -> Graph:
    """Return the graph with only the kept units.

    Args:
        coupling: Of the graph to cut.
        keep: For each dim that loses units, which units stay, shape [n_units]; at least one each.
    Returns:
        A new graph; the original is left as it is. With nothing to remove, an equal one.
    """
    graph = coupling.graph
    arrays = slice_initializers(graph.initializers, coupling.kept_positions(keep))
    attributes: dict[str, dict[str, Any]] = {}
    rewired: dict[tuple[str, int], str] = {}
    for context in _resized(coupling, keep):
        key = context.node.key
        if context.attributes:
            attributes[key] = context.attributes
        for slot, operand in context.operands.items():
            name = context.node.inputs[slot]
            if _is_shared(graph, name):  # the other consumers keep the numbers they have
                name = rewired[key, slot] = graph.fresh_name(f"{name}.{key}", arrays)
            arrays[name] = operand
        for (name, position), number in context.literals.items():
            patched = arrays.get(name, graph.initializers[name]).copy()
            patched.reshape(-1)[position] = number
            arrays[name] = patched
    return graph.edit(arrays, attributes, rewired)


def slice_initializers(
    arrays: dict[str, NDArray[Any]], kept: dict[str, dict[int, NDArray[np.int64]]]
) -> dict[str, NDArray[Any]]:
    """Take the kept positions of every initializer that shrinks.

    Args:
        arrays: Initializers by name.
        kept: For each initializer, for each axis that shrinks, the kept indices.
    """
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
    types = infer_types(graph, sorted(set(names.values()))) if names else {}
    for (key, slot), allowed in computed.items():
        operand = allowed.astype(types[names[key, slot]])
        masked_graph = masked_graph.insert_before(key, slot, "Mul", operand)
    return masked_graph


def _resized(coupling: Coupling, keep: Keep) -> Iterator[ResizeContext]:
    """Run `resize` for every node that meets a dim which loses units."""
    for node in coupling.graph.nodes:
        rule = coupling.rules.find(node)
        if rule is None or not _touches(coupling, node, keep):
            continue
        context = ResizeContext(
            node=node,
            axes=coupling.axes,
            keep=keep,
            inputs=tuple(coupling.values.get(name) for name in node.inputs),
            arrays=tuple(coupling.graph.initializers.get(name) for name in node.inputs),
        )
        rule.resize(context)
        yield context


def _touches(coupling: Coupling, node: Node, keep: Keep) -> bool:
    return any(
        dim in keep
        for name in (*node.inputs, *node.outputs)
        for axis in coupling.axes.get(name, ())
        for dim in leaves(axis)
    )


def _is_shared(graph: Graph, name: str) -> bool:
    """Say whether an initializer has more uses than one, those in subgraphs included."""
    captured = any(name in node.captures for node in graph.nodes)
    returned = any(name == port.name for port in graph.outputs)
    return captured or returned or len(graph.consumers[name]) > 1
