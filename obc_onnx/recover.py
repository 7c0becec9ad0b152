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
from obc_onnx.tensors import as_inputs
from obc_onnx.twin import build_twin

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import fx

    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph
    from obc_onnx.node import Node

_MEASURED = 2048
"""Samples to measure statistics or errors on, at most: neither changes much with more."""
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


def why_no_repair(coupling: Coupling, pruned: Graph, samples: Samples) -> str:
    """Return why norms cannot be re-estimated, or nothing where they can."""
    norms = [node for node in pruned.nodes if node.op_type == "BatchNormalization"]
    if not norms:
        return "no batch norm is left in the graph"
    if any(_sees_one_value(coupling, node) for node in norms):
        return "a batch norm sees a single number per channel"
    used, _ = split(samples, pruned.batch or 1)
    if len(samples) < batch_size_of(pruned) or len(used) == 0:
        return f"{len(samples)} samples are too few for the statistics of a batch"
    return ""


def reestimate_norms(
    coupling: Coupling, pruned: Graph, samples: Samples, seed: int
) -> tuple[Graph, Recovery]:
    """Measure the statistics of batch norms on the pruned network.

    The mean over all batches of each batch's mean and variance becomes the stored one.

    Args:
        coupling: Of the original graph.
        pruned: The graph to repair; `why_no_repair` must have found nothing.
        samples: The last fifth decides whether the step is kept; labels are not used.
        seed: Of the choice of samples.
    Returns:
        The repaired graph, or the same one; and what was measured.
    Source: Li et al., EagleEye, arXiv 2007.02491, adaptive batch normalisation.
    """
    used, held = split(samples, pruned.batch or 1)
    twin = build_twin(pruned, coupling.shapes, coupling.rules)
    size = min(batch_size_of(pruned), len(used))
    order = np.random.default_rng(seed).permutation(len(used))[:_MEASURED]
    starts = range(0, len(order) - size + 1, size)
    with torch.no_grad():
        for number, start in enumerate(track(starts, "re-estimating norms"), start=1):
            _measure_norms(twin, number)
            feed = used.feed(np.sort(order[start : start + size]))
            twin(*as_inputs(pruned.inputs, feed))
    repaired = twin.write_to(pruned)
    before, after = (output_error(coupling.graph, graph, held) for graph in (pruned, repaired))
    kept = after < before
    return (repaired if kept else pruned), Recovery("norm statistics", before, after, kept)


def split(samples: Samples, batch: int) -> tuple[Samples, Samples]:
    """Hold out the last batches to judge repair on; both parts are whole batches."""
    n_batches = len(samples) // batch
    n_held = max(min(round(n_batches * _HELD_OUT), _MEASURED // batch), 1)
    n_used = max(n_batches - n_held, 0) * batch
    return samples.part(slice(0, n_used)), samples.part(slice(n_used, n_batches * batch))


def _sees_one_value(coupling: Coupling, norm: Node) -> bool:
    """Say whether a model of one sample has a norm behind global pooling: nothing to measure."""
    shape = coupling.shapes[norm.inputs[0]]
    return coupling.graph.batch == 1 and math.prod(shape) == shape[1]


def _measure_norms(twin: fx.GraphModule, number: int) -> None:
    """Let norms, and nothing else, run as in training, and average over `number` batches."""
    for node in twin.graph.nodes:
        if "training" in node.kwargs:
            is_norm = node.target is batch_norm
            node.update_kwarg("training", is_norm)
            if is_norm:  # ONNX's momentum is the share of the old value
                node.update_kwarg("momentum", 1.0 - 1.0 / number)
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
