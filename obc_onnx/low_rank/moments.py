"""Second moments of what layers read, on samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.graph.session import Session
from obc_onnx.progress import track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.low_rank.layers import Dense
    from obc_onnx.samples.samples import Samples

SAMPLES = 1024
"""How many samples are run, at most."""
_TOGETHER = 32
"""Samples of a run where the model leaves that open."""


@dataclass
class Moment:
    """What is known of the inputs of a layer.

    Attributes:
        products: The sum over rows of the products of inputs, shape [inputs, inputs].
        fourth: The sum over rows of the square of their squared length.
        n_rows: How many rows there were: positions of samples.
    """

    products: NDArray[np.float64]
    fourth: float = 0.0
    n_rows: int = 0

    @classmethod
    def empty(cls, width: int) -> Moment:
        """Return that of no row."""
        return cls(np.zeros((width, width)))

    def add(self, rows: NDArray[np.float64]) -> None:
        """Count more rows, shape [rows, inputs]."""
        self.products += rows.T @ rows
        self.fourth += float((np.square(rows).sum(1) ** 2).sum())
        self.n_rows += len(rows)

    def estimated(self) -> NDArray[np.float64]:
        """Return the mean of the products, as far as so many rows tell it.

        A mean of few rows says too much of directions, even that most do not occur. It is mixed
        with the mean square of inputs, all of which count alike then, by the share that leaves the
        least expected error.

        Returns:
            Shape [inputs, inputs].
        Source: Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance
            matrices, Journal of Multivariate Analysis 88 (2004), section 3.3.
        """
        width = len(self.products)
        mean = self.products / max(self.n_rows, 1)
        alike = np.trace(mean) / width * np.eye(width)
        apart = float(np.square(mean - alike).sum())
        noise = self.fourth / max(self.n_rows, 1) - float(np.square(mean).sum())
        share = min(noise / max(self.n_rows, 1) / apart, 1.0) if apart > 0 else 0.0
        return np.asarray((1 - share) * mean + share * alike)


def moments_of(
    coupling: Coupling, layers: Sequence[Dense], samples: Samples
) -> dict[tuple[str, int], Moment]:
    """Sum the products of what enters layers, in ONNX Runtime.

    Args:
        coupling: Of the network.
        layers: Some of its layers.
        samples: To run it on.
    Returns:
        For each value that a layer reads, and the axis along which it does, the moment over samples
        and positions.
    """
    graph = coupling.graph
    wanted = dict.fromkeys((layer.node.inputs[layer.entry], layer.along) for layer in layers)
    found: dict[tuple[str, int], Moment] = {}
    session = Session(graph, outputs=list(dict.fromkeys(name for name, _ in wanted)))
    some = samples.part(slice(0, SAMPLES))
    size = graph.batch or _TOGETHER
    for part in track(list(some.batches(size)), "low rank"):
        values = session.run(some.feed(part))
        for name, along in wanted:
            rows = np.moveaxis(values[name], along, -1).reshape(-1, values[name].shape[along])
            rows = rows.astype(np.float64)
            found.setdefault((name, along), Moment.empty(rows.shape[1])).add(rows)
    return found
