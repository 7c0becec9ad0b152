"""Find the coupling of a graph: type inference over axes.

One pass over the nodes states equalities between axes; their solution gives, for every axis of
every tensor, an expression over dims.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import Dim, leaves, occurs
from obc_onnx.axes.sizes import Sized, axes_of, value_of
from obc_onnx.axes.unification import AxisSystem
from obc_onnx.coupling.model import Coupling, FrozenDim, Group, Released, constant_sources
from obc_onnx.coupling.spelling import find_patches
from obc_onnx.graph.node import holds_weights
from obc_onnx.ops.base.context import CoupleContext, Role
from obc_onnx.ops.base.value import Renumbering, Spelling, Value, followed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import Lookup
    from obc_onnx.ops.base.rule import Rule, RuleSet, Shape
    from obc_onnx.ops.base.value import Wanted


_NOTHING = Released()


def find_coupling(
    graph: Graph,
    shapes: Mapping[str, Shape],
    rules: RuleSet,
    released: Released = _NOTHING,
) -> Coupling:
    """Derive the coupled groups of a graph.

    Args:
        graph: The model.
        shapes: A concrete shape for every tensor, from `infer_shapes`.
        rules: What is known of operators; others freeze what they touch.
        released: What is not frozen though it is known outside.
    Returns:
        The coupling; the graph is not changed.
    """
    with _no_garbage_collection():
        return _Finder(graph, shapes, rules, released).find()


def axes_apart(
    graph: Graph, shapes: Mapping[str, Shape], rules: RuleSet
) -> dict[str, int | None] | None:
    """Say which axis of each output has one position for each sample, where that is certain.

    It is where the batch passes every node as units do that may be removed: no operator mixes its
    positions, picks from it, sums over it, or sets each sample beside every other.

    Args:
        graph: The model, whose `batch_axes` say where its inputs have samples.
        shapes: A concrete shape for every tensor, from `infer_shapes`, with a number of samples
            that is the size of nothing else.
        rules: What is known of operators.
    Returns:
        None where it is not certain.
    """
    with _no_garbage_collection():
        return _Finder(graph, shapes, rules, free_batch=True).find_apart()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the collector: what is made here lives on, and it would look at the whole model."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Finder:
    """One analysis: states every equality, then reads the groups off the solution."""

    def __init__(
        self,
        graph: Graph,
        shapes: Mapping[str, Shape],
        rules: RuleSet,
        released: Released = _NOTHING,
        *,
        free_batch: bool = False,
    ) -> None:
        self.graph, self.shapes, self.rules = graph, shapes, rules
        self.released = released
        self.why_batch = None if free_batch else "the batch"
        self.system = AxisSystem()
        self.values: dict[str, Value] = {}
        self.roles: list[Role] = []
        self.spellings: list[Spelling] = []
        self.renumberings: list[Renumbering] = []
        self.lookups: list[Lookup] = []
        self.unknown: list[str] = []
        self.batch: Dim | None = None
        self.symbols: dict[tuple[str, int], Dim] = {}
        self.loses_batch = False

    def find_apart(self) -> dict[str, int | None] | None:
        """Follow the batch alone, see `axes_apart`."""
        self._follow()
        self.system.settle()
        batch = None if self.batch is None else self.system.resolve(self.batch)
        if not isinstance(batch, Dim) or not self.system.is_free(batch):
            return None
        if self.system.inexact(batch) is not None or self._is_summed_over(batch):
            return None
        if any(self._is_paired(value, batch) for value in self.values.values()):
            return None
        if any(self._hides(node, batch) for node in self.graph.nodes):
            return None
        found: dict[str, int | None] = {}
        for port in self.graph.outputs:
            if port.name not in self.values:
                return None  # an initializer, which no node reads
            axes = [self.system.resolve(axis) for axis in self.values[port.name].axes]
            found[port.name] = axes.index(batch) if batch in axes else None
        return found if None not in found.values() else None

    def _is_summed_over(self, batch: Dim) -> bool:
        axes = (
            self.values[role.node.inputs[role.slot]].axes[role.axis]
            for role in self.roles
            if role.kind == "reads"
        )
        return any(occurs(batch, self.system.resolve(axis)) for axis in axes)

    def _is_paired(self, value: Value, batch: Dim) -> bool:
        """Say whether a value has samples along several axes: each one beside every other."""
        return sum(occurs(batch, self.system.resolve(axis)) for axis in value.axes) > 1

    def _hides(self, node: Node, batch: Dim) -> bool:
        """Say whether a node knows of samples, and gives data without an axis of them.

        What it gives may be numbers that follow sizes; where those end up as data, it hides them.
        """
        made = [self.values[name] for name in node.outputs if name in self.values]
        data = [value for value in made if value.numbers is None]
        read = [self.values[name] for name in node.inputs if name in self.values]
        has = any(self._holds(value, batch) for value in read if not value.constant)
        if has and not all(self._holds(value, batch) for value in data):
            return True
        counted = self._counted(read)
        if batch in counted and self._counted(made) - counted - self._dims_of(read):
            return True  # what follows from the number of samples is not followed any further
        return bool(data) and any(
            self._counts(name, self._wanted.get((node.key, slot), ()), batch)
            for slot, name in enumerate(node.inputs)
            if name in self.values
        )

    def _holds(self, value: Value, dim: Dim) -> bool:
        return any(occurs(dim, self.system.resolve(axis)) for axis in value.axes)

    def _counted(self, values: Iterable[Value]) -> set[Dim]:
        """Return the dims whose sizes numbers follow."""
        axes = (axis for value in values for number in value.sized for axis in axes_of(number))
        return {dim for axis in axes for dim in leaves(self.system.resolve(axis))}

    @cached_property
    def _wanted(self) -> dict[tuple[str, int | str], tuple[Wanted, ...]]:
        """What nodes say of the numbers in a place, once all have spoken."""
        return {(s.node.key, s.place): s.wanted for s in reversed(self.spellings)}

    def _counts(self, name: str, wanted: tuple[Wanted, ...], batch: Dim) -> bool:
        """Say whether a number of samples is read as a number, and not as the size of an axis."""
        numbers = self.values[name].numbers
        for place, number in enumerate(() if numbers is None else numbers.flat):
            of = axes_of(number) if isinstance(number, Sized) else ()
            if any(batch in leaves(self.system.resolve(axis)) for axis in of):
                size = wanted[place] if place < len(wanted) else 0
                if isinstance(size, (int, float)):
                    return True
        return False

    def _follow(self) -> None:
        for port in self.graph.inputs:
            self.values[port.name] = self._input(port.name, port.shape)
        for node in self.graph.nodes:
            self._visit(node)

    def find(self) -> Coupling:
        self._follow()
        for port in self.graph.outputs:
            if port.name in self.values:
                self._freeze_output(port.name)
        self.system.settle()
        patches = find_patches(self.spellings, self.system, self.graph, self.values, self.rules)
        resolve = self.system.resolve
        axes = {name: tuple(map(resolve, value.axes)) for name, value in self.values.items()}
        self.roles = [
            replace(role, mixes=tuple(map(resolve, role.mixes))) if role.mixes else role
            for role in self.roles
        ]
        groups, frozen = self._read_off(axes)
        return Coupling(
            graph=self.graph,
            rules=self.rules,
            axes=axes,
            values=self.values,
            roles=tuple(self.roles),
            groups=groups,
            frozen=frozen,
            reasons=self.system.reasons,
            patches=patches,
            renumberings=tuple(replace(r, source=resolve(r.source)) for r in self.renumberings),
            lookups=tuple(self.lookups),
            unknown=(*self.graph.opaque.labels, *self.unknown),
            loses_batch=self.loses_batch,
            batch=None if self.batch is None else resolve(self.batch),
        )

    def _input(self, name: str, declared: tuple[int | str, ...] | None) -> Value:
        shape = self.shapes[name]
        axes: list[Expr] = []
        batch_axis = self.graph.batch_axes.inputs.get(name)
        for i, size in enumerate(shape):
            is_open = declared is None or isinstance(declared[i], str)
            fixed = declared is None and self.graph.batch is not None
            if is_open and i == batch_axis and not fixed:
                axis = self._batch_of(size)
            else:
                symbol = declared[i] if is_open and declared is not None else ""
                axis = self._input_axis(name, size, str(symbol))
            axes.append(axis)
            if is_open:
                self.system.open(axis)
        return Value(tuple(axes))

    def _input_axis(self, name: str, size: int, symbol: str) -> Dim:
        """Return a new axis of an input, or the one of the same symbol: their sizes are equal."""
        key = symbol, size
        if not symbol:
            return self.system.dim(size, self.graph.opaque.input_called(name))
        if key not in self.symbols:
            self.symbols[key] = self.system.dim(size, self.graph.opaque.input_called(name))
        return self.symbols[key]

    def _batch_of(self, size: int) -> Dim:
        """Return the one batch of all inputs, or a new one where the sizes differ."""
        if self.batch is None or self.batch.size != size:
            self.batch = self.system.dim(size, self.why_batch)
        return self.batch

    def _visit(self, node: Node) -> None:
        rule = self.rules.find(node)
        for name in node.inputs:
            if name in self.graph.initializers and name not in self.values:
                self.values[name] = self._initializer(name)
        known = all(name in self.values for name in node.inputs if name)
        known &= all(name in self.shapes for name in node.outputs if name)
        before = self.system.n_dims, self.system.n_bound
        written: AbstractSet[Expr] = frozenset()
        if rule is None or node.captures or not known:
            self._refuse(node, rule)
        else:
            written = self._couple(node, rule)
        self._open_axes(node, before, written)

    def _couple(self, node: Node, rule: Rule) -> AbstractSet[Expr]:
        """Let the rule speak; return the new axes whose sizes the node spells out."""
        context = CoupleContext(
            node=node,
            inputs=tuple(self.values.get(name) for name in node.inputs),
            output_shapes=tuple(self.shapes.get(name) for name in node.outputs),
            system=self.system,
            roles=self.roles,
            arrays=tuple(self.graph.initializers.get(name) for name in node.inputs),
            renumberings=self.renumberings,
            lookups=self.lookups,
            released=self.released.tables,
        )
        context.check_ranks(rule.ranks)
        given = [value for value in context.inputs if value is not None]
        constant = bool(given) and rule.repeats and all(value.constant for value in given)
        outputs = rule.couple(context)
        own = {id(value) for value in context.inputs}
        carried = False
        for name, value in zip(node.outputs, outputs, strict=True):
            # an input that is returned as it is stands for its axes; numbers are handed on again
            numbers = None if id(value) in own else value.numbers
            carried |= numbers is not None
            if name:
                self.values[name] = Value(value.axes, numbers, constant)
        self.spellings += context.spellings
        spelled = {spelling.place for spelling in context.spellings}
        for slot in range(len(node.inputs)):
            if slot not in spelled and (slot in context.consulted or not carried):
                self._pin(node, slot)
        return context.written_dims

    def _pin(self, node: Node, slot: int) -> None:
        """Keep numbers that are used as they are, and not as sizes, what they are."""
        value = self.values.get(node.inputs[slot])
        if value is not None and value.numbers is not None and any(True for _ in value.sized):
            wanted = (value_of(n) for n in value.numbers.flat)
            self.spellings.append(Spelling(node, slot, tuple(wanted)))

    def _refuse(self, node: Node, rule: Rule | None) -> None:
        """Freeze all that a node touches, because its operator or its shapes are not known."""
        why = f"{node.label}: it has a value of unknown shape"
        if rule is None:
            why = f"{node.label}: operator '{node.op_type}' has no rule"
            self.unknown.append(node.label)
        elif rule.why:
            why = f"{rule.why} of {node.label}"
        elif node.captures:
            why = f"{node.label}: it holds a subgraph"
        for slot in range(len(node.inputs)):
            self._pin(node, slot)
        for name in node.captures:
            self._freeze_captured(name, why)
        inputs = [self.values[name] for name in node.inputs if name in self.values]
        for axis in (axis for value in inputs for axis in value.axes):
            self.system.freeze(axis, why)
        for name in node.outputs:
            if name in self.shapes:
                self.values[name] = self._stand_in(self.shapes[name], inputs, why)

    def _stand_in(self, shape: Shape, inputs: Sequence[Value], why: str) -> Value:
        """Return axes for an output of which nothing is known but its shape.

        Where the first axis of the inputs that is the batch is as long there, it is the batch:
        frozen either way, but what a sample costs depends on it.
        """
        axes: list[Expr] = [self.system.dim(size, why) for size in shape]
        places = (
            i for value in inputs for i, axis in enumerate(value.axes) if self._is_batch(axis)
        )
        place = next(places, None)
        if self.batch is not None and place is not None and place < len(shape):
            same = axes[place].size == self.batch.size
            axes[place] = self.batch if same else axes[place]
        return Value(tuple(axes))

    def _freeze_captured(self, name: str, why: str) -> None:
        """Freeze what a subgraph uses: its axes, and the sizes that its numbers are."""
        if name in self.graph.initializers and name not in self.values:
            self.values[name] = self._initializer(name)
        if name in self.values:
            value = self.values[name]
            sizes = (axis for number in value.sized for axis in axes_of(number))
            for axis in (*value.axes, *sizes):
                self.system.freeze(axis, why)

    def _is_batch(self, axis: Expr) -> bool:
        return self.batch is not None and self.system.resolve(axis) == self.system.resolve(
            self.batch
        )

    def _open_axes(self, node: Node, before: tuple[int, int], written: AbstractSet[Expr]) -> None:
        """Mark what a node makes as open, where a size of its inputs that is open does not go on.

        Args:
            node: The node.
            before: How many dims there were before it was coupled, and how many of them stood for
                others.
            written: New axes whose sizes the node spells out.
        """
        if self.system.n_dims == before[0]:
            return
        outputs = [self.values[name] for name in node.outputs if name in self.values]
        axes = (axis for value in outputs for axis in value.axes)
        made = {dim for axis in axes for dim in self.system.later(axis, before[0])} - written
        if made:
            made -= self.system.made_of(*before)  # those are parts of what was there before
        if not made:
            return
        inputs = [self.values[name] for name in node.inputs if name in self.values]
        lost = self._open_dims(value for value in inputs if not value.constant)
        lost -= self._open_dims(outputs)
        for dim in made if lost else ():
            self.system.open(dim)
        if self.batch is not None:
            self.loses_batch |= not lost.isdisjoint(leaves(self.system.resolve(self.batch)))

    def _dims_of(self, values: Iterable[Value]) -> set[Dim]:
        axes = (axis for value in values for axis in value.axes)
        return {dim for axis in axes for dim in leaves(self.system.resolve(axis))}

    def _open_dims(self, values: Iterable[Value]) -> set[Dim]:
        found: set[Dim] = set()
        for value in values:
            for axis in value.axes:
                found |= self.system.open_dims(axis)
            for number in value.sized:
                for axis in axes_of(number):
                    found |= self.system.open_dims(axis)
        return found

    def _initializer(self, name: str) -> Value:
        array = self.graph.initializers[name]
        axes = tuple(self.system.dim(size) for size in array.shape)
        return Value(axes, followed(array), constant=True)

    def _freeze_output(self, name: str) -> None:
        why = self.graph.opaque.output_called(name)
        for place, axis in enumerate(self.values[name].axes):
            if (name, place) not in self.released.outputs:
                self.system.freeze(axis, why)

    def _read_off(
        self, axes: Mapping[str, tuple[Expr, ...]]
    ) -> tuple[tuple[Group, ...], tuple[FrozenDim, ...]]:
        """Collect the free and the frozen dims that weights meet, in the order of the roles."""
        members: defaultdict[Dim, list[Role]] = defaultdict(list)
        names: dict[Dim, str] = {}
        for role in self.roles:
            operand = role.node.inputs[role.slot]
            own = dict.fromkeys(leaves(axes[operand][role.axis]))
            for dim in own:
                members[dim].append(role)
            for name, axis in self._weights(operand, role.axis):
                unnamed = {dim for dim in own if dim not in names}
                if not unnamed:
                    break
                dims = list(dict.fromkeys(leaves(axes[name][axis])))
                for place, dim in enumerate(dims):
                    if dim in unnamed:
                        suffix = f".{place}" if len(dims) > 1 else ""
                        names[dim] = f"{name}:{axis}{suffix}"
        groups, frozen = [], []
        for dim, name in names.items():
            reason = self.system.reason(dim)
            if reason is None:
                inexact = self.system.inexact(dim)
                groups.append(Group(name, dim, tuple(members[dim]), inexact))
            elif dim.size > 1:
                frozen.append(FrozenDim(name, dim.size, reason))
        return tuple(groups), tuple(frozen)

    def _weights(self, operand: str, axis: int) -> Iterator[tuple[str, int]]:
        """Yield the initializer axes that may hold what an operand's axis does."""
        arrays = self.graph.initializers
        if operand in arrays:
            found = [(operand, axis)]
        else:
            sources = constant_sources(self.graph, self.values, operand)
            found = [(name, i) for name in sources for i in range(arrays[name].ndim)]
        yield from (place for place in found if holds_weights(arrays[place[0]].dtype))
