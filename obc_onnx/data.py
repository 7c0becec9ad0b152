"""Read samples, and check them against the model before anything runs on them.

A source is an `.npz` with one array per model input (first axis: samples) and optionally `labels`,
or a folder of images in class subfolders.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.defaults import HOLDOUT
from obc_onnx.errors import DataError
from obc_onnx.images import ImageOptions, read_pictures
from obc_onnx.node import is_float
from obc_onnx.shapes import ANALYSIS_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph
    from obc_onnx.images import PixelScaling
    from obc_onnx.node import Port

LABELS = "labels"
"""The array of an archive that holds class indices."""
_CLASSIFIER_RANK = 2
UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise about a file; RuntimeError for an encrypted one."""


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from.

    Attributes:
        source: An `.npz` or a folder of images; None works without data.
        holdout: Share of it, from the end, that is only measured on.
        evaluation: Samples to measure on instead.
        images: How pictures become an input.
    """

    source: str | Path | Samples | None = None
    holdout: float = HOLDOUT
    evaluation: str | Path | Samples | None = None
    images: ImageOptions = field(default_factory=ImageOptions)


@dataclass(frozen=True)
class Samples:
    """Inputs, and labels where there are any.

    Attributes:
        inputs: For each model input, an array of shape [samples, ...].
        labels: Class indices, shape [samples], int64, or None.
        dtypes: The type that the model takes for each input.
        scaling: For pictures, how to normalise them; None takes the arrays as they are.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    dtypes: Mapping[str, np.dtype[Any]]
    scaling: PixelScaling | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feed(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return chosen samples as the model takes them."""
        feed = {name: array[which] for name, array in self.inputs.items()}
        if self.scaling is not None:
            feed = {name: self.scaling.apply(array) for name, array in feed.items()}
        return {
            name: np.ascontiguousarray(array, dtype=self.dtypes[name])
            for name, array in feed.items()
        }

    def batches(self, size: int) -> Iterator[slice]:
        """Yield consecutive ranges of at most `size` samples."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def part(self, which: slice | NDArray[np.int64]) -> Samples:
        """Return chosen samples as a set of their own."""
        return replace(
            self,
            inputs={name: array[which] for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[which],
        )

    def split(self, holdout: float) -> tuple[Samples, Samples]:
        """Cut off the last share of the samples, for measuring; the order is kept.

        Raises:
            DataError: One of the parts would be empty.
        """
        n_held = round(len(self) * holdout) if 0 < holdout < 1 else 0
        if not 0 < n_held < len(self):
            raise DataError(
                f"{len(self)} samples cannot be split with holdout {holdout:g}: both parts need "
                f"at least one"
            )
        return self.part(slice(0, len(self) - n_held)), self.part(slice(len(self) - n_held, None))


def load_samples(path: str | Path, graph: Graph, images: ImageOptions | None = None) -> Samples:
    """Read samples and check names, ranks, types, sizes and values.

    Args:
        path: An `.npz` file, or a folder with one subfolder of images per class.
        graph: The model that they are for.
        images: Only for a folder.
    Raises:
        DataError: Something does not fit; the message is one sentence.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"data '{path}' does not exist")
    if path.is_dir():
        samples = _from_folder(path, graph, images or ImageOptions())
    else:
        samples = _from_archive(path, graph)
    return check_samples(samples, graph, f"data '{path}'")


def check_samples(samples: Samples, graph: Graph, what: str = "the data") -> Samples:
    """Check samples against a model.

    Args:
        samples: To check.
        graph: The model that they are for.
        what: How messages call them.
    Returns:
        The samples with inputs in the model's order, and labels as int64.
    Raises:
        DataError: Names, ranks, types, sizes, values or labels do not fit the model.
    """
    if set(samples.inputs) != set(_names(graph)):
        raise DataError(
            f"{what} holds {_listed(samples.inputs)}, but the model's inputs are "
            f"{_listed(_names(graph))}"
        )
    for port in graph.inputs:
        _check_array(samples.inputs[port.name], port)
    counts = {len(array) for array in samples.inputs.values()}
    if len(counts) != 1:
        raise DataError(f"{what} has inputs of different lengths: {sorted(counts)}")
    labels = samples.labels
    if labels is not None:
        _check_labels(labels, len(samples), graph)
        labels = labels.astype(np.int64)
    return replace(
        samples,
        inputs={name: samples.inputs[name] for name in _names(graph)},
        labels=labels,
        dtypes={port.name: port.dtype for port in graph.inputs},
    )


def open_samples(options: DataOptions, graph: Graph) -> tuple[Samples | None, Samples | None]:
    """Read the samples to work with, and those to measure on.

    Returns:
        Both None without data.
    Raises:
        DataError: They do not fit the model, or are too few to split.
    """
    if options.source is None:
        if options.evaluation is not None:
            raise DataError("samples to measure on need samples to work with: give --data too")
        return None, None
    source = _opened(options.source, graph, options.images)
    if options.evaluation is None:
        used, held = source.split(options.holdout)
    else:
        used, held = source, _opened(options.evaluation, graph, options.images)
    return _whole_batches(used, graph), _whole_batches(held, graph)


def shapes_of(graph: Graph, samples: Samples | None) -> dict[str, tuple[int, ...]]:
    """Take input sizes besides the batch from the samples, which the model may leave open."""
    if samples is None:
        return {}
    batch = graph.batch or ANALYSIS_BATCH
    first = samples.feed(slice(0, 1))
    return {name: (batch, *array.shape[1:]) for name, array in first.items()}


def _opened(source: str | Path | Samples, graph: Graph, images: ImageOptions) -> Samples:
    if isinstance(source, Samples):
        return check_samples(source, graph)
    return load_samples(source, graph, images)


def _whole_batches(samples: Samples, graph: Graph) -> Samples:
    """Leave out what does not fill a batch, where the model's batch is static."""
    if graph.batch is None:
        return samples
    n_whole = len(samples) // graph.batch * graph.batch
    if n_whole == 0:
        raise DataError(
            f"the model takes batches of {graph.batch}, but there are {len(samples)} samples"
        )
    return samples.part(slice(0, n_whole))


def _from_archive(path: Path, graph: Graph) -> Samples:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"data '{path}' is one array; an .npz with names is needed")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise DataError(f"data '{path}' is not an .npz file that numpy can read") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives other members of a zip as bytes
            raise DataError(f"data '{path}' holds '{name}', which is not an array")
    labels = arrays.pop(LABELS, None) if LABELS not in _names(graph) else None
    return Samples(arrays, labels, {port.name: port.dtype for port in graph.inputs})


def _check_array(array: NDArray[Any], port: Port) -> None:
    shape = port.shape
    what = f"data for input '{port.name}'"
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{what} holds no samples")
    if shape is not None and array.ndim != len(shape):
        raise DataError(f"{what} has {array.ndim} axes, but the model takes {len(shape)}")
    for axis, size in enumerate(shape or ()):
        if axis and isinstance(size, int) and array.shape[axis] != size:
            raise DataError(
                f"{what} has size {array.shape[axis]} on axis {axis}, but the model takes {size}"
            )
    if not np.can_cast(array.dtype, port.dtype, "safe"):
        floats = is_float(array.dtype) and is_float(port.dtype)
        hint = f"; convert it first, as with .astype(np.{port.dtype})" if floats else ""
        raise DataError(
            f"{what} has type {array.dtype}, which cannot be cast to {port.dtype} without "
            f"loss{hint}"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise DataError(f"{what} has NaN or infinite values in {bad.size} samples, first {bad[0]}")


def _check_labels(labels: NDArray[Any], n_samples: int, graph: Graph) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"labels must be one integer per sample, found shape {labels.shape}, {labels.dtype}"
        )
    if len(labels) != n_samples:
        raise DataError(f"there are {len(labels)} labels for {n_samples} samples")
    output = graph.outputs[0]
    shape = output.shape or ()
    n_classes = shape[-1] if len(shape) == _CLASSIFIER_RANK else None
    if not isinstance(n_classes, int):
        raise DataError(
            f"labels are given, but the model's first output '{output.name}' is not of shape "
            f"[batch, classes]; leave '{LABELS}' out of the data"
        )
    if not is_float(output.dtype):
        raise DataError(
            f"labels are given, but the model's first output '{output.name}' is of type "
            f"{output.dtype} and holds no class scores; leave '{LABELS}' out of the data"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"labels range from {labels.min()} to {labels.max()}, but output '{output.name}' has "
            f"{n_classes} classes"
        )


def _from_folder(path: Path, graph: Graph, images: ImageOptions) -> Samples:
    if len(graph.inputs) != 1:
        raise DataError(
            f"a folder of images needs a model with one input; this one has {len(graph.inputs)}"
        )
    port = graph.inputs[0]
    pictures = read_pictures(path, port, images)
    dtypes = {port.name: port.dtype}
    return Samples({port.name: pictures.pixels}, pictures.labels, dtypes, pictures.scaling)


def _names(graph: Graph) -> list[str]:
    return [port.name for port in graph.inputs]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
