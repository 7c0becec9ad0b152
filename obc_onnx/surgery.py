"""Write the graph without the removed units, and its masked twin for the oracle.

Both follow from the coupling alone. No operator is named here: numbers that a node spells out are
written anew as the coupling's patches say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes import leaves, mask
from obc_onnx.shapes import infer_types

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling import Coupling, Keep
    from obc_onnx.graph import Graph


@dataclass
class _Edit:
    """Changes under construction, as `Graph.edit` takes them."""

    arrays: dict[str, NDArray[Any]]
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    rewired: dict[tuple[str, int], str] = field(default_factory=dict)


def remove_units(coupling: Coupling, keep: Keep) -> Graph:
    """Return the graph with only the kept units.

    Args:
        coupling: Of the graph to cut.
        keep: For each dim that loses units, which units stay, shape [n_units]; at least one each.
    Returns:
        A new graph; the original is left as it is. With nothing to remove, an equal one.
    """
    graph = coupling.graph
    edit = _Edit(slice_initializers(graph.initializers, coupling.kept_positions(keep)))
    for patch in coupling.patches:
        numbers = patch.new_numbers(keep)
        if numbers is None:
            continue
        if isinstance(patch.place, str):
            changed = numbers[0] if patch.scalar else numbers
            edit.attributes.setdefault(patch.key, {})[patch.place] = changed
        else:
            _write(coupling, edit, patch.key, patch.place, numbers)
        for name in patch.drops:
            edit.attributes.setdefault(patch.key, {})[name] = None
    for renumbering in coupling.renumberings:
        kept = mask(renumbering.source, keep)
        if not kept.all():
            after = np.cumsum(kept) - 1
            picked = np.asarray(renumbering.picked, np.int64)
            numbers = after[picked[kept[picked]]].tolist()
            _write(coupling, edit, renumbering.node.key, renumbering.slot, numbers, resized=True)
    shape_arithmetic = {n for n, value in coupling.values.items() if value.numbers is not None}
    return graph.edit(edit.arrays, edit.attributes, edit.rewired, shape_arithmetic)


def _write(
    coupling: Coupling,
    edit: _Edit,
    key: str,
    slot: int,
    numbers: list[Any],
    *,
    resized: bool = False,
) -> None:
    """Give an input slot other numbers; who else uses what is there keeps it."""
    graph = coupling.graph
    node = graph.producers[key]
    name = node.inputs[slot] if node.has_input(slot) else ""
    old = graph.initializers.get(name)
    if old is not None:
        array = np.asarray(numbers, old.dtype)
        new = array if resized else array.reshape(old.shape)
    elif name:
        kind = infer_types(graph, [name])[name]
        new = np.asarray(numbers, kind).reshape(coupling.values[name].shape)
    else:
        new = np.asarray(numbers, np.int64)
    if old is None or _is_shared(graph, name):
        name = graph.fresh_name(f"{name or 'sizes'}.{key}", edit.arrays)
        edit.rewired[key, slot] = name
    edit.arrays[name] = new


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


def _is_shared(graph: Graph, name: str) -> bool:
    """Say whether an initializer has more uses than one, those in subgraphs included."""
    captured = any(name in node.captures for node in graph.nodes)
    returned = any(name == port.name for port in graph.outputs)
    return captured or returned or len(graph.consumers[name]) > 1
