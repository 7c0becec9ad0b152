"""Judge a network on samples that do not train it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.measure import batch_size_of
from obc_onnx.processes import add_up, own_share
from obc_onnx.tensors import as_inputs
from obc_onnx.training.loss import Labels
from obc_onnx.training.teacher import Teacher

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.equivalent import EquivalentTwin
    from obc_onnx.training.loss import TrainingLoss

_SMALLEST = 2
"""Samples that are worth judging on, at least."""


class Judge:
    """Measures the loss, and the accuracy where there are labels.

    Args:
        coupling: Of the original, which gives the targets.
        samples: To judge on.
        loss: What is measured.
        fabric: Where it runs, and in which precision.
    """

    def __init__(
        self, coupling: Coupling, samples: Samples, loss: TrainingLoss, fabric: Fabric
    ) -> None:
        self._samples, self._loss, self._fabric = samples, loss, fabric
        self._teacher = Teacher(coupling, samples, fabric.device, varies=False)
        self._ports = coupling.graph.inputs
        self._size = batch_size_of(coupling.graph)

    def __call__(self, student: EquivalentTwin) -> tuple[float, float | None]:
        """Return the mean loss, and the accuracy; the student is left in evaluation mode."""
        student.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self._fabric.device)
        with torch.no_grad(), student.hold_weights():
            for part in own_share(list(self._samples.batches(self._size))):
                sums += sums.new_tensor(self._sums_of(student, part))
        total, right, count = add_up({"sums": sums})["sums"].tolist()
        return total / count, None if self._samples.labels is None else right / count

    def _sums_of(self, student: EquivalentTwin, part: slice) -> tuple[float, float, int]:
        """Return the loss of a batch, the number that is right, and its size."""
        device, labels = self._fabric.device, self._samples.labels
        feed, which = self._samples.feed(part), np.arange(part.start, part.stop)
        known = None if labels is None else Labels(torch.from_numpy(labels[part]).to(device))
        inputs = as_inputs(self._ports, feed, device)
        with self._fabric.autocast():
            outputs = student(*inputs)
            wanted = self._teacher.outputs(which, feed) if self._loss.needs_original else []
            loss = self._loss(outputs, wanted, known)
        right = 0.0 if known is None else float((outputs[0].argmax(-1) == known.own).sum())
        return float(loss) * len(which), right, len(which)


def parts_of(
    samples: Samples, share: float, seed: int, batch: int
) -> tuple[Samples, Samples | None]:
    """Draw the samples that train, and those that choose the best epoch.

    Args:
        samples: All.
        share: Of those that choose; none are drawn where they would be less than two.
        seed: Of the choice.
        batch: Both parts are whole batches of it.
    """
    n_held = round(len(samples) * share) // batch * batch
    if n_held < _SMALLEST or n_held >= len(samples):
        return samples, None
    order = np.random.default_rng(seed).permutation(len(samples))
    used, held = np.sort(order[n_held:]), np.sort(order[:n_held])
    return samples.part(used), samples.part(held)
