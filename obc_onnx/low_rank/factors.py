"""A weight as a product of two, sorted by what each direction adds to the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

_RIDGE = 1e-6
"""Share of the mean square that is added to every input: what never moved keeps its direction."""


def factors_of(weight: Matrix, moment: Matrix | None = None) -> tuple[Matrix, Matrix]:
    """Write a weight as a product, so that a few of its terms give the output best.

    The first `k` terms leave the least squared error of the output on the samples that any product
    of rank `k` can: the singular value decomposition of the weight times a root of the moment.

    Args:
        weight: Shape [outputs, inputs].
        moment: The mean of products of inputs, shape [inputs, inputs]; None counts all alike.
    Returns:
        What comes second, with orthonormal columns, shape [outputs, rank], and what comes first,
        shape [rank, inputs]. The rank is the smaller side of the weight, and the product is the
        weight but for rounding.
    Source: the reduced-rank regression of Izenman, Journal of Multivariate Analysis 5 (1975).
    """
    seen = weight if moment is None else weight @ _root(moment)
    second, _, _ = np.linalg.svd(seen, full_matrices=False)
    return second, second.T @ weight


def _root(moment: Matrix) -> Matrix:
    """Return a square root, which a small ridge makes regular."""
    mean = float(np.trace(moment)) / len(moment)
    ridge = _RIDGE * mean if mean > 0 else 1.0
    return np.asarray(np.linalg.cholesky(moment + ridge * np.eye(len(moment))))
