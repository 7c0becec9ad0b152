"""Refinement: a short training of the cut network towards the original, on unlabelled samples.

Least squares brings each layer near to the original's alone. Gradients go through all of them, so
that a layer may make up for what later ones cannot. What is learned is the distance of the outputs
and of every border in between, see `borders` and `matching`. Norms keep the statistics that they
store, so that the network that learns is the one that is written. There are several courses, at
falling rates, each from the best state so far: where the first rate is too large for a network, a
later one is not. States are judged on samples that are held out, and the best one is the result;
the start is one of them. States on the way are no candidates: while the rate is high, which of them
looks best is chance.

How long that takes is decided before it begins, by what the networks cost (see `effort`) and not by
the clock: equal seeds give equal bytes. A machine that takes several times as long is stopped.

Samples that are pictures are mirrored and shifted at random; both networks see the same.

Source: Romero et al., FitNets, arXiv 1412.6550, for distances inside; borders from the graph, and
what is learned there, are this project's own. docs/recovery.md has what each part is worth.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.optim.lr_scheduler import OneCycleLR

from obc_onnx.progress import Progress
from obc_onnx.recover.borders import find_borders
from obc_onnx.recover.calibration import changes_of_pictures
from obc_onnx.recover.effort import estimate, minutes_for_least
from obc_onnx.recover.matching import Matching
from obc_onnx.recover.targets import at_batch
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.effort import Effort
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut

_COURSES = ((1e-3, 0.5), (3e-4, 0.3), (1e-4, 0.2))
"""The largest rate of each, for Adam, and its share of the steps."""
_WARMUP = 0.05
"""Share of the steps of a course over which the rate rises; it then falls to 0 along a cosine."""
_WIDE = 4
"""Bytes of a number that small steps can change."""
_MOST_BYTES = 2**30
"""Of the original's weights: several times as many are held while others learn."""
_LATE = 3.0
"""Times as many minutes as were given: then the clock ends it."""


class Refined(NamedTuple):
    """What refinement gave.

    Attributes:
        graph: With the best weights, which may be those that it began with.
        reason: Why nothing was tried; empty where something was.
        notes: What was decided.
        warnings: What makes the result doubtful.
    """

    graph: Graph
    reason: str
    notes: list[str]
    warnings: list[str]


def refine(
    cut: Cut,
    samples: tuple[Samples, Samples],
    error_of: Callable[[Graph], float],
    minutes: float,
    seed: int,
    device: str = "cpu",
) -> Refined:
    """Train a cut graph towards its original.

    Args:
        cut: The cut graph, repaired as far as it goes without gradients.
        samples: To train on, and held out to judge; labels are not used.
        error_of: Judges a graph on the latter.
        minutes: How long it may take on one core of a CPU, by estimate; above 0.
        seed: Of the order of the samples.
        device: Where both networks run.
    """
    used, held = samples
    if sum(array.nbytes for array in cut.coupling.graph.initializers.values()) > _MOST_BYTES:
        reason = "weights were not refined by gradient: that would take several times their memory"
        return Refined(cut.pruned, reason, [], [])
    effort = estimate(cut.coupling, cut.keep, len(used), len(held), minutes)
    if not effort.suffices:
        needed = minutes_for_least(cut.coupling, cut.keep, len(used), len(held))
        reason = (
            f"weights were not refined by gradient: in {minutes:g} minutes only {effort.steps} "
            f"steps would be taken; `recover_minutes={needed}` is enough for this model"
        )
        return Refined(cut.pruned, reason, [], [])
    latest = time.monotonic() + 60 * _LATE * minutes
    training = _Training(cut, used, effort, latest, seed, device)
    if not training.learns():
        reason = "weights were not refined by gradient: none that learns is in front of an output"
        return Refined(cut.pruned, reason, [], [])
    return training.run(error_of)


class _Training:
    """A cut network that is trained."""

    def __init__(
        self,
        cut: Cut,
        used: Samples,
        effort: Effort,
        latest: float,
        seed: int,
        device: str,
    ) -> None:
        there, _ = at_batch(cut.coupling, cut.keep, effort.size)
        borders = find_borders(replace(cut, keep=there))
        runs = _runs_of(len(used), effort.size, seed)
        self._changes = changes_of_pictures(cut.coupling.graph, used)
        self._matching = Matching(cut, borders, used, runs, self._changes, seed, device)
        self._student = self._matching.student
        self._n_runs, self._effort, self._seed = len(runs), effort, seed
        self._pruned, self._n_borders = cut.pruned, len(borders)
        self._weights = list(self._student.weights())
        # steps are too small for numbers of 16 bits: those are rounded copies of what learns
        self._learned = [w if w.itemsize >= _WIDE else wide(w.detach()) for w in self._weights]
        self._latest, self._late = latest, False

    def learns(self) -> bool:
        """Say whether there is anything that a gradient reaches."""
        return bool(self._weights) and self._matching.loss(0).requires_grad

    def run(self, error_of: Callable[[Graph], float]) -> Refined:
        """Go through all courses, and return the best state."""
        steps, before = self._effort.steps, error_of(self._pruned)
        best, kept, order = before, self._state(), self._order()
        with Progress("refining weights", steps) as progress:
            for lr, share in _COURSES:
                self._load(kept)
                if not self._course(lr, round(steps * share), order, progress):
                    continue
                error = error_of(self._student.fold(self._pruned))
                if error < best:
                    best, kept = error, self._state()
        self._load(kept)
        graph = self._student.cpu().fold(self._pruned) if best < before else self._pruned
        return Refined(graph, "", self._notes(before, best), self._warnings())

    def _course(
        self, lr: float, steps: int, order: Iterator[tuple[int, int]], progress: Progress
    ) -> bool:
        """Train from where the weights are.

        Args:
            lr: The largest learning rate.
            steps: How many.
            order: Gives the number of each run, and that of the pass.
            progress: Counts steps.
        Returns:
            Whether it came to its end: a loss that is not finite and the clock end it before.
        """
        optimizer = torch.optim.Adam(self._learned, lr)
        schedule = OneCycleLR(optimizer, lr, steps, pct_start=_WARMUP, cycle_momentum=False)
        for _ in range(steps):
            self._late = self._late or time.monotonic() > self._latest
            if self._late:
                return False
            loss = self._gather_gradients(order)
            if not math.isfinite(loss):
                return False
            optimizer.step()
            self._copy_learned()
            schedule.step()
            progress.advance(f"distance {loss:.4f}")
        return True

    def _gather_gradients(self, order: Iterator[tuple[int, int]]) -> float:
        """Go through the runs of a step; return the mean of their losses."""
        self._student.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(self._effort.runs):
            loss = self._matching.loss(*next(order)) / self._effort.runs
            torch.autograd.backward(loss)
            total += float(loss.detach())
        for weight, learned in zip(self._weights, self._learned, strict=True):
            if learned is not weight:
                learned.grad = None if weight.grad is None else weight.grad.to(learned)
        return total

    @torch.no_grad()
    def _copy_learned(self) -> None:
        for weight, learned in zip(self._weights, self._learned, strict=True):
            if learned is not weight:
                weight.copy_(learned)

    def _order(self) -> Iterator[tuple[int, int]]:
        """Yield the numbers of runs, each with that of the pass, pass after pass without end."""
        rng = np.random.default_rng(self._seed)
        for turn in itertools.count():
            yield from ((int(number), turn) for number in rng.permutation(self._n_runs))

    def _state(self) -> list[Tensor]:
        return [learned.detach().clone() for learned in self._learned]

    @torch.no_grad()
    def _load(self, state: list[Tensor]) -> None:
        for learned, value in zip(self._learned, state, strict=True):
            learned.copy_(value)
        self._copy_learned()

    def _notes(self, before: float, best: float) -> list[str]:
        effort = self._effort
        passes = effort.steps * effort.runs / self._n_runs
        how = (
            f"{effort.steps} steps of {effort.runs * effort.size} samples, "
            f"{passes:.3g} passes, compared at {self._n_borders} values inside and at the outputs"
            f"{'' if self._changes is None else ', pictures mirrored and shifted at random'}"
        )
        if best < before:
            return [f"weights were refined by gradient in {how}"]
        return [f"refinement by gradient brought nothing in {how}: the repair before it stays"]

    def _warnings(self) -> list[str]:
        if not self._late:
            return []
        late = (
            f"refinement was stopped by the clock, since it took more than {_LATE:g} times "
            f"`recover_minutes`: the result depends on how fast this machine is, and another run "
            f"may give other bytes; a smaller `recover_minutes` takes fewer steps"
        )
        return [late]


def _runs_of(n_used: int, size: int, seed: int) -> list[NDArray[np.int64]]:
    """Draw which samples make up each run, for all passes: so the original runs once on each."""
    order = np.random.default_rng(seed).permutation(n_used)
    return [np.sort(order[i : i + size]) for i in range(0, max(n_used - size, 0) + 1, size)]
