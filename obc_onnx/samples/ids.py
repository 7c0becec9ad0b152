"""Ids that a model is given: as a text of them, or as they occur in samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from obc_onnx.samples.samples import Samples

    Indices = NDArray[np.int64]

_AT_ONCE = 1024
"""Samples that are read at a time."""


@dataclass(frozen=True)
class Counts:
    """How often ids occur.

    Attributes:
        ids: Sorted, shape [n_ids].
        counts: Of each, likewise.
    """

    ids: Indices
    counts: Indices


def read_ids(source: str | Path | Iterable[int]) -> Indices:
    """Return ids, sorted and each once.

    Args:
        source: A text file with an id on each line, or ids. `#` begins a comment.
    Raises:
        DataError: There is no such file, or something in it is no id.
    """
    if not isinstance(source, (str, Path)):
        given = np.asarray(list(source))
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise DataError(f"ids are integers, not {given.dtype.name}")
        return np.unique(given).astype(np.int64)
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the ids in '{source}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{source}' is no text with an id on each line; ids of samples are counted in "
            f"`Vocabulary.data`"
        ) from error
    found = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not text.isdecimal():
            raise DataError(f"line {number} of '{source}' is no id: '{text}'")
        if text:
            found.add(int(text))
    if found and max(found) > np.iinfo(np.int64).max:
        raise DataError(f"'{source}' has id {max(found)}, which no model can hold")
    return np.asarray(sorted(found), np.int64)


def count_ids(samples: Samples, names: Sequence[str]) -> Counts:
    """Count what inputs of all samples hold, padding included: the model looks that up too."""
    counts: dict[int, int] = {}
    for name in names:
        if name in samples.fixed:
            _add(counts, samples.fixed[name])
            continue
        array = samples.inputs[name]
        for start in range(0, len(samples), _AT_ONCE):
            _add(counts, array[start : start + _AT_ONCE])
    ids = sorted(counts)
    return Counts(np.asarray(ids, np.int64), np.asarray([counts[i] for i in ids], np.int64))


def _add(counts: dict[int, int], array: NDArray[Any]) -> None:
    for number, count in zip(*np.unique(array, return_counts=True), strict=True):
        counts[int(number)] = counts.get(int(number), 0) + int(count)
