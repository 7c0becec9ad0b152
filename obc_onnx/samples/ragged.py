"""Samples of different lengths that come with these: `lengths`, one whole number for each sample.

Arrays are filled up to one size. A model with a mask among its inputs is given one that is made of
the lengths, with 1 where something stands, unless the data holds it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.samples.lazy import LazyArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port
    from obc_onnx.samples.samples import Samples

LENGTHS = "lengths"
"""What the lengths are called among arrays."""
MASK_RANK = 2


def check_lengths(lengths: NDArray[Any], n_samples: int) -> NDArray[np.int64]:
    """Return lengths in memory.

    Raises:
        DataError: They are not one whole number of at least 1 for each sample.
    """
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
        raise DataError(
            f"'{LENGTHS}' must be one integer per sample, found shape {list(lengths.shape)}, "
            f"{lengths.dtype}"
        )
    if len(lengths) != n_samples:
        raise DataError(f"there are {len(lengths)} lengths for {n_samples} samples")
    if lengths.min() < 1:
        raise DataError(
            f"'{LENGTHS}' has {lengths.min()} for sample {lengths.argmin()}: a sample has at least "
            f"one position"
        )
    return np.array(lengths, np.int64)  # no longer a view of a file, where it was one


def check_fits(lengths: NDArray[np.int64], n_positions: int, where: str) -> None:
    """Check that no sample is longer than the array that holds it.

    Raises:
        DataError: One is.
    """
    if lengths.max() > n_positions:
        raise DataError(
            f"'{LENGTHS}' has {lengths.max()} for a sample, but {where} has {n_positions} positions"
        )


def with_made_mask(samples: Samples, graph: Graph) -> Samples:
    """Add the mask that the data lacks, made of the lengths; samples without lengths stay.

    Raises:
        DataError: It cannot be made, or the data holds what `mask_input` says is to be made.
    """
    if samples.lengths is None:
        return samples
    missing = [port for port in graph.inputs if port.name not in samples.inputs]
    if samples.mask_input is not None:
        missing = [port for port in missing if port.name == samples.mask_input]
        if not missing:
            raise DataError(
                f"the data holds '{LENGTHS}' and the mask '{samples.mask_input}': give one of them"
            )
    if len(missing) != 1 or len(missing[0].shape or ()) != MASK_RANK:
        return samples  # nothing to make, or what is missing is no mask
    port = missing[0]
    n_positions = _positions_of(port, samples, graph)
    counts = _sizes_of(port, 0, samples, graph) or {len(samples.lengths)}
    lengths = check_lengths(np.asarray(samples.lengths), min(counts))
    check_fits(lengths, n_positions, f"input '{port.name}', which is made of them,")
    made = (np.arange(n_positions) < lengths[:, None]).astype(port.dtype)
    return replace(samples, inputs={**samples.inputs, port.name: made}, mask_input=port.name)


def _positions_of(mask: Port, samples: Samples, graph: Graph) -> int:
    """Return how many positions a mask has: its own size, or that of an axis of the same name."""
    size = (mask.shape or ())[1]
    if isinstance(size, int):
        return size
    sizes = _sizes_of(mask, 1, samples, graph)
    if len(sizes) != 1:
        raise DataError(
            f"the data lacks input '{mask.name}', and '{LENGTHS}' does not say how many positions "
            f"it has: no other input has an axis '{size}'; give the array '{mask.name}' itself"
        )
    return sizes.pop()


def _sizes_of(mask: Port, axis: int, samples: Samples, graph: Graph) -> set[int]:
    """Return the sizes that other inputs have along axes of the name of one of the mask."""
    names = mask.shape or ()
    if not isinstance(names[axis], str):
        return set()
    return {
        size
        for port in graph.inputs
        if port.name in samples.inputs
        for name, size in _named_sizes(port, samples.inputs[port.name], names[0])
        if name == names[axis]
    }


def _named_sizes(
    port: Port, array: NDArray[Any] | LazyArray, batch: int | str
) -> Iterator[tuple[int | str, int]]:
    """Yield what each axis of an input is called, and how long it is; nothing of another rank.

    Samples that lie apart come first, wherever the input has them: on the axis of the batch.
    """
    names = list(port.shape or ())
    if isinstance(array, LazyArray) and array.source.apart and batch in names:
        names.insert(0, names.pop(names.index(batch)))
    if array.ndim == len(names):
        yield from zip(names, map(int, array.shape), strict=True)
