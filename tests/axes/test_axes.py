"""The axis algebra at boundaries, on the layouts of known networks, and on rare cases."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from axes.axis_worlds import (
    assert_classes,
    assert_free,
    laws,
)
from hypothesis import given
from hypothesis import strategies as st

from obc_onnx.axes.expressions import Dim, join, leaves, mask, product, runs_of, take
from obc_onnx.axes.unification import AxisSystem
from obc_onnx.errors import InvariantError

if TYPE_CHECKING:
    from obc_onnx.axes.expressions import Expr


def test_a_unit_owns_as_many_neighbours_as_the_factors_behind_it_multiply_to() -> None:
    heads, width, other = Dim(12, 0), Dim(64, 1), Dim(8, 2)
    fused = product([join([product([heads, width])] * 3), other])
    assert runs_of(product([heads, width]), heads) == {64}
    assert runs_of(product([heads, width]), width) == {1}
    assert runs_of(fused, heads) == {64 * 8}
    assert runs_of(fused, width) == {8}
    assert runs_of(join([heads, product([heads, other])]), heads) == {1, 8}
    assert runs_of(take(product([heads, width]), (3, 1)), heads) == {64}
    assert runs_of(other, heads) == set()


# Boundaries.

small = st.integers(1, 12)


@laws
@given(small, small)
def test_a_dim_splits_at_any_boundary(head: int, tail: int) -> None:
    system = AxisSystem()
    whole, parts = system.dim(head + tail), (system.dim(head), system.dim(tail))
    system.unify(join(parts), whole, "split")
    assert system.resolve(whole) == join(parts)
    assert [system.is_free(part) for part in parts] == [head > 1, tail > 1]


@laws
@given(st.integers(2, 6), st.integers(2, 6), st.data())
def test_a_product_splits_at_multiples_of_its_inner_size(
    outer: int, inner: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, outer - 1)) * inner
    system = AxisSystem()
    factors = system.dim(outer), system.dim(inner)
    parts = system.dim(at), system.dim(outer * inner - at)
    system.unify(join(parts), product(factors), "split")
    system.settle()
    inner_part = system.resolve(factors[1])
    assert isinstance(inner_part, Dim)
    assert system.is_free(inner_part)
    assert [list(leaves(system.resolve(part)))[-1] for part in parts] == [inner_part] * 2
    assert system.is_free(factors[0]) == (max(at, outer * inner - at) > inner)


@laws
@given(st.integers(2, 6), st.integers(2, 6), st.data())
def test_a_product_cut_elsewhere_is_tied_by_its_only_free_factor(
    outer: int, inner: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, outer * inner - 1).filter(lambda n: n % inner))
    system = AxisSystem()
    left = product([system.dim(outer), system.dim(inner, "fixed")])
    right = join([system.dim(at), system.dim(outer * inner - at)])
    system.unify(left, right, "cut")
    system.settle()
    expected = {frozenset(range(i, i + inner)) for i in range(0, outer * inner, inner)}
    held = {0 if at == 1 else -1, outer - 1 if outer * inner - at == 1 else -1}
    expected -= {frozenset(range(i * inner, (i + 1) * inner)) for i in held if i >= 0}
    assert_classes(system, left, expected if len(expected) > 1 else set())
    assert_classes(system, right, expected if len(expected) > 1 else set())


@laws
@given(st.integers(2, 6), st.integers(2, 6), st.data())
def test_a_product_of_free_factors_cut_elsewhere_is_frozen(
    outer: int, inner: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, outer * inner - 1).filter(lambda n: n % inner))
    system = AxisSystem()
    left = product([system.dim(outer), system.dim(inner)])
    right = join([system.dim(at), system.dim(outer * inner - at)])
    system.unify(left, right, "cut")
    system.settle()
    assert not system.is_free(left)
    assert not system.is_free(right)
    assert {system.reason(dim) for dim in leaves(left)} == {
        f"cut: two layouts of {outer * inner} positions cannot be aligned"
    }


# Layouts of known networks: what has to stay free, and separate.


def cut_in_two(system: AxisSystem, axis: Expr) -> list[Expr]:
    """Split an axis as `CoupleContext.cut` does."""
    half = axis.size // 2
    parts = system.cut(axis, [half, axis.size], "Split")
    if parts is None:
        return [take(axis, tuple(range(half))), take(axis, tuple(range(half, axis.size)))]
    return parts


def shuffled(system: AxisSystem, axis: Expr) -> Expr:
    """Reshape to 2 x channels, transpose and flatten, as ShuffleNet does."""
    blocks, channels = system.dim(2, "a constant of Reshape"), system.dim(axis.size // 2)
    system.unify(axis, product([blocks, channels]), "Reshape")
    return product([channels, blocks])


def test_a_dim_refined_to_heads_keeps_both_factors_free() -> None:
    system = AxisSystem()
    hidden, heads, head_dim = system.dim(768), system.dim(12), system.dim(64)
    system.unify(hidden, product([heads, head_dim]), "Reshape")
    system.settle()
    assert system.resolve(hidden) == product([heads, head_dim])
    assert_free(system, heads, head_dim)


def test_a_product_refines_another_from_the_inside_out() -> None:
    system = AxisSystem()
    heads, head_dim, outer, half = (system.dim(size) for size in (12, 64, 24, 32))
    system.unify(product([heads, head_dim]), product([outer, half]), "Reshape")
    system.settle()
    middle = list(leaves(system.resolve(outer)))[1]
    assert system.resolve(outer) == product([heads, middle])
    assert system.resolve(head_dim) == product([middle, half])
    assert_free(system, heads, middle, half)


def test_a_concatenation_splits_a_dim_into_free_groups() -> None:
    system = AxisSystem()
    whole, head, tail = system.dim(96), system.dim(64), system.dim(32)
    system.unify(whole, join([head, tail]), "Concat")
    system.settle()
    assert system.resolve(whole) == join([head, tail])
    assert_free(system, head, tail)


def test_a_tensor_joined_with_itself_stays_one_group() -> None:
    system = AxisSystem()
    part, whole = system.dim(32), system.dim(64)
    system.unify(join([part, part]), whole, "Concat")
    system.settle()
    assert system.resolve(whole) == join([part, part])
    assert_free(system, part)


def test_flattened_channels_stay_free_where_the_spatial_axes_are_frozen() -> None:
    system = AxisSystem()
    channels, height, width = (
        system.dim(32),
        system.dim(7, "spatial"),
        system.dim(7, "spatial"),
    )
    flat = system.dim(32 * 49)
    system.unify(flat, product([channels, height, width]), "Flatten")
    system.settle()
    assert_free(system, channels)
    rows = {frozenset(range(start, start + 49)) for start in range(0, 32 * 49, 49)}
    assert_classes(system, flat, rows)


def test_fused_qkv_keeps_heads_and_head_dims_free() -> None:
    system = AxisSystem()
    fused, three = system.dim(3 * 12 * 64), system.dim(3, "a constant of Reshape")
    heads, head_dim = system.dim(12), system.dim(64)
    system.unify(fused, product([three, heads, head_dim]), "Reshape")
    q_k_v = [system.dim(12 * 64) for _ in range(3)]
    for part in q_k_v:
        system.unify(part, product([heads, head_dim]), "Gather")
    system.unify(fused, join(q_k_v), "Split")
    system.settle()
    assert_free(system, heads, head_dim)


def test_a_zero_padded_shortcut_keeps_its_channels_free() -> None:
    system = AxisSystem()
    before, channels, after = system.dim(8, "pad"), system.dim(16), system.dim(8, "pad")
    wide = system.dim(32)
    system.unify(join([before, channels, after]), wide, "Add")
    system.settle()
    assert_free(system, channels)
    assert_classes(system, wide, {frozenset({i}) for i in range(8, 24)})


def test_a_channel_shuffle_then_a_split_keeps_both_halves_free() -> None:
    system = AxisSystem()
    halves = cut_in_two(system, shuffled(system, system.dim(116)))
    system.settle()
    pairs = {frozenset({i, i + 1}) for i in range(0, 58, 2)}
    for half in halves:
        assert_classes(system, half, pairs)


def test_a_channel_shuffle_and_split_done_twice_stays_free() -> None:
    system = AxisSystem()
    first, _ = cut_in_two(system, shuffled(system, system.dim(116)))
    joined = join([first, system.dim(58)])
    again, other = cut_in_two(system, shuffled(system, joined))
    read = system.dim(58)
    system.unify(again, read, "Conv")
    system.settle()
    quads = [frozenset(range(i, i + 4)) for i in range(0, 116, 4)]
    assert len(quads) == 29
    assert_classes(system, join([again, other]), set(quads))
    assert_classes(system, read, {quad & set(range(58)) for quad in quads} - {frozenset()})


def test_a_split_across_two_free_factors_keeps_both_free() -> None:
    system = AxisSystem()
    channels, blocks, read = system.dim(3), system.dim(2), system.dim(5)
    shuffled_axis = product([channels, blocks])
    system.unify(take(shuffled_axis, (1, 2, 3, 4, 5)), read, "Conv")
    system.settle()
    assert_free(system, channels, blocks)
    rows = {frozenset({0}), frozenset({1, 2}), frozenset({3, 4})}
    assert_classes(system, read, rows | {frozenset({1, 3}), frozenset({0, 2, 4})})


def test_a_single_position_holds_both_owners_of_what_it_reads() -> None:
    system = AxisSystem()
    axis = product([system.dim(3), system.dim(2)])
    system.unify(take(axis, (4,)), system.dim(1), "Conv")
    system.settle()
    assert not system.is_free(axis)


def test_a_residual_around_a_shuffle_ties_the_cycles() -> None:
    system = AxisSystem()
    channels = system.dim(8)
    system.unify(channels, take(channels, (0, 4, 1, 5, 2, 6, 3, 7)), "Add")
    system.settle()
    cycles = [{0}, {1, 4, 2}, {3, 5, 6}, {7}]
    assert_classes(system, channels, {frozenset(cycle) for cycle in cycles})


def test_a_permutation_read_by_another_weight_ties_pairs() -> None:
    system = AxisSystem()
    written, read, order = system.dim(4), system.dim(4), (2, 0, 3, 1)
    system.unify(read, take(written, order), "Gather")
    system.settle()
    both = join([written, read])
    assert_classes(system, both, {frozenset({order[i], 4 + i}) for i in range(4)})


# Marks.


@pytest.mark.parametrize("early", [True, False])
def test_marks_spread_to_everything_that_is_tied(early: bool) -> None:
    system = AxisSystem()
    a, b, whole = system.dim(4), system.dim(6), system.dim(10)
    joined, permuted = system.dim(10), take(whole, tuple(range(9, -1, -1)))

    def mark() -> None:
        system.freeze(a, "asked for")
        system.mark_inexact(b, "a mean")

    if early:
        mark()
    system.unify(join([a, b]), whole, "Concat")
    system.unify(whole, joined, "Add")
    if not early:
        mark()
    assert system.reason(leaves(system.resolve(joined))[0]) == "asked for"
    system.unify(system.dim(10), permuted, "Gather")
    system.settle()
    inexact = {system.inexact(dim) for dim in leaves(system.resolve(b))}
    assert inexact == {"a mean"}
    assert_classes(system, joined, {frozenset({i}) for i in range(4, 10)})
    assert_classes(system, permuted, {frozenset({i}) for i in range(6)})


def test_the_first_reason_for_freezing_is_kept() -> None:
    system = AxisSystem()
    axis = system.dim(4, "first")
    system.freeze(axis, "second")
    assert system.reason(axis) == "first"


def test_axes_of_different_sizes_cannot_be_unified() -> None:
    system = AxisSystem()
    with pytest.raises(InvariantError, match=r"Add: cannot unify .* sizes differ"):
        system.unify(system.dim(4), product([system.dim(2), system.dim(3)]), "Add")


# Cases that random statements seldom meet.


def test_a_product_keeps_a_factor_that_takes_one_position_of_a_dim() -> None:
    system = AxisSystem()
    axis, other = system.dim(4), system.dim(3)
    keep = {axis: np.array([True, True, False, True])}
    assert not mask(product([take(axis, (2,)), other]), keep).any()


def test_a_unit_tied_to_a_single_position_is_held() -> None:
    system = AxisSystem()
    axis = system.dim(4)
    system.unify(system.dim(1), take(axis, (2,)), "Slice")
    system.settle()
    assert_classes(system, axis, {frozenset({0}), frozenset({1}), frozenset({3})})


def test_a_frozen_axis_holds_only_the_units_that_it_takes() -> None:
    system = AxisSystem()
    axis = system.dim(4)
    system.unify(join([system.dim(2, "output"), system.dim(2)]), take(axis, (3, 0, 1, 2)), "")
    system.settle()
    assert_classes(system, axis, {frozenset({1}), frozenset({2})})


def test_an_axis_joined_of_taken_positions_holds_only_those() -> None:
    system = AxisSystem()
    axis = system.dim(6)
    joined = join([take(axis, (0, 1)), system.dim(2)])
    system.unify(joined, system.dim(4, "output"), "Concat")
    system.settle()
    assert_classes(system, axis, {frozenset({i}) for i in range(2, 6)})


def test_a_dim_factored_in_two_ways_keeps_its_size() -> None:
    system = AxisSystem()
    shared = system.dim(12)
    parts = [product([shared, system.dim(3)]), product([shared, system.dim(4)])]
    system.unify(join(parts), product([system.dim(7), system.dim(12)]), "Reshape")
    system.settle()
    assert system.resolve(shared).size == 12


def test_factors_outside_of_crossing_boundaries_stay_free() -> None:
    system = AxisSystem()
    outer = system.dim(2)
    crossing = join([system.dim(3), system.dim(3)])
    system.unify(product([outer, crossing]), product([system.dim(6), system.dim(2)]), "")
    system.settle()
    assert_free(system, outer)
    assert not system.is_free(crossing)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_beside_crossing_boundaries_stay_free(order: tuple[int, ...]) -> None:
    """Boundaries 3 and 4 cross the pairs of a 6 x 2 product; what lies behind 4 does not."""
    system = AxisSystem()
    whole, outer, inner = system.dim(12), system.dim(6), system.dim(2)
    head, tail = system.dim(4), system.dim(8)
    layouts = [
        product([outer, inner]),
        join([head, tail]),
        join([system.dim(3), system.dim(9)]),
    ]
    for i in order:
        system.unify(whole, layouts[i], "")
    system.settle()
    assert not system.is_free(head)
    assert_classes(system, tail, {frozenset({i, i + 1}) for i in range(0, 8, 2)})


@pytest.mark.parametrize("late", [True, False])
def test_a_boundary_that_is_stated_late_still_cuts(late: bool) -> None:
    system = AxisSystem()
    outer, second = system.dim(6), system.dim(9)
    last = system.dim(8)
    equalities: list[tuple[Expr, Expr]] = [
        (join([system.dim(3), second]), product([outer, system.dim(2)])),
        (second, join([system.dim(1), last])),
    ]
    for left, right in equalities if late else equalities[::-1]:
        system.unify(left, right, "")
    system.settle()
    assert_classes(system, last, {frozenset({i, i + 1}) for i in range(0, 8, 2)})


@pytest.mark.parametrize("late", [True, False])
def test_a_factor_inside_of_crossing_boundaries_stays_free(late: bool) -> None:
    """The cut falls inside 2 x 2, and crosses the inner 2; the innermost 3 is not touched."""
    system = AxisSystem()
    wide, inner = system.dim(4), system.dim(3)
    equalities: list[tuple[Expr, Expr]] = [
        (product([system.dim(2), system.dim(2)]), wide),
        (join([inner, product([system.dim(3), inner])]), product([wide, inner])),
    ]
    for left, right in equalities[::-1] if late else equalities:
        system.unify(left, right, "")
    system.settle()
    assert_free(system, inner)
    assert not system.is_free(wide)


# Long axes: what is done with each part, and how deep one stands for another.


def test_an_axis_is_cut_at_all_boundaries_at_once() -> None:
    system = AxisSystem()
    first, second = system.dim(6), system.dim(4)
    axis = system.dim(10)
    system.unify(axis, join([first, second]), "Concat")
    parts = system.cut(axis, [0, 2, 6, 9, 10], "Split")
    assert parts is not None
    assert [part.size for part in parts] == [0, 2, 4, 3, 1]
    assert system.resolve(axis) == join([system.resolve(part) for part in parts])
    assert system.resolve(first) == join([system.resolve(part) for part in parts[1:3]])
    assert system.resolve(second) == join([system.resolve(part) for part in parts[3:]])


def test_a_dim_that_occurs_twice_is_cut_alike_in_both_places() -> None:
    system = AxisSystem()
    twice = system.dim(4)
    parts = system.cut(join([twice, twice]), [1, 6, 8], "Split")
    assert parts is not None
    a, b, c = leaves(system.resolve(twice))
    assert [dim.size for dim in (a, b, c)] == [1, 1, 2]
    assert [system.resolve(part) for part in parts] == [a, join([b, c, a, b]), c]


def test_a_product_is_cut_along_its_outer_factor() -> None:
    system = AxisSystem()
    heads, width = system.dim(6), system.dim(5)
    parts = system.cut(product([heads, width]), [10, 30], "Split")
    assert parts is not None
    few, rest = leaves(system.resolve(heads))
    assert [system.resolve(part) for part in parts] == [
        product([few, width]), product([rest, width])
    ]  # fmt: skip
    assert system.cut(product([system.dim(6), width]), [7, 30], "Split") is None


def test_what_was_resolved_once_follows_what_is_bound_later() -> None:
    system = AxisSystem()
    dims = [system.dim(2) for _ in range(40)]
    whole = join(dims)
    assert system.resolve(whole) is whole
    for dim in dims[::3]:
        system.unify(dim, join([system.dim(1), system.dim(1)]), "cut")
        expected = join([part for d in dims for part in leaves(system.resolve(d))])
        assert system.resolve(whole) == expected
    halves = [system.dim(40), system.dim(40)]
    system.unify(whole, join(halves), "halves")
    assert join([system.resolve(half) for half in halves]) == system.resolve(whole)


def test_a_chain_of_slices_is_as_deep_as_it_is_long() -> None:
    system, depth = AxisSystem(), 2000
    whole = last = system.dim(depth + 1)
    for _ in range(depth):
        parts = system.cut(last, [1, last.size], "Slice")
        assert parts is not None
        last = parts[1]
    assert len(leaves(system.resolve(whole))) == depth + 1


def test_positions_of_axes_beyond_all_memory_are_not_tied() -> None:
    system = AxisSystem()
    left = product([system.dim(2**20), system.dim(2**20 + 1, "fixed")])
    right = join([system.dim(2**39), system.dim(2**40 + 2**20 - 2**39)])
    system.unify(left, right, "cut")
    system.settle()
    assert not system.is_free(left)
    assert not system.is_free(right)
