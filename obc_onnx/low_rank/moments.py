"""Second moments of what layers read, on samples."""

from __future__ import annotations

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

    Moment = NDArray[np.float64]

SAMPLES = 512
"""How many samples are run, at most: the directions hardly change with more."""
_TOGETHER = 32
"""Samples of a run where the model leaves that open."""


def moments_of(
    coupling: Coupling, layers: Sequence[Dense], samples: Samples
) -> dict[tuple[str, int], Moment]:
    """Sum the products of what enters layers, in ONNX Runtime.

    Args:
        coupling: Of the network.
        layers: Some of its layers.
        samples: To run it on.
    Returns:
        For each value that a layer reads, and the axis along which it does, the sum over samples
        and positions, shape [width, width].
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
            found[name, along] = found.get((name, along), 0.0) + rows.T @ rows
    return found
