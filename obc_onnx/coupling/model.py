"""Which positions of which axes go together, and what follows from that for all operators at once.

A dim that is not frozen and that weights meet is a group. Slicing, costs, saliency members and the
masked oracle all follow from the expressions of the axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import (
    Counts,
    Dim,
    Joined,
    Product,
    Take,
    leaves,
    mask,
    only_position,
    takes,
)
from obc_onnx.graph.copies import merge_copies
from obc_onnx.graph.node import holds_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.patch import Patch
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import Lookup, Role
    from obc_onnx.ops.base.rule import Rule, RuleSet, Shape
    from obc_onnx.ops.base.value import Renumbering, Value

    Keep = Mapping[Dim, NDArray[np.bool_]]


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
class FrozenDim:
    """A dim of a weight axis from which nothing may be removed."""

    where: str
    size: int
    reason: str


@dataclass(frozen=True)
class Released:
    """Positions that may go though they are known outside: someone numbers them again, or says so.

    Attributes:
        tables: Those that ids pick from, by `Lookup.place`.
        outputs: Axes of outputs of the model, by name and axis.
    """

    tables: frozenset[tuple[str, int]] = frozenset()
    outputs: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True)
class Pair:
    """Two layers that one was split into.

    Attributes:
        first: The node that comes first.
        second: The other one; its key is that of the one.
        weight: The initializer that was split.
        first_weight: What the first multiplies by.
        second_weight: What the other multiplies by.
        reads: The axis of all three that is contracted.
        writes: The axis of all three along which outputs lie.
    """

    first: str
    second: str
    weight: str
    first_weight: str
    second_weight: str
    reads: int
    writes: int


@dataclass(frozen=True, eq=False)
class Coupling:
    """The solved coupling of one graph at concrete shapes.

    Attributes:
        axes: Resolved expressions by value name, initializers included.
        values: What coupling knows of each value, unresolved.
        roles: Everything that weights do.
        groups: The dims that may lose units, in the order of the graph.
        frozen: The other dims of weight axes that play a role.
        reasons: Why dims are frozen, whether weights meet them or not.
        patches: Numbers that nodes spell out and that may have to be written again.
        renumberings: Constant positions that nodes pick.
        lookups: Tables of constants that are read by computed positions.
        unknown: Labels of nodes whose operator has no rule.
        batch: The open axis of the inputs that holds the samples, None where it is static.
        loses_batch: Whether some operator hides which of its axes hold the batch.
        single: Shapes for one sample, where that is so; None where the batch can be followed.
        pairs: Layers that one was split into: they count as that one until both are cheaper.
    """

    graph: Graph
    rules: RuleSet
    axes: Mapping[str, tuple[Expr, ...]]
    values: Mapping[str, Value]
    roles: tuple[Role, ...]
    groups: tuple[Group, ...]
    frozen: tuple[FrozenDim, ...]
    reasons: Mapping[Dim, str]
    patches: tuple[Patch, ...]
    renumberings: tuple[Renumbering, ...]
    lookups: tuple[Lookup, ...]
    unknown: tuple[str, ...]
    batch: Expr | None
    loses_batch: bool = False
    single: Mapping[str, Shape] | None = None
    pairs: tuple[Pair, ...] = ()

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Concrete shapes by value name, before anything is removed."""
        return {name: tuple(axis.size for axis in axes) for name, axes in self.axes.items()}

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    def sources(self, name: str) -> list[str]:
        """List the initializers that a constant is computed from; none of what is not constant."""
        return constant_sources(self.graph, self.values, name)

    def exact(self, keep: Keep) -> Keep:
        """Return what `keep` says of dims whose units a mask removes as well as surgery does."""
        inexact = {group.dim for group in self.groups if group.inexact is not None}
        return {dim: mask for dim, mask in keep.items() if dim not in inexact}

    def at_batch(self, keep: Keep, size: int) -> Keep | None:
        """Return what `keep` says of a batch of `size` samples, for `mask` and `count`.

        Some axes hold the batch and units too, such as the heads of all samples. None where their
        positions are known for the batch of the analysis alone: where some operator hides it, the
        graph splits it or picks from it, or a weight is as long as it.
        """
        if self.batch is None or self.batch.size == size:
            return keep
        batch = set(leaves(self.batch))
        cut = {dim for dim, kept in keep.items() if not kept.all()}
        lasting = cut.union(*(self._dims(name) for name in self.graph.initializers))
        if not batch.isdisjoint(lasting):
            return None
        for expr in {expr for axes in self.axes.values() for expr in axes}:
            own = set(leaves(expr))
            hides = self.loses_batch and not own <= lasting | batch
            holds = not own.isdisjoint(batch)
            if not own.isdisjoint(cut) and (hides or (holds and not _grows(expr, self.batch))):
                return None
        grown = {self.batch: np.ones(size, np.bool_)} if isinstance(self.batch, Dim) else {}
        return {**keep, **grown}

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
        counted = self._counts(keep)
        total = sum(self._node_macs(node, counted) for node in self.costed)
        return total - sum(max(self.extra_macs(pair, keep), 0) for pair in self.pairs)

    def params(self, keep: Keep) -> int:
        """Count the elements of weights that are written once only the kept units are left."""
        merged, counted = self.merged(keep), Counts(keep)
        joined = sum(max(self.extra_params(pair, keep), 0) for pair in self.pairs)
        return (
            self.graph.params_aside
            - joined
            + sum(
                math.prod(self._shape(name, counted)) if name in self.axes else array.size
                for name, array in self.graph.initializers.items()
                if holds_weights(array.dtype) and name not in merged
            )
        )

    def extra_macs(self, pair: Pair, keep: Keep) -> int:
        """Count the MACs that a pair takes beyond those of one layer between the same values."""
        nodes = self.graph.producers
        if pair.first not in nodes:  # a branch has taken both along
            return 0
        first, second = (self.node_macs(nodes[key], keep) for key in (pair.first, pair.second))
        width, rank, _ = self.sides(pair, keep)
        return first + second - second * width // rank

    def extra_params(self, pair: Pair, keep: Keep) -> int:
        """Count the elements that a pair holds beyond those of one layer."""
        if pair.first not in self.graph.producers:
            return 0
        width, rank, height = self.sides(pair, keep)
        return rank * (width + height) - width * height

    def sides(self, pair: Pair, keep: Keep) -> tuple[int, int, int]:
        """Return how many inputs, directions and outputs of a pair are left."""
        first, second = self.axes[pair.first_weight], self.axes[pair.second_weight]
        counted = Counts(keep)
        axes = (first[pair.reads], first[pair.writes], second[pair.writes])
        width, rank, height = map(counted.of, axes)
        return width, rank, height

    @cached_property
    def pairs_by_dim(self) -> dict[Dim, tuple[Pair, ...]]:
        """For each dim, the pairs whose cost depends on it."""
        table: dict[Dim, dict[str, Pair]] = {}
        for pair in self.pairs:
            for name in (pair.first_weight, pair.second_weight):
                for dim in self._dims(name):
                    table.setdefault(dim, {})[pair.second] = pair
        return {dim: tuple(pairs.values()) for dim, pairs in table.items()}

    def pair_of(self, dim: Dim) -> Pair | None:
        """Return the pair between whose layers a dim lies, None where there is none."""
        for pair in self.pairs_by_dim.get(dim, ()):
            if self.axes[pair.first_weight][pair.writes] is dim:
                return pair
        return None

    def merged(self, keep: Keep) -> dict[str, str]:
        """Say what `Graph.merged` will be once only the kept units are left."""
        copies, arrays = self.graph.copies, self.graph.initializers
        left = {}
        for name in {*copies, *copies.values()} & arrays.keys():
            axes = self.axes.get(name)
            kept = None if axes is None else np.ix_(*(mask(axis, keep) for axis in axes))
            left[name] = arrays[name] if kept is None else arrays[name][kept]
        return merge_copies(copies, left)

    def node_macs(self, node: Node, keep: Keep) -> int:
        """Count the multiply-accumulates of one node for one sample."""
        return self._node_macs(node, self._counts(keep))

    def _counts(self, keep: Keep) -> Counts:
        """Return what counts axes for MACs: of one sample where the batch can be followed."""
        return Counts(keep if self.single is not None else {**keep, **self._one_sample})

    def _node_macs(self, node: Node, counted: Counts) -> int:
        rule = self.rules.find(node)
        if rule is None or node.key not in self.axes:
            return 0
        left = self._cost(rule, node, counted)
        if self.single is None:
            return left
        whole = self._cost(rule, node, Counts({}))
        one = rule.macs(node, *([self.single.get(n, ()) for n in names] for names in _ports(node)))
        return left * one // whole if whole else 0

    def _cost(self, rule: Rule, node: Node, counted: Counts) -> int:
        return rule.macs(
            node, *([self._shape(n, counted) for n in names] for names in _ports(node))
        )

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
        found = dict.fromkeys(expr for axes in self.axes.values() for expr in axes if takes(expr))
        return tuple(found)

    def _shape(self, name: str, counted: Counts) -> Shape:
        return tuple(map(counted.of, self.axes.get(name, ())))

    def _dims(self, name: str) -> Iterable[Dim]:
        return (dim for axis in self.axes.get(name, ()) for dim in leaves(axis))


def constant_sources(graph: Graph, values: Mapping[str, Value], name: str) -> list[str]:
    """List the initializers that a constant is computed from, nearest first.

    Args:
        graph: The model.
        values: What coupling knows of each value.
        name: A value; one that is not constant has no sources.
    """
    found: dict[str, None] = {}
    queue = [name]
    for current in queue:
        if current in graph.initializers:
            found[current] = None
        elif current in values and values[current].constant and current in graph.producers:
            inputs = graph.producers[current].inputs
            queue += [source for source in inputs if source and source not in queue]
    return list(found)


def _ports(node: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return node.inputs, node.outputs


def _grows(expr: Expr, batch: Expr) -> bool:
    """Say whether the positions of an axis that holds the batch are known whatever its size."""
    match expr:
        case Product(factors=children) | Joined(parts=children):
            return all(_grows(child, batch) for child in children)
        case Take(base=base):
            return set(leaves(base)).isdisjoint(leaves(batch))
        case Dim():
            return expr is batch or expr not in leaves(batch)
