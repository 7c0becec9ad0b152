"""Axis expressions, and what follows from them once units are kept or removed.

A `Dim` is a set of interchangeable positions. Every axis of every tensor is an expression over
dims: a `Product` is row-major, as in a reshape; a `Joined` is one part after the other; a `Take`
repeats or permutes the positions of another expression. `axes.unification` finds the dims.

This module knows nothing of ONNX, tensors or operators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, groupby
from typing import TYPE_CHECKING, cast

import numpy as np

from obc_onnx.axes.ropes import Facts, Rope, facts_of
from obc_onnx.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Dim:
    """A set of `size` interchangeable positions; two dims are equal only if identical."""

    size: int
    index: int
    facts: Facts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", Facts(self.index, self.index))

    def __repr__(self) -> str:
        return f"d{self.index}({self.size})"


LONG, BEGINNING = 8, 2
"""Parts up to which a concatenation is written out, and those that begin a longer one."""
MOST_REPEATED = 1024
"""Parts of a concatenation that names dims twice: joined to itself 40 times it would have 2^40."""
MOST_LOOKED_FOR = 16
"""So many dims are looked for one by one in an expression of more; of others, all are looked up."""


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of its factors: the last factor varies fastest."""

    factors: tuple[Expr, ...]
    size: int = field(compare=False)
    facts: Facts = field(init=False, compare=False, repr=False)
    known_leaves: tuple[Dim, ...] = field(default=(), init=False, compare=False, repr=False)
    """What `leaves` has found, empty until it was asked."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", facts_of(self.factors))


class Joined(Rope["Expr"]):
    """Its parts, one after the other.

    Attributes:
        n_bound: So many dims had been bound when none of its own was, see `Bindings`.
        known_leaves: What `leaves` has found, empty until it was asked.
        meaning: What it was last found to stand for, None while all its dims stand for themselves.
        is_held: Whether it is known that nothing of it may be removed.
    """

    __slots__ = ("is_held", "known_leaves", "meaning", "n_bound")

    def __init__(
        self, parts: tuple[Expr, ...], halves: tuple[Joined, Joined] | None = None
    ) -> None:
        super().__init__(parts, halves)
        self.known_leaves: tuple[Dim, ...] = ()
        self.meaning: Expr | None = None
        self.is_held = False
        self.n_bound = 0

    @property
    def parts(self) -> tuple[Expr, ...]:
        """All parts; of a long concatenation, `stretch` and `find` are cheaper."""
        return self.items

    @property
    def are_dims(self) -> bool:
        """Whether every part is a dim."""
        return self.facts.n_leaves == self.count and not self.facts.takes

    def note_resolved(self, n_bound: int) -> None:
        """Note that none of its dims is among the first that were bound."""
        self.n_bound = max(self.n_bound, n_bound)


@dataclass(frozen=True, slots=True)
class Take:
    """Position i is position `index[i]` of `base`: a unit of `base` is a set of positions."""

    base: Expr
    index: tuple[int, ...]
    facts: Facts = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", self.base.facts._replace(takes=True))

    @property
    def size(self) -> int:
        """Number of positions."""
        return len(self.index)


Expr = Dim | Product | Joined | Take


def product(factors: Iterable[Expr]) -> Expr:
    """Multiply `factors` into a normal form: flat, without factors of size 1.

    A `Take` of one position is kept: it goes with a unit that others may share.
    """
    flat: list[Expr] = []
    last: Expr | None = None
    for factor in factors:
        last = factor
        if isinstance(factor, Product):
            flat.extend(factor.factors)
        elif factor.size != 1 or isinstance(factor, Take):
            flat.append(factor)
    if last is None:
        raise InvariantError("a product needs at least one factor")
    if not flat:
        return last
    return flat[0] if len(flat) == 1 else Product(tuple(flat), math.prod(f.size for f in flat))


def join(parts: Iterable[Expr]) -> Expr:
    """Join `parts` into a normal form: flat, without parts of size 0."""
    given = list(parts)
    if not given:
        raise InvariantError("a concatenation needs at least one part")
    kept = [part for part in given if part.size != 0]
    if len(kept) < 2:  # noqa: PLR2004 - nothing to join
        return kept[0] if kept else given[-1]
    runs = groupby(kept, lambda part: isinstance(part, Joined))
    pieces = (own if are_joined else [Joined(tuple(own))] for are_joined, own in runs)
    flat = cast("Iterable[Joined]", chain.from_iterable(pieces))
    return reduce(Joined.followed_by, flat)


def stretch(joined: Joined, first: int, last: int) -> Expr:
    """Return parts `first` to `last` of a concatenation, the last one left out."""
    part = joined.between(first, last)
    if part.count == 1:
        return part.items[0]
    part.note_resolved(joined.n_bound)
    if joined.facts.distinct:
        part.note_distinct()
    return part


def around_part(joined: Joined, place: int) -> tuple[list[Expr], list[Expr]]:
    """Return what lies in front of a part and behind it, each nothing or one expression."""
    before = [stretch(joined, 0, place)] if place else []
    after = [stretch(joined, place + 1, joined.count)] if place + 1 < joined.count else []
    return before, after


def with_part_cut(joined: Joined, place: int, pieces: Sequence[Expr]) -> Joined:
    """Return a concatenation with new pieces of one of its parts in place of that part."""
    if not all(isinstance(piece, Dim) for piece in pieces):
        before, after = around_part(joined, place)
        return cast("Joined", join([*before, *pieces, *after]))
    cut = joined.with_item(place, tuple(pieces))
    if joined.facts.distinct:
        cut.note_distinct()
    return cut


def take(base: Expr, index: tuple[int, ...]) -> Expr:
    """Take positions of `base` in normal form: one level deep, nothing for the identity."""
    if isinstance(base, Take):
        return take(base.base, tuple(base.index[position] for position in index))
    is_whole = len(index) == base.size and index == tuple(range(base.size))
    return base if is_whole else Take(base, index)


def each_leaf(expr: Expr) -> Iterator[Dim]:
    """Yield every dim that occurs in `expr`, left to right, repetitions included."""
    match expr:
        case Dim():
            yield expr
        case Take(base=base):
            yield from each_leaf(base)
        case Product(factors=factors):
            for factor in factors:
                yield from each_leaf(factor)
        case Joined(are_dims=True):
            yield from cast("Iterable[Dim]", expr)
        case Joined():
            for part in expr:
                yield from each_leaf(part)


def leaves(expr: Expr) -> tuple[Dim, ...]:
    """List every dim that occurs in `expr`, left to right, repetitions included."""
    if isinstance(expr, Dim):
        return (expr,)
    if isinstance(expr, Take):
        return leaves(expr.base)
    if isinstance(expr, Joined) and expr.are_dims:
        return cast("tuple[Dim, ...]", expr.parts)
    if not expr.known_leaves:
        object.__setattr__(expr, "known_leaves", tuple(each_leaf(expr)))
    return expr.known_leaves


def takes(expr: Expr) -> bool:
    """Say whether a `Take` is in `expr`."""
    return expr.facts.takes


def newer_leaves(expr: Expr, index: int) -> Iterator[Dim]:
    """Yield the dims that occur in `expr` and have at least some index, left to right."""
    if isinstance(expr, Dim):
        if expr.index >= index:
            yield expr
    elif expr.facts.newest >= index:
        for child in children(expr):
            yield from newer_leaves(child, index)


def occurs(dim: Dim, expr: Expr) -> bool:
    """Say whether a dim is in `expr`; most that are asked for are older or newer than all of it."""
    if isinstance(expr, Dim):
        return dim is expr
    if not expr.facts.oldest <= dim.index <= expr.facts.newest:
        return False
    if expr.facts.n_leaves <= MOST_LOOKED_FOR:
        return dim in leaves(expr)
    return any(occurs(dim, child) for child in children(expr))


def occur(dims: AbstractSet[Dim], expr: Expr) -> bool:
    """Say whether any of some dims is in `expr`."""
    if expr.facts.n_leaves > MOST_LOOKED_FOR >= len(dims):
        return any(occurs(dim, expr) for dim in dims)
    return not dims.isdisjoint(leaves(expr))


def children(expr: Product | Joined | Take) -> tuple[Expr, ...]:
    """Return what an expression is made of: of a long concatenation, its halves."""
    match expr:
        case Product(factors=factors):
            return factors
        case Take(base=base):
            return (base,)
        case Joined():
            return expr.halves or expr.parts


def is_repetitive(expr: Expr) -> bool:
    """Say whether dims occur in `expr` again and again, so that it may grow without end."""
    if expr.facts.n_leaves <= MOST_REPEATED or expr.facts.distinct:
        return False
    return len(set(leaves(expr))) < expr.facts.n_leaves


def is_long(expr: Expr) -> bool:
    """Say whether more dims are in `expr` than people are shown."""
    return expr.facts.n_leaves > LONG


def mask(expr: Expr, keep: Mapping[Dim, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Say which positions of an axis stay.

    Args:
        expr: A resolved axis expression.
        keep: For each dim that loses units, which units stay, shape [n_units]. A dim that is
            not named stays whole. One that no `Take` picks from may have another size here.
    Returns:
        Shape [expr.size], True where the position stays.
    """
    if not occur(keep.keys(), expr):
        return np.ones(expr.size, np.bool_)
    match expr:
        case Dim():
            return keep[expr]
        case Product(factors=factors):
            result = mask(factors[0], keep)
            for factor in factors[1:]:
                result = np.logical_and.outer(result, mask(factor, keep)).reshape(-1)
            return result
        case Joined(parts=parts):
            return np.concatenate([mask(part, keep) for part in parts])
        case Take(base=base, index=index):
            taken: NDArray[np.bool_] = mask(base, keep)[np.asarray(index, np.int64)]
            return taken


def count(expr: Expr, keep: Mapping[Dim, NDArray[np.bool_]]) -> int:
    """Count the positions of an axis that stay; equals `mask(expr, keep).sum()`."""
    return Counts(keep).of(expr)


class Counts:
    """How many positions of axes stay; what long concatenations have in common is counted once.

    Args:
        keep: As `mask` takes it.
    """

    def __init__(self, keep: Mapping[Dim, NDArray[np.bool_]]) -> None:
        self._keep = keep
        self._known: dict[int, tuple[Joined, int]] = {}

    def of(self, expr: Expr) -> int:
        """Count the positions of an axis that stay."""
        if isinstance(expr, Joined) and id(expr) in self._known:
            return self._known[id(expr)][1]
        if not occur(self._keep.keys(), expr):
            return expr.size
        match expr:
            case Dim():
                return int(np.count_nonzero(self._keep[expr]))
            case Product(factors=factors):
                return math.prod(map(self.of, factors))
            case Joined():
                found = sum(map(self.of, children(expr)))
                # Kept with its count: a number stands for an expression only while it is there.
                self._known[id(expr)] = expr, found
                return found
            case Take():
                return int(np.count_nonzero(mask(expr, self._keep)))


def only_position(expr: Expr, at: int) -> dict[Dim, NDArray[np.bool_]]:
    """Say what to keep of each dim so that one position of an axis is all that is left.

    Args:
        expr: A resolved axis expression in which no dim occurs twice.
        at: The position, in [0, expr.size).
    """
    keep: dict[Dim, NDArray[np.bool_]] = {}
    match expr:
        case Dim():
            keep[expr] = np.arange(expr.size) == at
        case Product(factors=factors):
            for factor in reversed(factors):
                at, own = divmod(at, factor.size)
                keep |= only_position(factor, own)
        case Joined(parts=parts):
            for part in parts:
                if 0 <= at < part.size:
                    keep |= only_position(part, at)
                else:
                    keep |= {dim: np.zeros(dim.size, np.bool_) for dim in leaves(part)}
                at -= part.size
        case Take(base=base, index=index):
            keep |= only_position(base, index[at])
    return keep


def units_along(expr: Expr, dim: Dim) -> list[NDArray[np.int64]]:
    """Say which unit of `dim` owns each position of an axis.

    Args:
        expr: A resolved axis expression.
        dim: The dim whose units are looked for.
    Returns:
        Arrays of shape [expr.size] with the unit's index, or -1 where `dim` does not occur. There
        is more than one only where a product names `dim` twice, so that a position has two owners.
    """
    match expr:
        case Dim():
            return [np.arange(dim.size)] if expr is dim else []
        case Product(factors=factors):
            shape = tuple(factor.size for factor in factors)
            found = []
            for axis, factor in enumerate(factors):
                view = [1] * len(shape)
                view[axis] = factor.size
                found += [
                    np.broadcast_to(owners.reshape(view), shape).reshape(-1)
                    for owners in units_along(factor, dim)
                ]
            return found
        case Joined(parts=parts):
            columns = [(part, units_along(part, dim)) for part in parts]
            depth = max(len(owners) for _, owners in columns)
            return [
                np.concatenate(
                    [
                        owners[level] if level < len(owners) else np.full(part.size, -1)
                        for part, owners in columns
                    ]
                )
                for level in range(depth)
            ]
        case Take(base=base, index=index):
            return [owners[np.asarray(index, np.int64)] for owners in units_along(base, dim)]


def units_of(expr: Expr, dim: Dim) -> NDArray[np.int64]:
    """List the units of a dim that own positions of a resolved axis, sorted."""
    owners = units_along(expr, dim)
    found = np.unique(np.concatenate(owners)) if owners else np.zeros(0, np.int64)
    return found[found >= 0]


def runs_of(expr: Expr, dim: Dim) -> set[int]:
    """Say how many neighbouring positions one unit of `dim` owns, wherever it occurs in an axis.

    In `heads x 64` a head owns 64, and in `64 x head_dim` a position of a head owns 1.
    """
    match expr:
        case Dim():
            return {1} if expr is dim else set()
        case Product(factors=factors):
            found, inner = set[int](), 1
            for factor in reversed(factors):
                found |= {run * inner for run in runs_of(factor, dim)}
                inner *= factor.size
            return found
        case Joined(parts=parts):
            return set[int]().union(*(runs_of(part, dim) for part in parts))
        case Take(base=base):
            return runs_of(base, dim)


def describe(expr: Expr, names: Mapping[Dim, str], *, whole: bool = False) -> str:
    """Write an axis expression for people, as `heads(12) x head_dim(64)` or `64 ++ 32`.

    Args:
        expr: A resolved expression.
        names: What to call dims; others are written as their size.
        whole: Whether a long concatenation is written out, and not only how it begins.
    """
    match expr:
        case Dim():
            name = names.get(expr)
            return f"{name}({expr.size})" if name else str(expr.size)
        case Product(factors=factors):
            shown = ((f, describe(f, names, whole=whole)) for f in factors)
            return " x ".join(f"({text})" if isinstance(f, Joined) else text for f, text in shown)
        case Joined(count=n_parts):
            rest = [] if whole or n_parts <= LONG else [f"... ({n_parts - BEGINNING} more)"]
            shown_parts = expr.between(0, BEGINNING if rest else n_parts)
            return " ++ ".join([*(describe(p, names, whole=whole) for p in shown_parts), *rest])
        case Take(base=base):
            return f"{expr.size} positions of ({describe(base, names, whole=whole)})"
