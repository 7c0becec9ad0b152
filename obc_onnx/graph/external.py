"""Weights that lie in files beside a model: which files those are, and how they are written.

A file of weights belongs to the model as much as the model file does: a result may not be written
over it, and a model with other weights in it is another model.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from obc_onnx.files import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_ALIGNMENT = 4096
"""Offsets are multiples of a memory page, so that runtimes can map each array."""


_DIGITS = 12
"""How many of a digest are part of a name."""


class Stretch(NamedTuple):
    """Where an array lies in a file, in bytes."""

    offset: int
    length: int


def data_file(path: Path, sha256: str) -> Path:
    """Return where the weights of a result are written that is too large for one message.

    The name tells the content, so that old weights and a new model never meet, nor new weights and
    an old model, whenever a process ends.
    """
    return path.with_name(f"{path.name}-{sha256[:_DIGITS]}.data")


def sweep_data(path: Path) -> None:
    """Remove weights of former results of a name, unless a model beside them names them."""
    own = re.compile(rf"{re.escape(path.name)}-[0-9a-f]{{{_DIGITS}}}\.data")
    with contextlib.suppress(OSError):  # the result is in place: what is left does no harm
        beside = [file for file in sorted(path.parent.iterdir()) if file.is_file()]
        left = {file for file in beside if own.fullmatch(file.name)}
        for other in beside if left else ():
            if other not in left:
                left.difference_update(files_of(other)[1:])
        for file in left:
            file.unlink()


def files_of(path: Path) -> list[Path]:
    """List the files that a model is made of, its own first.

    A file that is no model, or is missing, is the only one: reading it will say what is wrong.
    """
    if not path.is_file():  # a pipe would never end
        return [path]
    try:
        return files_named(path, parsed(path))
    except (DecodeError, UnicodeDecodeError, OSError):
        return [path]


def parsed(path: Path) -> onnx.ModelProto:
    """Read the message of a model, whatever its file is called: onnx would take .json for JSON."""
    return onnx.load(path, format="protobuf", load_external_data=False)


def files_named(path: Path, model: onnx.ModelProto) -> list[Path]:
    """List the files that a model is made of, from its message without external data."""
    external = filter(uses_external_data, _tensors_of(model))
    places = {ExternalDataInfo(tensor).location for tensor in external}
    return [path, *(path.parent / place for place in sorted(places))]


def bytes_of(files: Sequence[Path]) -> int:
    """Return the size of a model, from all of its files."""
    return sum(file.stat().st_size for file in files)


def sha256_of(files: Sequence[Path]) -> str:
    """Hash a model: its file where that is all, else the hashes of all of its files."""
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def layout(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Stretch]:
    """Say where arrays go in one file: one after the other, each at the start of a page."""
    found: dict[str, Stretch] = {}
    end = 0
    for name, array in arrays.items():
        found[name] = Stretch(-(-end // _ALIGNMENT) * _ALIGNMENT, array.nbytes)
        end = sum(found[name])
    return found


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write arrays as `layout` says, one at a time.

    Returns:
        The SHA-256 of what the file holds.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for name, stretch in layout(arrays).items():
            gap = bytes(stretch.offset - file.tell())
            for piece in (gap, onnx.numpy_helper.from_array(arrays[name]).raw_data):
                file.write(piece)
                digest.update(piece)
    return digest.hexdigest()


def _tensors_of(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a message: those of subgraphs, attributes and functions too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if isinstance(value, Message) else value:
            if isinstance(part, onnx.TensorProto):
                yield part
            else:
                yield from _tensors_of(part)
