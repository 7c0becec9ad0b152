"""How a training went, and what a user should know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.training.trial import taken_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.training.options import OptimizerName
    from obc_onnx.training.trial import Trial


@dataclass(frozen=True)
class Epoch:
    """What one pass over the samples gave; number 0 is the network before any.

    Attributes:
        loss: Mean over its steps, in training mode; None before the first.
        lr: Of its last step.
        validation: What a `Judge` measures on the samples that were held out, where there are some.
        accuracy: On the same, where there are labels.
        kept: Whether the network after it is the result.
    """

    number: int
    loss: float | None
    lr: float
    validation: float | None = None
    accuracy: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class Course:
    """How a training went.

    Attributes:
        epochs: One entry per epoch.
        trials: What the learning rate and the mode of norms were chosen by; empty where the rate
            was given.
        optimizer: What stepped.
        size: How many samples each step took.
        diverged: What broke it off, at a rate that trials have found; empty where nothing did.
    """

    epochs: list[Epoch]
    trials: list[Trial]
    optimizer: OptimizerName
    size: int
    diverged: str = ""

    @property
    def kept(self) -> Epoch:
        """The epoch whose network is the result."""
        return next(epoch for epoch in self.epochs if epoch.kept)


def best_of(epochs: Sequence[Epoch]) -> Epoch:
    """Return the epoch of the least error, the first of equals; what is not finite comes last."""

    def error(epoch: Epoch) -> float:
        measured = epoch.validation
        return measured if measured is not None and math.isfinite(measured) else math.inf

    return min(epochs, key=error)


def notes_on(course: Course) -> list[str]:
    """Say which epoch is the result, and how the learning rate was found."""
    notes = []
    if course.trials:
        notes.append(_note_on(course))
    kept, last = course.kept, course.epochs[-1]
    if kept.validation is not None:
        notes.append(
            f"fine-tuning kept epoch {kept.number} of {last.number}: the error of held-out samples "
            f"went from {course.epochs[0].validation:.4g} to {kept.validation:.4g}"
        )
    return notes


def _note_on(course: Course) -> str:
    """Say what trials have found; of norms only where several modes were tried."""
    trials = course.trials
    taken, modes = taken_of(trials), {trial.norms for trial in trials}
    what = f"learning rate {taken.lr:g}, for {course.optimizer} in steps of {course.size} samples"
    others = "`TrainingOptions.lr` sets another"
    tried = [f"{trial.error:.4g} at {trial.lr:g}" for trial in trials]
    if len(modes) > 1:
        what += f" with {taken.norms} statistics of norms"
        others = "`TrainingOptions.lr` and `TrainingOptions.norms` set others"
        tried = [f"{text} ({trial.norms})" for text, trial in zip(tried, trials, strict=True)]
    ended = ", ".join(tried)
    return f"{what}, was found by short trials, which ended with errors of {ended}; {others}"


def doubts_on(course: Course, n_samples: int) -> list[str]:
    """Say that fine-tuning broke off or brought nothing, where it did, with the likely reason."""
    if course.diverged:
        kept = course.kept.number
        return [f"fine-tuning broke off, and kept epoch {kept}: {course.diverged}"]
    if course.kept.number > 0:
        return []
    before, *after = [epoch.validation for epoch in course.epochs]
    best = min(value for value in after if value is not None)
    cause = (
        f"{n_samples} samples may be too few to learn from: give more, or leave `training` out"
        if course.trials
        else "the learning rate may be too large: leave `TrainingOptions.lr` out, and it is found "
        "by trials"
    )
    doubt = (
        f"no epoch was better than before training: the error of held-out samples was {before:.4g} "
        f"before and {best:.4g} after the best epoch, so the network before training was kept; "
        f"{cause}"
    )
    return [doubt]
