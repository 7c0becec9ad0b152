"""Ropes against tuples, which they stand for: what they hold, how high they are, what they share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from obc_onnx.axes.expressions import Dim, Joined, Product, join, leaves, newer_leaves, occurs
from obc_onnx.axes.ropes import MOST_ITEMS, Facts

N_ITEMS = 400
"""So many that trees are several pieces high."""
HIGHEST = 1.45
"""Times the logarithm of the pieces: what an AVL tree may be high."""


def dims(count: int, first: int = 0) -> tuple[Dim, ...]:
    return tuple(Dim(1 + index % 5, index) for index in range(first, first + count))


def edited(rng: np.random.Generator) -> tuple[Joined, list[Dim]]:
    """Cut, take stretches and put together at random, with a list beside it."""
    expected = list(dims(N_ITEMS))
    rope = Joined(tuple(expected))
    for step in range(200):
        first, last = sorted(rng.integers(0, len(expected) + 1, 2).tolist())
        fresh = dims(int(rng.integers(1, 40)), N_ITEMS + 100 * step)
        match step % 4:
            case 0 if last - first > N_ITEMS // 2:
                rope, expected = rope.between(first, last), expected[first:last]
            case 1:
                rope, expected = rope.followed_by(Joined(fresh)), [*expected, *fresh]
            case 2:
                rope, expected = Joined(fresh).followed_by(rope), [*fresh, *expected]
            case 3 if first < len(expected):
                rope = rope.with_item(first, fresh)
                expected[first : first + 1] = fresh
    return rope, expected


@pytest.mark.parametrize("seed", range(5))
def test_a_rope_holds_what_was_put_into_it(seed: int) -> None:
    rope, expected = edited(np.random.default_rng(seed))
    assert list(rope) == list(rope.items) == expected
    assert (rope.count, rope.size) == (len(expected), sum(dim.size for dim in expected))
    assert [rope.item(place) for place in range(rope.count)] == expected
    assert rope == Joined(tuple(expected))
    assert hash(rope) == hash(Joined(tuple(expected)))
    assert rope != Joined((*expected[:-1], Dim(expected[-1].size, 10**6)))


@pytest.mark.parametrize("seed", range(5))
def test_a_rope_finds_the_item_at_a_position(seed: int) -> None:
    rope, expected = edited(np.random.default_rng(seed))
    owners = np.repeat(np.arange(len(expected)), [dim.size for dim in expected])
    starts = np.cumsum([0, *(dim.size for dim in expected)])
    for at in range(1, rope.size + 1):
        place = int(owners[at - 1])
        assert rope.find(at) == (place, starts[place])


@pytest.mark.parametrize("seed", range(5))
def test_what_is_known_of_a_rope_is_true(seed: int) -> None:
    rope, expected = edited(np.random.default_rng(seed))
    numbers = [dim.index for dim in expected]
    assert (rope.facts.oldest, rope.facts.newest) == (min(numbers), max(numbers))
    assert rope.facts.n_leaves == len(numbers)
    assert not rope.facts.takes
    for index in range(0, max(numbers) + 2, 7):
        known = {dim.index: dim for dim in expected}
        assert occurs(known.get(index, Dim(3, index)), rope) == (index in known)
    newer = [dim for dim in expected if dim.index >= N_ITEMS]
    assert list(newer_leaves(rope, N_ITEMS)) == newer


@pytest.mark.parametrize("seed", range(5))
def test_a_rope_stays_low(seed: int) -> None:
    rope, _ = edited(np.random.default_rng(seed))
    waiting, n_pieces = [rope], 0
    while waiting:
        top = waiting.pop()
        n_pieces += top.halves is None
        assert top.halves is not None or top.count <= MOST_ITEMS
        if top.halves is not None:
            left, right = top.halves
            assert abs(left.height - right.height) <= 1
            assert top.height == 1 + max(left.height, right.height)
            waiting += top.halves
    assert rope.height <= HIGHEST * math.log2(n_pieces) + 1


def test_a_stretch_shares_the_halves_of_the_whole() -> None:
    rope = Joined(dims(N_ITEMS))
    stretch = rope.between(1, N_ITEMS)
    assert rope.halves is not None
    assert stretch.halves is not None
    assert stretch.halves[1] is rope.halves[1]


def test_dims_that_are_told_apart_by_their_numbers_are_known_to_be_distinct() -> None:
    one, two, three = dims(3)
    assert Joined((one, three)).facts.distinct
    assert Joined((three, one)).facts.distinct
    assert not Joined((one, three, two)).facts.distinct  # they are, which nobody knows yet
    assert not Joined((one, one)).facts.distinct
    assert Facts(0, 3).beside(Facts(2, 5)) == Facts(0, 5, distinct=False, n_leaves=2)


def test_leaves_of_a_long_axis_with_products_are_found() -> None:
    *own, other = dims(81)
    pairs = zip(own[::2], own[1::2], strict=True)
    joined = join(Product(pair, math.prod(dim.size for dim in pair)) for pair in pairs)
    assert list(leaves(joined)) == own
    assert all(occurs(dim, joined) for dim in own)
    assert not occurs(other, joined)
