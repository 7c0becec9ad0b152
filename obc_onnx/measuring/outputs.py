"""Measure a model in ONNX Runtime: outputs, accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.graph.node import CLASSES_RANK, is_float
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

BATCH_SIZE = 128
"""Samples per run where the model's batch is dynamic."""


def batch_size_of(graph: Graph, wanted: int = BATCH_SIZE) -> int:
    """Return how many samples one run takes: `wanted`, or the model's own where it is static."""
    return graph.batch or wanted


def accuracy(graph: Graph, samples: Samples) -> float | None:
    """Return the share of samples whose label is the largest of the first output.

    Returns:
        In [0, 1]; None where there are no labels.
    """
    if samples.labels is None:
        return None
    session = Session(graph)
    correct = 0
    for part in samples.batches(batch_size_of(graph)):
        logits = session.run(samples.feed(part))[graph.outputs[0].name]
        correct += int((logits.argmax(axis=-1) == samples.labels[part]).sum())
    return correct / len(samples)


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
