"""Pictures as samples: their layout in a model's input, how they are decoded and normalised."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.sources import LazyArray, Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.node import Port

CACHE_BYTES = 2**31
"""Decoded pixels of a set are kept in memory as long as all of them fit into this."""
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
"""Of files that hold pictures, in small letters."""
IMAGE_RANK = 4
_MODES = {1: "L", 3: "RGB"}
"""Pillow's name for pictures of so many channels."""


@dataclass(frozen=True)
class ImageOptions:
    """How pictures become an input: (pixel / 255 - mean) / std, per channel.

    Attributes:
        mean: One number per channel, or one for all.
        std: The same; no zeros.
        size: (height, width) to resize to; None takes the model's own.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class PixelScaling:
    """(pixel / 255 - mean) / std, with mean and std shaped to broadcast over the pixels."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise pixels, shape [samples, ...]."""
        return (pixels.astype(np.float32) / np.float32(255) - self.mean) / self.std


class Files(Protocol):
    """Things that hold a picture each."""

    def __len__(self) -> int: ...

    def read(self, place: int) -> bytes:
        """Return all that one holds."""

    def where(self, place: int) -> str:
        """Name one, as messages call it."""


@dataclass(frozen=True)
class Pictures:
    """Pictures in the model's layout, uint8, and how to normalise them."""

    pixels: LazyArray
    scaling: PixelScaling


@dataclass(frozen=True)
class _Layout:
    """Where an input has the axes of a picture, and their sizes."""

    channels: int
    size: tuple[int, int]
    last: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, self.channels) if self.last else (self.channels, *self.size)


def read_pictures(files: Files, port: Port, options: ImageOptions) -> Pictures:
    """Make pictures an input of a model. None is decoded yet.

    Args:
        files: Hold the pictures.
        port: The input, [batch, channels, height, width] or with channels last.
        options: How to resize and normalise.
    Raises:
        DataError: The options or the input do not fit pictures.
    """
    layout = _layout(port, options)
    shape = (layout.channels,) if layout.last else (layout.channels, 1, 1)
    scaling = PixelScaling(
        _per_channel("--image-mean", options.mean, layout.channels, shape),
        _per_channel("--image-std", options.std, layout.channels, shape),
    )
    if not scaling.std.all():
        raise DataError("--image-std must not be 0")
    return Pictures(LazyArray(_PictureSource(files, layout)), scaling)


def list_pictures(folder: Path) -> tuple[Files, NDArray[np.int64]]:
    """List the pictures of a folder with one subfolder per class, by their names alone.

    Samples are split by their order: sorted by class, the held-out ones would be all of one class.
    So classes, which are numbered by name, take turns: any run has about each one's share.

    Returns:
        The files, and the class of each.
    Raises:
        DataError: There are none.
    """
    names: list[str] = []
    labels, ranks = [np.empty(0, np.int64)], [np.empty(0)]
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    for index, child in enumerate(classes):
        own = sorted(file.name for file in child.iterdir() if file.suffix.lower() in SUFFIXES)
        names += [f"{child.name}/{name}" for name in own]
        labels.append(np.full(len(own), index, np.int64))
        ranks.append((np.arange(len(own)) + 0.5) / max(len(own), 1))
    if not names:
        raise DataError(f"data '{folder}' holds no images in class subfolders")
    label = np.concatenate(labels)
    order = np.lexsort((label, np.concatenate(ranks)))
    return _FolderFiles(folder, [names[i] for i in order]), label[order]


def channels_last(shape: Sequence[int | str | None]) -> bool:
    """Say where a shape of rank 4 has its channels: second, unless only the last can be those."""
    return shape[1] not in _MODES and shape[3] in _MODES


class _FolderFiles:
    """Files of a folder by their names; short strings, since there may be millions."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, place: int) -> bytes:
        try:
            return (self._folder / self._names[place]).read_bytes()
        except OSError as error:
            raise DataError(f"image {self.where(place)} cannot be read") from error

    def where(self, place: int) -> str:
        return f"'{self._folder / self._names[place]}'"


class _PictureSource(Source):
    """Pictures that are decoded when they are asked for, once where all pixels fit into memory.

    A copy in another process that was pickled has no cache: memory would grow with each of them.
    """

    def __init__(self, files: Files, layout: _Layout) -> None:
        self._files, self._layout = files, layout
        self.shape, self.dtype = (len(files), *layout.shape), np.dtype(np.uint8)
        self._known = np.zeros(len(files), np.bool_)
        self.remembers = math.prod(self.shape) <= CACHE_BYTES
        self._cache = np.empty(self.shape, np.uint8) if self.remembers else None

    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        if self._cache is None:
            pixels = np.empty((len(which), *self.shape[1:]), np.uint8)
            for target, place in enumerate(which):
                pixels[target] = self._decode(int(place))
            return pixels
        for place in which[~self._known[which]]:
            self._cache[place] = self._decode(int(place))
            self._known[place] = True
        return self._cache[which]

    def where(self, place: int) -> str:
        return self._files.where(place)

    def _decode(self, place: int) -> NDArray[np.uint8]:
        from PIL import Image, UnidentifiedImageError

        layout = self._layout
        try:
            with Image.open(io.BytesIO(self._files.read(place))) as image:
                picture = image.convert(_MODES[layout.channels]).resize(layout.size[::-1])
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,  # Pillow's word for damaged chunks
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(f"image {self.where(place)} cannot be read") from error
        pixels = np.asarray(picture, np.uint8).reshape(*layout.size, layout.channels)
        return pixels if layout.last else pixels.transpose(2, 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "remembers": False}


def _layout(port: Port, options: ImageOptions) -> _Layout:
    """Find the axes of a picture in an input."""
    shape = port.shape or ()
    if len(shape) != IMAGE_RANK:
        raise DataError(f"input '{port.name}' has {len(shape)} axes; images need {IMAGE_RANK}")
    last = channels_last(shape)
    channels, own = (shape[3], shape[1:3]) if last else (shape[1], shape[2:4])
    if not isinstance(channels, int) or channels not in _MODES:
        raise DataError(f"input '{port.name}' has shape {shape}: no axis of 1 or 3 channels")
    height, width = options.size or own
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(f"input '{port.name}' has a dynamic size: give --image-size")
    if min(height, width) < 1:
        raise DataError(f"--image-size {height} {width} is not a size of a picture")
    for want, got in zip(own, (height, width), strict=True):
        if isinstance(want, int) and want != got:
            raise DataError(
                f"--image-size {height} {width} does not fit input '{port.name}' of shape {shape}"
            )
    return _Layout(channels, (height, width), last)


def _per_channel(
    option: str, values: tuple[float, ...], channels: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    if len(values) not in {1, channels}:
        raise DataError(f"{option} needs 1 or {channels} numbers, found {len(values)}")
    if not np.isfinite(values).all():
        raise DataError(f"{option} must be finite, found {', '.join(map(str, values))}")
    return np.broadcast_to(np.asarray(values, np.float32), (channels,)).reshape(shape)
