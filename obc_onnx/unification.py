"""Solve equalities between axes.

`AxisSystem.unify` states that two axes always lose the same positions, and finds the coarsest
dims for which that holds by construction: dims become one (union-find), a dim that meets an
expression is defined as that expression everywhere, products are aligned from the inside out and
concatenations boundary by boundary. What cannot be aligned is tied position by position or frozen.

This module knows nothing of ONNX, tensors or operators.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from obc_onnx.axes import Concat, Dim, Product, Take, concat, leaves, product, take
from obc_onnx.errors import InvariantError
from obc_onnx.ties import tied_positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from obc_onnx.axes import Expr

    Equality = tuple[Expr, Expr]


class AxisSystem:
    """Dims and the equalities between axes.

    Equalities are solved as they are stated. One whose boundaries cross is deferred to `settle`,
    which ties positions where each side has one free factor, and freezes the rest. Deferring
    makes the result independent of the order in which equalities are stated. Freezing is always
    correct: nothing is removed from a frozen dim.
    """

    def __init__(self) -> None:
        self._n_dims = 0
        self._bound: dict[Dim, Expr] = {}
        self._frozen: dict[Dim, str] = {}
        self._inexact: dict[Dim, str] = {}
        self._deferred: list[tuple[Expr, Expr, str]] = []

    def dim(self, size: int, frozen: str | None = None) -> Dim:
        """Make a new dim of `size` positions, frozen from the start where a reason is given."""
        made = Dim(size, self._n_dims)
        self._n_dims += 1
        if frozen is not None:
            self._frozen[made] = frozen
        return made

    def resolve(self, expr: Expr) -> Expr:
        """Replace every dim by what it was unified with; the result is in normal form."""
        match expr:
            case Dim():
                bound = self._bound.get(expr)
                if bound is None:
                    return expr
                resolved = self.resolve(bound)
                self._bound[expr] = resolved
                return resolved
            case Product(factors=factors):
                return product([self.resolve(factor) for factor in factors])
            case Concat(parts=parts):
                return concat([self.resolve(part) for part in parts])
            case Take(base=base, index=index):
                return take(self.resolve(base), index)

    def reason(self, dim: Dim) -> str | None:
        """Return why a resolved dim is frozen, or None where it is free."""
        reason = self._frozen.get(dim)
        return "a single position" if reason is None and dim.size <= 1 else reason

    def inexact(self, dim: Dim) -> str | None:
        """Return why removing units of a resolved dim does more than a mask would, or None."""
        return self._inexact.get(dim)

    def is_free(self, expr: Expr) -> bool:
        """Say whether any unit of any dim in `expr` may be removed."""
        return any(self.reason(dim) is None for dim in leaves(self.resolve(expr)))

    def freeze(self, expr: Expr, reason: str) -> None:
        """Forbid the removal of any position of `expr`; the first reason given is kept."""
        for dim in leaves(self.resolve(expr)):
            self._frozen.setdefault(dim, reason)

    def mark_inexact(self, expr: Expr, reason: str) -> None:
        """Note that removing positions of `expr` changes more than masking them would."""
        for dim in leaves(self.resolve(expr)):
            self._inexact.setdefault(dim, reason)

    def unify(self, left: Expr, right: Expr, where: str) -> None:
        """State that two axes always lose the same positions.

        Args:
            left: An axis expression.
            right: Another one of the same size.
            where: What ties them, for the reason given where they cannot be aligned.
        Raises:
            InvariantError: The sizes differ.
        """
        if left is right:
            return
        if left.size != right.size:
            raise InvariantError(f"{where}: cannot unify {left} with {right}: sizes differ")
        work = [(left, right)]
        while work:
            a, b = work.pop()
            a, b = self.resolve(a), self.resolve(b)
            if a == b:
                continue
            finer = self._refine(a, b)
            if finer is None:
                self._deferred.append((a, b, where))
            else:
                work.extend(reversed(finer))

    def can_cut(self, expr: Expr, boundaries: Sequence[int]) -> bool:
        """Say whether an axis can be written as a concatenation with these boundaries."""
        resolved = self.resolve(expr)
        return all(_can_split(resolved, at) for at in boundaries if 0 < at < expr.size)

    def settle(self) -> None:
        """Solve the deferred equalities: tie positions where possible, freeze the others."""
        progress = True
        while progress and self._deferred:
            progress = False
            pending, self._deferred = self._deferred, []
            for left, right, where in pending:
                progress |= self._tie(self.resolve(left), self.resolve(right), where)
        for left, right, where in self._deferred:
            reason = f"{where}: two layouts of {left.size} positions cannot be aligned"
            self.freeze(left, reason)
            self.freeze(right, reason)
        self._deferred = []

    def _tie(self, left: Expr, right: Expr, where: str) -> bool:
        """Tie two axes position by position; defer them again and say False where it fails."""
        ties = tied_positions(left, right, lambda dim: self.reason(dim) is None)
        if ties is None:
            self._deferred.append((left, right, where))
            return False
        if not ties.index_of:
            return True  # everything is frozen already
        shared = self.dim(ties.n_free) if ties.n_free else None
        held = self.dim(ties.n_held, f"{where}: tied to a frozen position") if ties.n_held else None
        base = concat([part for part in (shared, held) if part is not None])
        for dim, index in ties.index_of.items():
            self._bind(dim, take(base, index))
        return True

    def _bind(self, dim: Dim, expr: Expr) -> None:
        """Define `dim` as `expr` everywhere it occurs; its marks spread to `expr`."""
        self._bound[dim] = expr
        if dim in self._frozen:
            self.freeze(expr, self._frozen[dim])
        if dim in self._inexact:
            self.mark_inexact(expr, self._inexact[dim])

    def _refine(self, a: Expr, b: Expr) -> list[Equality] | None:
        """Turn one equality into smaller ones, binding dims; None where boundaries cross."""
        if isinstance(a, Dim) and isinstance(b, Dim):
            older, newer = (a, b) if a.index < b.index else (b, a)
            self._bind(newer, older)
            return []
        for dim, other in ((a, b), (b, a)):
            if isinstance(dim, Dim):
                if dim in leaves(other):
                    return None
                self._bind(dim, other)
                return []
        if isinstance(a, Concat) or isinstance(b, Concat):
            return self._align_parts(_parts(a), _parts(b))
        if isinstance(a, Product) and isinstance(b, Product):
            return self._align_factors(a.factors, b.factors)
        return None

    def _align_factors(
        self, left: tuple[Expr, ...], right: tuple[Expr, ...]
    ) -> list[Equality] | None:
        """Peel the innermost factor off both products, splitting the larger one to fit."""
        if left[-1].size < right[-1].size:
            left, right = right, left
        large, small = left[-1], right[-1]
        if large.size == small.size:
            return [(large, small), (product(left[:-1]), product(right[:-1]))]
        if not _can_factor(large, small.size):
            return None
        outer, inners = self._factor(large, small.size)
        rest = (product([*left[:-1], outer]), product(right[:-1]))
        return [*((inner, small) for inner in inners), rest]

    def _align_parts(
        self, left: tuple[Expr, ...], right: tuple[Expr, ...]
    ) -> list[Equality] | None:
        """Cut two concatenations at their shared boundaries, then at the first other one."""
        segments = list(_segments(left, right))
        if len(segments) > 1:
            return [(concat(a), concat(b)) for a, b in segments]
        if left[0].size > right[0].size:
            left, right = right, left
        at, cut = left[0].size, right[0]
        if not _can_split(cut, at):
            return None
        head, tail = self._split(cut, at)
        return [(left[0], head), (concat(left[1:]), concat([tail, *right[1:]]))]

    def _split(self, expr: Expr, at: int) -> Equality:
        """Cut an axis in two at position `at`; `_can_split` must have said that it can."""
        match expr:
            case Dim():
                halves = self.dim(at), self.dim(expr.size - at)
                self._bind(expr, concat(halves))
                return halves
            case Product(factors=(leading, *rest)):
                inner = product(rest)
                head, tail = self._split(leading, at // inner.size)
                return product([head, inner]), product([tail, inner])
            case Concat(parts=parts):
                before = [end for end in accumulate(part.size for part in parts) if end <= at]
                which, start = len(before), before[-1] if before else 0
                if start == at:
                    return concat(parts[:which]), concat(parts[which:])
                head, tail = self._split(parts[which], at - start)
                return concat([*parts[:which], head]), concat([tail, *parts[which + 1 :]])
            case Take(base=base, index=index):
                return take(base, index[:at]), take(base, index[at:])
        raise InvariantError(f"cannot split {expr} at {at}")

    def _factor(self, expr: Expr, inner_size: int) -> tuple[Expr, list[Expr]]:
        """Write an axis as outer x inner; `_can_factor` must have said that it can.

        Returns:
            The outer axis, and every expression of the inner one: one for each part of a
            concatenation. The caller has to unify them.
        """
        match expr:
            case Dim():
                pair = self.dim(expr.size // inner_size), self.dim(inner_size)
                self._bind(expr, product(pair))
                return pair[0], [pair[1]]
            case Product(factors=(*rest, last)):
                if last.size == inner_size:
                    return product(rest), [last]
                if last.size > inner_size:
                    outer, inners = self._factor(last, inner_size)
                    return product([*rest, outer]), inners
                outer, inners = self._factor(product(rest), inner_size // last.size)
                return outer, [product([part, last]) for part in inners]
            case Concat(parts=parts):
                pairs = [self._factor(self.resolve(part), inner_size) for part in parts]
                return concat(o for o, _ in pairs), [i for _, inners in pairs for i in inners]
        raise InvariantError(f"cannot factor {expr} by {inner_size}")


def _parts(expr: Expr) -> tuple[Expr, ...]:
    return expr.parts if isinstance(expr, Concat) else (expr,)


def _segments(
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


def _can_split(expr: Expr, at: int) -> bool:
    match expr:
        case Product(factors=(leading, *rest)):
            inner = product(rest).size
            return at % inner == 0 and _can_split(leading, at // inner)
        case Concat(parts=parts):
            start = 0
            for part in parts:
                if at < start + part.size:
                    return at == start or _can_split(part, at - start)
                start += part.size
            return False
    return True


def _can_factor(expr: Expr, inner_size: int) -> bool:
    if expr.size % inner_size:
        return False
    match expr:
        case Dim():
            return True
        case Product(factors=(*rest, last)):
            if last.size % inner_size == 0:
                return last.size == inner_size or _can_factor(last, inner_size)
            return inner_size % last.size == 0 and _can_factor(
                product(rest), inner_size // last.size
            )
        case Concat(parts=parts):
            return all(_can_factor(part, inner_size) for part in parts)
    return False
