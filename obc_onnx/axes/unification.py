"""Solve equalities between axes.

`AxisSystem.unify` states that two axes always lose the same positions, and finds the coarsest
dims for which that holds by construction: dims become one (union-find), a dim that meets an
expression is defined as that expression everywhere, products are aligned from the inside out
and concatenations boundary by boundary. What cannot be aligned is tied position by position or
frozen.

This module knows nothing of ONNX, tensors or operators.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from obc_onnx.axes.bindings import Bindings
from obc_onnx.axes.boundaries import around, can_split, common_segments, parts_of, sizes_between
from obc_onnx.axes.expressions import (
    MOST_LOOKED_FOR,
    Dim,
    Joined,
    Product,
    Take,
    around_part,
    children,
    join,
    leaves,
    newer_leaves,
    occurs,
    product,
    stretch,
    take,
    takes,
    with_part_cut,
)
from obc_onnx.axes.ties import MOST_POSITIONS, has_single_owners, tied_positions
from obc_onnx.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from obc_onnx.axes.expressions import Expr

    Equality = tuple[Expr, Expr]
    Deferred = tuple[Expr, Expr, str]


class AxisSystem:
    """Dims and the equalities between axes.

    Equalities are solved as they are stated. What does not follow from boundaries is deferred
    to `settle`: boundaries that cross, and every `Take`. There, positions are tied where each
    has at most one free owner, and the rest is frozen. Deferring makes the result independent
    of the order in which equalities are stated. Freezing is always correct: nothing is removed
    from a frozen dim.
    """

    def __init__(self) -> None:
        self._n_dims = 0
        self._bindings = Bindings()
        self._frozen: dict[Dim, str] = {}
        self._inexact: dict[Dim, str] = {}
        self._open: set[Dim] = set()
        self._deferred: list[Deferred] = []

    @property
    def n_dims(self) -> int:
        """How many dims were made so far; a dim's index counts from 0."""
        return self._n_dims

    def dim(self, size: int, frozen: str | None = None) -> Dim:
        """Make a new dim of `size` positions, frozen at once where a reason is given."""
        made = Dim(size, self._n_dims)
        self._n_dims += 1
        if frozen is not None:
            self._frozen[made] = frozen
        return made

    @property
    def n_bound(self) -> int:
        """How many dims stand for others by now."""
        return len(self._bindings)

    def made_of(self, n_dims: int, n_bound: int) -> set[Dim]:
        """Return dims that older ones were found to be made of.

        Args:
            n_dims: How many dims are older.
            n_bound: How many of them stood for others already.
        """
        older = (dim for dim in self._bindings.since(n_bound) if dim.index < n_dims)
        return {dim for old in older for dim in self.later(old, n_dims)}

    def later(self, expr: Expr, n_dims: int) -> Iterable[Dim]:
        """Return the dims of an axis that were made after the first `n_dims`."""
        resolved = self.resolve(expr)
        return newer_leaves(resolved, n_dims)

    def resolve(self, expr: Expr) -> Expr:
        """Replace every dim by what it was unified with; the result is in normal form."""
        return self._bindings.resolve(expr)

    def reason(self, dim: Dim) -> str | None:
        """Return why a resolved dim is frozen, or None where it is free."""
        reason = self._frozen.get(dim)
        return "a single position" if reason is None and dim.size <= 1 else reason

    @property
    def reasons(self) -> dict[Dim, str]:
        """Why dims are frozen, those that stand for others now included."""
        return dict(self._frozen)

    def inexact(self, dim: Dim) -> str | None:
        """Return why removing units of a resolved dim does more than a mask would, or None."""
        return self._inexact.get(dim)

    def open_dims(self, expr: Expr) -> set[Dim]:
        """Return the dims of `expr` whose sizes are only known when the model runs."""
        resolved = self.resolve(expr)
        if len(self._open) > MOST_LOOKED_FOR:
            return self._open.intersection(leaves(resolved))
        return {dim for dim in self._open if occurs(dim, resolved)}

    def is_open(self, expr: Expr) -> bool:
        """Say whether the size of `expr` may be another one when the model runs."""
        return bool(self.open_dims(expr))

    def is_free(self, expr: Expr) -> bool:
        """Say whether any unit of any dim in `expr` may be removed."""
        return self._has_free(self.resolve(expr))

    def _has_free(self, expr: Expr) -> bool:
        """Say whether any dim of a resolved axis is free; what is frozen stays so."""
        if isinstance(expr, Dim):
            return self.reason(expr) is None
        if not isinstance(expr, Joined):
            return any(map(self._has_free, children(expr)))
        expr.is_held = expr.is_held or not any(map(self._has_free, children(expr)))
        return not expr.is_held

    def freeze(self, expr: Expr, reason: str) -> None:
        """Forbid the removal of any position of `expr`; the first reason given is kept."""
        for dim in leaves(self.resolve(expr)):
            self._frozen.setdefault(dim, reason)

    def mark_inexact(self, expr: Expr, reason: str) -> None:
        """Note that removing positions of `expr` changes more than masking them would."""
        for dim in leaves(self.resolve(expr)):
            self._inexact.setdefault(dim, reason)

    def open(self, expr: Expr) -> None:
        """Note that sizes in `expr` are only known when the model runs."""
        self._open.update(leaves(self.resolve(expr)))

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
        left, right = self.resolve(left), self.resolve(right)
        if left != right:
            self._refine_all([(self._lift(left, where), self._lift(right, where), where)])

    def cut(self, expr: Expr, ends: Sequence[int], where: str) -> list[Expr] | None:
        """Write an axis as a concatenation.

        Args:
            expr: The axis.
            ends: The position behind each part, ascending up to its size.
            where: What cuts it.
        Returns:
            The parts; None where it has no such boundaries.
        """
        resolved = self.resolve(expr)
        inside = sorted({at for at in ends if 0 < at < expr.size})
        if not all(can_split(resolved, at) for at in inside):
            return None
        if takes(resolved):  # its positions are named first
            parts: list[Expr] = [self.dim(size) for size in sizes_between(ends)]
            self.unify(resolved, join(parts), where)
            return parts
        pieces = iter(self._pieces(resolved, inside, expr))
        return [next(pieces) if size else self.dim(0) for size in sizes_between(ends)]

    def _pieces(self, expr: Expr, cuts: Sequence[int], known_as: Expr | None = None) -> list[Expr]:
        """Cut an axis without a `Take` at positions inside of it, all at once.

        Args:
            expr: The axis.
            cuts: The positions, ascending.
            known_as: What stands for it.
        """
        if not cuts:
            return [expr]
        match expr:
            case Dim() if expr in self._bindings:  # it occurs twice, and has just been cut
                return self._pieces(self.resolve(expr), cuts)
            case Dim():
                dims = [self.dim(size) for size in sizes_between([*cuts, expr.size])]
                self._bind(expr, join(dims))
                return list(dims)
            case Product(factors=(outer, *factors)):
                inner = product(factors)
                cut = self._pieces(outer, [at // inner.size for at in cuts])
                return [product([piece, inner]) for piece in cut]
            case Joined():
                whole = self._with_parts_cut(expr, cuts)
                if isinstance(known_as, Dim):
                    self._bindings.replace(known_as, whole)
                places = [whole.find(at)[0] + 1 for at in cuts]
                spans = pairwise([0, *places, whole.count])
                return [stretch(whole, first, last) for first, last in spans]
        raise InvariantError(f"cannot cut {expr} at {cuts}")

    def _with_parts_cut(self, joined: Joined, cuts: Sequence[int]) -> Joined:
        """Cut the parts of a concatenation that positions lie in."""
        within: dict[int, list[int]] = {}
        for at in cuts:
            place, start = joined.find(at)
            if at < start + joined.item(place).size:
                within.setdefault(place, []).append(at - start)
        n_bound = self.n_bound
        for place, own in reversed(within.items()):
            pieces = self._pieces(joined.item(place), own)
            joined = with_part_cut(joined, place, pieces)
        if joined.facts.distinct and self.n_bound == n_bound + len(within):
            joined.note_resolved(self.n_bound)
        return joined

    def settle(self) -> None:
        """Solve the deferred equalities: tie positions where possible, freeze the others."""
        while self._refine_all(self._take_deferred()) or self._name():
            pass
        while self._deferred:
            if not (self._tie() or self._refine_all(self._take_deferred())):
                for left, right, where in self._take_deferred():
                    reason = f"{where}: two layouts of {left.size} positions cannot be aligned"
                    self.freeze(left, reason)
                    self.freeze(right, reason)

    def _take_deferred(self) -> list[Deferred]:
        """Hand over what is deferred, resolved."""
        pending, self._deferred = self._deferred, []
        return [(self.resolve(left), self.resolve(right), where) for left, right, where in pending]

    def _lift(self, expr: Expr, where: str) -> Expr:
        """Put a new dim in place of each `Take`, and defer what it stands for.

        A dim bound to a `Take` at once would spread its marks to every unit of the base,
        also to those that are not taken; a tie holds only those that are.
        """
        if not takes(expr):
            return expr
        match expr:
            case Product(factors=factors):
                return product([self._lift(factor, where) for factor in factors])
            case Joined(parts=parts):
                return join([self._lift(part, where) for part in parts])
            case Take() if expr.size > 1:
                name = self.dim(expr.size)
                self._deferred.append((expr, name, where))
                return name
        return expr

    def _refine_all(self, equalities: list[Deferred]) -> bool:
        """Align boundaries and bind dims, deferring what crosses; say if any was solved."""
        progress = False
        work = equalities[::-1]
        while work:
            left, right, where = work.pop()
            a, b = self.resolve(left), self.resolve(right)
            finer = [] if a == b else self._refine(a, b, where)
            if finer is None:
                self._deferred.append((a, b, where))
            else:
                progress = True
                work.extend((*equality, where) for equality in reversed(finer))
        return progress

    def _name(self) -> bool:
        """Define dims as the takes they stand for, where a position has several free owners.

        Such a `Take` cannot be tied. This comes before any tie, after which what a dim is would
        depend on how the tied units are numbered.
        """
        progress = False
        for left, right, where in self._take_deferred():
            a, b = self.resolve(left), self.resolve(right)
            dim, taken = (a, b) if isinstance(a, Dim) else (b, a)
            if (
                isinstance(dim, Dim)
                and isinstance(taken, Take)
                and not occurs(dim, taken)
                and not has_single_owners(a, b, self._is_free_dim)
            ):
                self._bind(dim, taken)
                progress = True
            else:
                self._deferred.append((a, b, where))
        return progress

    def _tie(self) -> bool:
        """Tie deferred equalities position by position; say whether any could be.

        All that share a free dim are tied at once, so that their order does not matter.
        """
        tied: list[tuple[set[Dim], list[Deferred]]] = []
        for equality in self._take_deferred():
            left, right, _ = equality
            short = left.size <= MOST_POSITIONS
            if not (short and has_single_owners(left, right, self._is_free_dim)):
                self._deferred.append(equality)
                continue
            dims = {dim for dim in (*leaves(left), *leaves(right)) if self._is_free_dim(dim)}
            touched = [entry for entry in tied if entry[0] & dims]
            tied = [entry for entry in tied if not entry[0] & dims]
            members = [member for _, others in touched for member in others]
            tied.append((dims.union(*(others for others, _ in touched)), [*members, equality]))
        for _, equalities in tied:
            self._tie_together(equalities)
        return bool(tied)

    def _tie_together(self, equalities: list[Deferred]) -> None:
        left = join([left for left, _, _ in equalities])
        right = join([right for _, right, _ in equalities])
        where = equalities[0][2]
        ties = tied_positions(left, right, self._is_free_dim)
        shared = self.dim(ties.n_free) if ties.n_free else None
        held = self.dim(ties.n_held, f"{where}: tied to a frozen position") if ties.n_held else None
        base = join([part for part in (shared, held) if part is not None] or [left])
        for dim, index in ties.index_of.items():
            self._bind(dim, take(base, index))

    def _is_free_dim(self, dim: Dim) -> bool:
        return self.reason(dim) is None

    def _bind(self, dim: Dim, expr: Expr) -> None:
        """Define `dim` as `expr` everywhere it occurs; its marks spread to `expr`."""
        reason = self.reason(dim)
        self._bindings.bind(dim, expr)
        if reason is not None:
            self.freeze(expr, reason)
        if dim in self._inexact:
            self.mark_inexact(expr, self._inexact[dim])
        if dim in self._open:
            self.open(expr)

    def _refine(self, a: Expr, b: Expr, where: str) -> list[Equality] | None:
        """Turn one equality into smaller ones, binding dims; None where boundaries cross."""
        if isinstance(a, Dim) and isinstance(b, Dim):
            older, newer = (a, b) if a.index < b.index else (b, a)
            self._bind(newer, older)
            return []
        for dim, other in ((a, b), (b, a)):
            is_take = isinstance(other, Take)
            if isinstance(dim, Dim) and not is_take and not occurs(dim, other):
                self._bind(dim, other)
                return []
        if isinstance(a, Product) and isinstance(b, Product):
            finer = self._align_factors(a.factors, b.factors)
            if finer is not None:
                return finer
        return self._align_parts(parts_of(a), parts_of(b), where)

    def _align_factors(
        self, left: tuple[Expr, ...], right: tuple[Expr, ...]
    ) -> list[Equality] | None:
        """Peel the innermost factor off both products, factoring the larger one to fit."""
        if left[-1].size < right[-1].size:
            left, right = right, left
        large, small = left[-1], right[-1]
        if large.size == small.size:
            return [(large, small), (product(left[:-1]), product(right[:-1]))]
        if small.size == 0 or large.size % small.size:
            return None
        outer = self.dim(large.size // small.size)
        rest = product([*left[:-1], outer]), product(right[:-1])
        return [(large, product([outer, small])), rest]

    def _align_parts(
        self, left: tuple[Expr, ...], right: tuple[Expr, ...], where: str
    ) -> list[Equality] | None:
        """Cut two concatenations where both have boundaries, else at the first both allow."""
        segments = list(common_segments(left, right))
        if len(segments) > 1:
            return [(join(a), join(b)) for a, b in segments]
        for parts, other in ((left, join(right)), (right, join(left))):
            for i, end in enumerate(accumulate(part.size for part in parts[:-1]), start=1):
                if can_split(other, end, fold=True):
                    head, tail = self._split(other, end, where)
                    return [(join(parts[:i]), head), (join(parts[i:]), tail)]
        return None

    def _split(self, expr: Expr, at: int, where: str) -> Equality:
        """Cut an axis in two at position `at`; `can_split` must have said that it can."""
        match expr:
            case Dim():
                halves = self.dim(at), self.dim(expr.size - at)
                self._bind(expr, join(halves))
                return halves
            case Product():
                outer, inner = around(expr, at)
                if isinstance(outer, Product):
                    folded = self.dim(outer.size)
                    self._deferred.append((outer, folded, where))
                    outer = folded
                head, tail = self._split(outer, at // inner.size, where)
                return product([head, inner]), product([tail, inner])
            case Joined():
                place, start = expr.find(at)
                before, after = around_part(expr, place)
                part = expr.item(place)
                if at == start + part.size:
                    return join([*before, part]), join(after)
                head, tail = self._split(part, at - start, where)
                return join([*before, head]), join([tail, *after])
            case Take(base=base, index=index):
                return take(base, index[:at]), take(base, index[at:])
        raise InvariantError(f"cannot split {expr} at {at}")
