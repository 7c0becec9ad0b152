"""Progress on stderr, only where a person watches and it takes longer than two seconds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

Item = TypeVar("Item")
_QUIET_SECONDS = 2.0


class Progress:
    """A bar that is advanced by hand."""

    def __init__(self, what: str, total: int) -> None:
        self._bar = tqdm(
            total=total,
            desc=what,
            delay=_QUIET_SECONDS,
            leave=False,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
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
