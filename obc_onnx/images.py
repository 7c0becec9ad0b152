"""Read a folder of pictures, one subfolder per class, for a model with one image input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.node import Port

_MODES = {1: "L", 3: "RGB"}
"""Pillow's name for pictures of so many channels."""
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_IMAGE_RANK = 4


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


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures in the model's layout, uint8, with their classes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scaling: PixelScaling


def read_pictures(folder: Path, port: Port, options: ImageOptions) -> Pictures:
    """Decode every picture below `folder`; class subfolders are numbered by name, and take turns.

    Args:
        folder: Holds one subfolder per class.
        port: The model input that the pictures are for, [batch, channels, height, width] or with
            channels last.
        options: How to resize and normalise.
    Raises:
        DataError: There are no pictures, one cannot be read, or they do not fit the input.
    """
    channels, size, last = _layout(port, options)
    shape = (channels,) if last else (channels, 1, 1)
    scaling = PixelScaling(
        _per_channel("--image-mean", options.mean, channels, shape),
        _per_channel("--image-std", options.std, channels, shape),
    )
    if not scaling.std.all():
        raise DataError("--image-std must not be 0")
    files = _files(folder)
    if not files:
        raise DataError(f"data '{folder}' holds no images in class subfolders")
    pixels = np.stack([_decode(file, size, channels) for file, _ in files])
    return Pictures(
        pixels if last else pixels.transpose(0, 3, 1, 2),
        np.array([index for _, index in files], np.int64),
        scaling,
    )


def _files(folder: Path) -> list[tuple[Path, int]]:
    """List pictures with their class, so that any run of them has about each class's share.

    Samples are split by their order: sorted by class, the held-out ones would be all of one class.
    """
    places = []
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    for index, child in enumerate(classes):
        own = sorted(file for file in child.iterdir() if file.suffix.lower() in _SUFFIXES)
        places += [((rank + 0.5) / len(own), index, file) for rank, file in enumerate(own)]
    return [(file, index) for _, index, file in sorted(places)]


def _layout(port: Port, options: ImageOptions) -> tuple[int, tuple[int, int], bool]:
    """Return channels, (height, width) and whether channels come last."""
    shape = port.shape or ()
    if len(shape) != _IMAGE_RANK:
        raise DataError(f"input '{port.name}' has {len(shape)} axes; images need {_IMAGE_RANK}")
    last = shape[1] not in _MODES and shape[3] in _MODES
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
    return channels, (height, width), last


def _per_channel(
    option: str, values: tuple[float, ...], channels: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    if len(values) not in {1, channels}:
        raise DataError(f"{option} needs 1 or {channels} numbers, found {len(values)}")
    if not np.isfinite(values).all():
        raise DataError(f"{option} must be finite, found {', '.join(map(str, values))}")
    return np.broadcast_to(np.asarray(values, np.float32), (channels,)).reshape(shape)


def _decode(file: Path, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            picture = image.convert(_MODES[channels]).resize(size[::-1])
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"image '{file}' cannot be read") from error
    return np.asarray(picture, np.uint8).reshape(*size, channels)
