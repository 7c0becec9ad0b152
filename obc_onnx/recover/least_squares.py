"""Least squares from second moments: a weight that gives wanted outputs, near the old one.

    [W' b'] = (Y^T X + lambda [W b]) (X^T X + lambda I)^-1

With a large lambda W' is W, so that it is never much worse. Lambda is chosen for each output by the
error on samples that the solution has not seen, which the moments of those give.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean of the diagonal of X^T X."""


class Moments:
    """Sums over rows, for each block of a layer.

    Args:
        blocks: How many.
        outputs: Of each.
        inputs: Of each; with a bias, one more that is always 1.

    Attributes:
        xx: Products of inputs, shape [blocks, inputs, inputs].
        xy: Of inputs with outputs, shape [blocks, inputs, outputs].
        yy: Squares of outputs, shape [blocks, outputs].
    """

    def __init__(self, blocks: int, outputs: int, inputs: int) -> None:
        double = torch.float64
        self.xx = torch.zeros(blocks, inputs, inputs, dtype=double)
        self.xy = torch.zeros(blocks, inputs, outputs, dtype=double)
        self.yy = torch.zeros(blocks, outputs, dtype=double)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows.

        Args:
            x: Shape [blocks, rows, inputs].
            y: Shape [blocks, rows, outputs].
        """
        self.add_sums(x.mT @ x, x.mT @ y, y.square().sum(1))

    def add_sums(self, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
        """Add sums over rows, of the shapes of the attributes."""
        self.xx += xx.double().cpu()
        self.xy += xy.double().cpu()
        self.yy += yy.double().cpu()

    def __add__(self, other: Moments) -> Moments:
        """Return the sums over the rows of both."""
        found = Moments(len(self.yy), self.yy.shape[1], self.xx.shape[1])
        found.xx, found.xy = self.xx + other.xx, self.xy + other.xy
        found.yy = self.yy + other.yy
        return found

    def error(self, matrix: Tensor) -> Tensor:
        """Return the sum of squared errors of each output, shape [blocks, outputs].

        Args:
            matrix: Shape [blocks, outputs, inputs].
        """
        crossed = (matrix * self.xy.mT).sum(-1)
        squared = ((matrix @ self.xx) * matrix).sum(-1)
        return (self.yy - 2 * crossed + squared).clamp_min(0)


class Halves:
    """Moments of the chunks to solve with, and of the last ones, which judge what is found.

    Args:
        n_chunks: How many there are.
        n_held: How many of them judge; with none, all do both.
        shape: What `Moments` takes.
    """

    def __init__(self, n_chunks: int, n_held: int, shape: tuple[int, int, int]) -> None:
        self._n_used = n_chunks - n_held
        self.used = Moments(*shape)
        self.judge = Moments(*shape) if n_held else self.used

    def of(self, i: int) -> Moments:
        """Return where the rows of a chunk belong."""
        return self.used if i < self._n_used else self.judge


def solve(used: Moments, held: Moments, matrix: Tensor, *, biased: bool) -> Tensor:
    """Find the best matrix for each output, shape [blocks, outputs, inputs].

    The pull that is best for an output on the rows that were held out is the one with which all
    rows are solved for; where none is better than what is there, that stays.

    Args:
        used: Of the rows to choose the pull with.
        held: Of others.
        matrix: What is there, shape [blocks, outputs, inputs], float64.
        biased: Whether the last input is always 1; it is not pulled.
    """
    best, least = matrix, held.error(matrix)
    together = used + held
    for ridge in _RIDGES:
        error = held.error(_pulled(used, matrix, ridge, biased=biased))
        found = _pulled(together, matrix, ridge, biased=biased)
        better = (error < least) & found.isfinite().all(-1)
        best = torch.where(better[:, :, None], found, best)
        least = torch.where(better, error, least)
    return best


def _pulled(moments: Moments, matrix: Tensor, ridge: float, *, biased: bool) -> Tensor:
    """Solve with one pull; not finite where that cannot be done."""
    inputs = matrix.shape[-1]
    diagonal = moments.xx.diagonal(dim1=1, dim2=2)
    weights = diagonal[:, : inputs - 1] if biased and inputs > 1 else diagonal
    scale = ridge * weights.mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    pull = scale[:, None].expand(-1, inputs).clone()
    if biased:
        pull[:, -1] *= _RIDGES[0]
    left = moments.xx + torch.diag_embed(pull)
    found, failed = torch.linalg.solve_ex(left, moments.xy + pull[:, :, None] * matrix.mT)
    return torch.where((failed == 0)[:, None, None], found, torch.nan).mT
