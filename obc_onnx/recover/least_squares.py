"""Least squares from rows or second moments: a weight that gives wanted outputs, near the old one.

    [W' b'] = [W b] + E^T X (X^T X + lambda P)^-1,    E = Y - X [W b]^T

With a large lambda W' is W, so that it is never much worse. Lambda is chosen for each output by the
error on samples that the solution has not seen.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from obc_onnx.recover.residuals import DOUBLE, SINGLE, Left, LeftOfRows, LeftOfSums, squared

if TYPE_CHECKING:
    from collections.abc import Sequence

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean of the diagonal of X^T X."""
_PER_ROW = 2
"""Inputs for each row, at least, where rows are held: else moments take less time."""


class Fitted(NamedTuple):
    """A matrix that was found, and what it is worth.

    Attributes:
        matrix: Shape [blocks, outputs, inputs], float64.
        before: Squared error of what was there, over all outputs and the rows that judge.
        after: Of the matrix.
    """

    matrix: Tensor
    before: float
    after: float


class Moments:
    """Inputs and wanted outputs of a layer: few rows as they are, of many the sums.

    Args:
        blocks: How many the layer has.
        outputs: Of each.
        inputs: Of each; with a bias, one more that is always 1.

    Attributes:
        yy: Sums of squares of outputs, shape [blocks, outputs].
    """

    def __init__(self, blocks: int, outputs: int, inputs: int) -> None:
        self._shape = blocks, outputs, inputs
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._sums: tuple[Tensor, Tensor] | None = None
        self._knows_inputs = False
        self.yy = torch.zeros(blocks, outputs, dtype=DOUBLE)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows.

        Args:
            x: Shape [blocks, rows, inputs].
            y: Shape [blocks, rows, outputs].
        """
        self.yy += y.square().sum(1).to(self.yy)
        self._rows.append((x, y))
        few = _PER_ROW * sum(rows.shape[1] for rows, _ in self._rows) <= x.shape[2]
        if self._sums is not None or not few:
            self.sums()

    def add_sums(self, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
        """Add sums over rows.

        Args:
            xx: Products of inputs, shape [blocks, inputs, inputs].
            xy: Of inputs with outputs, shape [blocks, inputs, outputs].
            yy: Squares of outputs, shape [blocks, outputs].
        """
        self.yy += yy.to(self.yy)
        for sums, more in zip(self.sums(), (xx, xy), strict=True):
            sums.add_(more.cpu())

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return products of inputs, and of inputs with outputs; rows are held no longer."""
        if self._sums is None:
            blocks, outputs, inputs = self._shape
            xx = torch.zeros(blocks, inputs, inputs, dtype=DOUBLE)
            self._sums = xx, torch.zeros(blocks, inputs, outputs, dtype=DOUBLE)
        for x, y in self._rows:
            if not self._knows_inputs:
                self._sums[0].add_(squared(x).cpu())
            self._sums[1].add_((x.mT @ y).cpu())
        self._rows.clear()
        return self._sums

    def of_same_inputs(self) -> Moments:
        """Return those of the same inputs with other outputs, which have to be added for each."""
        other = Moments(*self._shape)
        if self._sums is not None:
            xx, xy = self._sums
            other._sums, other._knows_inputs = (xx, torch.zeros_like(xy)), True
        return other

    def left_by(self, matrix: Tensor) -> Left:
        """Return what a matrix leaves to explain.

        Args:
            matrix: Shape [blocks, outputs, inputs], float64.
        """
        if self._sums is not None or not self._rows:
            xx, xy = self.sums()
            wanted = xy - xx @ matrix.mT
            return LeftOfSums(xx, wanted, self.yy - ((xy + wanted) * matrix.mT).sum(1))
        x, y = (torch.cat(parts, 1).to(matrix) for parts in zip(*self._rows, strict=True))
        return LeftOfRows(x, y - x @ matrix.mT)


class Halves:
    """Moments of the chunks to solve with, and of those that judge what is found.

    Args:
        judges: Of each chunk, whether it judges; where none does, all do both.
        shape: What `Moments` takes.
    """

    def __init__(self, judges: Sequence[bool], shape: tuple[int, int, int]) -> None:
        self._judges = judges
        self.used = Moments(*shape)
        self.judge = Moments(*shape) if any(judges) else self.used

    def of(self, i: int) -> Moments:
        """Return where the rows of a chunk belong."""
        return self.judge if self._judges[i] else self.used

    def of_same_inputs(self) -> Halves:
        """Return those of the same inputs with other outputs, which have to be added for each."""
        other = copy.copy(self)
        other.used = self.used.of_same_inputs()
        other.judge = other.used if self.judge is self.used else self.judge.of_same_inputs()
        return other


def solve(
    used: Moments, held: Moments, matrix: Tensor, *, biased: bool, least: float = 0.0
) -> Fitted:
    """Find the best matrix for each output.

    The pull that is best for an output on the rows that were held out is the one with which all
    rows are solved for; where none is better than what is there, that stays.

    Args:
        used: Of the rows to choose the pull with.
        held: Of others.
        matrix: What is there, shape [blocks, outputs, inputs], float64.
        biased: Whether the last input is always 1; it is hardly pulled.
        least: An error on the held rows that is not lessened, over all outputs.
    """
    judge = held.left_by(matrix)
    before = float(judge.total.sum())
    if before <= least:
        return Fitted(matrix, before, before)
    known = judge if held is used else used.left_by(matrix)
    pulls = _choose(_Equations(known, biased=biased), judge)
    everything = judge if held is used else known.joined(judge)
    del known
    equations = _Equations(everything, biased=biased)
    change = torch.zeros_like(matrix)
    for number, ridge in enumerate(_RIDGES):
        own = pulls == number
        if own.any():
            some = own.any(0).nonzero()[:, 0]
            found = equations.change(ridge, some).to(change)
            good = own[:, some] & found.isfinite().all(-1)
            change[:, some] = torch.where(good[..., None], found, change[:, some])
    return Fitted(matrix + change, before, float(judge.error(change).sum()))


def _choose(equations: _Equations, judge: Left) -> Tensor:
    """Return the number of the best pull for each output, shape [blocks, outputs]; -1 for none."""
    least, best = judge.total, torch.full(judge.total.shape, -1)
    everything = torch.arange(best.shape[1])
    for number, ridge in enumerate(_RIDGES):
        error = judge.error(equations.change(ridge, everything))
        best = torch.where(error < least, number, best)
        least = torch.where(error < least, error, least)
    return best


class _Equations:
    """What has to be solved for a change, in single precision as long as that can be done.

    It takes 0.6 of the time that double precision takes. Moments are sums of products in single
    precision, so that they know no more; and what is found is judged on other rows.
    """

    def __init__(self, left: Left, *, biased: bool) -> None:
        self._left, self._biased = left, biased
        self._system = left.system(SINGLE, biased=biased)

    def change(self, ridge: float, outputs: Tensor) -> Tensor:
        """Return the change of some outputs, see `System`."""
        found = self._system.change(ridge, outputs)
        if self._system.wanted.dtype == SINGLE and not found.isfinite().all():
            self._system = self._left.system(DOUBLE, biased=self._biased)
            found = self._system.change(ridge, outputs)
        return found
