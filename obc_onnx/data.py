"""Read samples, and check them against the model before anything runs on them.

A source is an `.npz` with one array per model input (first axis: samples) and optionally `labels`,
or a folder of images in class subfolders.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph, Port

LABELS = "labels"
_CHANNELS = {1: "L", 3: "RGB"}
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


@dataclass(frozen=True)
class ImageOptions:
    """How pictures become an input: (pixel / 255 - mean) / std, per channel.

    Attributes:
        mean: One number per channel, or one for all.
        std: The same.
        size: (height, width) to resize to; None takes the model's own.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Samples:
    """Inputs, and labels where there are any.

    Attributes:
        inputs: For each model input, an array of shape [samples, ...].
        labels: Class indices, shape [samples], int64, or None.
        dtypes: The type that the model takes for each input.
        pixels: For pictures, how to normalise them; None takes the arrays as they are.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    dtypes: Mapping[str, np.dtype[Any]]
    pixels: ImageOptions | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feed(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return chosen samples as the model takes them."""
        feed = {name: array[which] for name, array in self.inputs.items()}
        if self.pixels is not None:
            feed = {name: _normalise(array, self.pixels) for name, array in feed.items()}
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
        n_held = round(len(self) * holdout)
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
    samples = (
        _from_folder(path, graph, images or ImageOptions())
        if path.is_dir()
        else _from_archive(path, graph)
    )
    if samples.labels is not None:
        _check_labels(samples.labels, len(samples), graph)
    return samples


def _from_archive(path: Path, graph: Graph) -> Samples:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"data '{path}' is one array; an .npz with names is needed")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"data '{path}' is not an .npz file that numpy can read") from error
    labels = arrays.pop(LABELS, None) if LABELS not in _names(graph) else None
    if set(arrays) != set(_names(graph)):
        raise DataError(
            f"data '{path}' holds {_listed(arrays)}, but the model's inputs are "
            f"{_listed(_names(graph))}"
        )
    for port in graph.inputs:
        _check_array(arrays[port.name], port)
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise DataError(f"data '{path}' has inputs of different lengths: {sorted(counts)}")
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
        raise DataError(
            f"{what} has type {array.dtype}, which cannot be cast to {port.dtype} without loss"
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
    n_classes = output.shape[-1] if output.shape is not None and len(output.shape) == 2 else None  # noqa: PLR2004
    if not isinstance(n_classes, int):
        raise DataError(
            f"labels are given, but the model's first output '{output.name}' is not of shape "
            f"[batch, classes]; leave '{LABELS}' out of the data"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"labels range from {labels.min()} to {labels.max()}, but output '{output.name}' has "
            f"{n_classes} classes"
        )


def _from_folder(path: Path, graph: Graph, images: ImageOptions) -> Samples:
    if len(graph.inputs) != 1 or graph.inputs[0].shape is None:
        raise DataError("a folder of images needs a model with one input of known rank")
    port = graph.inputs[0]
    n_channels, size, channels_last = _picture_layout(port, images)
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    files = [
        (file, index)
        for index, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"data '{path}' holds no images in class subfolders")
    for name, values in (("image-mean", images.mean), ("image-std", images.std)):
        if len(values) not in {1, n_channels}:
            raise DataError(f"--{name} needs 1 or {n_channels} numbers, found {len(values)}")
    pixels = np.stack([_read(file, size, n_channels) for file, _ in files])
    options = images
    if not channels_last:
        pixels = pixels.transpose(0, 3, 1, 2)
        options = replace(images, mean=_as_column(images.mean), std=_as_column(images.std))
    labels = np.array([index for _, index in files], np.int64)
    return Samples({port.name: pixels}, labels, {port.name: port.dtype}, options)


def _picture_layout(port: Port, images: ImageOptions) -> tuple[int, tuple[int, int], bool]:
    """Return channels, (height, width) and whether channels come last."""
    shape = port.shape or ()
    if len(shape) != 4:  # noqa: PLR2004 - batch, channels, height, width
        raise DataError(f"input '{port.name}' has {len(shape)} axes; images need 4")
    last = shape[1] not in _CHANNELS and shape[3] in _CHANNELS
    channels, own = (shape[3], shape[1:3]) if last else (shape[1], shape[2:4])
    if channels not in _CHANNELS:
        raise DataError(f"input '{port.name}' has shape {shape}: no axis of 1 or 3 channels")
    size = images.size or own
    if not all(isinstance(extent, int) for extent in size):
        raise DataError(f"input '{port.name}' has a dynamic size: give --image-size")
    if any(isinstance(want, int) and want != got for want, got in zip(own, size, strict=True)):
        raise DataError(f"--image-size {size} does not fit input '{port.name}' of shape {shape}")
    return int(channels), (int(size[0]), int(size[1])), last


def _read(file: Path, size: tuple[int, int], n_channels: int) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            picture = image.convert(_CHANNELS[n_channels]).resize(size[::-1])
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"image '{file}' cannot be read") from error
    return np.asarray(picture, np.uint8).reshape(*size, n_channels)


def _as_column(values: tuple[float, ...]) -> Any:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def _normalise(array: NDArray[Any], pixels: ImageOptions) -> NDArray[np.float32]:
    mean, std = np.asarray(pixels.mean, np.float32), np.asarray(pixels.std, np.float32)
    scaled: NDArray[np.float32] = (array.astype(np.float32) / 255 - mean) / std
    return scaled


def _names(graph: Graph) -> list[str]:
    return [port.name for port in graph.inputs]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
