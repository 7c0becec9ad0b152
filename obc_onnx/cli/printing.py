"""What a command prints besides its result: how much of it, and where a copy goes."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

import click

from obc_onnx.cli.wording import in_options
from obc_onnx.errors import ObcError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_BAR = "\r"
"""What bars begin with, which are drawn over and over."""


def printing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has."""
    for option in (
        click.option("--log-file", type=click.Path(path_type=Path), help=_LOG_HELP),
        click.option("-q", "--quiet", is_flag=True, help="Results alone: no progress."),
        click.option("-v", "--verbose", is_flag=True, help="Messages and lists in full."),
    ):
        command = option(command)
    return command


_LOG_HELP = "Where to append what is printed, errors included and bars left out."


class _Copied:
    """A stream, of which a file gets a copy.

    Args:
        stream: Where everything goes.
        copy: Gets what is no bar.
    """

    def __init__(self, stream: TextIO, copy: IO[str]) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        """Write to both."""
        if _BAR not in text:
            self._copy.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        """Let both have what was written."""
        self._copy.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copied_to(path: Path | None, options: Mapping[str, Any]) -> Iterator[None]:
    """Append what is printed in the block to a file, and the error that ends it.

    Args:
        path: Of the file; None copies nothing.
        options: Those of the command, which name what it reads and writes.
    Raises:
        RequestError: The command reads or writes that file.
        ModelError: It cannot be written.
    """
    if path is None:
        yield
        return
    _check_log(path, options)
    with path.open("a", encoding="utf-8") as file, ExitStack() as streams:
        streams.enter_context(redirect_stdout(cast("TextIO", _Copied(sys.stdout, file))))
        streams.enter_context(redirect_stderr(cast("TextIO", _Copied(sys.stderr, file))))
        try:
            yield
        except ObcError as error:
            file.write(f"Error: {in_options(str(error))}\n")
            raise


def _check_log(path: Path, options: Mapping[str, Any]) -> None:
    from obc_onnx.files import check_writable, holds
    from obc_onnx.graph.external import files_of

    check_writable(path)
    named = [value for value in options.values() if isinstance(value, Path)]
    for other in (*named, *(file for own in named if own.is_file() for file in files_of(own))):
        if holds(other, path):
            raise RequestError(f"the log '{path}' is '{other}', or lies in it: name another file")


def tell_written(files: Sequence[str], then: str | None) -> None:
    """Say which files a command has written, and what may come next, on stderr.

    So the last line of what it prints as its result stays the verdict.

    Args:
        files: Their names, as they were given.
        then: What to do with them.
    """
    if files:
        named = " and ".join(filter(None, (", ".join(files[:-1]), files[-1])))
        click.echo(f"wrote {named}{f'; next: {then}' if then else ''}", err=True)
