"""Measure a model in ONNX Runtime: outputs, accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.graph.node import CLASSES_RANK, is_float
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

BATCH_SIZE = 128
"""Samples per run where the model's batch is dynamic."""
_ROOM = 2**28
"""Bytes of outputs that are kept."""


def batch_size_of(graph: Graph, wanted: int = BATCH_SIZE) -> int:
    """Return how many samples one run takes: `wanted`, or the model's own where it is static."""
    return graph.batch or wanted


class Outputs:
    """What a model gives for samples, for all who ask: each run is done once, if there is room.

    A session lasts as long as there is something to run: it holds another copy of large weights.

    Args:
        graph: The model.
        samples: To run it on.

    Attributes:
        size: Samples of a run.
    """

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self.graph, self.samples, self.size = graph, samples, batch_size_of(graph)
        self._known: dict[int, dict[str, NDArray[Any]]] = {}
        self._room = _ROOM

    def runs(self) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
        """Yield the samples of each run, and each output by name."""
        session: Session | None = None
        for part in self.samples.batches(self.size):
            found = self._known.get(part.start)
            if found is None:
                session = session or Session(self.graph)
                found = session.run(self.samples.feed(part))
                self._keep(part.start, found)
            yield part, found

    def _keep(self, start: int, found: dict[str, NDArray[Any]]) -> None:
        """Remember what a run gave, if it is tensors that there is room for."""
        tensors = [value for value in found.values() if isinstance(value, np.ndarray)]
        n_bytes = sum(value.nbytes for value in tensors)
        if len(tensors) == len(found) and n_bytes <= self._room:
            self._known[start] = found
            self._room -= n_bytes

    def accuracy(self) -> float | None:
        """Return the share of samples whose label is the largest of the first output.

        Returns:
            In [0, 1]; None where there are no labels.
        """
        labels = self.samples.labels
        return None if labels is None else self.share_right(labels)

    def share_right(self, labels: NDArray[np.int64]) -> float:
        """Return the share of samples whose label, shape [samples], is the largest output."""
        name = self.graph.outputs[0].name
        correct = sum(
            int((found[name].argmax(axis=-1) == labels[part]).sum()) for part, found in self.runs()
        )
        return correct / len(self.samples)


def accuracy(graph: Graph, samples: Samples) -> float | None:
    """Return the accuracy of a model, see `Outputs`."""
    return None if samples.labels is None else Outputs(graph, samples).accuracy()


def answers(graph: Graph, samples: Samples) -> NDArray[np.int64]:
    """Return the class that a model itself gives each sample: the largest of its first output.

    Raises:
        RequestError: That is not of shape [batch, classes], in floats.
    """
    session, name = Session(graph), graph.outputs[0].name
    found = []
    for part in samples.batches(batch_size_of(graph)):
        scores = session.run(samples.feed(part))[name]
        classes = isinstance(scores, np.ndarray) and scores.ndim == CLASSES_RANK
        if not classes or not is_float(scores.dtype):
            raise RequestError(
                f"the model's own answers are needed, but its first output '{name}' is no tensor "
                f"of floats of shape [batch, classes]: use `Scoring(objective='output')`"
            )
        found.append(scores.argmax(axis=1).astype(np.int64))
    return np.concatenate(found)
