"""Samples in `.tar` files, laid out as WebDataset does: members that share a key are one sample.

`KEY.cls` holds the class index as text, `KEY.jpg` or another kind of picture the picture, and
`KEY.NAME.npy` the array for input NAME; `KEY.lengths.npy`, where no input has that name, the number
of positions that are real. The key ends at the first dot of the file name; members of any other
kind are left alone. Samples keep the order of members, and files that of their names.

Each file is read through once, for the places of its members; samples are then read at random. The
`webdataset` package reads in order only: that gives no split, no random order over all samples, and
no way to go on exactly where a run was interrupted.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.files import check_regular
from obc_onnx.progress import track
from obc_onnx.samples.lazy import LazyArray, Source
from obc_onnx.samples.npz import UNREADABLE, read_array
from obc_onnx.samples.pictures import SUFFIXES
from obc_onnx.samples.ragged import LENGTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_LABEL, _PICTURE = ".cls", ".picture"
"""What a member holds, besides the arrays of inputs: no input's name, since `.` ends a key."""
_LABEL_BYTES = 64
_LABEL_DIGITS = 18
"""So many fit into an int64."""
_TAIL = 2**20
"""Zeros that may follow the last member; they are there to fill blocks of 10 KiB."""
Place = tuple[int, int]
"""Where a member's content starts in its file, and its length in bytes."""


@dataclass(frozen=True)
class Members:
    """One member of `.tar` files for each sample.

    Attributes:
        paths: Of the files.
        file: In which of them each sample's member is, shape [samples].
        start: Where its content starts there, in bytes.
        length: Of the content, in bytes.
    """

    paths: Sequence[Path]
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file)

    def read(self, place: int) -> bytes:
        """Return what the member of a sample holds.

        Raises:
            DataError: The file cannot be read, or is shorter than it was.
        """
        length = int(self.length[place])
        try:
            with self.paths[self.file[place]].open("rb") as file:
                file.seek(int(self.start[place]))
                content: bytes = file.read(length)
        except OSError as error:
            path = self.paths[self.file[place]]
            raise DataError(f"data '{path}' cannot be read: {error.strerror}") from error
        if len(content) != length:
            raise DataError(f"data '{self.paths[self.file[place]]}' was cut off while it was read")
        return content

    def where(self, place: int) -> str:
        """Name a member and its file; names are not kept, so the file is read through again."""
        path = self.paths[self.file[place]]
        with path.open("rb") as file:
            names = (m.name for m in _members(file) if m.offset_data == self.start[place])
            return f"'{next(names, '?')}' of '{path}'"


@dataclass(frozen=True)
class Shards:
    """What `.tar` files hold.

    Attributes:
        arrays: For each input that has one, its array.
        pictures: The pictures, where there are some.
        labels: Class indices, where there are some.
        lengths: How many positions are real, where that is said.
    """

    arrays: Mapping[str, LazyArray]
    pictures: Members | None
    labels: NDArray[np.int64] | None
    lengths: NDArray[np.int64] | None


def open_shards(paths: Sequence[Path], names: Sequence[str]) -> Shards:
    """Find the samples of `.tar` files.

    Args:
        paths: The files.
        names: Of the model's inputs; one with a slash cannot be part of a member's file name.
    Raises:
        DataError: A file is damaged, compressed or no `.tar`; a sample lacks what others have; a
            class index or a length is no number. The message names file and member.
    """
    index = _Index(names)
    for number, path in enumerate(track(paths, "indexing")):
        index.add(number, path)
    held = index.held
    columns = {
        what: Members(paths, *(np.concatenate([part[i] for part in parts]) for i in range(3)))
        for what, parts in index.columns.items()
    }
    labels, lengths = (
        np.array(index.numbers[what], np.int64) if what in held and what not in names else None
        for what in (_LABEL, LENGTHS)
    )
    arrays = {name: LazyArray(_ArrayMembers(columns[name])) for name in names if name in held}
    return Shards(arrays, columns.get(_PICTURE), labels, lengths)


class _Index:
    """Where the members of all samples are, column by column.

    Attributes:
        held: What every sample holds; nothing before the first.
        columns: For each of those, by file: the file's number, starts and lengths.
        numbers: Labels and lengths, in order; they are read at once.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset([*names, LENGTHS])
        self._readers = {what: read for what, read in _READERS.items() if what not in names}
        self.held: frozenset[str] = frozenset()
        self._first = ""
        self.columns: dict[str, list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]] = {}
        self.numbers: dict[str, list[int]] = {what: [] for what in self._readers}

    def add(self, number: int, path: Path) -> None:
        """Take up one more file."""
        samples: dict[str, dict[str, Place]] = {}
        check_regular(path, "data", DataError)
        try:
            with path.open("rb") as file:
                for member in _members(file):
                    self._sort_in(samples, member, path)
                self._check(samples, path)
                for what in self.held & self._readers.keys():
                    ending, read = self._readers[what]
                    self.numbers[what] += [
                        read(file, places[what], f"'{key}{ending}' of '{path}'")
                        for key, places in samples.items()
                    ]
        except (tarfile.TarError, ValueError, OSError, EOFError) as error:
            raise DataError(
                f"data '{path}' is not a .tar file that can be read: damaged, or compressed?"
            ) from error
        for what in self.held:
            table = np.array([s[what] for s in samples.values()], np.int64).reshape(-1, 2)
            numbers = np.full(len(table), number, np.int32)
            self.columns.setdefault(what, []).append((numbers, table[:, 0], table[:, 1]))

    def _sort_in(
        self, samples: dict[str, dict[str, Place]], member: tarfile.TarInfo, path: Path
    ) -> None:
        key, what = self._part_of(member.name)
        if what is None or member.isdir():
            return
        if not member.isreg() or member.issparse():
            raise DataError(
                f"'{member.name}' of '{path}' is a link or has holes: write whole files, as with "
                f"tar --dereference --hard-dereference"
            )
        sample = samples.setdefault(key, {})
        if what in sample:
            raise DataError(f"'{member.name}' of '{path}' gives sample '{key}' a second '{what}'")
        sample[what] = (member.offset_data, member.size)

    def _part_of(self, member: str) -> tuple[str, str | None]:
        """Return the key of a member, and what it holds of the sample: None where nothing."""
        folder, slash, name = member.rpartition("/")
        stem, _, ending = name.partition(".")
        key = f"{folder}{slash}{stem}"
        if not stem:
            return key, None  # a hidden file
        array = ending.removesuffix(".npy")
        if array != ending and array in self._names:
            return key, array
        small = f".{ending.lower()}"
        return key, _LABEL if small == _LABEL else _PICTURE if small in SUFFIXES else None

    def _check(self, samples: dict[str, dict[str, Place]], path: Path) -> None:
        """Check that every sample holds the same."""
        for key, places in samples.items():
            if not self.held:
                self.held, self._first = frozenset(places), f"'{key}' of '{path}'"
            if places.keys() != self.held:
                odd = sorted(places.keys() ^ self.held)[0]
                own, other = ("a", "none") if odd in places else ("no", "one")
                raise DataError(
                    f"sample '{key}' of '{path}' has {own} member '{odd.removeprefix('.')}', but "
                    f"{self._first} has {other}"
                )


class _ArrayMembers(Source):
    """An `.npy` member for each sample, all of one shape and type."""

    def __init__(self, members: Members) -> None:
        self._members = members
        first = self._load(0)
        self.shape, self.dtype = (len(members), *first.shape), first.dtype

    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        arrays = np.empty((len(which), *self.shape[1:]), self.dtype)
        for target, place in enumerate(which):
            array = self._load(int(place))
            if array.shape != self.shape[1:] or array.dtype != self.dtype:
                raise DataError(
                    f"{self.where(int(place))} has shape {array.shape} and type {array.dtype}, "
                    f"but {self.where(0)} has {self.shape[1:]} and {self.dtype}"
                )
            arrays[target] = array
        return arrays

    def where(self, place: int) -> str:
        return self._members.where(place)

    def _load(self, place: int) -> NDArray[Any]:
        return _array_in(self._members.read(place), lambda: self.where(place))


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed `.tar` file.

    Raises:
        tarfile.TarError: It is none, or ends too early, or has something else between members.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] # it would hold each of them
            yield member
        # tarfile takes a damaged header for the end, and the end of the file too
        file.seek(archive.offset)
        tail = file.read(_TAIL)
        if not tail or tail.strip(b"\0") or file.read(1):
            raise tarfile.ReadError("no zeros where the archive ends")


def _label(file: BinaryIO, place: Place, where: str) -> int:
    start, length = place
    file.seek(start)
    text = file.read(min(length, _LABEL_BYTES)).strip()
    if not text.isdigit() or len(text) > _LABEL_DIGITS:
        raise DataError(f"{where} holds '{text.decode(errors='replace')}', not a class index")
    return int(text)


def _length(file: BinaryIO, place: Place, where: str) -> int:
    start, length = place
    file.seek(start)
    found = _array_in(file.read(length), lambda: where)
    if found.size != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"{where} must be one integer, found shape {list(found.shape)}, {found.dtype}"
        )
    return int(found.item())


def _array_in(content: bytes, where: Callable[[], str]) -> NDArray[Any]:
    """Read what an `.npy` member holds."""
    try:
        return read_array(io.BytesIO(content), len(content), where)
    except UNREADABLE as error:
        raise DataError(f"{where()} is not an .npy file that numpy can read") from error


_READERS: Mapping[str, tuple[str, Callable[[BinaryIO, Place, str], int]]] = {
    _LABEL: (_LABEL, _label),
    LENGTHS: (f".{LENGTHS}.npy", _length),
}
"""What is one number of a sample: how such members end, and what reads one."""
