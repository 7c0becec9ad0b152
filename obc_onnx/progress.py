"""Progress on stderr: bars where a person watches, and a line now and then where none does."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

Item = TypeVar("Item")
_QUIET_SECONDS = 2.0
_QUIET_SECONDS_UNWATCHED = 10.0
"""In a log, where what is over soon would be noise."""
_SECONDS_BETWEEN_LINES = 30.0
_SILENT: ContextVar[bool] = ContextVar("_SILENT", default=False)
_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"


class _Lines:
    """What tqdm draws over and over, as lines of a log."""

    def write(self, text: str) -> None:
        """Write what was drawn, without what moves a cursor."""
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Let a log have the line at once."""
        sys.stderr.flush()


class Progress:
    """A bar that is advanced by hand, or lines of a log with how far it is.

    Args:
        what: What is done.
        total: In how many steps.
    """

    def __init__(self, what: str, total: int) -> None:
        in_a_log = {
            "file": _Lines(),
            "mininterval": _SECONDS_BETWEEN_LINES,
            "miniters": 1,
            "bar_format": _LINE,
            "position": 0,  # a log has no line above to go back to
        }
        shown = {"file": sys.stderr} if sys.stderr.isatty() else in_a_log
        off = _SILENT.get()
        self._bar = tqdm(
            total=total, desc=what, delay=_quiet_seconds(), leave=False, disable=off, **shown
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def skip(self, steps: int) -> None:
        """Count steps that an earlier run made."""
        self._bar.update(steps)

    def advance(self, note: str = "") -> None:
        """Count one step, and show a note beside the bar."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items and show how far they are."""
    with Progress(what, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Say in a line what is being done, once it takes longer than some seconds.

    Args:
        what: The stage, which may show bars of its own.
    """
    if _SILENT.get():
        yield
        return
    timer = threading.Timer(_quiet_seconds(), tqdm.write, [f"{what} ..."], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def silenced(*, silent: bool) -> Iterator[None]:
    """Let nothing of the block show how far it is, where that is wanted."""
    token = _SILENT.set(silent)
    try:
        yield
    finally:
        _SILENT.reset(token)


def _quiet_seconds() -> float:
    """Return how long something takes before it shows itself."""
    return _QUIET_SECONDS if sys.stderr.isatty() else _QUIET_SECONDS_UNWATCHED
