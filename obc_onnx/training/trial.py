"""The learning rate, where none is given: short trainings at falling rates, judged apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.training.options import OptimizerName

_FIRST: dict[OptimizerName, float] = {"sgd": 0.03, "adamw": 0.003}
"""The largest rate that is tried: with it, networks train that were not trained before."""
_RATIO = 10**-0.5
MOST = 6
"""Rates that are tried: the last is a three-hundredth of the first."""
_SHARE = 1 / 20
"""Of the steps of the training, for each trial."""
_LEAST, _LARGEST = 16, 100
"""Steps of a trial: momentum takes about ten of them to build up."""


@dataclass(frozen=True)
class Trial:
    """A short training.

    Attributes:
        lr: Its largest learning rate.
        error: What the network was judged by after it; infinite where it diverged.
    """

    lr: float
    error: float


def trial_steps(per_epoch: int, total: int) -> int:
    """Return how many steps each trial takes: a pass over the samples at most."""
    return min(per_epoch, _LARGEST, max(_LEAST, round(total * _SHARE)))


def run_trials(
    measure: Callable[[float], float], before: float, optimizer: OptimizerName
) -> list[Trial]:
    """Try falling rates until one that helps is followed by one that helps less.

    Large rates come first, since a rate that is too small looks good in a short trial: it does no
    harm. So what is found first to help is not passed over for it.

    Args:
        measure: Trains a little at a rate, and judges; always from the same start.
        before: What the network is judged by at the start.
        optimizer: Decides the range of rates.
    """
    trials: list[Trial] = []
    for i in range(MOST):
        lr = float(f"{_FIRST[optimizer] * _RATIO**i:.1g}")
        error = measure(lr)
        trials.append(Trial(lr, error if math.isfinite(error) else math.inf))
        best = min(trial.error for trial in trials)
        if best < before and trials[-1].error > best:
            break
    return trials


def best_rate(trials: list[Trial]) -> float:
    """Return the rate of the best trial, the smallest of equals."""
    return min(trials, key=lambda trial: (trial.error, trial.lr)).lr
