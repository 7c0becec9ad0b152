"""Arrays in `.npy` files and in `.npz` archives: what they claim is compared with what there is."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from obc_onnx.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

UNREADABLE = (
    *(ValueError, OSError, EOFError, RuntimeError, SyntaxError, TypeError, UnicodeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, NotImplementedError, OverflowError),
)
"""What numpy and zipfile raise about a file: RuntimeError for an encrypted one, others for a header
that is no Python."""
_ENDING = ".npy"


def is_array(path: Path) -> bool:
    """Say whether a file is one array, as `numpy.save` writes it; not one that nobody can read."""
    try:
        with path.open("rb") as file:
            return file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
    except OSError:
        return False


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an archive.

    Raises:
        DataError: A member is no array, or claims more than it holds.
        Exception: Of the kinds that `UNREADABLE` lists, where the file is damaged.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        return {
            member.filename.removesuffix(_ENDING): _read_member(archive, member, path)
            for member in archive.infolist()
        }


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    if not member.filename.endswith(_ENDING):
        raise DataError(f"data '{path}' holds '{member.filename}', which is not an array")
    with archive.open(member) as content:
        where = f"'{member.filename}' of data '{path}'"
        return read_array(content, member.file_size, lambda: where)


def read_array(content: IO[bytes], length: int, where: Callable[[], str]) -> NDArray[Any]:
    """Read one array.

    Args:
        content: As an `.npy` file has it, at its start; it can seek.
        length: How many bytes it has.
        where: Says how messages call it; to find that out may take long.
    Raises:
        DataError: It claims to be larger than the bytes that there are.
        ValueError: It is no array of numbers or texts.
    """
    version = npy.read_magic(content)
    shape, dtype = _header(content, version)
    claimed = math.prod(shape) * dtype.itemsize
    held = length - content.tell()
    if claimed > held and not dtype.hasobject:
        raise DataError(
            f"{where()} is not an .npy file that numpy can read: it claims to hold {claimed} "
            f"bytes, of shape {shape} and type {dtype}, but holds {held}"
        )
    content.seek(0)
    return np.asarray(npy.read_array(content, allow_pickle=False))


def _header(content: IO[bytes], version: tuple[int, int]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:  # which is the second one with text in UTF-8
        raise ValueError(f"version {version} of the format is not read")
    shape, _, dtype = readers[version](content)
    return shape, dtype
