"""How far a changed network is from its original, and on which samples that is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.measure import batch_size_of
from obc_onnx.runtime import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph

MEASURED = 2048
"""Samples to measure statistics or errors on, at most: neither changes much with more."""
_HELD_OUT = 0.2
_ROUNDING = 1e-12


def split(samples: Samples, batch: int) -> tuple[Samples, Samples]:
    """Hold out the last batches to judge repair on; both parts are whole batches."""
    n_batches = len(samples) // batch
    n_held = max(min(round(n_batches * _HELD_OUT), MEASURED // batch), 1)
    n_used = max(n_batches - n_held, 0) * batch
    return samples.part(slice(0, n_used)), samples.part(slice(n_used, n_batches * batch))


def output_error(original: Graph, changed: Graph, samples: Samples) -> float:
    """Return the mean squared difference of float outputs over their variance, in ONNX Runtime."""
    reference, found = Session(original), Session(changed)
    sums: dict[str, NDArray[np.float64]] = {}
    for part in samples.batches(batch_size_of(original)):
        feed = samples.feed(part)
        expected, values = reference.run(feed), found.run(feed)
        for name, value in expected.items():
            if np.issubdtype(value.dtype, np.floating):
                wide, error = value.astype(np.float64), values[name].astype(np.float64) - value
                terms = [value.size, wide.sum(), (wide**2).sum(), (error**2).sum()]
                sums[name] = sums.get(name, np.zeros(4)) + terms
    ratios = [
        error_square / count / spread_of(total / count, square / count)
        for count, total, square, error_square in sums.values()
    ]
    return float(np.mean(ratios)) if ratios else 0.0


def spread_of(mean: float, mean_square: float) -> float:
    """Return the scale of an output's squared errors: its variance over samples and positions.

    Where that is only rounding, since all values are equal, its mean square, or 1.
    """
    variance = mean_square - mean**2
    return variance if variance > _ROUNDING * mean_square else mean_square or 1.0
