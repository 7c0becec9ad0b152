"""Write files so that a failure leaves the old ones as they were; hash them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(path: Path, *companions: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` at the end.

    Args:
        path: The file to write or replace.
        companions: Files that are written beside the temporary one under their own names.
    Raises:
        ModelError: The folder is missing, full, or cannot be written to; nothing was replaced.
    """
    check_writable(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            for companion in companions:
                (Path(folder) / companion.name).replace(companion)
            temporary.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def sweep(folder: Path, suffix: str) -> None:
    """Remove what `replacing` left behind where a process was killed.

    Args:
        folder: Where it wrote.
        suffix: What the names of the files end with.
    """
    for left in folder.glob(f".*{suffix}.*/"):
        shutil.rmtree(left)


def check_writable(path: Path) -> None:
    """Check before long work that `path` can be written after it.

    Raises:
        ModelError: The folder is missing or read-only, or `path` is a folder or a device.
    """
    if path.is_dir():
        raise ModelError(f"cannot write '{path}': it is a folder")
    if path.exists() and not path.is_file():  # a rename would replace a device such as /dev/null
        raise ModelError(f"cannot write '{path}': it is not a regular file")
    if not path.parent.is_dir():
        raise ModelError(f"cannot write '{path}': folder '{path.parent}' does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ModelError(f"cannot write '{path}': folder '{path.parent}' is read-only")


def holds(path: Path, target: Path) -> bool:
    """Say whether a file or folder is another file, or has it in it, by whatever links."""
    if not (path.exists() and target.exists()):
        return path.resolve() == target.resolve()
    files = path.rglob("*") if path.is_dir() else [path]
    return any(file.exists() and file.samefile(target) for file in files)


def file_sha256(path: Path) -> str:
    """Hash a file piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
