"""Write files so that a failure leaves the old ones as they were; hash them."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.errors import ModelError, ObcError
from obc_onnx.interruption import undisturbed

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MARK = "obc-onnx-"
"""Part of the name of each temporary folder. Its process holds it locked: others are swept."""
_BEFORE = ".before"
"""What the name of a target's former content ends with, until all targets are in place."""
_WRITTEN: ContextVar[list[Path] | None] = ContextVar("_WRITTEN", default=None)


class Replacement:
    """Files that are written beside their targets, and then put in place together.

    A process that is killed leaves every target as it was or as it is to be.
    """

    def __init__(self, folders: ExitStack) -> None:
        self._folders = folders
        self._moves: list[tuple[Path, Path]] = []

    def beside(self, path: Path) -> Path:
        """Return a temporary path for what is to replace `path`; a link is followed.

        Raises:
            ModelError: The folder is missing or cannot be written to.
        """
        check_writable(path)
        target = destination(path)
        temporary = self._folders.enter_context(_beside(target))
        self._moves.append((temporary, target))
        return temporary

    def before_others(self, temporary: Path, target: Path) -> None:
        """Let a file be in place before the one that names it.

        Args:
            temporary: Where it is, beside what names it.
            target: Where it goes.
        """
        self._moves.insert(0, (temporary, target))

    def put(self) -> None:
        """Put all files in place, or none; signals that would interrupt it wait."""
        for temporary, target in self._moves:
            _flush(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
        with undisturbed():
            self._rename()
            for folder in {target.parent for _, target in self._moves}:
                _flush_folder(folder)
            _record(target for _, target in self._moves)

    def _rename(self) -> None:
        placed: list[tuple[Path, Path]] = []
        try:
            for temporary, target in self._moves:
                former = temporary.with_name(temporary.name + _BEFORE)
                if target.exists() and len(self._moves) > 1:
                    _keep(target, former)
                temporary.replace(target)
                placed.append((target, former))
        except OSError:
            for target, former in reversed(placed):
                if former.exists():
                    former.replace(target)
                else:
                    target.unlink()
            raise


@contextmanager
def replacing_all(what: Path) -> Iterator[Replacement]:
    """Write files that belong together; they are put in place at the end, all or none.

    Args:
        what: How messages call them.
    Raises:
        ModelError: A folder is missing, full, or cannot be written to; nothing was replaced.
    """
    try:
        with ExitStack() as folders:
            replacement = Replacement(folders)
            yield replacement
            replacement.put()
    except OSError as error:
        raise ModelError(f"cannot write '{what}': {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` at the end.

    Raises:
        ModelError: The folder is missing, full, or cannot be written to; nothing was replaced.
    """
    with replacing_all(path) as replacement:
        yield replacement.beside(path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, and rename it to `path` at the end.

    Args:
        path: A folder that is not there yet, or is empty.
    Raises:
        ModelError: The one that it is to lie in is missing, full, or cannot be written to.
    """
    check_name(path, ModelError)
    target = destination(path)
    if not target.parent.is_dir():
        raise ModelError(f"cannot write '{path}': folder '{target.parent}' does not exist")
    try:
        with _beside(target) as temporary:
            temporary.mkdir()
            yield temporary
            temporary.replace(target)
            _record([target])
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Give a path in a hidden folder beside a target, and sweep those that were left."""
    sweep(target.parent, target.name)
    prefix = f".{target.name}.{_MARK}"
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder,
        _locked(Path(folder)),
    ):
        yield Path(folder) / target.name


def _record(targets: Iterable[Path]) -> None:
    written = _WRITTEN.get()
    if written is not None:
        written.extend(targets)


@contextmanager
def recording() -> Iterator[list[Path]]:
    """Give a list of the files that are put in place in the block, by their real paths."""
    written: list[Path] = []
    token = _WRITTEN.set(written)
    try:
        yield written
    finally:
        _WRITTEN.reset(token)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what processes that were killed left behind.

    Args:
        folder: Where they wrote.
        name: Of the file that they wrote; None for any.
    """
    written = "*" if name is None else glob.escape(name)
    for left in folder.glob(f".{written}.{_MARK}*/"):
        with contextlib.suppress(OSError), _locked(left) as is_left:
            if is_left:
                shutil.rmtree(left, ignore_errors=True)


def destination(path: Path) -> Path:
    """Return what is written where `path` is named: what a link points at, itself otherwise."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_writable(path: Path) -> None:
    """Check before long work that `path` can be written after it.

    Raises:
        ModelError: The folder is missing or read-only, or `path` is a folder or a device.
    """
    check_name(path, ModelError)
    target = destination(path)
    if target.is_symlink():
        raise ModelError(f"cannot write '{path}': it is a link that leads back to itself")
    if target.is_dir():
        raise ModelError(f"cannot write '{path}': it is a folder")
    if target.exists() and not target.is_file():  # a rename would replace a device like /dev/null
        raise ModelError(f"cannot write '{path}': it is not a regular file")
    if not target.parent.is_dir():
        raise ModelError(f"cannot write '{path}': folder '{target.parent}' does not exist")
    if not os.access(target.parent, os.W_OK):
        raise ModelError(f"cannot write '{path}': folder '{target.parent}' is read-only")


def check_name(path: Path, error: type[ObcError]) -> None:
    """Check that every library can open a path: onnx and ONNX Runtime take UTF-8 alone.

    Args:
        path: Of a model, or of what is to be written.
        error: What to raise.
    """
    shown = str(path).encode(errors="backslashreplace").decode().replace("\0", "\\0")
    if shown != str(path):
        raise error(f"'{shown}' is not a name in UTF-8, or holds a NUL: rename the file")


def check_regular(path: Path, what: str, error: type[ObcError]) -> None:
    """Check that a path that exists is a file: a pipe would never end, and a device neither.

    Args:
        path: What is about to be read; where it is missing, reading it will say so.
        what: How messages call it.
        error: What to raise.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise error(f"{what} '{path}' is {kind}")


def holds(path: Path, target: Path) -> bool:
    """Say whether a file or folder is another file, or has it in it, by whatever links."""
    if not (path.exists() and target.exists()):
        return os.path.realpath(path) == os.path.realpath(target)
    files = path.rglob("*") if path.is_dir() else [path]
    return any(file.exists() and file.samefile(target) for file in files)


def file_sha256(path: Path) -> str:
    """Hash a file piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _keep(target: Path, former: Path) -> None:
    """Give a file a second name, or where a file system has no links, copy it."""
    try:
        os.link(target, former)
    except OSError:
        shutil.copy2(target, former)


def _flush(path: Path) -> None:
    """Wait until the content of a file is on its disk: a rename may get there before it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Do the same for the names in a folder, where the system knows how."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder until its process ends, however it does; say whether that was possible.

    Windows and some file systems have no such locks.
    """
    if sys.platform == "win32":
        yield False
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(number)
