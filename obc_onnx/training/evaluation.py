"""Judge a network on samples that do not train it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import Distance
from obc_onnx.measuring.outputs import accuracy, batch_size_of
from obc_onnx.measuring.padding import real_of
from obc_onnx.training.loss import Labels
from obc_onnx.training.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples
    from obc_onnx.training.loss import TrainingLoss

_SMALLEST = 2
"""Samples that are worth judging on, at least."""
_TRIED = 512
"""Training samples that trials are judged on, at most, where none are held out."""


class Judge:
    """Measures a network as it would be written, in ONNX Runtime, as repair is measured.

    What counts is the distance to the original's outputs where they alone teach: it is known to
    more digits than accuracy, so that few samples tell epochs apart. Where labels teach too, or a
    function of the user's does, it is the loss: those may lead away from the original.

    Args:
        coupling: Of the original.
        samples: To judge on.
        loss: What is trained towards.
    """

    def __init__(self, coupling: Coupling, samples: Samples, loss: TrainingLoss) -> None:
        self._coupling, self._samples, self._loss = coupling, samples, loss
        self._measure: Callable[[Graph], float]
        if loss.replaces_distance:
            teacher = Teacher(coupling, samples, torch.device("cpu"), varies=False)
            self._measure = partial(self._mean_loss, teacher)
        else:
            self._measure = Distance(coupling, samples)

    @property
    def labelled(self) -> bool:
        """Whether there are labels to measure accuracy by."""
        return self._samples.labels is not None

    def __call__(self, graph: Graph) -> tuple[float, float | None]:
        """Return the distance or the loss, and the accuracy where there are labels."""
        return self._measure(graph), accuracy(graph, self._samples)

    def _mean_loss(self, teacher: Teacher, graph: Graph) -> float:
        total, session = 0.0, Session(graph)
        for part in self._samples.batches(batch_size_of(self._coupling.graph)):
            feed, which = self._samples.feed(part), np.arange(part.start, part.stop)
            outputs = self._tensors(session.run(feed))
            wanted = teacher.outputs(which, feed) if self._loss.needs_original else []
            labels = self._samples.labels
            known = None if labels is None else Labels(torch.from_numpy(labels[part]))
            real = real_of(self._coupling, self._samples, part)
            total += float(self._loss(outputs, wanted, known, real)) * len(which)
        return total / len(self._samples)

    def _tensors(self, values: dict[str, NDArray[Any]]) -> list[torch.Tensor]:
        return [torch.from_numpy(values[port.name]) for port in self._coupling.graph.outputs]


def parts_of(samples: Samples, share: float, batch: int) -> tuple[Samples, Samples | None]:
    """Part the samples that train from those that choose the best epoch.

    The last ones choose, as they judge repair (`measuring.error.split`), which has solved for
    weights on others. On samples that it did solve on, the network before training looks better
    than it is.

    Args:
        samples: All, in a random order.
        share: Of those that choose; none are drawn where they would be less than two.
        batch: Both parts are whole batches of it.
    """
    n_held = round(len(samples) * share) // batch * batch
    if n_held < _SMALLEST or n_held >= len(samples):
        return samples, None
    n_used = len(samples) - n_held
    return samples.part(slice(0, n_used)), samples.part(slice(n_used, len(samples)))


def first_of(samples: Samples, batch: int) -> Samples:
    """Return the samples that trials are judged on where none are held out: whole batches."""
    n_judged = min(len(samples), _TRIED)
    return samples.part(slice(0, max(n_judged // batch, 1) * batch))
