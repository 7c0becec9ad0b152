"""Where an axis can be cut in two, and which cuts two axes have in common."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import Joined, Product, product

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from obc_onnx.axes.expressions import Expr


def parts_of(expr: Expr) -> tuple[Expr, ...]:
    """Write an axis as a concatenation, also where its parts share their inner factors."""
    match expr:
        case Joined(parts=parts):
            return tuple(piece for part in parts for piece in parts_of(part))
        case Product(factors=(Joined(parts=parts), *inner)):
            return tuple(p for part in parts for p in parts_of(product([part, *inner])))
    return (expr,)


def common_segments(
    left: Sequence[Expr], right: Sequence[Expr]
) -> Iterator[tuple[Sequence[Expr], Sequence[Expr]]]:
    """Cut two lists of parts at every boundary that both have."""
    ends_left = list(accumulate(part.size for part in left))
    ends_right = list(accumulate(part.size for part in right))
    position_right = {end: i for i, end in enumerate(ends_right)}
    start_left = start_right = 0
    for i, end in enumerate(ends_left):
        j = position_right.get(end)
        if j is not None:
            yield left[start_left : i + 1], right[start_right : j + 1]
            start_left, start_right = i + 1, j + 1


def sizes_between(ends: Sequence[int]) -> list[int]:
    """Return the sizes of parts that end at these positions, the first of which starts at 0."""
    return [end - start for start, end in pairwise([0, *ends])]


def can_split(expr: Expr, at: int, *, fold: bool = False) -> bool:
    """Say whether an axis can be cut at `at`; `fold` allows it inside several factors."""
    match expr:
        case Product():
            outer, inner = around(expr, at)
            if at % inner.size or (isinstance(outer, Product) and not fold):
                return False
            return isinstance(outer, Product) or can_split(outer, at // inner.size, fold=fold)
        case Joined():
            place, start = expr.find(at)
            part = expr.item(place)
            return at == start + part.size or can_split(part, at - start, fold=fold)
    return True


def around(expr: Product, at: int) -> tuple[Expr, Expr]:
    """Write a product as outer x inner, with as many inner factors as divide `at`."""
    first = len(expr.factors) - 1
    while first > 1 and at % product(expr.factors[first - 1 :]).size == 0:
        first -= 1
    return product(expr.factors[:first]), product(expr.factors[first:])
