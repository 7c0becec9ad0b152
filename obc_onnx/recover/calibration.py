"""What samples are, by how alike neighbouring pixels are: pictures, or noise.

Repair on noise is worse than none. Pictures may be mirrored and shifted: few samples then go
further, since the original says what it makes of the changed ones too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.samples.images import IMAGE_RANK, channels_last

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

_LEAST = 0.2
"""Correlation of neighbours: pictures have above 0.8, independent noise 0."""
_OF_PICTURES = 0.7
_LOOKED_AT = 64
_SMALLEST = 4
_SHIFT = 16
"""The height or width of a picture over the largest shift."""


def looks_like_noise(graph: Graph, samples: Samples) -> str:
    """Name the first input of pictures whose neighbouring pixels are unlike, or nothing."""
    for name, pixels in _first_of(graph, samples).items():
        if pixels.ndim != IMAGE_RANK or not np.issubdtype(pixels.dtype, np.floating):
            continue
        pictures = _rows_and_columns_last(pixels)
        if min(pictures.shape[-2:]) >= _SMALLEST and _likeness(pictures) < _LEAST:
            return name
    return ""


def changes_of_pictures(graph: Graph, samples: Samples) -> Augmentation | None:
    """Say how samples may be changed that are pictures and nothing else; None for all others.

    They are where they were decoded from files of pictures, or neighbouring pixels are alike in
    both directions. With other inputs beside them, such as places in the picture, they stay.
    """
    if len(samples.inputs) != 1:
        return None
    (name,) = samples.inputs
    pixels = _first_of(graph, samples).get(name)
    if pixels is None or pixels.ndim != IMAGE_RANK or pixels.dtype.kind not in "fiu":
        return None
    pictures = _rows_and_columns_last(pixels)
    smaller = min(pictures.shape[-2:])
    if name not in samples.prepared:
        turned = pictures.swapaxes(-2, -1)
        if smaller < _SMALLEST or min(_likeness(pictures), _likeness(turned)) < _OF_PICTURES:
            return None
    return Augmentation(crop=smaller // _SHIFT, flip=True)


def _first_of(graph: Graph, samples: Samples) -> dict[str, NDArray[Any]]:
    """Return what some samples have for each input, shape [samples, ...]."""
    some = samples.part(slice(0, _LOOKED_AT))
    feeds = [some.feed(part) for part in some.batches(graph.batch or _LOOKED_AT)]
    names = [port.name for port in graph.inputs if feeds]
    return {name: np.concatenate([np.atleast_1d(feed[name]) for feed in feeds]) for name in names}


def _rows_and_columns_last(pixels: NDArray[Any]) -> NDArray[np.float64]:
    first = 1 if channels_last(pixels.shape) else 2
    return np.moveaxis(pixels.astype(np.float64), (first, first + 1), (-2, -1))


def _likeness(pictures: NDArray[np.float64]) -> float:
    """Return the correlation of pixels that are beside each other in a row; 1 where all are one."""
    centred = pictures - pictures.mean((-2, -1), keepdims=True)
    power = float(np.square(centred).mean())
    beside = float((centred[..., 1:] * centred[..., :-1]).mean())
    return beside / power if power > 0 else 1.0
