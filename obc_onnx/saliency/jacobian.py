"""The Jacobian criterion, at the cost of one backward pass without weight gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.errors import DataError, RequestError
from obc_onnx.logits import ends_in_softmax, logits_of
from obc_onnx.progress import track
from obc_onnx.saliency.criterion import Criterion
from obc_onnx.saliency.taps import Taps
from obc_onnx.surgery import mask_reads
from obc_onnx.twin import build_twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes import Dim
    from obc_onnx.coupling import Keep
    from obc_onnx.saliency.criterion import Scene
    from obc_onnx.saliency.taps import Member

    Totals = dict[tuple[Member, Dim], Tensor]


class Jacobian(Criterion):
    """S(unit) = sum over members m, sum over samples n, of (w_m . dL_n/dw_m)^2.

    The squared first-order change of the loss when the unit's weights vanish; interactions between
    the weights of one member are kept. The loss is cross entropy where there are labels. Without
    them it is <r, f(x)> with r standard normal, drawn anew for every sample, so that S estimates
    the squared first-order change of the outputs themselves: E_r (w . d<r, f>/dw)^2 = |J w|^2.

    Source: Chen et al., Optimal Brain Connection, arXiv 2508.05521, equation of the criterion, with
    one row per sample instead of one per mini-batch.
    """

    name = "jacobian"
    needs_data = True

    def score(self, scene: Scene, keep: Keep) -> dict[str, NDArray[np.float64]]:
        """Score with removed units masked, which gives the same rows as the pruned network."""
        coupling = scene.coupling
        totals = accumulate(scene, keep)
        saliency = {}
        for group in coupling.groups:
            rows = [total for (_, dim), total in totals.items() if dim is group.dim]
            summed = sum((row.cpu().numpy() for row in rows), np.zeros(group.size))
            saliency[group.name] = np.asarray(summed, np.float64)
        return saliency


def accumulate(scene: Scene, keep: Keep) -> Totals:
    """Sum squared rows over all samples.

    Returns:
        For each member and dim, shape [n_units], float64.
    Raises:
        DataError: There are no samples, or the loss is not finite.
        RequestError: No output can be differentiated.
    """
    samples, coupling = scene.samples, scene.coupling
    if samples is None:
        raise DataError("the Jacobian criterion needs samples: give --data, or use --criterion l2")
    graph = mask_reads(coupling, keep) if keep else coupling.graph
    taps = Taps(build_twin(graph, coupling.shapes, coupling.rules), coupling, scene.device)
    generator = torch.Generator(scene.device).manual_seed(scene.seed)
    size = graph.batch or (scene.batch_size if taps.per_sample else 1)
    probabilities = ends_in_softmax(coupling.graph)
    totals: Totals = {}
    for part in track(list(samples.batches(size)), "scoring"):
        feed = samples.feed(part)
        inputs = [torch.from_numpy(feed[port.name]).to(scene.device) for port in graph.inputs]
        labels = None
        if samples.labels is not None:
            labels = torch.from_numpy(samples.labels[part]).to(scene.device)
        objective = _objective(labels, generator, probabilities=probabilities)
        for key, row in taps.rows(inputs, objective).items():
            squares = row.double().square().sum(0)
            totals[key] = totals[key] + squares if key in totals else squares
    return totals


def _objective(
    labels: Tensor | None, generator: torch.Generator, *, probabilities: bool
) -> Callable[[tuple[Tensor, ...]], Tensor]:
    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        if labels is not None:
            logits = logits_of(outputs[0], probabilities=probabilities)
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        floats = [output for output in outputs if output.is_floating_point()]
        if not floats:
            raise RequestError("no output of the model is a float: use --criterion l2")
        projections = [
            torch.randn(o.shape, generator=generator, device=o.device, dtype=o.dtype)
            for o in floats
        ]
        terms: Any = [(o * r).sum() for o, r in zip(floats, projections, strict=True)]
        return torch.stack(terms).sum()

    return loss
