"""The learning rate, where none is given: short trainings at falling rates, judged apart.

They also decide whether batch norms keep the statistics that they store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from obc_onnx.training.options import NormsName, OptimizerName

RATES: dict[OptimizerName, tuple[float, ...]] = {
    "sgd": (0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4),
    "adamw": (0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5),
}
"""What is tried, the largest first."""
_SHARE = 1 / 20
"""Of the steps of the training, for each trial."""
_LEAST, _LARGEST = 16, 100
"""Steps of a trial: momentum takes about ten of them to build up."""


@dataclass(frozen=True)
class Trial:
    """A short training.

    Attributes:
        lr: Its largest learning rate.
        norms: The statistics that batch norms trained with.
        error: What the network was judged by after it; infinite where it diverged.
    """

    lr: float
    norms: NormsName
    error: float


def trial_steps(per_epoch: int, total: int) -> int:
    """Return how many steps each trial takes: a pass over the samples at most."""
    return min(per_epoch, _LARGEST, max(_LEAST, round(total * _SHARE)))


def run_trials(
    measure: Callable[[float, NormsName], float],
    before: float,
    rates: Sequence[float],
    modes: Sequence[NormsName],
) -> list[Trial]:
    """Try falling rates until one that helps is followed by one that helps less.

    Large rates come first, since a rate that is too small looks good in a short trial: it does no
    harm. So what is found first to help is not passed over for it. Other modes of norms are tried
    at the rate that was found.

    Args:
        measure: Trains a little at a rate, in a mode, and judges; always from the same start.
        before: What the network is judged by at the start.
        rates: The largest first.
        modes: The first is that in which rates are tried.
    """
    trials: list[Trial] = []

    def run(lr: float, norms: NormsName) -> None:
        error = measure(lr, norms)
        trials.append(Trial(lr, norms, error if math.isfinite(error) else math.inf))

    for lr in rates:
        run(lr, modes[0])
        best = min(trial.error for trial in trials)
        if best < before and trials[-1].error > best:
            break
    found = best_of_trials(trials).lr
    for mode in modes[1:]:
        run(found, mode)
    return trials


def best_of_trials(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the least error, of equals that at the smallest rate."""
    return min(trials, key=lambda trial: (trial.error, trial.lr))
