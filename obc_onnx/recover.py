"""Repair without training: re-estimate the statistics of batch norms that are in the graph.

Removing channels shifts what every later norm sees. Its stored mean and variance are measured anew
on unlabelled samples, and kept only where that brings held-out outputs closer to the original's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.measure import batch_size_of
from obc_onnx.progress import track
from obc_onnx.runtime import Session
from obc_onnx.twin import build_twin, weights_of

if TYPE_CHECKING:
    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph

_UPDATES = 100
"""Batches to average over: at the usual momentum of 0.9 the old statistics are forgotten."""
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Recovery:
    """One step of repair.

    Attributes:
        step: Its name.
        before: Error of the outputs on held-out samples, as a share of the original's variance.
        after: The same with the step.
        kept: Whether the step stays.
    """

    step: str
    before: float
    after: float
    kept: bool


def reestimate_norms(
    coupling: Coupling, pruned: Graph, samples: Samples, seed: int
) -> tuple[Graph, Recovery | None]:
    """Measure the statistics of batch norms on the pruned network.

    Args:
        coupling: Of the original graph.
        pruned: The graph to repair.
        samples: Unlabelled; the last fifth decides whether the step is kept.
        seed: Of the order of samples.
    Returns:
        The repaired graph, or the same one; and what was measured, None where no norm is there.
    Source: recovery.md 6.1 (b), after Li et al., EagleEye, arXiv 2007.02491.
    """
    rules = coupling.rules
    normed = any(node.op_type == "BatchNormalization" for node in pruned.nodes)
    if not normed or coupling.unknown or len(samples) < batch_size_of(pruned):
        return pruned, None
    used, held = samples.split(_HELD_OUT)
    twin = build_twin(pruned, coupling.shapes, rules).train()
    rng = np.random.default_rng(seed)
    size = min(batch_size_of(pruned), len(used))
    with torch.no_grad():
        for _ in track(range(_UPDATES), "re-estimating norms"):
            which = np.sort(rng.choice(len(used), size, replace=False))
            feed = used.feed(which)
            twin(*(torch.from_numpy(feed[port.name]) for port in pruned.inputs))
    repaired = pruned.edit(weights_of(twin, pruned))
    before, after = (output_error(coupling.graph, graph, held) for graph in (pruned, repaired))
    kept = after < before
    return (repaired if kept else pruned), Recovery("norm statistics", before, after, kept)


def output_error(original: Graph, changed: Graph, samples: Samples) -> float:
    """Return the mean squared difference of float outputs over their variance, in ONNX Runtime."""
    reference, found = Session(original), Session(changed)
    squares: dict[str, list[float]] = {}
    spread: dict[str, list[float]] = {}
    for part in samples.batches(batch_size_of(original)):
        feed = samples.feed(part)
        expected, values = reference.run(feed), found.run(feed)
        for name, value in expected.items():
            if np.issubdtype(value.dtype, np.floating):
                squares.setdefault(name, []).append(float(((values[name] - value) ** 2).mean()))
                spread.setdefault(name, []).append(float(value.var()))
    tiny = float(np.finfo(np.float64).tiny)
    ratios = [sum(squares[name]) / max(sum(spread[name]), tiny) for name in squares]
    return float(np.mean(ratios)) if ratios else 0.0
