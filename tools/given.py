"""What a tool needs of something that may be missing; it ends with a sentence where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from obc_onnx.measuring import outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

Value = TypeVar("Value")


def given(value: Value | None, what: str) -> Value:
    """Return a value that is there.

    Args:
        value: What may be missing.
        what: What that is, for the message.
    Raises:
        SystemExit: It is missing.
    """
    if value is None:
        raise SystemExit(f"this tool needs {what}, and there is none")
    return value


def labels_of(samples: Samples) -> NDArray[np.int64]:
    """Return the labels of samples, shape [n_samples]."""
    return given(samples.labels, "labels: an array `labels` beside the inputs")


def accuracy(graph: Graph, samples: Samples) -> float:
    """Return the share of samples, in [0, 1], whose label is the largest of the first output."""
    labels_of(samples)
    return given(outputs.accuracy(graph, samples), "an accuracy")
