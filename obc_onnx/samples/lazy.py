"""Samples that stay in their files until they are asked for.

A `Source` reads any samples of one input. A `LazyArray` stands for some of them and looks like the
array that they would be. Neither keeps a file open or mapped: both can be forked and pickled, and
take no more memory than what was asked for last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.format import open_memmap

from obc_onnx.errors import DataError
from obc_onnx.files import check_regular
from obc_onnx.samples.npz import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray


class Source(ABC):
    """The samples of one input.

    Attributes:
        shape: Of the array that holds all of them, [samples, ...].
        dtype: Of that array.
        remembers: Whether what was read once stays in memory.
        apart: Whether each sample lies by itself, and not along an axis of what holds all.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    remembers = False
    apart = True

    @abstractmethod
    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        """Return chosen samples as a new array, shape [chosen, ...].

        Args:
            which: Their places in the source, none of them negative.
        Raises:
            DataError: One cannot be read; the message names it.
        """

    def along(self, axis: int) -> Source:  # noqa: ARG002 - of a file that holds all samples
        """Return the samples of an array that has them along an axis: here they lie apart."""
        return self

    def whole(self) -> NDArray[Any]:
        """Return all that there is, as one array of the source's shape."""
        return self.read(np.arange(self.shape[0]))

    @abstractmethod
    def where(self, place: int) -> str:
        """Say where a sample lies, as messages call it."""


class LazyArray:
    """An array of samples, read when they are indexed.

    Args:
        source: Of the samples.
        chosen: The places of those that the array holds; None takes all of them.
    """

    def __init__(self, source: Source, chosen: NDArray[np.int64] | None = None) -> None:
        self.source = source
        self._chosen = np.arange(*source.shape[:1] or (0,)) if chosen is None else chosen

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, [samples, ...]."""
        return (len(self._chosen), *self.source.shape[1:]) if self.source.shape else ()

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.source.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of elements."""
        return self.source.dtype

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, which: slice | NDArray[np.int64]) -> NDArray[Any]:
        return self.source.read(self._chosen[which])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for place in self._chosen:
            yield self.source.read(place[None])[0]

    def __array__(
        self,
        dtype: DTypeLike | None = None,
        copy: bool | None = None,  # noqa: FBT001 - numpy's protocol
    ) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def part(self, which: slice | NDArray[np.int64]) -> LazyArray:
        """Return some of the samples as an array of their own, without reading them."""
        return LazyArray(self.source, self._chosen[which])

    def whole(self) -> NDArray[Any]:
        """Read all of it."""
        return self[:] if self.ndim else self.source.whole()

    def along(self, axis: int) -> LazyArray:
        """Return the array with that axis of its file in front."""
        return LazyArray(self.source.along(axis))

    def where(self, place: int) -> str:
        """Say where a sample lies, as messages call it."""
        return self.source.where(int(self._chosen[place]))


class MemoryArray(Source):
    """An array in memory, of which parts are no copies.

    Args:
        array: Shape [samples, ...].
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        """Copy samples out of the array."""
        return self._array[which]

    def where(self, place: int) -> str:
        """Say which sample of the array it is."""
        return f"sample {place}"


class MappedFile(Source):
    """An `.npy` file with all samples.

    Each read maps it again: pages that a mapping has touched count as memory of the process
    until it is closed.

    Args:
        path: Of the file.
        axis: Along which samples lie there; they come first in what is read.
    Raises:
        DataError: It cannot be mapped.
    """

    apart = False

    def __init__(self, path: Path, axis: int = 0) -> None:
        self._path, self._axis = path, axis
        mapped = self._map()
        self.shape, self.dtype = mapped.shape, mapped.dtype

    def _map(self) -> NDArray[Any]:
        mapped = map_file(self._path)
        return np.moveaxis(mapped, self._axis, 0) if mapped.ndim > self._axis else mapped

    def along(self, axis: int) -> Source:
        """Return the samples along another axis of the file."""
        return MappedFile(self._path, axis)

    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        """Copy samples out of the file."""
        mapped = self._map()
        if (mapped.shape, mapped.dtype) != (self.shape, self.dtype):
            raise DataError(f"'{self._path}' was changed while its samples were read")
        return np.asarray(mapped[which])  # indices copy

    def whole(self) -> NDArray[Any]:
        """Copy all of the file, which may hold a single number."""
        return np.array(self._map())

    def where(self, place: int) -> str:  # noqa: ARG002 - all samples are in one file
        """Name the file."""
        return f"'{self._path}'"


def map_file(path: Path) -> NDArray[Any]:
    """Map an `.npy` file into memory, read-only.

    Raises:
        DataError: It is missing, damaged, holds Python objects, or is no `.npy` file.
    """
    check_regular(path, "data", DataError)
    try:
        return open_memmap(path, mode="r")
    except UNREADABLE as error:
        raise DataError(f"data '{path}' is not an .npy file that numpy can map") from error


def find_arrays(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """List the `.npy` files of a folder by the name of what they hold.

    Args:
        folder: To look in.
        names: Of a model's inputs. One with slashes may lie in subfolders.
    """
    below = {name: Path(f"{folder}/{name}.npy") for name in names}
    found = {name: path for name, path in below.items() if path.is_file()}
    return {**found, **{path.stem: path for path in sorted(folder.glob("*.npy"))}}
