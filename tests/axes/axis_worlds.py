"""Axes drawn at random, and an oracle that reads them position by position.

`owners` says which units clear a position when they are removed. The oracle shares no code with the
algebra.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from obc_onnx.axes.expressions import Dim, Joined, Take, join, leaves, mask, product, take
from obc_onnx.axes.unification import AxisSystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr

    Keep = dict[Dim, NDArray[np.bool_]]
    Unit = tuple[Dim, int]
    Position = tuple[int, int]
    Classes = frozenset[frozenset[Position]]

laws = settings(deadline=None, derandomize=True, max_examples=200)


# What a test draws: an expression over numbered dims, which can be built in any system.


@dataclass(frozen=True)
class Leaf:
    dim: int


@dataclass(frozen=True)
class Node:
    """A product, a concatenation, or (with an index) a take of its only child."""

    kind: str
    children: tuple[Tree, ...]
    index: tuple[int, ...] = ()


Tree = Leaf | Node


@dataclass(frozen=True)
class Equal:
    left: Tree
    right: Tree


@dataclass(frozen=True)
class Freeze:
    tree: Tree


Statement = Equal | Freeze

SIZES = (1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 12, 12)
"""The dims that trees are drawn over: every size up to the largest, so that a leaf fits."""
ANY = ("product", "concat", "take")


@dataclass
class World:
    """A system with one dim for each of `sizes`, in which trees are built."""

    sizes: Sequence[int]

    def __post_init__(self) -> None:
        self.system = AxisSystem()
        self.dims = [self.system.dim(size) for size in self.sizes]

    def build(self, tree: Tree) -> Expr:
        if isinstance(tree, Leaf):
            return self.dims[tree.dim]
        children = [self.build(child) for child in tree.children]
        if tree.kind == "take":
            return take(children[0], tree.index)
        return product(children) if tree.kind == "product" else join(children)

    def state(self, statements: Iterable[Statement]) -> World:
        """State everything, without solving what is deferred."""
        for statement in statements:
            if isinstance(statement, Freeze):
                self.system.freeze(self.build(statement.tree), "asked for")
            else:
                left, right = self.build(statement.left), self.build(statement.right)
                self.system.unify(left, right, "test")
        return self

    def settle(self) -> World:
        self.system.settle()
        return self

    def axes(self, statements: Iterable[Statement]) -> list[Expr]:
        """Resolve every dim, then both sides of every statement."""
        exprs: list[Expr] = list(self.dims)
        for statement in statements:
            exprs.extend(self.build(tree) for tree in trees_of(statement))
        return [self.system.resolve(expr) for expr in exprs]


def trees_of(statement: Statement) -> tuple[Tree, ...]:
    if isinstance(statement, Freeze):
        return (statement.tree,)
    return (statement.left, statement.right)


def swapped(statement: Statement) -> Statement:
    return statement if isinstance(statement, Freeze) else Equal(statement.right, statement.left)


# The oracle.


def owners(expr: Expr) -> list[frozenset[Unit]]:
    """For each position, the units of which one is enough to clear it."""
    if isinstance(expr, Dim):
        return [frozenset({(expr, unit)}) for unit in range(expr.size)]
    if isinstance(expr, Take):
        of_base = owners(expr.base)
        return [of_base[position] for position in expr.index]
    if isinstance(expr, Joined):
        return [position for part in expr.parts for position in owners(part)]
    combinations = itertools.product(*(owners(factor) for factor in expr.factors))
    return [frozenset().union(*combination) for combination in combinations]


def stays(expr: Expr, removed: set[Unit]) -> list[bool]:
    return [not position & removed for position in owners(expr)]


def free_units(system: AxisSystem, exprs: Iterable[Expr]) -> list[Unit]:
    dims = dict.fromkeys(dim for expr in exprs for dim in leaves(expr))
    return [(dim, i) for dim in dims if system.reason(dim) is None for i in range(dim.size)]


def classes(system: AxisSystem, exprs: Sequence[Expr]) -> Classes:
    """Give the canonical form: for each free unit, every (axis, position) that it removes.

    Positions in no class are frozen.
    """
    found: dict[Unit, set[Position]] = {unit: set() for unit in free_units(system, exprs)}
    for axis, expr in enumerate(exprs):
        for position, of_position in enumerate(owners(expr)):
            for unit in of_position & found.keys():
                found[unit].add((axis, position))
    return frozenset(frozenset(places) for places in found.values() if places)


def as_keep(units: Iterable[Unit], removed: set[Unit]) -> Keep:
    keep = {dim: np.ones(dim.size, np.bool_) for dim, _ in units}
    for dim, unit in removed:
        keep[dim][unit] = False
    return keep


def assert_same_mask(left: Expr, right: Expr, keep: Keep) -> None:
    np.testing.assert_array_equal(mask(left, keep), mask(right, keep))


# What is drawn: a seed for each statement, so that a failing list of statements shrinks.


def random_tree(rng: Random, size: int, kinds: Sequence[str] = ANY, depth: int = 2) -> Tree:
    """Build a tree of exactly `size` positions; without products, all boundaries are even."""
    kind = rng.choice(["leaf", *kinds]) if depth else "leaf"
    step = 1 if "product" in kinds else 2
    factors = [n for n in range(2, size) if size % n == 0]
    if kind == "concat" and size > step:
        cut = rng.randrange(step, size, step)
        sizes = [cut, size - cut]
    elif kind == "product" and factors:
        inner = rng.choice(factors)
        sizes = [size // inner, inner]
    elif kind == "take":
        sizes = [rng.randrange(max(1, size - 2), min(size + 3, 13))]
    else:
        return Leaf(rng.choice([i for i, other in enumerate(SIZES) if other == size]))
    children = tuple(random_tree(rng, n, kinds, depth - 1) for n in sizes)
    index = tuple(rng.randrange(sizes[0]) for _ in range(size)) if kind == "take" else ()
    return Node(kind, children, index)


def random_statement(seed: int, kinds: Sequence[str]) -> Statement:
    rng = Random(seed)
    size = rng.choice((2, 3, 4, 6, 8, 12) if "product" in kinds else (4, 6, 8, 10, 12))
    tree = random_tree(rng, size, kinds)
    return Freeze(tree) if rng.random() < 0.2 else Equal(tree, random_tree(rng, size, kinds))


def statements(kinds: Sequence[str] = ANY) -> SearchStrategy[list[Statement]]:
    one = st.integers(0, 2**32 - 1).map(lambda seed: random_statement(seed, kinds))
    return st.lists(one, min_size=1, max_size=6)


def takes_one_position(tree: Tree) -> bool:
    return isinstance(tree, Node) and (
        len(tree.index) == 1 or any(takes_one_position(child) for child in tree.children)
    )


def ordered_statements() -> SearchStrategy[list[Statement]]:
    """Leave out every `Take` of one position.

    A part of size 1 is held where a boundary makes it a dim of its own, and free where a larger
    dim is bound to the concatenation before the boundary is found. So the order can decide how
    much is frozen: (d4[0,] ++ d3[2, 1, 2]) = (d3'[2, 2] ++ d1 ++ d1), swapped. Either is sound.
    """

    def is_plain(statement: Statement) -> bool:
        return not any(map(takes_one_position, trees_of(statement)))

    return statements().map(lambda stated: [s for s in stated if is_plain(s)])


seeds = st.integers(0, 2**32 - 1)


def some_removed(units: Sequence[Unit], seed: int) -> set[Unit]:
    rng = Random(seed)
    return {unit for unit in units if rng.random() < 0.3}


def tree_stays(world: World, tree: Tree, removed: set[Unit]) -> list[bool]:
    """Read a tree without building it: only its dims are resolved."""
    if isinstance(tree, Leaf):
        return stays(world.system.resolve(world.dims[tree.dim]), removed)
    children = [tree_stays(world, child, removed) for child in tree.children]
    if tree.kind == "take":
        return [children[0][position] for position in tree.index]
    if tree.kind == "concat":
        return [stay for child in children for stay in child]
    return [all(combination) for combination in itertools.product(*children)]


def position_classes(stated: Iterable[Statement]) -> Classes:
    """Solve statements without products by merging positions, one equality at a time."""
    world = World(SIZES)
    found = {(dim, i): {(dim, i)} for dim in world.dims for i in range(dim.size)}
    frozen: set[Unit] = {(dim, 0) for dim in world.dims if dim.size == 1}
    for statement in stated:
        sides = [[unit for (unit,) in owners(world.build(tree))] for tree in trees_of(statement)]
        if isinstance(statement, Freeze):
            frozen |= {
                (dim, i) for dim in leaves(world.build(statement.tree)) for i in range(dim.size)
            }
        for a, b in zip(sides[0], sides[-1], strict=True):
            merged = found[a] | found[b]
            found.update(dict.fromkeys(merged, merged))
    free = [units for units in found.values() if not units & frozen]
    return frozenset(frozenset((dim.index, i) for dim, i in units) for units in free)


def assert_classes(system: AxisSystem, expr: Expr, expected: set[frozenset[int]]) -> None:
    """Compare the positions of one axis that go together; those in no class are frozen."""
    found = classes(system, [system.resolve(expr)])
    assert {frozenset(position for _, position in places) for places in found} == expected


def assert_free(system: AxisSystem, *dims: Dim) -> None:
    """Say that dims are still themselves, and free."""
    assert [system.resolve(dim) for dim in dims] == list(dims)
    assert [system.reason(dim) for dim in dims] == [None] * len(dims)
