"""Samples that are no pictures: repair on noise is worse than none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.samples.images import IMAGE_RANK, channels_last

if TYPE_CHECKING:
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

_LEAST = 0.2
"""Correlation of neighbours: pictures have above 0.8, independent noise 0."""
_LOOKED_AT = 64
_SMALLEST = 4


def looks_like_noise(graph: Graph, samples: Samples) -> str:
    """Name the first input of pictures whose neighbouring pixels are unlike, or nothing."""
    some = samples.part(slice(0, _LOOKED_AT))
    feeds = [some.feed(part) for part in some.batches(graph.batch or _LOOKED_AT)]
    for port in graph.inputs if feeds else ():
        pixels = np.concatenate([np.atleast_1d(feed[port.name]) for feed in feeds])
        if pixels.ndim != IMAGE_RANK or not np.issubdtype(pixels.dtype, np.floating):
            continue
        first = 1 if channels_last(pixels.shape) else 2
        pixels = np.moveaxis(pixels.astype(np.float64), (first, first + 1), (-2, -1))
        if min(pixels.shape[-2:]) < _SMALLEST:
            continue
        centred = pixels - pixels.mean((-2, -1), keepdims=True)
        power = np.square(centred).mean()
        beside = (centred[..., 1:] * centred[..., :-1]).mean()
        if power > 0 and beside < _LEAST * power:
            return port.name
    return ""
