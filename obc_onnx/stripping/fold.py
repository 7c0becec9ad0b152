"""What takes the place of units that go: constants in biases, and columns that are added to others.

A product that reads a constant adds the same to its output in every run. Where that is one number
for each channel it belongs into the bias. Behind a padded convolution it is not: the border sees
fewer of the constant, unless that is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import ModelError
from obc_onnx.graph.session import run_node
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.ops.base.effect import Effect
from obc_onnx.stripping.units import axis_of, comparable, positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.context import Role
    from obc_onnx.stripping.facts import Facts
    from obc_onnx.stripping.scenes import Scene

    Flags = NDArray[np.bool_]
    Reals = NDArray[np.float64]

_ROUNDINGS = 16
"""By how many roundings of the largest possible sum two places of a constant map may differ."""


@dataclass(frozen=True)
class Bias:
    """Where a constant that a product adds can go.

    Attributes:
        key: Of the node that adds the bias (`Node.key`): the product, or a sum behind it.
        slot: Where that takes it.
        name: Of the initializer that is there; "" where there is none.
        axis: Of the product's output along which it lies.
        width: How many numbers there are.
    """

    key: str
    slot: int
    name: str
    axis: int
    width: int


@dataclass(frozen=True)
class Shift:
    """A constant that goes into a bias, float64 of shape [width]."""

    bias: Bias
    amount: Reals


@dataclass
class Edits:
    """Changes of weights, to be made together."""

    shifts: list[Shift] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with all changes; who else uses a bias keeps the old one."""
        types = ElementTypes(graph)
        arrays, rewired = dict(self.arrays), dict[tuple[str, int], str]()
        for shift in self.shifts:
            bias, old = shift.bias, graph.initializers.get(shift.bias.name)
            kind = types[bias.key] if old is None else old.dtype
            total = shift.amount + (0.0 if old is None else old.astype(np.float64).reshape(-1))
            keeps = old is not None and old.size == bias.width
            new = total.astype(kind).reshape(old.shape if keeps and old is not None else -1)
            name = bias.name
            if not name or not keeps or graph.is_shared(name):
                name = graph.fresh_name(f"{bias.name or 'bias'}.{bias.key}", arrays)
                rewired[bias.key, bias.slot] = name
            arrays[name] = new
        return graph.edit(arrays, None, rewired) if arrays else graph


def shift_of(facts: Facts, role: Role, group: str, units: Flags) -> Shift | None:
    """Return what a product makes of constant units that it reads; None where no bias can hold it.

    Args:
        facts: What is known of the graph.
        role: How the product reads the group, through a weight.
        group: The group.
        units: Units that are constant where the product takes them.
    """
    bias = _find_bias(facts, role)
    if bias is None or role.tap is None:
        return None
    found: list[tuple[Reals, Reals]] = []
    for scene in facts.scenes.runs:
        own = _made_of(facts, scene, role, group, units, bias)
        if own is None:
            return None
        found.append(own)
    (amount, bound), *others = found
    if any((np.abs(other - amount) > bound).any() for other, _ in others):
        return None  # it depends on the sizes of inputs
    return Shift(bias, amount)


def _made_of(
    facts: Facts, scene: Scene, role: Role, group: str, units: Flags, bias: Bias
) -> tuple[Reals, Reals] | None:
    """Run a product on constants alone; return what each channel gets and how exact that is."""
    assert role.tap is not None
    node, slot = role.node, role.tap.slot
    weight, x = (scene.numbers[node.inputs[own]] for own in (role.slot, slot))
    kind = np.float64 if weight.dtype == np.float64 else np.float32  # the narrower are made wider
    taken = facts.elements(scene, node.inputs[slot], {group: units})
    weight, x = weight.astype(kind), np.where(taken, x, 0.0).astype(kind)
    try:
        y = run_node(facts.graph, node, {role.slot: weight, slot: x}).astype(np.float64)
        largest = run_node(facts.graph, node, {role.slot: np.abs(weight), slot: np.abs(x)})
    except ModelError:
        return None
    others = tuple(axis for axis in range(y.ndim) if axis != bias.axis)
    amount = (y.max(axis=others, keepdims=True) + y.min(axis=others, keepdims=True)) / 2
    bound = largest.max(axis=others, keepdims=True) * _ROUNDINGS * np.finfo(kind).eps
    if not (np.abs(y - amount) <= bound).all():
        return None
    return amount.reshape(-1), bound.astype(np.float64).reshape(-1)


def _find_bias(facts: Facts, role: Role) -> Bias | None:
    """Find the bias of a product that reads through a weight, or a place where it may have one."""
    graph, node, rule = facts.graph, role.node, facts.rules.find(role.node)
    axis = _written_axis(facts, role)
    if rule is None or axis is None or not rule.is_linear(node):
        return None
    shape = facts.coupling.shapes[node.key]
    is_last, width = axis == len(shape) - 1, shape[axis]
    slot = rule.bias_slot
    if slot is not None:
        weight = facts.coupling.shapes[node.inputs[role.slot]]
        fits = is_last or rule.filters_of(node, weight) is not None
        name = node.read_at(slot)
        fits = fits and (not name or _fits(facts, name, width))
        return Bias(node.key, slot, name, axis, width) if fits else None
    readers = graph.consumers.get(node.key, [])
    if not is_last or graph.escapes(node.key) or len(readers) != 1:
        return None
    behind, place = readers[0]
    if Effect.ADDS not in facts.rules.effect(behind):
        return None
    name, slot = behind.inputs[1 - place], 1 - place
    fits = _fits(facts, name, width)
    return Bias(behind.key, slot, name, axis, width) if fits else None


def _written_axis(facts: Facts, role: Role) -> int | None:
    """Return along which axis of the output the weight of a role makes channels."""
    found = {
        other.tap.axis
        for other in facts.coupling.roles
        if other.kind == "writes" and other.node is role.node and other.slot == role.slot
        if other.tap is not None and other.tap.at == "output"
    }
    return next(iter(found)) if len(found) == 1 else None


def _fits(facts: Facts, name: str, width: int) -> bool:
    """Say whether a bias is an initializer with a number for each channel, or with one for all."""
    array = facts.graph.initializers.get(name)
    if array is None or not facts.is_fixed(name) or not np.issubdtype(array.dtype, np.floating):
        return False
    return array.size == 1 or array.shape[-1] == array.size == width


def can_add_columns(facts: Facts, role: Role, group: str) -> bool:
    """Say whether what a weight reads through some units may be added to what it reads of others.

    The weight has to be all that the product multiplies by, and all that uses it has to read the
    group so.
    """
    graph, name = facts.graph, role.node.inputs[role.slot]
    rule = facts.rules.find(role.node)
    if rule is None or not (rule.is_linear(role.node) or rule.is_scaled(role.node)):
        return False
    if not facts.is_fixed(name) or graph.escapes(name):
        return False
    if not np.issubdtype(graph.initializers[name].dtype, np.floating):
        return False
    dim = facts.scenes.runs[0].dim(group)
    alone = comparable(facts.coupling.axes[name], dim)
    reads = {
        (other.node.key, other.slot)
        for other in facts.coupling.by_name[group].members
        if other.kind == "reads" and other.axis == role.axis
    }
    return alone and all((node.key, slot) in reads for node, slot in graph.consumers[name])


def add_columns(
    facts: Facts,
    arrays: Mapping[str, NDArray[Any]],
    role: Role,
    group: str,
    pairs: Mapping[int, int],
) -> NDArray[Any]:
    """Return a weight in which the columns of units are added to those of the units they equal.

    Args:
        facts: What is known of the graph.
        arrays: Weights that were changed before.
        role: Which weight, and how it reads the group.
        group: The group.
        pairs: For each unit that goes, the one that stays.
    """
    name = role.node.inputs[role.slot]
    axes, dim = facts.coupling.axes[name], facts.scenes.runs[0].dim(group)
    old = arrays.get(name, facts.graph.initializers[name])
    wide = np.moveaxis(old.astype(np.float64), axis_of(axes, dim), 0)
    own = positions(axes, dim)
    for gone, stays in pairs.items():
        wide[own[stays]] += wide[own[gone]]
    return np.moveaxis(wide, 0, axis_of(axes, dim)).astype(old.dtype)
