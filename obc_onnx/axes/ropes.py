"""Long sequences that share their stretches, so that to cut one or to add to it is cheap.

An axis may be a concatenation of thousands of parts, and every node that it passes may take a
stretch of it, cut a part, or put more behind it. As tuples, each of those results would be as long
as the axis. A rope is a balanced tree over pieces of a few items: what two ropes have in common is
the same object, and each step makes as many new ones as the tree is high.

Source: Blelloch, Ferizovic, Sun, "Just Join for Parallel Ordered Sets", 2016, with AVL trees.
"""

from __future__ import annotations

from itertools import chain
from operator import gt, lt
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_ITEMS = 16
"""Of a piece: most axes have fewer parts, and are one tuple."""


class Facts(NamedTuple):
    """What is asked of an expression over dims again and again; found once, when it is made.

    Attributes:
        oldest: No dim in it has a smaller index.
        newest: None has a larger one.
        takes: Whether a `Take` is in it.
        distinct: Whether it is known that no dim occurs twice.
        n_leaves: How many dims occur, repetitions included.
    """

    oldest: int
    newest: int
    takes: bool = False
    distinct: bool = True
    n_leaves: int = 1

    def beside(self, other: Facts) -> Facts:
        """Return the facts of two expressions, put together."""
        first, last = (self, other) if self.oldest <= other.oldest else (other, self)
        return Facts(
            first.oldest,
            max(first.newest, last.newest),
            self.takes or other.takes,
            self.distinct and other.distinct and first.newest < last.oldest,
            self.n_leaves + other.n_leaves,
        )


class Item(Protocol):
    """What a rope holds: so many positions of an axis."""

    @property
    def size(self) -> int:
        """Number of positions."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""


T = TypeVar("T", bound=Item)


def facts_of(items: Iterable[Item]) -> Facts:
    """Return the facts of at least one item; as `Facts.beside` does, but at once."""
    oldest, newest, takes, distinct, n_leaves = zip(*[item.facts for item in items], strict=True)
    apart = all(map(lt, newest, oldest[1:])) or all(map(gt, oldest, newest[1:]))
    return Facts(min(oldest), max(newest), any(takes), apart and all(distinct), sum(n_leaves))


class Rope(Generic[T]):
    """At least one item, one behind the other; it never changes.

    Args:
        items: All of them; empty where there are halves.
        halves: Two ropes that are equally high, or of which one is higher by 1.

    Attributes:
        halves: What it is made of, None where it is one piece.
        piece: Its items, as far as they are in one tuple; else empty.
        height: How many halves lie in each other, 0 for one piece.
        count: Number of items.
        size: Positions of all of them.
        facts: What is known of them together.
    """

    __slots__ = ("count", "facts", "halves", "height", "piece", "size")

    def __init__(self, items: tuple[T, ...], halves: tuple[Self, Self] | None = None) -> None:
        if len(items) > MOST_ITEMS:
            middle = len(items) // 2
            halves = type(self)(items[:middle]), type(self)(items[middle:])
        self.piece, self.halves = items, halves
        if halves is None:
            self.height, self.count = 0, len(items)
            self.size = sum([item.size for item in items])
            self.facts = facts_of(items)
        else:
            left, right = halves
            self.height = 1 + max(left.height, right.height)
            self.count, self.size = left.count + right.count, left.size + right.size
            self.facts = left.facts.beside(right.facts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.items!r})"

    def __eq__(self, other: object) -> bool:
        """Say whether both hold equal items, whatever they are made of."""
        if self is other:
            return True
        if not isinstance(other, Rope):
            return NotImplemented
        sizes = self.count, self.size
        return sizes == (other.count, other.size) and self.items == other.items

    def __hash__(self) -> int:
        return hash(self.items)

    def __iter__(self) -> Iterator[T]:
        """Go through the items."""
        return chain.from_iterable(self._pieces())

    def _pieces(self) -> Iterator[tuple[T, ...]]:
        waiting = [self]
        while waiting:
            top = waiting.pop()
            if top.halves is None or top.piece:
                yield top.piece
            else:
                waiting += reversed(top.halves)

    @property
    def items(self) -> tuple[T, ...]:
        """All items; it takes as long as there are many."""
        if not self.piece:
            self.piece = tuple(self)
        return self.piece

    def note_distinct(self) -> None:
        """Note that no dim occurs twice, which the facts of its items may not tell."""
        self.facts = self.facts._replace(distinct=True)

    def item(self, place: int) -> T:
        """Return the item at a place."""
        top = self
        while top.halves is not None:
            left, right = top.halves
            if place < left.count:
                top = left
            else:
                top, place = right, place - left.count
        return top.piece[place]

    def find(self, at: int) -> tuple[int, int]:
        """Find the first item that ends at or behind a position, in [1, size].

        Returns:
            Its place, and the position at which it starts.
        """
        top, place, start = self, 0, 0
        while top.halves is not None:
            left, right = top.halves
            if start + left.size < at:
                top, place, start = right, place + left.count, start + left.size
            else:
                top = left
        for item in top.piece:
            if start + item.size >= at:
                break
            place, start = place + 1, start + item.size
        return place, start

    def between(self, first: int, last: int) -> Self:
        """Return the items from place `first` up to `last`, which is left out; at least one."""
        if first == 0 and last == self.count:
            return self
        if self.halves is None:
            return type(self)(self.piece[first:last])
        left, right = self.halves
        middle = left.count
        if last <= middle:
            return left.between(first, last)
        if first >= middle:
            return right.between(first - middle, last - middle)
        return left.between(first, middle).followed_by(right.between(0, last - middle))

    def with_item(self, place: int, items: tuple[T, ...]) -> Self:
        """Return a rope with others, at least one, in place of an item."""
        if self.halves is None:
            return type(self)((*self.piece[:place], *items, *self.piece[place + 1 :]))
        left, right = self.halves
        if place < left.count:
            return left.with_item(place, items).followed_by(right)
        return left.followed_by(right.with_item(place - left.count, items))

    def followed_by(self, other: Self) -> Self:
        """Return the items of both."""
        if self.halves is None and other.halves is None and self.count + other.count <= MOST_ITEMS:
            return type(self)(self.piece + other.piece)
        if self.halves is not None and self.height > other.height + 1:
            left, right = self.halves
            return _balanced(left, right.followed_by(other))
        if other.halves is not None and other.height > self.height + 1:
            left, right = other.halves
            return _balanced(self.followed_by(left), right)
        return _above(self, other)


AnyRope = TypeVar("AnyRope", bound=Rope[Any])


def _above(left: AnyRope, right: AnyRope) -> AnyRope:
    """Return a rope of two halves."""
    return type(left)((), (left, right))


def _balanced(left: AnyRope, right: AnyRope) -> AnyRope:
    """Return the items of two ropes, of which one may be higher by 2."""
    if left.halves is not None and left.height > right.height + 1:
        outer, inner = left.halves
        if inner.halves is not None and inner.height > outer.height:
            return _above(_above(outer, inner.halves[0]), _above(inner.halves[1], right))
        return _above(outer, _above(inner, right))
    if right.halves is not None and right.height > left.height + 1:
        inner, outer = right.halves
        if inner.halves is not None and inner.height > outer.height:
            return _above(_above(left, inner.halves[0]), _above(inner.halves[1], outer))
        return _above(_above(left, inner), outer)
    return _above(left, right)
