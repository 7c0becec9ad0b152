"""Read samples, and check them against the model before anything runs on them.

A source is one of these; `labels` are optional everywhere:

- an `.npz` with one array per model input, first axis samples, and `labels`;
- a folder with one `.npy` per model input, and `labels.npy`;
- a `.tar` or a folder of them, laid out as WebDataset does: `archives` says how;
- a folder of images in class subfolders.

An `.npz` is held in memory. The others stay on disk, and a batch is read when it is asked for; of
images, decoded pixels are kept as long as they fit.
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
from obc_onnx.images import ImageOptions
from obc_onnx.sample_checks import LABELS, check_array, check_labels
from obc_onnx.shapes import ANALYSIS_BATCH
from obc_onnx.sources import LazyArray
from obc_onnx.stored import listed, open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph
    from obc_onnx.images import PixelScaling

UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise about a file; RuntimeError for an encrypted one."""


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from.

    Attributes:
        source: A file or folder, see `data`, or samples; None works without data.
        holdout: Share of it, from the end, that is only measured on.
        evaluation: Samples to measure on instead.
        images: How pictures become an input.
    """

    source: str | Path | Samples | None = None
    holdout: float = HOLDOUT
    evaluation: str | Path | Samples | None = None
    images: ImageOptions = field(default_factory=ImageOptions)

    @classmethod
    def of(cls, data: DataOptions | str | Path | Samples | None) -> DataOptions:
        """Return options, or those of a source alone."""
        return data if isinstance(data, DataOptions) else cls(data)


@dataclass(frozen=True)
class Padding:
    """Which positions of samples are filled up, since samples are of different lengths.

    Attributes:
        mask: An input of shape [samples, positions].
        real: What it is where something stands: 1, or 0 where it marks the padding.
    """

    mask: str
    real: int

    def positions(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Say where something stands, shape [samples, positions]."""
        return np.asarray(feed[self.mask] == self.real)


@dataclass(frozen=True)
class Samples:
    """Inputs, and labels where there are any.

    Attributes:
        inputs: For each model input, an array of shape [samples, ...], in memory or not.
        labels: Class indices, shape [samples], int64, or None.
        dtypes: The type that the model takes for each input.
        scaling: For inputs that hold pictures, how to normalise them.
        padding: Which positions are no data, see `padding.find_padding`; None where all are.
    """

    inputs: Mapping[str, NDArray[Any] | LazyArray]
    labels: NDArray[np.int64] | None
    dtypes: Mapping[str, np.dtype[Any]]
    scaling: Mapping[str, PixelScaling] = field(default_factory=dict)
    padding: Padding | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feed(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return chosen samples as the model takes them.

        Raises:
            DataError: One cannot be read.
        """
        feed = {name: array[which] for name, array in self.inputs.items()}
        for name, scaling in self.scaling.items():
            feed[name] = scaling.apply(feed[name])
        return {
            name: np.ascontiguousarray(array, dtype=self.dtypes[name])
            for name, array in feed.items()
        }

    def batches(self, size: int) -> Iterator[slice]:
        """Yield consecutive ranges of at most `size` samples."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def part(self, which: slice | NDArray[np.int64]) -> Samples:
        """Return chosen samples as a set of their own; those on disk stay there."""
        return replace(
            self,
            inputs={
                name: array.part(which) if isinstance(array, LazyArray) else array[which]
                for name, array in self.inputs.items()
            },
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
    """Open samples and check names, ranks, types, sizes and values.

    Args:
        path: Where they are; the module says what it may be.
        graph: The model that they are for.
        images: Only for pictures.
    Raises:
        DataError: Something does not fit; the message is one sentence.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"data '{path}' does not exist")
    if path.is_dir() or path.suffix == ".tar":
        stored = open_stored(path, graph.inputs, images or ImageOptions())
        samples = Samples(stored.inputs, stored.labels, _dtypes(graph), stored.scaling)
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
            f"{what} holds {listed(samples.inputs)}, but the model's inputs are "
            f"{listed(_names(graph))}"
        )
    for port in graph.inputs:
        check_array(samples.inputs[port.name], port)
    counts = {len(array) for array in samples.inputs.values()}
    if len(counts) != 1:
        raise DataError(f"{what} has inputs of different lengths: {sorted(counts)}")
    labels = samples.labels
    if labels is not None:
        check_labels(labels, len(samples), graph)
        labels = np.array(labels, np.int64)  # no longer a view of a file, where it was one
    return replace(
        samples,
        inputs={name: samples.inputs[name] for name in _names(graph)},
        labels=labels,
        dtypes=_dtypes(graph),
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
    return Samples(arrays, labels, _dtypes(graph))


def _dtypes(graph: Graph) -> dict[str, np.dtype[Any]]:
    return {port.name: port.dtype for port in graph.inputs}


def _names(graph: Graph) -> list[str]:
    return [port.name for port in graph.inputs]
