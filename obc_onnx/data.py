"""Read samples, and check them against the model before anything runs on them.

A source is one of these; `labels` are optional everywhere:

- an `.npz` with one array per model input, and `labels` or `lengths`;
- a folder with one `.npy` per model input, and `labels.npy` or `lengths.npy`;
- a `.tar` or a folder of them, laid out as WebDataset does: `archives` says how;
- a folder of images, in class subfolders or, without labels, straight in it.

Arrays lie as the model takes them, with as many samples on the batch axis as there are. An input
without such an axis, such as a number or a table, is given once for all samples; or with one axis
more in front, as one value for each sample, and then a run takes one.

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
from obc_onnx.errors import DataError, InvariantError
from obc_onnx.images import ImageOptions
from obc_onnx.placing import check, known_by, place
from obc_onnx.ragged import LENGTHS, check_lengths, with_made_mask
from obc_onnx.sample_checks import LABELS, check_labels
from obc_onnx.sources import LazyArray, MemoryArray
from obc_onnx.stored import listed, open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.batch_axes import Axes, BatchAxes
    from obc_onnx.graph import Graph
    from obc_onnx.images import Preparation
    from obc_onnx.padding import Padding

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
        mask_input: The input that says which positions are padding, where it is not found.
    """

    source: str | Path | Samples | None = None
    holdout: float = HOLDOUT
    evaluation: str | Path | Samples | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    mask_input: str | None = None

    @classmethod
    def of(cls, data: DataOptions | str | Path | Samples | None) -> DataOptions:
        """Return options, or those of a source alone."""
        return data if isinstance(data, DataOptions) else cls(data)


@dataclass(frozen=True)
class Samples:
    """Inputs, and labels where there are any.

    Attributes:
        inputs: For each model input that differs from sample to sample, an array of shape
            [samples, ...], in memory or not. Until `placed` all inputs, as the model takes them.
        labels: Class indices, shape [samples], int64, or None.
        dtypes: The type that the model takes for each input.
        prepared: For inputs that hold pictures, how those are made.
        fixed: What the other inputs are given in every run.
        batch_axes: Where the model has the samples; None until `placed`.
        lengths: How many positions of each sample hold something, shape [samples]; None where a
            mask says it, or all do.
        mask_input: The input that is known to be a mask, though nothing has shown it yet.
        padding: Which positions are no data, see `masks.with_padding`; None where all are.
    """

    inputs: Mapping[str, NDArray[Any] | LazyArray]
    labels: NDArray[np.int64] | None
    dtypes: Mapping[str, np.dtype[Any]]
    prepared: Mapping[str, Preparation] = field(default_factory=dict)
    fixed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    batch_axes: BatchAxes | None = None
    lengths: NDArray[np.int64] | None = None
    mask_input: str | None = None
    padding: Padding | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def feed(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return chosen samples as the model takes them.

        Raises:
            DataError: One cannot be read.
        """
        return self.laid_out(self.rows(which))

    def rows(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return what differs from sample to sample, of the model's types, shape [chosen, ...].

        Raises:
            DataError: One cannot be read.
        """
        rows = {name: array[which] for name, array in self.inputs.items()}
        for name, preparation in self.prepared.items():
            rows[name] = preparation.scaled(rows[name])
        return {name: np.asarray(array, self.dtypes[name], "C") for name, array in rows.items()}

    def laid_out(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Put samples, shape [chosen, ...], where the model has them, and what is fixed beside."""
        feed: dict[str, NDArray[Any]] = {}
        for name, array in rows.items():
            axis = 0 if self.batch_axes is None else self.batch_axes.inputs[name]
            if axis is None and len(array) != 1:
                raise InvariantError(f"a run was to take {len(array)} samples of input '{name}'")
            placed = array[0] if axis is None else np.moveaxis(array, 0, axis)
            feed[name] = np.asarray(placed, order="C")
        fixed = {name: np.asarray(v, self.dtypes[name], "C") for name, v in self.fixed.items()}
        return {**feed, **fixed}

    def real(self, which: slice | NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Say where chosen samples hold something, shape [chosen, positions]; None where all do."""
        if self.padding is None:
            return None
        array = self.inputs[self.padding.name]
        if self.padding.real is not None:
            return np.asarray(array[which] == self.padding.real)
        assert self.lengths is not None
        batch_axis = 0 if self.batch_axes is None else self.batch_axes.inputs[self.padding.name]
        axis = self.padding.axis + (self.padding.axis < (batch_axis or 0))
        return np.arange(array.shape[axis]) < self.lengths[which][:, None]

    def placed(self, batch_axes: BatchAxes, ranks: Mapping[str, int]) -> Samples:
        """Bring the samples of each input to the front, and set apart what is given once.

        Args:
            batch_axes: Of the model.
            ranks: How many axes each input of the model has.
        """
        inputs: dict[str, NDArray[Any] | LazyArray] = {}
        fixed: dict[str, NDArray[Any]] = {}
        for name, array in self.inputs.items():
            axis = batch_axes.inputs[name]
            if axis is not None:
                inputs[name] = _along(array, axis)
            elif array.ndim == ranks[name]:
                fixed[name] = array.whole() if isinstance(array, LazyArray) else array
            elif array.ndim == ranks[name] + 1 and _are_equal(array):
                fixed[name] = array[:1][0]
            else:
                inputs[name] = array
        if any(batch_axes.inputs[name] is None for name in inputs):
            batch_axes = replace(batch_axes, size=1)
        return replace(self, inputs=inputs, fixed=fixed, batch_axes=batch_axes)

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
            lengths=None if self.lengths is None else self.lengths[which],
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


def load_samples(
    path: str | Path, graph: Graph, images: ImageOptions | None = None, named: Axes | None = None
) -> Samples:
    """Open samples and check names, ranks, types, sizes and values.

    Args:
        path: Where they are; the module says what it may be.
        graph: The model that they are for.
        images: Only for pictures.
        named: The batch axis of inputs, where it is named.
    Returns:
        The samples in the order in which they lie there.
    Raises:
        DataError: Something does not fit; the message is one sentence.
    """
    images = images or ImageOptions()
    samples = _opened(path, graph, DataOptions(images=images), named)
    _check_use(images, [samples])
    return samples


def check_samples(
    samples: Samples, graph: Graph, what: str = "the data", named: Axes | None = None
) -> Samples:
    """Check samples against a model, and find where it has them.

    Args:
        samples: To check.
        graph: The model that they are for.
        what: How messages call them.
        named: The batch axis of inputs, where it is named.
    Returns:
        The samples with inputs in the model's order, placed, and labels as int64.
    Raises:
        DataError: Names, ranks, types, sizes, values or labels do not fit the model.
        RequestError: An axis is named that the model does not have.
    """
    samples = with_made_mask(samples, graph)
    given = [*samples.inputs, *samples.fixed]
    if set(given) != set(_names(graph)):
        raise DataError(
            f"{what} holds {listed(given)}, but the model's inputs are {listed(_names(graph))}"
        )
    ordered = {name: samples.inputs[name] for name in _names(graph) if name in samples.inputs}
    samples = replace(samples, inputs=ordered, dtypes=_dtypes(graph))
    if samples.batch_axes is None:
        samples = place(samples, graph, what, named or {})
    else:
        check(samples, graph, what)
    if samples.lengths is not None:
        samples = replace(samples, lengths=check_lengths(samples.lengths, len(samples)))
    if samples.labels is None:
        return samples
    check_labels(samples.labels, len(samples), graph)
    # no longer a view of a file, where it was one
    return replace(samples, labels=np.array(samples.labels, np.int64))


def open_samples(
    options: DataOptions, graph: Graph, named: Axes | None = None
) -> tuple[Samples | None, Samples | None]:
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
        if options.mask_input is not None:
            raise DataError("--mask-input is of samples: give --data too")
        return None, None
    opened = [_opened(options.source, graph, options, named)]
    if options.evaluation is not None:
        placed = known_by(graph, opened[0])
        opened.append(_opened(options.evaluation, placed, options, named))
    _check_use(options.images, opened)
    if options.evaluation is None:
        used, held = opened[0].split(options.holdout)
    else:
        used, held = (samples.mixed() for samples in opened)
    return _whole_batches(used, "work with"), _whole_batches(held, "measure on")


def _opened(
    source: str | Path | Samples, graph: Graph, options: DataOptions, named: Axes | None
) -> Samples:
    if isinstance(source, Samples):
        mask = options.mask_input or source.mask_input
        return check_samples(replace(source, mask_input=mask), graph, named=named)
    path = Path(source)
    if not path.exists():
        raise DataError(f"data '{path}' does not exist")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"data '{path}' is neither a file nor a folder")
    if path.is_dir() or path.suffix == ".tar":
        stored = open_stored(path, graph.inputs, options.images)
        samples = Samples(stored.inputs, stored.labels, _dtypes(graph), stored.prepared)
        samples = replace(samples, lengths=stored.lengths)
    else:
        samples = _from_archive(path, graph)
    samples = replace(samples, mask_input=options.mask_input)
    return check_samples(samples, graph, f"data '{path}'", named)


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


def _are_equal(array: NDArray[Any] | LazyArray) -> bool:
    return len(array) > 0 and all(np.array_equal(one, array[:1][0]) for one in array)


def _along(array: NDArray[Any] | LazyArray, axis: int) -> NDArray[Any] | LazyArray:
    if axis == 0 or array.ndim <= axis:
        return array
    return array.along(axis) if isinstance(array, LazyArray) else np.moveaxis(array, axis, 0)


def _whole_batches(samples: Samples, use: str) -> Samples:
    """Leave out what does not fill a batch, where the number of samples in a run is not free.

    Args:
        samples: All.
        use: What they are for, as messages say it.
    Raises:
        DataError: They fill none.
    """
    size = None if samples.batch_axes is None else samples.batch_axes.size
    if size is None:
        return samples
    n_whole = len(samples) // size * size
    if n_whole == 0:
        raise DataError(
            f"the model takes batches of {size}, but there are {len(samples)} samples to {use}: "
            f"give more --data, or another --holdout"
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
    labels, lengths = (
        arrays.pop(name, None) if name not in _names(graph) else None for name in (LABELS, LENGTHS)
    )
    return Samples(arrays, labels, _dtypes(graph), lengths=lengths)


def _dtypes(graph: Graph) -> dict[str, np.dtype[Any]]:
    return {port.name: port.dtype for port in graph.inputs}


def _names(graph: Graph) -> list[str]:
    return [port.name for port in graph.inputs]
