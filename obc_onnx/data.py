"""Read samples, and check them against the model before anything runs on them.

A source is one of these; `labels` are optional everywhere:

- an `.npz` with one array per model input, first axis samples, and `labels`;
- a folder with one `.npy` per model input, and `labels.npy`;
- a `.tar` or a folder of them, laid out as WebDataset does: `archives` says how;
- a folder of images, in class subfolders or, without labels, straight in it.

An `.npz` is held in memory. The others stay on disk, and a batch is read when it is asked for; of
images, decoded pixels are kept as long as they fit.

Samples often lie class by class, and what is looked at is often the first thousand. So they are put
into a random order once, which the number of samples alone decides, and those to measure on are
drawn from all classes: runs with other options or seeds measure on the same ones.
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
from obc_onnx.sources import LazyArray, MemoryArray
from obc_onnx.stored import listed, open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph
    from obc_onnx.images import Preparation

UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise about a file; RuntimeError for an encrypted one."""
_ORDER_SEED, _DRAW_SEED = 0, 1


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from.

    Attributes:
        source: A file or folder, see `data`, or samples; None works without data.
        holdout: Share of it, drawn from all classes, that is only measured on.
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
class Samples:
    """Inputs, and labels where there are any.

    Attributes:
        inputs: For each model input, an array of shape [samples, ...], in memory or not.
        labels: Class indices, shape [samples], int64, or None.
        dtypes: The type that the model takes for each input.
        prepared: For inputs that hold pictures, how those are made.
    """

    inputs: Mapping[str, NDArray[Any] | LazyArray]
    labels: NDArray[np.int64] | None
    dtypes: Mapping[str, np.dtype[Any]]
    prepared: Mapping[str, Preparation] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feed(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return chosen samples as the model takes them.

        Raises:
            DataError: One cannot be read.
        """
        feed = {name: array[which] for name, array in self.inputs.items()}
        for name, preparation in self.prepared.items():
            feed[name] = preparation.scaled(feed[name])
        return {
            name: np.ascontiguousarray(array, dtype=self.dtypes[name])
            for name, array in feed.items()
        }

    def batches(self, size: int) -> Iterator[slice]:
        """Yield consecutive ranges of at most `size` samples."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def part(self, which: slice | NDArray[np.int64]) -> Samples:
        """Return chosen samples as a set of their own; they are neither read nor copied."""
        return replace(
            self,
            inputs={name: _part(array, which) for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[which],
        )

    def mixed(self) -> Samples:
        """Return all samples in a random order, the same for equal numbers of samples."""
        return self.part(np.random.default_rng(_ORDER_SEED).permutation(len(self)))

    def split(self, holdout: float) -> tuple[Samples, Samples]:
        """Mix the samples, and set a share of them apart for measuring.

        With labels each class gives about its share, and those of at least two samples at least
        one, as far as there are places.

        Returns:
            The samples to work with, and those to measure on.
        Raises:
            DataError: One of the parts would be empty.
        """
        n_held = round(len(self) * holdout) if 0 < holdout < 1 else 0
        if not 0 < n_held < len(self):
            raise DataError(
                f"{len(self)} samples cannot be split with holdout {holdout:g}: both parts need "
                f"at least one"
            )
        mixed = self.mixed()
        # not in the order of the mix: what is left of it would begin with the first classes done
        drawn = np.random.default_rng(_DRAW_SEED).permutation(len(self))
        if mixed.labels is not None:
            drawn = drawn[np.argsort(_turns(mixed.labels[drawn]), kind="stable")]
        held = np.zeros(len(self), np.bool_)
        held[drawn[:n_held]] = True
        return mixed.part(np.flatnonzero(~held)), mixed.part(np.flatnonzero(held))


def load_samples(path: str | Path, graph: Graph, images: ImageOptions | None = None) -> Samples:
    """Open samples and check names, ranks, types, sizes and values.

    Args:
        path: Where they are; the module says what it may be.
        graph: The model that they are for.
        images: Only for pictures.
    Returns:
        The samples in the order in which they lie there.
    Raises:
        DataError: Something does not fit; the message is one sentence.
    """
    images = images or ImageOptions()
    samples = _opened(path, graph, images)
    _check_use(images, [samples])
    return samples


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
        Both in a random order, see `Samples.mixed`; None without data.
    Raises:
        DataError: They do not fit the model, or are too few to split.
    """
    if options.source is None:
        if options.evaluation is not None:
            raise DataError("samples to measure on need samples to work with: give --data too")
        if options.images.given:
            raise DataError(f"{', '.join(options.images.given)} need pictures: give --data too")
        return None, None
    opened = [_opened(options.source, graph, options.images)]
    if options.evaluation is not None:
        opened.append(_opened(options.evaluation, graph, options.images))
    _check_use(options.images, opened)
    if options.evaluation is None:
        used, held = opened[0].split(options.holdout)
    else:
        used, held = (samples.mixed() for samples in opened)
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
    path = Path(source)
    if not path.exists():
        raise DataError(f"data '{path}' does not exist")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"data '{path}' is neither a file nor a folder")
    if path.is_dir() or path.suffix == ".tar":
        stored = open_stored(path, graph.inputs, images)
        samples = Samples(stored.inputs, stored.labels, _dtypes(graph), stored.prepared)
    else:
        samples = _from_archive(path, graph)
    return check_samples(samples, graph, f"data '{path}'")


def _check_use(images: ImageOptions, opened: Sequence[Samples]) -> None:
    """Check that options for pictures are not given where there are none."""
    if images.given and not any(samples.prepared for samples in opened):
        raise DataError(
            f"the data holds arrays, which are fed as they are, and no pictures: leave "
            f"{', '.join(images.given)} out"
        )


def _part(
    array: NDArray[Any] | LazyArray, which: slice | NDArray[np.int64]
) -> NDArray[Any] | LazyArray:
    if isinstance(array, LazyArray):
        return array.part(which)
    return array[which] if isinstance(which, slice) else LazyArray(MemoryArray(array), which)


def _turns(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return at which turn each sample is drawn: Webster's way to give classes their shares.

    The first sample of a class comes before all later ones; one that is alone in it comes last.

    Args:
        labels: In the order in which samples of one class are drawn.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    size = np.repeat(counts, counts)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    spread = np.select([size == 1, rank == 0], [1.0, 0.0], (rank + 0.5) / size)
    turns = np.empty(len(labels))
    turns[order] = spread
    return turns


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
