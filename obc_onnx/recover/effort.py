"""How long refinement trains: as many steps as an estimate says fit into some minutes.

The estimate looks at the networks and at the number of samples, and at no clock: a fixed seed gives
the same steps, and so the same bytes, however fast a machine is and whatever else runs on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import count
from obc_onnx.recover.targets import at_batch

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling, Keep

STEP = 32
"""Samples of a step, where there are as many."""
_MOST_PASSES = 60
"""Over the samples: more bring little, see docs/recovery.md."""
_LEAST = 32
"""Steps that are worth taking."""
_RATE = 4e10
"""Multiply-accumulates that torch does in a second on one core of a CPU."""
_PER_NUMBER = 25.0
"""Multiply-accumulates that take as long as to write a value's number, and to read it again."""
_PER_NODE = 5e-5
"""Seconds that a node takes in a run, however little it computes."""
_LEARNING = 5
"""Runs that take as long as one with its gradients: those of narrow layers are slow."""
_JUDGED = 4
"""Times that the network is judged."""
_BYTES = 2**30
"""What the values of one run may take, all of which the gradient needs."""


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        size: Samples of one run.
        runs: Runs that make up a step.
        steps: Changes of the weights.
        seconds: What all of it takes, by the estimate.
    """

    size: int
    runs: int
    steps: int
    seconds: float

    @property
    def suffices(self) -> bool:
        """Whether that many steps are worth it."""
        return self.steps >= _LEAST


def estimate(coupling: Coupling, keep: Keep, n_used: int, n_held: int, minutes: float) -> Effort:
    """Say how many steps fit into some minutes on one core of a CPU.

    Args:
        coupling: Of the original.
        keep: What stays.
        n_used: Samples to train on.
        n_held: Samples that judge.
        minutes: How long it may take; less than the least steps need gives fewer than those.
    """
    size = _run_size(coupling, keep, n_used)
    runs = max(min(STEP, n_used) // size, 1)
    own, other = (_seconds(coupling, kept) for kept in ({}, keep))
    nodes = len(coupling.graph.nodes) * _PER_NODE
    step = runs * (size * (own + _LEARNING * other) + (1 + _LEARNING) * nodes)
    judged = _JUDGED * n_held * (own + other)
    per_pass = max(n_used // (size * runs), 1)
    steps = max(min(int((60 * minutes - judged) / step), _MOST_PASSES * per_pass), 0)
    return Effort(size, runs, steps, steps * step + judged)


def minutes_for_least(coupling: Coupling, keep: Keep, n_used: int, n_held: int) -> int:
    """Return how many whole minutes let the least steps be taken."""
    minutes = 1
    while not estimate(coupling, keep, n_used, n_held, minutes).suffices:
        minutes *= 2
    return minutes


def _run_size(coupling: Coupling, keep: Keep, n_used: int) -> int:
    """Say how many samples a run takes: as many as a step, if their values fit into memory."""
    if coupling.graph.batch is not None:
        return coupling.graph.batch
    per_sample = 2 * np.dtype(np.float32).itemsize * _numbers(coupling, {})  # and gradients
    return at_batch(coupling, keep, max(min(STEP, n_used, int(_BYTES / per_sample)), 1))[1]


def _seconds(coupling: Coupling, keep: Keep) -> float:
    """Return what a run of one sample takes, nodes aside."""
    return (coupling.macs(keep) + _PER_NUMBER * _numbers(coupling, keep)) / _RATE


def _numbers(coupling: Coupling, keep: Keep) -> float:
    """Count the numbers of all values that are computed for one sample."""
    graph = coupling.graph
    shapes = {port.name: coupling.shapes[port.name] for port in graph.inputs}
    total = sum(
        math.prod(count(axis, keep) for axis in coupling.axes[name])
        for name in graph.producers
        if name in coupling.axes
    )
    return total / graph.batch_axes.count_of(shapes)
