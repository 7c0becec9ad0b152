"""Which units own the positions of an axis, as saliency counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.axes import units_along

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.axes import Dim, Expr


def owners_along(expr: Expr, dim: Dim) -> list[NDArray[np.int64]]:
    """Say which units of `dim` own each position of an axis, a unit once for each position.

    A product that names `dim` twice gives positions (i, j) to both units; (i, i) goes with unit i
    and counts once.

    Returns:
        Arrays of shape [expr.size] with a unit's index, or -1 where there is none.
    """
    found: list[NDArray[np.int64]] = []
    for owners in units_along(expr, dim):
        fresh = owners.copy()
        for earlier in found:
            fresh[owners == earlier] = -1
        found.append(fresh)
    return found
