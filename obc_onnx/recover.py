"""Repair without training: re-estimate the statistics of batch norms that are in the graph.

Removing channels shifts what every later norm sees. Its stored mean and variance are measured anew
on unlabelled samples, and kept only where that brings held-out outputs closer to the original's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.measure import batch_size_of
from obc_onnx.ops.norm import batch_norm
from obc_onnx.progress import track
from obc_onnx.runtime import Session
from obc_onnx.twin import build_twin, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import fx

    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph, Node

_UPDATES = 100
_MOMENTUM = 0.9
"""Kept of the statistics in each update, whatever the model says: 0.9^100 is nothing."""
_HELD_OUT = 0.2
_ROUNDING = 1e-12


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
        samples: The last fifth decides whether the step is kept; labels are not used.
        seed: Of the order of samples.
    Returns:
        The repaired graph, or the same one; and what was measured, None where no norm is there,
        where samples are fewer than a batch, or where a norm sees a single value at a time.
    Source: Li et al., EagleEye, arXiv 2007.02491, adaptive batch normalisation.
    """
    rules = coupling.rules
    norms = [node for node in pruned.nodes if node.op_type == "BatchNormalization"]
    if not norms or coupling.unknown or any(_sees_one_value(coupling, node) for node in norms):
        return pruned, None
    used, held = _split(samples, pruned.batch or 1)
    if len(samples) < batch_size_of(pruned) or len(used) == 0:
        return pruned, None
    twin = build_twin(pruned, coupling.shapes, rules)
    _measure_norms(twin)
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


def _split(samples: Samples, batch: int) -> tuple[Samples, Samples]:
    """Hold out the last batches; both parts are whole batches."""
    n_batches = len(samples) // batch
    n_used = max(n_batches - max(round(n_batches * _HELD_OUT), 1), 0) * batch
    return samples.part(slice(0, n_used)), samples.part(slice(n_used, n_batches * batch))


def _sees_one_value(coupling: Coupling, norm: Node) -> bool:
    """Say whether a model of one sample has a norm behind global pooling: nothing to measure."""
    shape = coupling.shapes[norm.inputs[0]]
    return coupling.graph.batch == 1 and math.prod(shape) == shape[1]


def _measure_norms(twin: fx.GraphModule) -> None:
    """Let norms, and nothing else, run as in training, and forget the old statistics."""
    for node in twin.graph.nodes:
        if "training" in node.kwargs:
            is_norm = node.target is batch_norm
            node.update_kwarg("training", is_norm)
            if is_norm:
                node.update_kwarg("momentum", _MOMENTUM)
    twin.recompile()


def output_error(original: Graph, changed: Graph, samples: Samples) -> float:
    """Return the mean squared difference of float outputs over their variance, in ONNX Runtime."""
    reference, found = Session(original), Session(changed)
    sums: dict[str, NDArray[np.float64]] = {}
    for part in samples.batches(batch_size_of(original)):
        feed = samples.feed(part)
        expected, values = reference.run(feed), found.run(feed)
        for name, value in expected.items():
            if np.issubdtype(value.dtype, np.floating):
                wide, error = value.astype(np.float64), values[name].astype(np.float64) - value
                terms = [value.size, wide.sum(), (wide**2).sum(), (error**2).sum()]
                sums[name] = sums.get(name, np.zeros(4)) + terms
    ratios = [
        error_square / count / spread_of(total / count, square / count)
        for count, total, square, error_square in sums.values()
    ]
    return float(np.mean(ratios)) if ratios else 0.0


def spread_of(mean: float, mean_square: float) -> float:
    """Return the scale of an output's squared errors: its variance over samples and positions.

    Where that is only rounding, since all values are equal, its mean square, or 1.
    """
    variance = mean_square - mean**2
    return variance if variance > _ROUNDING * mean_square else mean_square or 1.0
