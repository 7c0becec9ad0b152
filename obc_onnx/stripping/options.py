"""What of a vocabulary is asked for: what the command line and Python share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from obc_onnx.samples.samples import Samples


@dataclass(frozen=True)
class Vocabulary:
    """Which rows of embeddings stay.

    Attributes:
        ids: A text file with an id on each line, where `#` begins a comment; or the ids.
        data: Samples whose ids stay as well: a file or folder, see `samples.read`, or samples.
        min_count: How often an id has to occur in the samples to stay.
        inputs: Inputs of the model that hold the ids; found where only one can.
        unknown: One of the ids that stay, in place of which all others are taken. With None the
            model refuses to run on others, in runtimes that check indices as ONNX Runtime does on
            CPUs.
        narrow_head: Whether outputs that embeddings make, such as logits, lose positions; else
            those are put back as the lowest finite number.
        untied_head: Whether outputs are cut too that are as long and have weights of their own.
    """

    ids: str | Path | Iterable[int] | None = None
    data: str | Path | Samples | None = None
    min_count: int = 1
    inputs: tuple[str, ...] = ()
    unknown: int | None = None
    narrow_head: bool = False
    untied_head: bool = False

    @classmethod
    def of(cls, given: Vocabulary | str | Path | Iterable[int]) -> Vocabulary:
        """Return options, or those of ids alone."""
        return given if isinstance(given, Vocabulary) else cls(given)
