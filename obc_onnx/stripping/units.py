"""What the units of a dim own of an array, and how that compares from unit to unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import Dim, Joined, Product, leaves, mask, units_along
from obc_onnx.coupling.members import by_unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr

    Flags = NDArray[np.bool_]
    Labels = NDArray[np.int64]


def owned(axes: Sequence[Expr], dim: Dim, units: Flags) -> Flags:
    """Say which elements of a tensor some units own.

    Args:
        axes: Resolved axes of the tensor.
        dim: The dim.
        units: Which of its units, shape [n_units].
    Returns:
        A mask that broadcasts, of size 1 along axes that the dim does not lie on.
    """
    found = np.zeros([1] * len(axes), np.bool_)
    for axis, expr in _along(axes, dim):
        shape = [-1 if other == axis else 1 for other in range(len(axes))]
        found = found | ~mask(expr, {dim: ~units}).reshape(shape)
    return found


def any_of(axes: Sequence[Expr], dim: Dim, elements: Flags) -> Flags:
    """Say for each unit whether anything is true of what it owns, shape [n_units]."""
    found = np.zeros(dim.size, np.bool_)
    for axis, expr in _along(axes, dim):
        others = tuple(other for other in range(len(axes)) if other != axis)
        touched = np.asarray(elements.any(axis=others), np.float64)
        found |= by_unit(expr, dim, touched) > 0
    return found


def uniform(axes: Sequence[Expr], dim: Dim, array: NDArray[Any]) -> Flags:
    """Say for each unit whether all that it owns is one number, shape [n_units]."""
    low, high = np.full(dim.size, np.inf), np.full(dim.size, -np.inf)
    for axis, expr in _along(axes, dim):
        others = tuple(other for other in range(len(axes)) if other != axis)
        least, most = array.min(axis=others), array.max(axis=others)
        for owners in units_along(expr, dim):
            inside = owners >= 0
            np.minimum.at(low, owners[inside], least[inside])
            np.maximum.at(high, owners[inside], most[inside])
    return np.asarray(low == high)


def comparable(axes: Sequence[Expr], dim: Dim) -> bool:
    """Say whether units own elements that lie side by side: the k-th of one beside that of another.

    It is so where the dim lies on one axis and once, and no positions of it are picked.
    """
    places = [expr for expr in axes for leaf in leaves(expr) if leaf is dim]
    return len(places) == 1 and _is_regular(places[0])


def rows(axes: Sequence[Expr], dim: Dim, array: NDArray[Any]) -> NDArray[Any]:
    """Lay out what each unit owns, shape [n_units, elements]; the dim has to be `comparable`."""
    ((axis, _),) = _along(axes, dim)
    by_position = np.moveaxis(array, axis, 0)
    return by_position[positions(axes, dim)].reshape(dim.size, -1)


def positions(axes: Sequence[Expr], dim: Dim) -> NDArray[np.int64]:
    """List the positions of each unit along its axis, shape [n_units, positions of one]."""
    ((_, expr),) = _along(axes, dim)
    (owners,) = units_along(expr, dim)
    inside = np.flatnonzero(owners >= 0)
    return inside[np.argsort(owners[inside], kind="stable")].reshape(dim.size, -1)


def axis_of(axes: Sequence[Expr], dim: Dim) -> int:
    """Return the axis that a `comparable` dim lies on."""
    ((axis, _),) = _along(axes, dim)
    return axis


def alike(table: Sequence[Any]) -> Labels:
    """Number units so that equal entries, which have to be hashable, have equal numbers."""
    seen: dict[Any, int] = {}
    return np.asarray([seen.setdefault(entry, len(seen)) for entry in table], np.int64)


def _along(axes: Sequence[Expr], dim: Dim) -> Iterator[tuple[int, Expr]]:
    return ((axis, expr) for axis, expr in enumerate(axes) if dim in leaves(expr))


def _is_regular(expr: Expr) -> bool:
    match expr:
        case Dim():
            return True
        case Product(factors=children) | Joined(parts=children):
            return all(_is_regular(child) for child in children)
    return False
