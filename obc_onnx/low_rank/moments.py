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
        halves: For every other sample, and for those between, the sum over positions of the
            products of inputs, shape [inputs, inputs].
    """

    halves: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def empty(cls, width: int) -> Moment:
        """Return that of no sample."""
        return cls((np.zeros((width, width)), np.zeros((width, width))))

    def add(self, rows: NDArray[np.float64]) -> None:
        """Count more samples, shape [samples, ..., inputs]."""
        for place in range(2):
            own = rows[place::2].reshape(-1, rows.shape[-1])
            self.halves[place][:] += own.T @ own

    @property
    def whole(self) -> NDArray[np.float64]:
        """The sum over all samples."""
        return self.halves[0] + self.halves[1]


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
            rows = np.moveaxis(values[name], along, -1).astype(np.float64)
            found.setdefault((name, along), Moment.empty(rows.shape[-1])).add(rows)
    return found
