"""Tie two axes position by position, where their layouts cross.

Applies where no position of either axis belongs to two free units: then "position i of one is
position i of the other" is an equivalence between units, and each class becomes a unit of a
new dim. This is how a channel shuffle followed by a split stays prunable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import Dim, Joined, Product, Take, leaves
from obc_onnx.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr

MOST_POSITIONS = 2**20
"""Axes that are longer are not looked at position by position."""
HELD = -1
"""The owner of a position that belongs to no free unit."""


@dataclass(frozen=True)
class Ties:
    """Classes of tied units: the free ones come first, then the held ones."""

    n_free: int
    n_held: int
    index_of: dict[Dim, tuple[int, ...]]
    """For each free dim, the class of each of its units."""


def has_single_owners(left: Expr, right: Expr, is_free: Callable[[Dim], bool]) -> bool:
    """Say whether no position of either axis belongs to two free units."""
    offset, _ = _offsets(left, right, is_free)
    return _owners(left, offset) is not None and _owners(right, offset) is not None


def tied_positions(left: Expr, right: Expr, is_free: Callable[[Dim], bool]) -> Ties:
    """Find which units two axes of equal size tie together.

    Args:
        left: A resolved axis expression.
        right: Another one of the same size; `has_single_owners` must hold for the two.
        is_free: Whether units of a dim may be removed.

    Returns:
        The classes of units.

    Raises:
        InvariantError: A position has two free owners.
    """
    offset, n_units = _offsets(left, right, is_free)
    owners_left, owners_right = _owners(left, offset), _owners(right, offset)
    if owners_left is None or owners_right is None:
        raise InvariantError(f"cannot tie {left} with {right}: a position has two owners")
    parent = list(range(n_units + 1))  # the last one stands for everything held
    for a, b in zip(owners_left % (n_units + 1), owners_right % (n_units + 1), strict=True):
        _union(parent, int(a), int(b))
    return _classes(parent, offset)


def _offsets(left: Expr, right: Expr, is_free: Callable[[Dim], bool]) -> tuple[dict[Dim, int], int]:
    """Number the units of all free dims, in order of occurrence; and count them."""
    offset: dict[Dim, int] = {}
    n_units = 0
    for dim in dict.fromkeys([*leaves(left), *leaves(right)]):
        if is_free(dim):
            offset[dim] = n_units
            n_units += dim.size
    return offset, n_units


def _classes(parent: list[int], offset: dict[Dim, int]) -> Ties:
    """Number the classes in order of their first unit: free classes, then held units."""
    held_root = _find(parent, len(parent) - 1)
    roots = [_find(parent, unit) for unit in range(len(parent) - 1)]
    free = {root: i for i, root in enumerate(dict.fromkeys(r for r in roots if r != held_root))}
    held = iter(range(len(free), len(free) + roots.count(held_root)))
    numbers = [free[root] if root != held_root else next(held) for root in roots]
    index_of = {dim: tuple(numbers[start : start + dim.size]) for dim, start in offset.items()}
    return Ties(len(free), roots.count(held_root), index_of)


def _owners(expr: Expr, offset: dict[Dim, int]) -> NDArray[np.int64] | None:
    """Number the free unit that owns each position, HELD where none; None where two do."""
    match expr:
        case Dim():
            start = offset.get(expr)
            return np.full(expr.size, HELD) if start is None else start + np.arange(expr.size)
        case Joined(parts=parts):
            columns = [_owners(part, offset) for part in parts]
            known = [column for column in columns if column is not None]
            return np.concatenate(known) if len(known) == len(columns) else None
        case Take(base=base, index=index):
            owners = _owners(base, offset)
            return None if owners is None else owners[np.asarray(index, np.int64)]
        case Product(factors=factors):
            shape = tuple(factor.size for factor in factors)
            total = np.full(shape, HELD)
            for axis, factor in enumerate(factors):
                owners = _owners(factor, offset)
                if owners is None:
                    return None
                view = [1] * len(shape)
                view[axis] = factor.size
                spread = np.broadcast_to(owners.reshape(view), shape)
                if np.any((spread != HELD) & (total != HELD)):
                    return None
                total = np.where(spread == HELD, total, spread)
            return total.reshape(-1)


def _find(parent: list[int], unit: int) -> int:
    while parent[unit] != unit:
        parent[unit] = parent[parent[unit]]
        unit = parent[unit]
    return unit


def _union(parent: list[int], a: int, b: int) -> None:
    a, b = _find(parent, a), _find(parent, b)
    if a != b:
        parent[max(a, b)] = min(a, b)
