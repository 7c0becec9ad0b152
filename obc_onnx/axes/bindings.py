"""What dims stand for, since they were found to be the same as others, or made of others.

Every node asks for every axis that it meets, and an axis may be a concatenation of thousands of
parts. So whatever was found resolved is compared with what was bound since, and not looked through
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import (
    MOST_LOOKED_FOR,
    Dim,
    Joined,
    Product,
    Take,
    children,
    join,
    leaves,
    occurs,
    product,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obc_onnx.axes.expressions import Expr


class Bindings:
    """What dims stand for. A chain of slices is as deep as it is long: nothing here recurses."""

    def __init__(self) -> None:
        self._meant: dict[Dim, Expr] = {}
        self._order: list[Dim] = []

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, dim: Dim) -> bool:
        return dim in self._meant

    def since(self, count: int) -> list[Dim]:
        """List the dims that were bound after the first `count`, in that order."""
        return self._order[count:]

    def bind(self, dim: Dim, expr: Expr) -> None:
        """Let a dim that stands for itself stand for an expression."""
        self._meant[dim] = expr
        self._order.append(dim)

    def replace(self, dim: Dim, expr: Expr) -> None:
        """Note what a dim stands for by now; it is the same as before, written with other dims."""
        self._meant[dim] = expr

    def resolve(self, expr: Expr) -> Expr:
        """Replace every dim by what it stands for; the result is in normal form."""
        if self._is_resolved(expr):
            return expr
        waiting = self._stale(expr)
        while waiting:
            dim = waiting[-1]
            deeper = self._stale(self._meant[dim])
            if deeper:
                waiting += deeper
            else:
                self._meant[dim] = self._replaced(self._meant[dim])
                waiting.pop()
        return self._replaced(expr)

    def _is_resolved(self, expr: Expr) -> bool:
        """Say whether every dim of an expression stands for itself."""
        if isinstance(expr, Dim):
            return expr not in self._meant
        if expr.facts.n_leaves <= MOST_LOOKED_FOR:
            return self._meant.keys().isdisjoint(leaves(expr))
        if not isinstance(expr, Joined):
            return all(map(self._is_resolved, children(expr)))
        if expr.meaning is not None:
            return False
        fresh = len(self._order) - expr.n_bound
        if fresh <= MOST_LOOKED_FOR:
            found = not any(occurs(dim, expr) for dim in self._order[expr.n_bound :])
        else:
            found = all(map(self._is_resolved, children(expr)))
        if found:
            expr.note_resolved(len(self._order))
        return found

    def _stale(self, expr: Expr) -> list[Dim]:
        """List the dims of an expression that stand for what is not resolved any more."""
        return [dim for dim in self._bound_in(expr) if not self._is_resolved(self._meant[dim])]

    def _bound_in(self, expr: Expr) -> Iterator[Dim]:
        """Yield the dims of an expression that stand for something else."""
        latest = _latest(expr)
        if self._is_resolved(latest):
            return
        if isinstance(latest, Dim):
            yield latest
            return
        for child in children(latest):
            yield from self._bound_in(child)

    def _replaced(self, expr: Expr) -> Expr:
        """Replace dims once; what they stand for is resolved.

        Long axes that were cut at different times have halves in common: those are replaced once.
        """
        latest = _latest(expr)
        if self._is_resolved(latest):
            return latest  # as most are, and making one takes longer than finding that out
        match latest:
            case Dim():
                return self._meant[latest]
            case Take(base=base, index=index):
                return take(self._replaced(base), index)
            case Product(factors=factors):
                return product(map(self._replaced, factors))
            case Joined():
                latest.meaning = join(map(self._replaced, children(latest)))
                return latest.meaning


def _latest(expr: Expr) -> Expr:
    """Return what an expression was last found to stand for."""
    latest = expr
    while isinstance(latest, Joined) and latest.meaning is not None:
        latest = latest.meaning
    if isinstance(expr, Joined) and latest is not expr:
        expr.meaning = latest
    return latest
