"""Files that hold a picture each, as an input of samples: listed at once, decoded on access."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.samples.lazy import Source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.samples.images import Preparation

CACHE_BYTES = 2**31
"""Decoded pixels of a set are kept in memory as long as all of them fit into this."""
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
"""Of files that hold pictures, in small letters."""


class Files(Protocol):
    """Things that hold a picture each."""

    def __len__(self) -> int: ...

    def read(self, place: int) -> bytes:
        """Return all that one holds."""

    def where(self, place: int) -> str:
        """Name one, as messages call it."""


def list_pictures(folder: Path) -> tuple[Files, NDArray[np.int64] | None]:
    """List the pictures of a folder, by their names alone.

    Returns:
        The files, and the class of each: with one subfolder per class they come class by class,
        numbered by name. None where all lie straight in the folder.
    Raises:
        DataError: There are none, or some lie in subfolders and others do not.
    """
    loose = _pictures_in(folder)
    places = {child: _pictures_in(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    names = [f"{child.name}/{name}" for child, own in places.items() for name in own]
    if loose and names:
        raise DataError(
            f"data '{folder}' holds images beside those in class subfolders, such as '{loose[0]}': "
            f"move them into subfolders, or all into one folder, which gives no labels"
        )
    if not loose and not names:
        raise DataError(f"data '{folder}' holds no images, in class subfolders or without those")
    if loose:
        return _FolderFiles(folder, loose), None
    labels = np.repeat(np.arange(len(places)), [len(own) for own in places.values()])
    return _FolderFiles(folder, names), labels


def _pictures_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


class _FolderFiles:
    """Files of a folder by their names; short strings, since there may be millions."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, place: int) -> bytes:
        path = self._folder / self._names[place]
        try:
            if path.exists() and not path.is_file():  # a pipe would never end
                raise DataError(f"image {self.where(place)} is not a regular file")
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                f"image {self.where(place)} cannot be read: {error.strerror}"
            ) from error

    def where(self, place: int) -> str:
        return f"'{self._folder / self._names[place]}'"


class PictureSource(Source):
    """Pictures that are decoded when they are asked for, once where all pixels fit into memory.

    A copy in another process that was pickled has no cache: memory would grow with each of them.

    Args:
        files: Hold the pictures.
        preparation: How pictures are laid out.
    """

    def __init__(self, files: Files, preparation: Preparation) -> None:
        self._files, self._preparation = files, preparation
        self.shape, self.dtype = (len(files), *preparation.shape), np.dtype(np.uint8)
        self._known = np.zeros(len(files), np.bool_)
        self.remembers = math.prod(self.shape) <= CACHE_BYTES
        self._cache = np.empty(self.shape, np.uint8) if self.remembers else None

    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        """Return the pixels of chosen pictures, uint8."""
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
        """Name the file of a picture."""
        return self._files.where(place)

    def _decode(self, place: int) -> NDArray[np.uint8]:
        return self._preparation.decode(self._files.read(place), partial(self.where, place))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "remembers": False}
