"""Refinement: a short training of the cut network towards the original, on unlabelled samples.

Least squares brings each layer near to the original's alone. Gradients go through all of them, so
that a layer may make up for what later ones cannot. What is learned is the distance of the outputs
and of every border in between (see `borders`), each channel as a share of its own deviation:

    mean over borders of D(F, F_dense[kept]) + mean over outputs of D(z, z_dense)

where D is `Compared.mse`. Norms keep the statistics that they store, so that the network that
learns is the one that is written. The network is judged on samples that are held out, and the best
state is the result; the start is one of them.

How long that takes is decided before it begins, by what the networks cost (see `effort`) and not by
the clock: equal seeds give equal bytes. A machine that takes several times as long is stopped.

Source: distances at block outputs as in FitNets, arXiv 1412.6550; that they are worth more than the
outputs alone for networks that were cut is measured in docs/recovery.md.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.optim.lr_scheduler import OneCycleLR

from obc_onnx.learning.trial import RATES, best_of_trials, run_trials
from obc_onnx.progress import Progress
from obc_onnx.recover.borders import find_borders
from obc_onnx.recover.effort import estimate, minutes_for_least
from obc_onnx.recover.matching import Matching
from obc_onnx.recover.targets import at_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.learning.trial import NormsName
    from obc_onnx.recover.effort import Effort
    from obc_onnx.samples.samples import Samples

    State = dict[str, Tensor]

_WARMUP = 0.05
"""Share of the steps over which the rate rises."""
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
    coupling: Coupling,
    keep: Keep,
    pruned: Graph,
    samples: tuple[Samples, Samples],
    error_of: Callable[[Graph], float],
    minutes: float,
    seed: int,
    device: str = "cpu",
) -> Refined:
    """Train a cut graph towards its original.

    Args:
        coupling: Of the original.
        keep: What stays.
        pruned: The cut graph, repaired as far as it goes without gradients.
        samples: To train on, and held out to judge; labels are not used.
        error_of: Judges a graph on the latter.
        minutes: How long it may take on one core of a CPU, by estimate; above 0.
        seed: Of the order of the samples.
        device: Where both networks run.
    """
    used, held = samples
    effort = estimate(coupling, keep, len(used), len(held), minutes)
    if not effort.suffices:
        needed = minutes_for_least(coupling, keep, len(used), len(held))
        reason = (
            f"weights were not refined by gradient: in {minutes:g} minutes only {effort.steps} "
            f"steps would be taken; --recover-minutes {needed} is enough for this model"
        )
        return Refined(pruned, reason, [], [])
    latest = time.monotonic() + 60 * _LATE * minutes
    training = _Training(coupling, keep, pruned, used, effort, latest, seed, device)
    if not training.learns():
        reason = "weights were not refined by gradient: none that learns is in front of an output"
        return Refined(pruned, reason, [], [])
    return training.run(error_of)


class _Training:
    """A cut network that is trained, several times over from the same start."""

    def __init__(
        self,
        coupling: Coupling,
        keep: Keep,
        pruned: Graph,
        used: Samples,
        effort: Effort,
        latest: float,
        seed: int,
        device: str,
    ) -> None:
        kept = at_batch(coupling, keep, effort.size)[0]
        borders = find_borders(coupling, kept, pruned)
        runs = _runs_of(len(used), effort.size, seed)
        self._matching = Matching(coupling, keep, pruned, borders, used, runs, device)
        self._student = self._matching.student
        self._n_runs, self._effort, self._seed = len(runs), effort, seed
        self._pruned, self._n_borders = pruned, len(borders)
        self._weights = list(self._student.weights())
        self._start = self._state()
        self._latest, self._late = latest, False

    def learns(self) -> bool:
        """Say whether there is anything that a gradient reaches."""
        return bool(self._weights) and self._matching.loss(0).requires_grad

    def run(self, error_of: Callable[[Graph], float]) -> Refined:
        """Find a rate, train at it, and return the best state."""
        effort, before = self._effort, error_of(self._pruned)
        total = effort.steps + len(RATES["adamw"]) * effort.trial_steps
        with Progress("refining weights", total) as progress:

            def trial(lr: float, _: NormsName) -> float:
                return min(self._errors(lr, effort.trial_steps, 1, error_of, progress), default=math.inf)

            trials = run_trials(trial, before, RATES["adamw"], ("stored",))
            lr = best_of_trials(trials).lr
            best, kept = before, self._start
            for error in self._errors(lr, effort.steps, effort.rounds, error_of, progress):
                if error < best:
                    best, kept = error, self._state()
        self._load(kept)
        graph = self._student.cpu().fold(self._pruned) if best < before else self._pruned
        return Refined(graph, "", self._notes(lr, before, best), self._warnings())

    def _errors(
        self,
        lr: float,
        steps: int,
        rounds: int,
        error_of: Callable[[Graph], float],
        progress: Progress,
    ) -> Iterator[float]:
        """Train from the start, and yield what the network is judged by at the end of each round.

        Args:
            lr: The largest learning rate, from which it falls to 0 along a cosine.
            steps: How many.
            rounds: Into how many parts these are divided.
            error_of: Judges a graph.
            progress: Counts steps.
        """
        self._load(self._start)
        order = self._order()
        optimizer = torch.optim.Adam(self._weights, lr)
        schedule = OneCycleLR(optimizer, lr, steps, pct_start=_WARMUP, cycle_momentum=False)
        ends = {round(steps * (number + 1) / rounds) for number in range(rounds)}
        for step in range(1, steps + 1):
            self._late = self._late or time.monotonic() > self._latest
            if self._late:
                return
            optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            for _ in range(self._effort.runs):
                distance = self._matching.loss(next(order)) / self._effort.runs
                torch.autograd.backward(distance)
                loss += float(distance.detach())
            optimizer.step()
            schedule.step()
            progress.advance(f"distance {loss:.4f}")
            if not math.isfinite(loss):
                yield math.inf
                return
            if step in ends:
                error = error_of(self._student.fold(self._pruned))
                yield error if math.isfinite(error) else math.inf

    def _order(self) -> Iterator[int]:
        """Yield the numbers of runs, pass after pass, without end."""
        rng = np.random.default_rng(self._seed)
        while True:
            yield from rng.permutation(self._n_runs).tolist()

    def _state(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def _load(self, state: list[Tensor]) -> None:
        for weight, value in zip(self._weights, state, strict=True):
            weight.copy_(value)

    def _notes(self, lr: float, before: float, best: float) -> list[str]:
        effort = self._effort
        passes = effort.steps * effort.runs / self._n_runs
        how = (
            f"{effort.steps} steps of {effort.runs * effort.size} samples, "
            f"{passes:.3g} passes, at learning rate {lr:g}, compared at "
            f"{self._n_borders} values inside and at the outputs"
        )
        if best < before:
            return [f"weights were refined by gradient in {how}"]
        return [f"refinement by gradient brought nothing in {how}: the repair before it stays"]

    def _warnings(self) -> list[str]:
        if not self._late:
            return []
        late = (
            f"refinement was stopped by the clock, since it took more than {_LATE:g} times "
            f"--recover-minutes: the result depends on how fast this machine is, and another run "
            f"may give other bytes; less --recover-minutes take fewer steps"
        )
        return [late]


def _runs_of(n_used: int, size: int, seed: int) -> list[NDArray[np.int64]]:
    """Draw which samples make up each run, for all passes: so the original runs once on each."""
    order = np.random.default_rng(seed).permutation(n_used)
    return [np.sort(order[i : i + size]) for i in range(0, max(n_used - size, 0) + 1, size)]
