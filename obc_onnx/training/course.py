"""How a training went, and what a user should know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.training.trial import best_of_trials

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """

    epochs: list[Epoch]
    trials: list[Trial]

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
        best = best_of_trials(course.trials)
        tried = ", ".join(f"{t.error:.4g} at {t.lr:g} ({t.norms})" for t in course.trials)
        notes.append(
            f"learning rate {best.lr:g}, and norms with {best.norms} statistics, were found by "
            f"short trials, which ended with errors of {tried}; --lr and --norms set others"
        )
    kept, last = course.kept, course.epochs[-1]
    if kept.validation is not None:
        notes.append(
            f"fine-tuning kept epoch {kept.number} of {last.number}: the error of held-out samples "
            f"went from {course.epochs[0].validation:.4g} to {kept.validation:.4g}"
        )
    return notes


def doubts_on(course: Course, n_samples: int) -> list[str]:
    """Say that fine-tuning brought nothing, where it did, with the likely reason."""
    if course.kept.number > 0:
        return []
    before, *after = [epoch.validation for epoch in course.epochs]
    best = min(value for value in after if value is not None)
    cause = (
        f"{n_samples} samples may be too few to learn from: give more, or leave --epochs out"
        if course.trials
        else "the learning rate may be too large: leave --lr out, and it is found by trials"
    )
    doubt = (
        f"no epoch was better than before training: the error of held-out samples was {before:.4g} "
        f"before and {best:.4g} after the best epoch, so the network before training was kept; "
        f"{cause}"
    )
    return [doubt]
