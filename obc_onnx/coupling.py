"""Find which positions of which axes must go together: groups of a graph.

One pass over the nodes states equalities between axes; their solution gives, for every axis of
every tensor, an expression over dims. A dim that is not frozen and occurs on an initializer is a
group, and slicing, costs, saliency members and the masked oracle all follow from the expressions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes import (
    Concat,
    Dim,
    Product,
    Take,
    count,
    leaves,
    mask,
    only_position,
)
from obc_onnx.graph import is_float
from obc_onnx.ops.context import CoupleContext, Fixed, Role, Value
from obc_onnx.unification import AxisSystem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes import Expr
    from obc_onnx.graph import Graph, Node
    from obc_onnx.ops.rule import Rule, RuleSet, Shape

    Keep = Mapping[Dim, NDArray[np.bool_]]

_MAX_FOLLOWED_NUMBERS = 256


@dataclass(frozen=True, eq=False)
class Group:
    """A dim that is not frozen, with every place where weights meet it.

    Attributes:
        name: The first initializer axis that holds it, as `weight:0`; where that axis has several
            dims, with the dim's place among them, as `weight:0.1`.
        members: What writes, reads or scales along it.
        inexact: Why removing units changes more than masking them, or None.
    """

    name: str
    dim: Dim
    members: tuple[Role, ...]
    inexact: str | None

    @property
    def size(self) -> int:
        """Number of units."""
        return self.dim.size


@dataclass(frozen=True)
class Frozen:
    """A dim of a weight axis from which nothing may be removed."""

    where: str
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class Coupling:
    """The solved coupling of one graph at concrete shapes.

    Attributes:
        axes: Resolved expressions by value name, initializers included.
        values: What coupling knows of each value, unresolved; for `Rule.resize`.
        roles: Everything that weights do.
        groups: The dims that may lose units, in the order of the graph.
        frozen: The other dims of weight axes that play a role.
        unknown: Labels of nodes whose operator has no rule.
        batch: The dynamic first axis of the inputs, None where it is static.
        single: Shapes for one sample, where operators without a rule hide which axes hold the
            batch; None where the batch can be followed everywhere.
    """

    graph: Graph
    rules: RuleSet
    axes: Mapping[str, tuple[Expr, ...]]
    values: Mapping[str, Value]
    roles: tuple[Role, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    unknown: tuple[str, ...]
    batch: Expr | None
    single: Mapping[str, Shape] | None = None

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Concrete shapes by value name, before anything is removed."""
        return {name: tuple(axis.size for axis in axes) for name, axes in self.axes.items()}

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    def kept_positions(self, keep: Keep) -> dict[str, dict[int, NDArray[np.int64]]]:
        """List what stays of every initializer that shrinks.

        Returns:
            For each initializer, for each axis that loses positions, the sorted kept indices.
        """
        slices: dict[str, dict[int, NDArray[np.int64]]] = {}
        for name in self.graph.initializers:
            for axis, expr in enumerate(self.axes.get(name, ())):
                if any(dim in keep for dim in leaves(expr)):
                    kept = mask(expr, keep)
                    if not kept.all():
                        slices.setdefault(name, {})[axis] = np.flatnonzero(kept)
        return slices

    def macs(self, keep: Keep) -> int:
        """Count multiply-accumulates of one sample once only the kept units are left."""
        return sum(self.node_macs(node, keep) for node in self.costed)

    def params(self, keep: Keep) -> int:
        """Count the elements of float initializers once only the kept units are left."""
        return sum(
            int(np.prod([count(axis, keep) for axis in self.axes[name]], dtype=np.int64))
            if name in self.axes
            else array.size
            for name, array in self.graph.initializers.items()
            if is_float(array.dtype)
        )

    def node_macs(self, node: Node, keep: Keep) -> int:
        """Count the multiply-accumulates of one node for one sample."""
        rule = self.rules.find(node)
        if rule is None or node.key not in self.axes:
            return 0
        if self.single is None:
            return self._cost(rule, node, {**keep, **self._one_sample})
        whole = self._cost(rule, node, {})
        one = rule.macs(node, *([self.single.get(n, ()) for n in names] for names in _ports(node)))
        return self._cost(rule, node, keep) * one // whole if whole else 0

    def _cost(self, rule: Rule, node: Node, keep: Keep) -> int:
        return rule.macs(node, *([self._shape(n, keep) for n in names] for names in _ports(node)))

    @cached_property
    def _one_sample(self) -> Keep:
        return {} if self.batch is None else only_position(self.batch, 0)

    @cached_property
    def costed(self) -> tuple[Node, ...]:
        """The nodes that multiply and accumulate."""
        return tuple(node for node in self.graph.nodes if self.node_macs(node, {}))

    @cached_property
    def costed_by_dim(self) -> dict[Dim, tuple[Node, ...]]:
        """For each dim, the nodes whose cost depends on it."""
        table: dict[Dim, dict[str, Node]] = {}
        for node in self.costed:
            for name in (*node.inputs, *node.outputs):
                for dim in self._dims(name):
                    table.setdefault(dim, {})[node.key] = node
        return {dim: tuple(nodes.values()) for dim, nodes in table.items()}

    @cached_property
    def tied_axes(self) -> tuple[Expr, ...]:
        """Axes that could lose every position though no dim loses every unit."""
        found = dict.fromkeys(
            expr for axes in self.axes.values() for expr in axes if _holds_take(expr)
        )
        return tuple(found)

    def _shape(self, name: str, keep: Keep) -> Shape:
        return tuple(count(axis, keep) for axis in self.axes.get(name, ()))

    def _dims(self, name: str) -> Iterable[Dim]:
        return (dim for axis in self.axes.get(name, ()) for dim in leaves(axis))


def find_coupling(graph: Graph, shapes: Mapping[str, Shape], rules: RuleSet) -> Coupling:
    """Derive the coupled groups of a graph.

    Args:
        graph: The model.
        shapes: A concrete shape for every tensor, from `infer_shapes`.
        rules: What is known of operators; others freeze what they touch.
    Returns:
        The coupling; the graph is not changed.
    """
    return _Finder(graph, shapes, rules).find()


class _Finder:
    """One analysis: states every equality, then reads the groups off the solution."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape], rules: RuleSet) -> None:
        self.graph, self.shapes, self.rules = graph, shapes, rules
        self.system = AxisSystem()
        self.values: dict[str, Value] = {}
        self.roles: list[Role] = []
        self.claims: dict[tuple[str, int], Expr] = {}
        self.pinned: dict[tuple[str, int], str] = {}
        self.unknown: list[str] = []
        self.batch: Dim | None = None

    def find(self) -> Coupling:
        for port in self.graph.inputs:
            self.values[port.name] = self._input(port.name, port.shape)
        for node in self.graph.nodes:
            self._visit(node)
        for port in self.graph.outputs:
            if port.name in self.values:
                self._freeze(port.name, f"graph output '{port.name}'")
                self._pin(self.values[port.name], f"graph output '{port.name}'")
        for source, user in self.pinned.items():
            if source in self.claims:
                self.system.freeze(self.claims[source], f"{user} uses the number of its size too")
        self.system.settle()
        self.roles = [
            replace(role, mixes=tuple(self.system.resolve(expr) for expr in role.mixes))
            for role in self.roles
        ]
        axes = {
            name: tuple(self.system.resolve(axis) for axis in value.axes)
            for name, value in self.values.items()
        }
        groups, frozen = self._read_off(axes)
        return Coupling(
            graph=self.graph,
            rules=self.rules,
            axes=axes,
            values=self.values,
            roles=tuple(self.roles),
            groups=groups,
            frozen=frozen,
            unknown=tuple(self.unknown),
            batch=None if self.batch is None else self.system.resolve(self.batch),
        )

    def _input(self, name: str, declared: tuple[int | str, ...] | None) -> Value:
        shape = self.shapes[name]
        dynamic = bool(shape) and (declared is None or isinstance(declared[0], str))
        axes: list[Expr] = [self.system.dim(n, f"graph input '{name}'") for n in shape]
        if dynamic:
            if self.batch is None or self.batch.size != shape[0]:
                self.batch = self.system.dim(shape[0], "the batch")
            axes[0] = self.batch
        return Value(tuple(axes))

    def _visit(self, node: Node) -> None:
        rule = self.rules.find(node)
        for name in node.inputs:
            if name in self.graph.initializers and name not in self.values:
                self.values[name] = self._initializer(name)
        known = all(name in self.values for name in node.inputs if name)
        known &= all(name in self.shapes for name in node.outputs if name)
        if rule is None or node.captures or not known:
            self._refuse(node, rule)
            return
        inputs = tuple(self.values.get(name) for name in node.inputs)
        if not rule.carries_numbers:
            for value in inputs:
                self._freeze_sizes(node, value)
        context = CoupleContext(
            node=node,
            inputs=inputs,
            output_shapes=tuple(self.shapes.get(name) for name in node.outputs),
            system=self.system,
            roles=self.roles,
            arrays=tuple(self.graph.initializers.get(name) for name in node.inputs),
            claims=self.claims,
        )
        constant = all(value.constant for value in inputs if value is not None)
        passed: set[tuple[str, int]] = set()
        for name, value in zip(node.outputs, rule.couple(context), strict=True):
            if name:
                numbers = value.numbers if rule.carries_numbers else None
                self.values[name] = Value(value.axes, numbers, constant)
                passed.update(self.values[name].sources)
        for value in inputs:
            self._pin(value, node.label, passed | context.claimed)

    def _refuse(self, node: Node, rule: Rule | None) -> None:
        """Freeze all that a node touches, because its operator or its shapes are not known."""
        if rule is None:
            why = f"{node.label}: operator '{node.op_type}' has no rule"
            self.unknown.append(node.label)
        else:
            why = f"{node.label}: it has a tensor of unknown shape"
        for name in (*node.inputs, *node.captures):
            if name in self.graph.initializers and name not in self.values:
                self.values[name] = self._initializer(name)
            if name in self.values:
                self._freeze_sizes(node, self.values[name])
                self._pin(self.values[name], node.label)
                self._freeze(name, why)
        batched = self.batch is not None and any(
            self.values[name].axes[:1] == (self.batch,)
            for name in node.inputs
            if name in self.values
        )
        for name in node.outputs:
            if name in self.shapes:
                axes: list[Expr] = [self.system.dim(size, why) for size in self.shapes[name]]
                if self.batch is not None and batched and axes and axes[0].size == self.batch.size:
                    axes[0] = self.batch  # frozen either way; what a sample costs depends on it
                self.values[name] = Value(tuple(axes))

    def _initializer(self, name: str) -> Value:
        array = self.graph.initializers[name]
        numbers = None
        small = array.ndim <= 1 and array.size <= _MAX_FOLLOWED_NUMBERS
        if small and np.issubdtype(array.dtype, np.integer):
            numbers = tuple(Fixed(int(v), (name, i)) for i, v in enumerate(array.reshape(-1)))
        axes = tuple(self.system.dim(size) for size in array.shape)
        if not is_float(array.dtype):
            for axis in axes:
                self.system.freeze(axis, f"'{name}' does not hold weights")
        return Value(axes, numbers, constant=True)

    def _freeze(self, name: str, why: str) -> None:
        for axis in self.values[name].axes:
            self.system.freeze(axis, why)

    def _pin(
        self, value: Value | None, user: str, except_for: Collection[tuple[str, int]] = ()
    ) -> None:
        """Note spelled-out numbers that surgery may not rewrite, because `user` reads them."""
        for source in value.sources if value is not None else ():
            if source not in except_for:
                self.pinned.setdefault(source, user)

    def _freeze_sizes(self, node: Node, value: Value | None) -> None:
        for axis in value.sizes if value is not None else ():
            self.system.freeze(axis, f"its size is computed with in {node.label}")

    def _read_off(
        self, axes: Mapping[str, tuple[Expr, ...]]
    ) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
        """Collect the free and the frozen dims of operand axes, in the order of the roles."""
        members: dict[Dim, list[Role]] = {}
        names: dict[Dim, str] = {}
        initializers = self.graph.initializers
        for role in self.roles:
            operand = role.node.inputs[role.slot]
            dims = list(dict.fromkeys(leaves(axes[operand][role.axis])))
            for place, dim in enumerate(dims):
                members.setdefault(dim, []).append(role)
                if operand in initializers:
                    suffix = f".{place}" if len(dims) > 1 else ""
                    names.setdefault(dim, f"{operand}:{role.axis}{suffix}")
        groups, frozen = [], []
        for dim, name in names.items():
            reason = self.system.reason(dim)
            if reason is None:
                inexact = self.system.inexact(dim)
                groups.append(Group(name, dim, tuple(members[dim]), inexact))
            elif dim.size > 1:
                frozen.append(Frozen(name, dim.size, reason))
        return tuple(groups), tuple(frozen)


def _ports(node: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return node.inputs, node.outputs


def _holds_take(expr: Expr) -> bool:
    match expr:
        case Product(factors=children) | Concat(parts=children):
            return any(_holds_take(child) for child in children)
        case Take():
            return True
    return False
