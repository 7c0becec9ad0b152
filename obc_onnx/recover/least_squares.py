"""Least squares: a weight that gives wanted outputs, near the old one.

    [W' b'] = [W b] + E^T X (X^T X + lambda P)^-1,    E = Y - X [W b]^T

P is the mean square of the inputs, and little of it for a bias. With a large lambda W' is W, so
that it is never much worse. Lambda is chosen for each output by the error on samples that the
solution has not seen.

Many rows are summed up to second moments. Few are held as they are: then, in coordinates where P
is 1, X^T (X X^T + lambda)^-1 E is the same with as many equations as there are rows. Both matrices
are symmetric and positive, which is what Cholesky's factors are for; one eigendecomposition for
all lambdas takes as long as fourteen of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean of the diagonal of X^T X."""
_OF_BIAS = 1e-4
"""Of the pull of a weight."""
_PER_ROW = 2
"""Inputs for each row, at least, where rows are held: else moments take less time."""
_FAINT = 1e-12
"""Of the mean square of all inputs: that of one counts as no less."""
_STRIP = 256
"""Inputs of a strip of second moments: of 1,000 to 3,000, this takes two thirds of the time."""
_SINGLE, _DOUBLE = torch.float32, torch.float64


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
        self.yy = torch.zeros(blocks, outputs, dtype=_DOUBLE)

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
            xx = torch.zeros(blocks, inputs, inputs, dtype=_DOUBLE)
            self._sums = xx, torch.zeros(blocks, inputs, outputs, dtype=_DOUBLE)
        for x, y in self._rows:
            for sums, more in zip(self._sums, (_squared(x), x.mT @ y), strict=True):
                sums.add_(more.cpu())
        self._rows.clear()
        return self._sums

    def __add__(self, other: Moments) -> Moments:
        """Return those of the rows of both."""
        found = Moments(*self._shape)
        found.yy = self.yy + other.yy
        if self._sums is None and other._sums is None:
            found._rows = [*self._rows, *other._rows]
        else:
            (xx, xy), (more_xx, more_xy) = self.sums(), other.sums()
            found._sums = xx + more_xx, xy + more_xy
        return found

    def left_by(self, matrix: Tensor) -> Left:
        """Return what a matrix leaves to explain.

        Args:
            matrix: Shape [blocks, outputs, inputs], float64.
        """
        if self._sums is not None or not self._rows:
            return _LeftOfSums(*self.sums(), self.yy, matrix)
        x, y = (torch.cat(parts, 1).to(matrix) for parts in zip(*self._rows, strict=True))
        return _LeftOfRows(x, y, matrix)


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
    pulls = _choose(_Equations(used.left_by(matrix), biased=biased), judge)
    change = torch.zeros_like(matrix)
    equations = _Equations((used + held).left_by(matrix), biased=biased)
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
    """What has to be solved for a change, in single precision as long as that can be done."""

    def __init__(self, left: Left, *, biased: bool) -> None:
        self._left, self._biased = left, biased
        self._system = left.system(_SINGLE, biased=biased)

    def change(self, ridge: float, outputs: Tensor) -> Tensor:
        """Return the change of some outputs, see `_System`."""
        found = self._system.change(ridge, outputs)
        if self._system.wanted.dtype == _SINGLE and not found.isfinite().all():
            self._system = self._left.system(_DOUBLE, biased=self._biased)
            found = self._system.change(ridge, outputs)
        return found


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
    def system(self, dtype: torch.dtype, *, biased: bool) -> _System:
        """Return what has to be solved for a change.

        Args:
            dtype: Of the equations, where that is precise enough.
            biased: Whether the last input is always 1.
        """


class _System(NamedTuple):
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


class _LeftOfRows(Left):
    """Of rows that are held.

    Args:
        x: Shape [blocks, rows, inputs], float64.
        y: Shape [blocks, rows, outputs].
        matrix: Shape [blocks, outputs, inputs].
    """

    def __init__(self, x: Tensor, y: Tensor, matrix: Tensor) -> None:
        self._x, self._wanted = x, y - x @ matrix.mT
        self.total = self._wanted.square().sum(1)

    def error(self, change: Tensor) -> Tensor:
        """Return what rows differ."""
        return (self._wanted - self._x @ change.to(self._x).mT).square().sum(1)

    def system(self, dtype: torch.dtype, *, biased: bool) -> _System:
        """Return an equation for each row, in double precision: a bias outweighs all else."""
        del dtype
        scale = _pulls(self._x.square().sum(1), biased=biased).rsqrt()[:, None]
        rows = self._x * scale
        alike = torch.ones_like(rows[..., 0])
        return _System(rows @ rows.mT, alike, self._wanted, scale, rows)


class _LeftOfSums(Left):
    """Of second moments, each input on its own scale, so that single precision knows all of them.

    Args:
        xx: Products of inputs.
        xy: Of inputs with outputs.
        yy: Squares of outputs.
        matrix: Shape [blocks, outputs, inputs].
    """

    def __init__(self, xx: Tensor, xy: Tensor, yy: Tensor, matrix: Tensor) -> None:
        wanted = xy - xx @ matrix.mT
        self.total = (yy - ((xy + wanted) * matrix.mT).sum(1)).clamp_min(0)
        self._squares = xx.diagonal(dim1=1, dim2=2)
        faint = _FAINT * self._squares.mean(1, keepdim=True)
        self._scale = torch.where(faint > 0, self._squares + faint, 1.0).rsqrt()
        self._xx, self._wanted = xx, wanted * self._scale[..., None]

    def error(self, change: Tensor) -> Tensor:
        """Return the total less what is explained."""
        own = (change / self._scale[:, None].to(change)).float()
        curved = ((own @ self._single) * own).sum(-1)
        gained = 2 * (own * self._wanted.mT.to(own)).sum(-1) - curved
        return (self.total - gained).clamp_min(0)

    def system(self, dtype: torch.dtype, *, biased: bool) -> _System:
        """Return an equation for each input."""
        pull = _pulls(self._squares, biased=biased) * self._scale.square()
        matrix = self._single if dtype == _SINGLE else self._scaled()
        scale = self._scale[:, None]
        return _System(matrix, pull.to(dtype), self._wanted.to(dtype), scale.to(dtype))

    @cached_property
    def _single(self) -> Tensor:
        return self._scaled().to(_SINGLE)

    def _scaled(self) -> Tensor:
        return (self._xx * self._scale[:, None]).mul_(self._scale[..., None])


def _squared(x: Tensor) -> Tensor:
    """Return X^T X, strip by strip up to the diagonal: what is beyond it is known.

    Args:
        x: Shape [blocks, rows, inputs].
    """
    blocks, _, inputs = x.shape
    found = x.new_empty(blocks, inputs, inputs)
    for start in range(0, inputs, _STRIP):
        stop = min(start + _STRIP, inputs)
        strip = x[..., start:stop].mT @ x[..., :stop]
        found[:, start:stop, :stop] = strip
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
