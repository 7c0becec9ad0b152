"""The laws of the axis algebra, checked against a brute-force reading of the expressions."""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING

from axes.axis_worlds import (
    SIZES,
    Freeze,
    Leaf,
    Statement,
    World,
    as_keep,
    assert_same_mask,
    classes,
    free_units,
    laws,
    ordered_statements,
    owners,
    position_classes,
    seeds,
    some_removed,
    statements,
    stays,
    swapped,
    tree_stays,
    trees_of,
)
from hypothesis import given
from hypothesis import strategies as st

from obc_onnx.axes.expressions import Dim, count, leaves, mask, units_along

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.axes.expressions import Expr

    Unit = tuple[Dim, int]


@laws
@given(statements())
def test_resolving_keeps_sizes(stated: list[Statement]) -> None:
    world = World(SIZES)
    exprs: list[Expr] = [world.build(tree) for s in stated for tree in trees_of(s)]
    exprs += world.dims
    for statement in stated:
        world.state([statement])
        assert [world.system.resolve(e).size for e in exprs] == [e.size for e in exprs]
    world.settle()
    assert [world.system.resolve(e).size for e in exprs] == [e.size for e in exprs]


@laws
@given(statements(), seeds)
def test_equal_axes_lose_the_same_positions(stated: list[Statement], seed: int) -> None:
    world = World(SIZES).state(stated).settle()
    units = free_units(world.system, world.axes(stated))
    keep = as_keep(units, some_removed(units, seed))
    for statement in stated:
        sides = [world.system.resolve(world.build(tree)) for tree in trees_of(statement)]
        assert_same_mask(sides[0], sides[-1], keep)
        if isinstance(statement, Freeze):
            assert mask(sides[0], keep).all()


@laws
@given(statements(), seeds)
def test_an_axis_loses_what_its_dims_lose(stated: list[Statement], seed: int) -> None:
    world = World(SIZES).state(stated).settle()
    units = free_units(world.system, world.axes(stated))
    removed = some_removed(units, seed)
    keep = as_keep(units, removed)
    for tree in itertools.chain.from_iterable(map(trees_of, stated)):
        resolved = world.system.resolve(world.build(tree))
        assert mask(resolved, keep).tolist() == tree_stays(world, tree, removed)


@laws
@given(ordered_statements())
def test_stating_or_settling_twice_changes_nothing(stated: list[Statement]) -> None:
    expected = World(SIZES).state(stated).settle()
    twice = World(SIZES).state(stated).state(stated).settle().settle()
    assert_same_classes(twice, expected, stated)
    assert_same_classes(twice.state(stated).settle(), expected, stated)


@laws
@given(ordered_statements(), seeds)
def test_the_order_of_statements_does_not_matter(stated: list[Statement], seed: int) -> None:
    rng = Random(seed)
    shuffled = [swapped(s) if rng.random() < 0.5 else s for s in rng.sample(stated, len(stated))]
    first, second = World(SIZES).state(stated).settle(), World(SIZES).state(shuffled).settle()
    assert_same_classes(first, second, stated)


@laws
@given(statements(["concat"]))
def test_without_products_classes_are_exactly_the_merged_positions(
    stated: list[Statement],
) -> None:
    world = World(SIZES).state(stated).settle()
    axes = [world.system.resolve(dim) for dim in world.dims]
    assert classes(world.system, axes) == position_classes(stated)


@laws
@given(statements(), st.integers(0, 6))
def test_marks_hold_whenever_they_are_made(stated: list[Statement], when: int) -> None:
    world = World(SIZES).state(stated[:when])
    frozen, inexact = world.build(Leaf(7)), world.build(Leaf(11))
    world.system.freeze(frozen, "asked for")
    world.system.mark_inexact(inexact, "a mean")
    world.state(stated[when:]).settle()
    assert not world.system.is_free(frozen)
    marked = [world.system.inexact(dim) for dim in leaves(world.system.resolve(inexact))]
    assert set(marked) == {"a mean"}


@laws
@given(statements(), seeds)
def test_count_is_the_number_of_positions_that_stay(stated: list[Statement], seed: int) -> None:
    world = World(SIZES).state(stated).settle()
    exprs = world.axes(stated)
    units = free_units(world.system, exprs)
    removed = some_removed(units, seed)
    for expr in exprs:
        assert count(expr, as_keep(units, removed)) == sum(stays(expr, removed))


@laws
@given(statements())
def test_units_along_names_what_each_unit_clears(stated: list[Statement]) -> None:
    for expr in World(SIZES).state(stated).settle().axes(stated):
        for dim in set(leaves(expr)):
            named: list[set[Unit]] = [set() for _ in range(expr.size)]
            for column in units_along(expr, dim):
                for position, unit in enumerate(column.tolist()):
                    named[position] |= {(dim, unit)} - {(dim, -1)}
            assert named == [{u for u in units if u[0] is dim} for units in owners(expr)]


def assert_same_classes(first: World, second: World, stated: Sequence[Statement]) -> None:
    assert classes(first.system, first.axes(stated)) == classes(second.system, second.axes(stated))
