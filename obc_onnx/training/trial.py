"""The learning rate, where none is given: short trainings at falling rates, judged apart.

They also decide whether batch norms keep the statistics that they store.

A short training favours small rates: they do no harm, and what a large one stirs up has no time to
settle. So what did best in a trial is best in the training only where that is as short. The longer
it is, the more it counts that a rate helps at all: with more steps to fall in it helps more, and a
large one goes farther. Where samples are few, no rate may help in a trial by more than chance, and
the least rate would look best, at which nothing is learned. Then one of the largest two is taken
that do no more harm than settles; `docs/training.md` has figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from obc_onnx.training.options import NormsName, OptimizerName

RATES: dict[OptimizerName, tuple[float, ...]] = {
    "sgd": (0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4),
    "adamw": (0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5),
}
"""What is tried, the largest first."""
_SHARE = 1 / 25
"""Of the steps of the training, for each trial; four or five of them usually tell."""
_LEAST = 64
"""Steps of a trial, or a pass: in fewer, what single samples stir up outweighs what is learned."""
_TELLS = 0.02
"""Share of the error that a trial has to gain to say more than chance does."""
_SETTLES = 0.15
"""Share of the error by which a trial may end worse: more harm than that is no chance."""


@dataclass(frozen=True)
class Trial:
    """A short training.

    Attributes:
        lr: Its largest learning rate.
        norms: The statistics that batch norms trained with.
        error: What the network was judged by after it; infinite where it diverged.
        taken: Whether the training goes at this rate, with these statistics.
    """

    lr: float
    norms: NormsName
    error: float
    taken: bool = False


def trial_steps(per_epoch: int, total: int) -> int:
    """Return how many steps each trial takes: a pass over the samples at most."""
    return min(per_epoch, max(_LEAST, round(total * _SHARE)))


def run_trials(
    measure: Callable[[float, NormsName], float],
    before: float,
    rates: Sequence[float],
    modes: Sequence[NormsName],
    share: float,
) -> list[Trial]:
    """Try falling rates until one helps, and a smaller one only where it helps far more.

    Every mode of norms is tried at each rate, as that of a batch bears larger ones; below a rate
    that helps, only the mode that did. Where one neither helps nor harms, nor does the next one
    help, trials do not tell, and the better of the two is taken. Where all harm, the least harm is.

    Args:
        measure: Trains a little at a rate, in a mode, and judges; always from the same start.
        before: What the network is judged by at the start.
        rates: The largest first.
        modes: Of norms.
        share: Of the steps of the training that a trial takes. A smaller rate is preferred where
            this share of what it gains is more than what the larger one gains.
    Returns:
        All trials, in order; one of them is taken.
    """
    trials: list[Trial] = []
    found: Trial | None = None
    mute: Trial | None = None
    chance = 1 - share  # a trial as long as the training tells all
    for lr in rates:
        tried = [Trial(lr, mode, _finite(measure(lr, mode))) for mode in modes]
        trials += tried
        best = min(tried, key=_error)
        if found is None:
            if best.error < (1 - _TELLS * chance) * before:
                found, modes = best, (best.norms,)
            elif mute is not None:
                mute = min(mute, best, key=_error)
                break
            elif best.error < (1 + _SETTLES * chance) * before:
                mute = best
        elif share * (before - best.error) > before - found.error:
            found = best
        else:
            break
    least = min(reversed(trials), key=_error)  # of equals that at the smallest rate
    chosen = found or mute or least
    return [replace(trial, taken=trial is chosen) for trial in trials]


def taken_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial whose rate and statistics train."""
    return next(trial for trial in trials if trial.taken)


def _error(trial: Trial) -> float:
    return trial.error


def _finite(error: float) -> float:
    """Let what is not a number count as the largest error."""
    return error if math.isfinite(error) else math.inf
