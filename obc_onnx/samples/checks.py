"""Checks of samples against a model: each says what does not fit, in one sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.graph.node import CLASSES_RANK, is_float
from obc_onnx.progress import track
from obc_onnx.samples.lazy import LazyArray

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port

T = TypeVar("T")

LABELS = "labels"
"""What class indices are called among arrays."""
_LABEL_NAMES = (LABELS, "label")
"""What they are called where they are read."""
_WITHOUT_LABELS = (
    f"give samples without labels: no array '{LABELS}', no members .cls, and images straight in "
    f"their folder"
)
_BLOCK_BYTES = 2**24
"""Values are looked at in blocks of about this size."""


def check_layout(array: NDArray[Any] | LazyArray, port: Port, axis: int | None) -> None:
    """Check the shape of the samples of one input.

    Args:
        array: Shape [samples, ...].
        port: The model's input.
        axis: Where the model has the samples; None where it takes one at a time.
    Raises:
        DataError: The shape does not fit.
    """
    what = f"data for input '{port.name}'"
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{what} holds no samples")
    rest = array.shape[1:]
    found = rest if axis is None else (*rest[:axis], len(array), *rest[axis:])
    check_shape(found, port, axis)


def check_shape(found: tuple[int, ...], port: Port, axis: int | None = None) -> None:
    """Check the shape that an input is given, but for one axis.

    Raises:
        DataError: It does not fit.
    """
    what = f"data for input '{port.name}'"
    if port.shape is not None and len(found) != len(port.shape):
        raise DataError(f"{what} has {len(found)} axes, but the model takes {len(port.shape)}")
    for place, size in enumerate(port.shape or ()):
        if place != axis and isinstance(size, int) and found[place] != size:
            raise DataError(
                f"{what} has size {found[place]} on axis {place}, but the model takes {size}"
            )


def check_content(array: NDArray[Any] | LazyArray, port: Port) -> None:
    """Check the type and the values of what one input is given.

    Raises:
        DataError: They do not fit.
    """
    what = f"data for input '{port.name}'"
    if not np.can_cast(array.dtype, port.dtype, "safe"):
        floats = is_float(array.dtype) and is_float(port.dtype)
        hint = f"; convert it first, as with .astype(np.{port.dtype})" if floats else ""
        raise DataError(
            f"{what} has type {array.dtype}, which cannot be cast to {port.dtype} without "
            f"loss{hint}"
        )
    if array.ndim:
        _check_values(array, what)
    elif not np.isfinite(np.asarray(array)):
        raise DataError(f"{what} is not finite")


def classes_of(graph: Graph) -> int | None:
    """Return how many classes the first output has, None where it is not [batch, classes]."""
    shape = graph.outputs[0].shape or ()
    n_classes = shape[-1] if len(shape) == CLASSES_RANK else None
    return n_classes if isinstance(n_classes, int) else None


def taken_labels(arrays: dict[str, T], inputs: Collection[str]) -> T | None:
    """Take the labels out of arrays by name, by either of their names.

    Args:
        arrays: All that there are; an input of the model stays, whatever its name.
        inputs: The names of the model's inputs.
    Returns:
        The labels; None where there are none.

    Raises:
        DataError: There are two of them.
    """
    found = [name for name in _LABEL_NAMES if name in arrays and name not in inputs]
    if len(found) > 1:
        raise DataError(f"the data holds both '{found[0]}' and '{found[1]}': leave one of them out")
    return arrays.pop(found[0]) if found else None


def class_indices(labels: NDArray[Any], n_classes: int | None) -> NDArray[Any]:
    """Return labels as one number for each sample, where they are one column or one-hot.

    Args:
        labels: As they were given; what is neither is returned as it is.
        n_classes: Of the model, and so of columns; None where it has none.
    """
    if labels.ndim != CLASSES_RANK or labels.shape[1] not in {1, n_classes}:
        return labels
    if labels.shape[1] == 1:
        return labels[:, 0]
    is_one, is_zero = labels == 1, labels == 0
    if (is_one | is_zero).all() and (is_one.sum(axis=1) == 1).all():
        return np.asarray(is_one.argmax(axis=1))
    return labels


def check_labels(labels: NDArray[Any], n_samples: int, graph: Graph) -> None:
    """Check class indices.

    Args:
        labels: As they were given.
        n_samples: How many there should be.
        graph: Whose first output holds the classes.
    Raises:
        DataError: They are not one class of the model for each sample.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"labels must be one integer per sample, or one-hot, found shape {labels.shape}, "
            f"{labels.dtype}"
        )
    if len(labels) != n_samples:
        raise DataError(f"there are {len(labels)} labels for {n_samples} samples")
    output, n_classes = graph.outputs[0], classes_of(graph)
    for first in graph.opaque.outputs[:1]:
        if (giver := graph.opaque.unrun_outputs.get(first.name)) is not None:
            raise DataError(
                f"labels are given, but the model's first output '{first.name}' is what {giver} "
                f"gives, which ONNX Runtime does not know; {_WITHOUT_LABELS}"
            )
    if n_classes is None:
        raise DataError(
            f"labels are given, but the model's first output '{output.name}' is not of shape "
            f"[batch, classes]; {_WITHOUT_LABELS}"
        )
    if not is_float(output.dtype):
        raise DataError(
            f"labels are given, but the model's first output '{output.name}' is of type "
            f"{output.dtype} and holds no class scores; {_WITHOUT_LABELS}"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"labels range from {labels.min()} to {labels.max()}, but output '{output.name}' has "
            f"{n_classes} classes"
        )


def _check_values(array: NDArray[Any] | LazyArray, what: str) -> None:
    """Look for NaN and infinite values, block by block.

    What stays in memory once it was read is read here whatever its type: what is damaged then shows
    before any work is done.
    """
    lazy = array if isinstance(array, LazyArray) else None
    floats = np.issubdtype(array.dtype, np.floating)
    if not floats and not (lazy and lazy.source.remembers):
        return
    sample_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    size = max(_BLOCK_BYTES // max(sample_bytes, 1), 1)
    n_bad, first = 0, 0
    for start in track(range(0, len(array), size), "checking data"):
        block = array[slice(start, start + size)]
        if floats:
            bad = np.flatnonzero(~np.isfinite(block.reshape(len(block), -1)).all(axis=1))
            first = first if n_bad or not bad.size else start + int(bad[0])
            n_bad += bad.size
    if n_bad:
        where = f", in {lazy.where(first)}" if lazy else ""
        raise DataError(
            f"{what} has NaN or infinite values in {n_bad} samples, first {first}{where}"
        )
