"""Read samples, and check them against the model before anything runs on them.

A source is one of these; `labels` are optional everywhere:

- an `.npz` with one array per model input, and `labels` or `lengths`; the one array of a model with
  one input need not be named, and is `arr_0` then;
- an `.npy`, which is the one input of a model;
- a folder with one `.npy` per model input, and `labels.npy` or `lengths.npy`;
- a `.tar` or a folder of them, laid out as WebDataset does, with lengths too: `samples.shards` says
  how;
- a folder of images, in class subfolders or, without labels, straight in it;
- code that gives one run after the other, or the JSON that Polygraphy saves: `samples.runs`.

Labels are class indices or one-hot, and may be called `label` too.

Arrays lie as the model takes them, with as many samples on the batch axis as there are. An input
without such an axis, such as a number or a table, is given once for all samples; or with one axis
more in front, as one value for each sample, and then a run takes one.

An `.npz` and runs are held in memory. The others stay on disk, and a batch is read when it is asked
for; of images, decoded pixels are kept as long as they fit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.samples.checks import check_labels, class_indices, classes_of, taken_labels
from obc_onnx.samples.image_options import ImageOptions
from obc_onnx.samples.npz import UNREADABLE, is_array, read_npz
from obc_onnx.samples.on_disk import listed, open_array, open_stored
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.placing import check, known_by, place
from obc_onnx.samples.ragged import LENGTHS, check_lengths, with_made_mask
from obc_onnx.samples.runs import JSON, joined, runs_of_code, runs_of_json
from obc_onnx.samples.samples import Samples
from obc_onnx.samples.stand_ins import with_stand_ins
from obc_onnx.user_code import file_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.graph.model import Graph

    Shape = tuple[int, ...]


_UNNAMED = "arr_0"
"""What numpy calls the first array of an archive that was given no name."""


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
    samples = _opened(path, graph, DataOptions(images=images), named, None)
    _check_use(images, [samples])
    return samples


def check_samples(
    samples: Samples,
    graph: Graph,
    what: str = "the data",
    named: Axes | None = None,
    given: Mapping[str, Shape] | None = None,
) -> Samples:
    """Check samples against a model, and find where it has them.

    Args:
        samples: To check.
        graph: The model that they are for.
        what: How messages call them.
        named: The batch axis of inputs, where it is named.
        given: Shapes of inputs, where the model does not say them.
    Returns:
        The samples with inputs in the model's order, placed, and labels as int64.
    Raises:
        DataError: Names, ranks, types, sizes, values or labels do not fit the model.
        RequestError: An axis is named that the model does not have.
    """
    samples = with_made_mask(samples, graph)
    samples = with_stand_ins(samples, graph, named or {}, given or {})
    held = [*samples.inputs, *samples.fixed]
    if set(held) != set(_names(graph)):
        raise DataError(
            f"{what} holds {listed(held)}, but the model's inputs are {listed(_names(graph))}"
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
    labels = class_indices(np.asarray(samples.labels), classes_of(graph))
    check_labels(labels, len(samples), graph)
    # no longer a view of a file, where it was one
    return replace(samples, labels=np.array(labels, np.int64))


def open_samples(
    options: DataOptions,
    graph: Graph,
    named: Axes | None = None,
    given: Mapping[str, Shape] | None = None,
) -> tuple[Samples | None, Samples | None]:
    """Read the samples to work with, and those to measure on.

    Args:
        options: Where they are.
        graph: The model that they are for.
        named: The batch axis of inputs, where it is named.
        given: Shapes of inputs, where the model does not say them.
    Returns:
        Both in a random order, see `Samples.mixed`; None without data.
    Raises:
        DataError: They do not fit the model, or are too few to split.
    """
    if options.source is None:
        if options.evaluation is not None:
            raise DataError("samples to measure on need samples to work with: give `data` too")
        if options.images.given:
            raise DataError(f"{', '.join(options.images.given)} need pictures: give `data` too")
        if options.mask_input is not None:
            raise DataError("`DataOptions.mask_input` is of samples: give `data` too")
        return None, None
    opened = [_opened(options.source, graph, options, named, given)]
    if options.evaluation is not None:
        placed = known_by(graph, opened[0])
        opened.append(_opened(options.evaluation, placed, options, named, given))
    _check_use(options.images, opened)
    if options.evaluation is None:
        used, held = opened[0].split(options.holdout)
    else:
        used, held = (samples.mixed() for samples in opened)
    if options.eval_samples < 1:
        raise DataError(f"`DataOptions.eval_samples` must be above 0, found {options.eval_samples}")
    return _whole_batches(used, "work with"), _whole_batches(
        held, "measure on", options.eval_samples
    )


def _opened(
    source: str | Path | Samples,
    graph: Graph,
    options: DataOptions,
    named: Axes | None,
    given: Mapping[str, Shape] | None,
) -> Samples:
    if isinstance(source, Samples):
        mask = options.mask_input or source.mask_input
        return check_samples(replace(source, mask_input=mask), graph, named=named, given=given)
    samples = replace(_read(source, graph, options, named), mask_input=options.mask_input)
    return check_samples(samples, graph, f"data '{source}'", named, given)


def _read(source: str | Path, graph: Graph, options: DataOptions, named: Axes | None) -> Samples:
    """Read samples, which are not checked yet."""
    what = f"data '{source}'"
    if file_of(source) is not None:
        return _of_arrays(joined(runs_of_code(str(source)), _axes(graph, named), what), graph)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{what} does not exist")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{what} is neither a file nor a folder")
    if path.suffix == JSON or (path.is_dir() and any(path.glob(f"*{JSON}"))):
        return _of_arrays(joined(runs_of_json(path), _axes(graph, named), what), graph)
    if is_array(path):
        return Samples({_only_input(path, graph): open_array(path)}, None, _dtypes(graph))
    if not path.is_dir() and path.suffix != ".tar":
        return _from_archive(path, graph)
    stored = open_stored(path, graph.inputs, options.images, graph.opaque.givers)
    samples = Samples(stored.inputs, stored.labels, _dtypes(graph), stored.prepared)
    return replace(samples, lengths=stored.lengths)


def _axes(graph: Graph, named: Axes | None) -> dict[str, int | None]:
    """Return where inputs hold samples, as far as it is known before they are read."""
    return {**graph.batch_axes.inputs, **(named or {})}


def _check_use(images: ImageOptions, opened: Sequence[Samples]) -> None:
    """Check that options for pictures are not given where there are none."""
    if images.given and not any(samples.prepared for samples in opened):
        raise DataError(
            f"the data holds arrays, which are fed as they are, and no pictures: leave "
            f"{', '.join(images.given)} out"
        )


def _whole_batches(samples: Samples, use: str, most: int | None = None) -> Samples:
    """Leave out what does not fill a batch, where the number of samples in a run is not free.

    Args:
        samples: All.
        use: What they are for, as messages say it.
        most: How many are left, or one batch where that is more.
    Raises:
        DataError: They fill none.
    """
    size = None if samples.batch_axes is None else samples.batch_axes.size
    if size is None:
        return samples.part(slice(0, most))
    n_whole = min(len(samples), max(most or len(samples), size)) // size * size
    if n_whole == 0:
        raise DataError(
            f"the model takes batches of {size}, but there are {len(samples)} samples to {use}: "
            f"give more `data`, or another `DataOptions.holdout`"
        )
    return samples.part(slice(0, n_whole))


def _from_archive(path: Path, graph: Graph) -> Samples:
    try:
        arrays = read_npz(path)
    except UNREADABLE as error:
        raise DataError(f"data '{path}' is not an .npz file that numpy can read") from error
    return _of_arrays(arrays, graph)


def _of_arrays(arrays: dict[str, NDArray[Any]], graph: Graph) -> Samples:
    names = _names(graph)
    labels = taken_labels(arrays, names)
    lengths = None if LENGTHS in names else arrays.pop(LENGTHS, None)
    if len(names) == 1 and arrays.keys() == {_UNNAMED}:
        arrays = {names[0]: arrays[_UNNAMED]}
    return Samples(arrays, labels, _dtypes(graph), lengths=lengths)


def _only_input(path: Path, graph: Graph) -> str:
    """Name the input that a file with one array is for."""
    names = _names(graph)
    if len(names) > 1:
        raise DataError(
            f"data '{path}' is one array, but the model's inputs are {listed(names)}: give an .npz "
            f"with an array for each of them"
        )
    return names[0]


def _dtypes(graph: Graph) -> dict[str, np.dtype[Any]]:
    return {port.name: port.dtype for port in graph.inputs}


def _names(graph: Graph) -> list[str]:
    return [port.name for port in graph.inputs]
