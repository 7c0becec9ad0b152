"""What a matrix leaves to explain of outputs, and the equations for a change that explains it.

    E^T X (X^T X + lambda P)^-1 = (X^T X + lambda P)^-1 X^T E,    E = Y - X [W b]^T

P is the mean square of the inputs, and little of it for a bias. Of few rows, in coordinates where P
is 1, X^T (X X^T + lambda)^-1 E is the same with as many equations as there are rows. Both matrices
are symmetric and positive, which is what Cholesky's factors are for; one eigendecomposition for
all lambdas takes as long as fourteen of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_OF_BIAS = 1e-4
"""Of the pull of a weight."""
_FAINT = 1e-12
"""Of the mean square of all inputs: that of one counts as no less."""
_STRIP = 256
"""Inputs of a strip of second moments: of 1,000 to 3,000, this takes two thirds of the time."""
SINGLE, DOUBLE = torch.float32, torch.float64


class Left(ABC):
    """What a matrix leaves to explain of outputs.

    Attributes:
        total: Sum of its squares, shape [blocks, outputs].
    """

    total: Tensor

    @abstractmethod
    def error(self, change: Tensor) -> Tensor:
        """Return the sum of squares with a change of the matrix, shape [blocks, outputs].

        Args:
            change: Shape [blocks, outputs, inputs].
        """

    @abstractmethod
    def system(self, dtype: torch.dtype, *, biased: bool) -> System:
        """Return what has to be solved for a change.

        Args:
            dtype: Of the equations, where that is precise enough.
            biased: Whether the last input is always 1.
        """

    @abstractmethod
    def summed(self) -> LeftOfSums:
        """Return the same of second moments."""

    def joined(self, other: Left) -> Left:
        """Return what the matrix leaves of both."""
        own, more = self.summed(), other.summed()
        total, wanted = self.total + other.total, own.wanted + more.wanted
        return LeftOfSums(own.products + more.products, wanted, total)


class System(NamedTuple):
    """Equations (A + ridge P) Z = B, with which the change of the matrix is Z^T L.

    Attributes:
        matrix: A, shape [blocks, equations, equations].
        pull: P, which is diagonal, shape [blocks, equations].
        wanted: B, shape [blocks, equations, outputs].
        scale: Of each input, shape [blocks, 1, inputs]: L, or what it is multiplied by.
        rows: L without that, shape [blocks, equations, inputs]; None where it is the identity.
    """

    matrix: Tensor
    pull: Tensor
    wanted: Tensor
    scale: Tensor
    rows: Tensor | None = None

    def change(self, ridge: float, outputs: Tensor) -> Tensor:
        """Solve with one pull, shape [blocks, outputs, inputs]; not finite where that fails.

        Args:
            ridge: The share of the pull.
            outputs: The numbers of those to solve for.
        """
        pulled = self.matrix.clone()
        pulled.diagonal(dim1=1, dim2=2).add_(self.pull, alpha=ridge)
        factor, failed = torch.linalg.cholesky_ex(pulled)
        found = torch.cholesky_solve(self.wanted[..., outputs], factor).mT
        found = torch.where((failed == 0)[:, None, None], found, torch.nan)
        return (found if self.rows is None else found @ self.rows) * self.scale


class LeftOfRows(Left):
    """Of rows that are held.

    Args:
        x: Inputs, shape [blocks, rows, inputs], float64.
        wanted: What is left of the outputs, shape [blocks, rows, outputs].
    """

    def __init__(self, x: Tensor, wanted: Tensor) -> None:
        self.x, self.wanted = x, wanted
        self.total = wanted.square().sum(1)

    def error(self, change: Tensor) -> Tensor:
        """Return what rows differ."""
        return (self.wanted - self.x @ change.to(self.x).mT).square().sum(1)

    def system(self, dtype: torch.dtype, *, biased: bool) -> System:
        """Return an equation for each row, in double precision: a bias outweighs all else."""
        del dtype
        scale = _pulls(self.x.square().sum(1), biased=biased).rsqrt()[:, None]
        rows = self.x * scale
        alike = torch.ones_like(rows[..., 0])
        return System(rows @ rows.mT, alike, self.wanted, scale, rows)

    def summed(self) -> LeftOfSums:
        """Return the same of second moments."""
        return LeftOfSums(squared(self.x), self.x.mT @ self.wanted, self.total)

    def joined(self, other: Left) -> Left:
        """Return what the matrix leaves of both: rows, where both hold them."""
        if not isinstance(other, LeftOfRows):
            return super().joined(other)
        x = torch.cat([self.x, other.x], 1)
        return LeftOfRows(x, torch.cat([self.wanted, other.wanted], 1))


class LeftOfSums(Left):
    """Of second moments, each input on its own scale, so that single precision knows all of them.

    Args:
        products: Of inputs, shape [blocks, inputs, inputs], float64.
        wanted: Products of inputs and what is left of outputs, shape [blocks, inputs, outputs].
        total: Squares of that, shape [blocks, outputs].
    """

    def __init__(self, products: Tensor, wanted: Tensor, total: Tensor) -> None:
        self.products, self.wanted, self.total = products, wanted, total.clamp_min(0)
        self._squares = products.diagonal(dim1=1, dim2=2)
        faint = _FAINT * self._squares.mean(1, keepdim=True)
        self._scale = torch.where(faint > 0, self._squares + faint, 1.0).rsqrt()[:, None]

    def error(self, change: Tensor) -> Tensor:
        """Return the total less what is explained."""
        own = (change / self._scale.to(change)).to(SINGLE)
        curved = ((own @ self._single) * own).sum(-1)
        gained = 2 * (own * self._scaled_wanted.mT).sum(-1) - curved
        return (self.total - gained).clamp_min(0)

    def system(self, dtype: torch.dtype, *, biased: bool) -> System:
        """Return an equation for each input."""
        pull = _pulls(self._squares, biased=biased)[:, None] * self._scale.square()
        single = dtype == SINGLE
        matrix = self._single if single else self._scaled()
        wanted = self._scaled_wanted if single else self.wanted * self._scale.mT
        return System(matrix, pull[:, 0].to(dtype), wanted, self._scale.to(dtype))

    def summed(self) -> LeftOfSums:
        """Return itself."""
        return self

    @cached_property
    def _single(self) -> Tensor:
        return self._scaled().to(SINGLE)

    @cached_property
    def _scaled_wanted(self) -> Tensor:
        return (self.wanted * self._scale.mT).to(SINGLE)

    def _scaled(self) -> Tensor:
        return (self.products * self._scale).mul_(self._scale.mT)


def squared(x: Tensor) -> Tensor:
    """Return X^T X, strip by strip up to the diagonal: what is beyond it is known.

    Args:
        x: Shape [blocks, rows, inputs].
    """
    blocks, _, inputs = x.shape
    found = x.new_empty(blocks, inputs, inputs)
    for start in range(0, inputs, _STRIP):
        stop = min(start + _STRIP, inputs)
        strip = x[..., start:stop].mT @ x[..., :stop]
        last = strip[..., start:]  # a product of matrices may round both sides of it differently
        found[:, start:stop, :start] = strip[..., :start]
        found[:, start:stop, start:stop] = last.tril() + last.tril(-1).mT
        found[:, :start, start:stop] = strip[..., :start].mT
    return found


def _pulls(squares: Tensor, *, biased: bool) -> Tensor:
    """Return how much each input is pulled: the mean square of weights' inputs, any if that is 0.

    Args:
        squares: Sums of squares of inputs, shape [blocks, inputs].
        biased: Whether the last one belongs to a bias.
    """
    inputs = squares.shape[1]
    mean = squares[:, : inputs - 1 if biased and inputs > 1 else inputs].mean(1, keepdim=True)
    pulls = torch.where(mean > 0, mean, 1.0).repeat(1, inputs)
    if biased:
        pulls[:, -1] *= _OF_BIAS
    return pulls
