"""Axis expressions, and what follows from them once units are kept or removed.

A `Dim` is a set of interchangeable positions. Every axis of every tensor is an expression over
dims: a `Product` is row-major, as in a reshape; a `Joined` is one part after the other; a `Take`
repeats or permutes the positions of another expression. `axes.unification` finds the dims.

This module knows nothing of ONNX, tensors or operators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Dim:
    """A set of `size` interchangeable positions; two dims are equal only if identical."""

    size: int
    index: int

    def __repr__(self) -> str:
        return f"d{self.index}({self.size})"


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of its factors: the last factor varies fastest."""

    factors: tuple[Expr, ...]
    size: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Joined:
    """Its parts, one after the other."""

    parts: tuple[Expr, ...]
    size: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Take:
    """Position i is position `index[i]` of `base`: a unit of `base` is a set of positions."""

    base: Expr
    index: tuple[int, ...]

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
    flat: list[Expr] = []
    last: Expr | None = None
    for part in parts:
        last = part
        if isinstance(part, Joined):
            flat.extend(part.parts)
        elif part.size != 0:
            flat.append(part)
    if last is None:
        raise InvariantError("a concatenation needs at least one part")
    if not flat:
        return last
    return flat[0] if len(flat) == 1 else Joined(tuple(flat), sum(p.size for p in flat))


def take(base: Expr, index: tuple[int, ...]) -> Expr:
    """Take positions of `base` in normal form: one level deep, nothing for the identity."""
    if isinstance(base, Take):
        return take(base.base, tuple(base.index[position] for position in index))
    return base if index == tuple(range(base.size)) else Take(base, index)


def leaves(expr: Expr) -> Iterator[Dim]:
    """Yield every dim that occurs in `expr`, left to right, repetitions included."""
    match expr:
        case Dim():
            yield expr
        case Product(factors=children) | Joined(parts=children):
            for child in children:
                yield from leaves(child)
        case Take(base=base):
            yield from leaves(base)


def mask(expr: Expr, keep: Mapping[Dim, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Say which positions of an axis stay.

    Args:
        expr: A resolved axis expression.
        keep: For each dim that loses units, which units stay, shape [n_units]. A dim that is
            not named stays whole. One that no `Take` picks from may have another size here.
    Returns:
        Shape [expr.size], True where the position stays.
    """
    match expr:
        case Dim():
            kept = keep.get(expr)
            return np.ones(expr.size, np.bool_) if kept is None else kept
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
    match expr:
        case Dim():
            kept = keep.get(expr)
            return expr.size if kept is None else int(np.count_nonzero(kept))
        case Product(factors=factors):
            return math.prod(count(factor, keep) for factor in factors)
        case Joined(parts=parts):
            return sum(count(part, keep) for part in parts)
        case Take():
            return int(np.count_nonzero(mask(expr, keep)))


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


def describe(expr: Expr, names: Mapping[Dim, str]) -> str:
    """Write an axis expression for people, as `heads(12) x head_dim(64)` or `64 ++ 32`.

    Args:
        expr: A resolved expression.
        names: What to call dims; others are written as their size.
    """
    match expr:
        case Dim():
            name = names.get(expr)
            return f"{name}({expr.size})" if name else str(expr.size)
        case Product(factors=factors):
            return " x ".join(
                f"({describe(f, names)})" if isinstance(f, Joined) else describe(f, names)
                for f in factors
            )
        case Joined(parts=parts):
            return " ++ ".join(describe(part, names) for part in parts)
        case Take(base=base):
            return f"{expr.size} positions of ({describe(base, names)})"
