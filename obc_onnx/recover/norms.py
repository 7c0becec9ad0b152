"""Statistics of batch norms that are in the graph, measured again.

Removing channels shifts what every later norm sees.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from obc_onnx.measuring.error import MEASURED
from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.measuring.padding import real_of
from obc_onnx.ops.norms.batch import batch_norm
from obc_onnx.progress import track
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.lockstep import name_of
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.measuring.padding import RealOf
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut

_MEAN = 3
"""Slot of the mean of a batch norm."""
_LEAST = 16
"""Samples that the statistics of a batch take."""


def find_norms(cut: Cut) -> list[Node]:
    """List the nodes of a cut graph that normalise channels by statistics of theirs."""
    rules = cut.coupling.rules
    return [node for node in cut.pruned.nodes if rules.channel_norm(node) is not None]


def why_no_norms(cut: Cut, samples: Samples) -> str:
    """Return why norms cannot be re-estimated, or nothing where they can."""
    norms = find_norms(cut)
    if not norms:
        return "no batch norm is left in the graph"
    if any(_sees_one_value(cut.coupling, node) for node in norms):
        return "a batch norm sees a single number per channel"
    if len(samples) < (cut.pruned.batch or _LEAST):
        return f"{len(samples)} samples are too few for the statistics of a batch"
    return ""


def reestimate_norms(cut: Cut, samples: Samples, seed: int, device: str = "cpu") -> Graph:
    """Measure the statistics of batch norms on the pruned network.

    The mean over all batches of each batch's mean and variance becomes the stored one.

    Args:
        cut: The graph to repair; `why_no_norms` must have found nothing.
        samples: To measure on; labels are not used.
        seed: Of the choice of samples.
        device: Where the network runs.
    Source: Li et al., EagleEye, arXiv 2007.02491, adaptive batch normalisation.
    """
    coupling, pruned = cut.coupling, cut.pruned
    twin = derived_twin(pruned, coupling).to(device)
    run = _RealPass(twin)
    size = min(batch_size_of(pruned), len(samples))
    order = np.random.default_rng(seed).permutation(len(samples))[:MEASURED]
    starts = range(0, len(order) - size + 1, size)
    with torch.no_grad():
        for number, start in enumerate(track(starts, "re-estimating norms"), start=1):
            _measure_norms(twin, number)
            which = np.sort(order[start : start + size])
            run.real = real_of(coupling, samples, which)
            run.run(*as_inputs(pruned.inputs, samples.feed(which), device))
    return twin.write_to(pruned)


class _RealPass(fx.Interpreter):
    """A pass in which norms take their statistics of what is no padding.

    Attributes:
        real: Says of a value, by its name, where it is no padding.
    """

    real: RealOf

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Leave padding out of statistics; it is normalised with those that are stored then."""
        if target is not batch_norm or not kwargs["training"]:
            return super().call_function(target, args, kwargs)
        x, *parameters = args
        real = self.real(self._given)
        if real is None or real.shape[1] > 1 or parameters[_MEAN - 1].ndim > 1:
            return batch_norm(*args, **kwargs)
        there = torch.from_numpy(real).to(x.device).movedim(1, -1)[..., 0]
        rows = x.movedim(1, -1)
        there = there.expand(rows.shape[:-1])
        found = torch.empty_like(rows)
        found[there] = batch_norm(rows[there], *parameters, **kwargs)
        found[~there] = batch_norm(rows[~there], *parameters, **{**kwargs, "training": False})
        return found.movedim(-1, 1)

    def run_node(self, n: fx.Node) -> Any:
        """Note what the node is given: a call knows values, but not their names."""
        self._given = name_of(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else ""
        return super().run_node(n)


def _sees_one_value(coupling: Coupling, norm: Node) -> bool:
    """Say whether a model of one sample has a norm behind global pooling: nothing to measure."""
    shape = coupling.shapes[norm.inputs[0]]
    return coupling.graph.batch == 1 and math.prod(shape) == shape[1]


def _measure_norms(twin: fx.GraphModule, number: int) -> None:
    """Let norms, and nothing else, run as in training, and average over `number` batches.

    A norm that is applied several times sees as many batches in a pass.
    """
    norms = [node for node in twin.graph.nodes if node.target is batch_norm]
    times = Counter(_statistics_of(node) for node in norms)
    seen = {name: (number - 1) * count for name, count in times.items()}
    for node in twin.graph.nodes:
        if "training" in node.kwargs:
            is_norm = node.target is batch_norm
            node.update_kwarg("training", is_norm)
            if is_norm:  # ONNX's momentum is the share of the old value
                seen[_statistics_of(node)] += 1
                node.update_kwarg("momentum", 1.0 - 1.0 / seen[_statistics_of(node)])
    twin.recompile()


def _statistics_of(call: fx.Node) -> str:
    """Name what holds the mean of a norm."""
    return str(call.args[_MEAN])
