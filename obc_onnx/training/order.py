"""Which samples make up which step, and at what rate it goes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.training.options import Training, TrainingOptions

_LEAST = 2
"""Samples that a process needs for the statistics of a norm."""
_STEP = 0.1
"""What the rate is multiplied by at a milestone."""


class Order:
    """Every sample once in each epoch, in an order that the seed and the epoch decide.

    A last batch that is too small for statistics joins the one before, where sizes are free: those
    of a single sample are not defined after global pooling.

    Args:
        n_samples: How many there are.
        own: The batch that the model takes, None where it is dynamic.
        training: Says how many samples make a batch otherwise, and the seed.
        n_processes: Each of which takes an equal share of every batch.

    Attributes:
        size: How many samples make a batch.
        starts: Where batches begin in the order of an epoch.
    """

    def __init__(
        self, n_samples: int, own: int | None, training: Training, n_processes: int
    ) -> None:
        self.size = (
            training.options.samples_per_step(n_samples) if own is None else own * n_processes
        )
        self._n_samples, self._seed = n_samples, training.seed
        self.starts = list(range(0, n_samples, self.size))
        if own is not None:
            self._n_samples = n_samples // self.size * self.size
            self.starts = self.starts[: self._n_samples // self.size]
        elif len(self.starts) > 1 and n_samples - self.starts[-1] < _LEAST * n_processes:
            self.starts.pop()
        if not self.starts or n_samples < n_processes:
            raise RequestError(
                f"{n_samples} samples are too few for {n_processes} processes that take "
                f"{own or 1} each"
            )

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the places of the samples of each batch."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._n_samples)
        ends = [*self.starts[1:], self._n_samples]
        return [order[start:end] for start, end in zip(self.starts, ends, strict=True)]


def rate(step: int, steps: int, options: TrainingOptions) -> float:
    """Return the learning rate of a step over its largest: a linear rise, then the schedule."""
    rise = max(1, round(options.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "step":
        return float(_STEP ** sum(step >= share * steps for share in options.milestones))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
