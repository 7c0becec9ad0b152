"""A weight as a product of two, sorted by what each direction adds to the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.low_rank.moments import Moment

    Matrix = NDArray[np.float64]

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""How much of a moment may be that of inputs which all count alike."""


def factors_of(weight: Matrix, moment: Moment | None = None) -> tuple[Matrix, Matrix]:
    """Write a weight as a product, so that a few of its terms give the output best.

    The first `k` terms leave the least squared error of the output that any product of rank `k`
    can, for inputs of that moment. A moment of few samples says too much of directions, so it is
    mixed with that of inputs which all count alike; each half of the samples says how well that
    does of the other one's directions.

    Args:
        weight: Shape [outputs, inputs].
        moment: Of the inputs; None counts all of them alike.
    Returns:
        What comes second, with orthonormal columns, shape [outputs, rank], and what comes first,
        shape [rank, inputs]. The rank is the smaller side of the weight, and the product is the
        weight but for rounding.
    Source: the reduced-rank regression of Izenman, Journal of Multivariate Analysis 5 (1975).
    """
    height, width = weight.shape
    basis, core = np.linalg.qr(weight) if height > width else (np.eye(height), weight)
    seen = np.eye(width) if moment is None else _shrunk(core, moment)
    second = basis @ _directions(core, seen)
    return second, second.T @ weight


def _directions(weight: Matrix, moment: Matrix) -> Matrix:
    """Return the directions of outputs, those in which most happens first, in columns."""
    _, turn = np.linalg.eigh(weight @ moment @ weight.T)
    return np.asarray(turn[:, ::-1])


def _shrunk(weight: Matrix, moment: Moment) -> Matrix:
    """Mix a moment by the share that does best on samples which it does not know."""
    halves = moment.halves
    if not all(np.isfinite(half).all() and np.trace(half) > 0 for half in halves):
        return np.eye(weight.shape[1])

    def lost(share: float) -> float:
        one, other = halves
        pairs = ((one, other), (other, one))
        return sum(_left_over(weight, _mixed(a, share), b) for a, b in pairs)

    return _mixed(moment.whole, min(SHARES, key=lost))


def _left_over(weight: Matrix, moment: Matrix, others: Matrix) -> float:
    """Return what directions leave of the outputs of other samples, summed over all ranks."""
    turned = _directions(weight, moment).T @ weight
    energies = np.einsum("ki,ij,kj->k", turned, others, turned, optimize=True)
    return float(energies @ np.arange(len(energies))) / float(energies.sum())


def _mixed(moment: Matrix, share: float) -> Matrix:
    """Mix a moment with that of inputs which all count alike."""
    width = len(moment)
    alike = float(np.trace(moment)) / width or 1.0
    return np.asarray((1 - share) * moment + share * alike * np.eye(width))
