"""Find the values that another one could stand in for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from obc_onnx.branches.reach import Reach
from obc_onnx.errors import RequestError
from obc_onnx.graph.node import holds_weights, is_float
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.ops.base.effect import Effect

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node

    StandIns = Mapping[str, str]

_MOST_OPERANDS = 2
"""Of a node, any of which could stand in for what it gives: a sum of many is no branch of one."""
_FEWEST_AXES = 2
"""Of what counts as a weight: a vector, such as the scale of a norm, costs next to nothing."""


@dataclass(frozen=True)
class Branch:
    """What lies between a value and another one that could stand in for it.

    Attributes:
        value: What would be replaced: the first output, and so the key, of its node.
        stand_in: What would be read in its place.
        operand: Where the value is the sum of the stand-in and another one, that one; else None,
            and the branch is a span.
        name: What scores and messages call it; no group is called so.
        label: How messages call the node that gives the value.
        nodes: Keys of the nodes that become dead where it goes alone, in the order of the graph;
            the last one gives the value.
    """

    value: str
    stand_in: str
    operand: str | None
    name: str
    label: str
    nodes: tuple[str, ...]


def find_branches(coupling: Coupling) -> tuple[Branch, ...]:
    """Find the branches of a graph, in its order.

    Where either operand of a sum could go, there are two. They are found once for each coupling.

    Args:
        coupling: Of the graph.
    """
    if coupling not in _FOUND:
        _FOUND[coupling] = _Finder(coupling).found()
    return _FOUND[coupling]


_FOUND: WeakKeyDictionary[Coupling, tuple[Branch, ...]] = WeakKeyDictionary()


def chosen(coupling: Coupling, wanted: StandIns) -> tuple[Branch, ...]:
    """Return the branches that go, in the order of the graph.

    Args:
        coupling: Of the whole graph.
        wanted: For each value that goes, what stands in for it.
    Raises:
        RequestError: One of them is no branch of the graph.
    """
    found = find_branches(coupling)
    known = {(branch.value, branch.stand_in) for branch in found}
    for value, other in wanted.items():
        if (value, other) not in known:
            own = [f"'{branch.stand_in}'" for branch in found if branch.value == value]
            could = f"{own[0]} alone could" if own else f"nothing could: {_LISTED}"
            raise RequestError(f"'{other}' cannot stand in for '{value}', for which {could}")
    return tuple(branch for branch in found if wanted.get(branch.value) == branch.stand_in)


_LISTED = "`inspect` lists what could go"


def still_there(graph: Graph, branches: Iterable[Branch], gone: StandIns) -> tuple[Branch, ...]:
    """Return the branches that a graph still has, each with what would stand in now.

    Args:
        graph: What is left.
        branches: Of the whole graph.
        gone: For each value that went, what is read in its place.
    """
    there = graph.producers.keys() | {port.name for port in graph.inputs}
    left = (branch for branch in branches if branch.value in there and branch.value not in gone)
    found = (replace(branch, stand_in=_read_for(branch.stand_in, gone)) for branch in left)
    return tuple(branch for branch in found if branch.stand_in in there)


def _read_for(name: str, gone: StandIns) -> str:
    """Return what is read in the place of a value, which is the value itself where it stayed."""
    while name in gone:
        name = gone[name]
    return name


def stand_ins_of(coupling: Coupling, operands: StandIns, spans: StandIns) -> dict[str, str]:
    """Return what stands in for the values that a plan names.

    Args:
        coupling: Of the whole graph.
        operands: For each sum that loses an operand, which.
        spans: For each other value that goes, what stands in for it.
    Raises:
        RequestError: One of them is no branch of the graph.
    """
    if not operands and not spans:
        return {}
    known = find_branches(coupling)
    sums = {(own.value, own.operand): own.stand_in for own in known if own.operand is not None}
    for sum_, operand in operands.items():
        if (sum_, operand) not in sums:
            raise RequestError(_why_unknown(known, sum_, operand))
    twice = sorted(operands.keys() & spans.keys())
    if twice:
        raise RequestError(f"the plan has '{twice[0]}' among its branches and its spans: name one")
    found = {sum_: sums[sum_, operand] for sum_, operand in operands.items()} | dict(spans)
    chosen(coupling, found)
    return found


def _why_unknown(known: Iterable[Branch], sum_: str, operand: str) -> str:
    own = [f"'{b.operand}'" for b in known if b.value == sum_ and b.operand is not None]
    if own:
        return (
            f"the plan takes '{operand}' out of sum '{sum_}', which can do without {own[0]} alone"
        )
    return (
        f"the plan takes '{operand}' out of '{sum_}', but this model has no sum of that name that "
        f"can do without an operand: {_LISTED}"
    )


def _listed(every: Sequence[Branch], saving: set[str]) -> Iterator[Branch]:
    """Leave out spans that save what a sum or a later span saves, or what shorter ones save.

    Args:
        every: In the order of the graph.
        saving: Keys of the nodes that cost something.
    """
    saved = {own.name: frozenset(saving.intersection(own.nodes)) for own in every}
    best = {saved[own.name]: own for own in sorted(every, key=lambda own: own.operand is not None)}
    ends = {own.value: saved[own.name] for own in every if own.operand is None}
    for own in every:
        saves = saved[own.name]
        shorter = (ends[key] for key in own.nodes[:-1] if key in ends)
        run = frozenset[str]().union(*(part for part in shorter if part < saves))
        if own.operand is not None or (best[saves] is own and run != saves):
            yield own


class _Finder:
    """Looks through one graph; what multiplies or holds matrices says what a branch saves."""

    def __init__(self, coupling: Coupling) -> None:
        graph = coupling.graph
        self._coupling, self._graph = coupling, graph
        self._reach, self._types = Reach(graph), ElementTypes(graph)
        costed = {node.key for node in coupling.costed}
        self._saving = costed | {node.key for node in graph.nodes if self._holds_matrix(node)}
        self._saved_alone = self._reach.counted_alone(self._saving)
        self._nearest: dict[str, list[str]] = {}
        self._first: dict[tuple[Expr, ...] | None, int] = {}
        for port in graph.inputs:
            self._first.setdefault(coupling.axes.get(port.name), -1)
        for name, node in graph.producers.items():
            self._first.setdefault(coupling.axes.get(name), self._reach.places[node.key])

    def found(self) -> tuple[Branch, ...]:
        nodes, passed = self._graph.nodes, self._passed_on()
        left = (node for node in nodes if node.key not in passed and self._may_go(node))
        every = [own for node in left for own in self._of(node)]
        return tuple(_listed(every, self._saving))

    def _passed_on(self) -> set[str]:
        """Name the values behind which another one of their axes is made of them for nothing.

        A span that ends there saves as much. Every run of nodes with one computed input and one
        reader remembers the axes of what lies further on.
        """
        graph, axes, found = self._graph, self._coupling.axes, set[str]()
        further: dict[str, set[tuple[Expr, ...] | None]] = {}
        steps = {node.key for node in graph.nodes if self._is_step(node)} - self._saving
        for node in reversed(graph.nodes):
            readers = [] if graph.escapes(node.key) else graph.consumers.get(node.key, [])
            behind = readers[0][0] if len(readers) == 1 else None
            seen: set[tuple[Expr, ...] | None] = set()
            if behind is not None and behind.key in steps:
                seen = further[behind.key]
            is_sum = Effect.ADDS in self._coupling.rules.effect(node)
            if axes.get(node.key) in seen and not is_sum:
                found.add(node.key)
            seen.add(axes.get(node.key))
            further[node.key] = seen
        return found

    def _is_step(self, node: Node) -> bool:
        """Say whether a node makes one value of one."""
        inputs = [name for name in node.inputs if name in self._graph.producers]
        computed = [name for name in inputs if not self._constant(name)]
        return len(computed) == 1 and len([name for name in node.outputs if name]) == 1

    def _may_go(self, node: Node) -> bool:
        """Say whether something reads the one value that a node computes, and is saved with it."""
        graph, name = self._graph, node.key
        read = graph.consumers.get(name) or graph.escapes(name)
        alone = [output for output in node.outputs if output] == [name]
        known = name in self._coupling.axes and not self._constant(name)
        return bool(read) and alone and known and self._saved_alone[self._reach.places[name]] > 0

    def _of(self, node: Node) -> list[Branch]:
        """List what could stand in for what a node computes, as near to it as something is saved.

        So a branch is no run of others: what lies behind the stand-in stays.
        """
        names = self._near(node)
        self._nearest[node.key] = names
        made = (self._branch(node, name) for name in names)
        return [own for own in made if own is not None]

    def _near(self, node: Node) -> list[str]:
        """List the nearest values that could stand in for what a node computes.

        Behind a value of its axes that has all which would be saved they are those of that value.
        """
        axes, tried = self._coupling.axes[node.key], set[str]()
        visited = set[str]()
        for near in self._reach.needed_alone(node):
            visited.add(near.key)
            if self._reach.places[near.key] <= self._first[axes]:
                break
            if near.key in self._nearest and self._has_all(near, node):
                return self._nearest[near.key]
            names = [name for name in dict.fromkeys(near.inputs) if name not in tried]
            alike = [name for name in names if self._is_alike(name, axes)]
            tried.update(alike)  # many slices may be of one value
            if len(alike) > _MOST_OPERANDS:
                continue
            left = (name for name in alike if not self._saves_nothing(node, name, visited))
            found = [name for name in left if self._branch(node, name) is not None]
            if found:
                return found
        return []

    def _has_all(self, near: Node, node: Node) -> bool:
        """Say whether a node that is there for another one could be it, with all that is saved."""
        kinds = [self._coupling.axes.get(own.key) for own in (near, node)]
        types = [self._types[own.key] for own in (near, node)]
        saved = [self._saved_alone[self._reach.places[own.key]] for own in (near, node)]
        return kinds[0] == kinds[1] and types[0] == types[1] and saved[0] == saved[1]

    def _saves_nothing(self, node: Node, stand_in: str, visited: Container[str]) -> bool:
        """Say whether a value that is there for a node alone has all that would be saved."""
        made = self._graph.producers.get(stand_in)
        if made is None or self._graph.escapes(stand_in):
            return False
        readers = self._graph.consumers.get(stand_in, [])
        alone = all(reader.key in visited for reader, _ in readers)
        one, other = (self._saved_alone[self._reach.places[own.key]] for own in (node, made))
        return alone and one == other

    def _branch(self, node: Node, stand_in: str) -> Branch | None:
        """Return a branch that saves something, of values of one type."""
        dead = [own.key for own in self._reach.needed_alone(node, stand_in)][::-1]
        types = self._types
        if self._saving.isdisjoint(dead) or not is_float(types[node.key]):
            return None
        if types[node.key] != types[stand_in]:
            return None
        others = [name for name in node.inputs if name != stand_in]
        is_sum = Effect.ADDS in self._coupling.rules.effect(node) and len(others) == 1
        operand = others[0] if is_sum and stand_in in node.inputs else None
        name = f"{node.key} as {stand_in}" if operand is None else f"{node.key} without {operand}"
        return Branch(node.key, stand_in, operand, name, node.label, tuple(dead))

    def _is_alike(self, name: str, axes: tuple[Expr, ...]) -> bool:
        return self._coupling.axes.get(name) == axes and not self._constant(name)

    def _constant(self, name: str) -> bool:
        return name in self._coupling.values and self._coupling.values[name].constant

    def _holds_matrix(self, node: Node) -> bool:
        arrays = self._graph.initializers
        held = (arrays[name] for name in node.inputs if name in arrays)
        return any(
            holds_weights(a.dtype) and sum(size > 1 for size in a.shape) >= _FEWEST_AXES
            for a in held
        )
