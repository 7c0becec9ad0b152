"""Samples that come run by run, as pipelines of other tools have them.

Polygraphy knows a script with a function that yields the inputs of one run after the other, and
saves inputs as JSON; ONNX Runtime's quantiser takes a `CalibrationDataReader`. All of them are put
together along the batch, in memory, as an `.npz` would hold them.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.files import check_regular
from obc_onnx.samples.checks import LABELS
from obc_onnx.samples.npz import UNREADABLE, read_array
from obc_onnx.samples.ragged import LENGTHS
from obc_onnx.user_code import load_function

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes

    Arrays = Mapping[str, NDArray[Any]]

JSON = ".json"
_LOADER = "load_data"
"""What Polygraphy calls a function that nobody names."""


def runs_of_code(source: str) -> Iterator[Arrays]:
    """Yield what code of a user gives: `FILE.py:NAME`, or `load_data` of `FILE.py`.

    Args:
        source: NAME is a function without arguments that returns an iterable of dicts, or a class
            or function that gives a `CalibrationDataReader`.
    Raises:
        RequestError: There is no such file or name.
        DataError: What it gives is no dict of arrays.
    """
    named = source if not source.endswith(".py") else f"{source}:{_LOADER}"
    made = load_function(named)()
    found: Iterable[Any]
    if hasattr(made, "get_next"):
        found = iter(made.get_next, None)
    elif hasattr(made, "__iter__"):
        found = made
    else:
        raise DataError(
            f"'{named}' gives {type(made).__name__}: it has to give an iterable of dicts of "
            f"arrays, or a reader with a method get_next"
        )
    for number, run in enumerate(found):
        if not isinstance(run, dict):
            raise DataError(f"run {number} of '{named}' is {type(run).__name__}, and no dict")
        yield {str(name): np.asarray(value) for name, value in run.items()}


def runs_of_json(path: Path) -> Iterator[Arrays]:
    """Yield what Polygraphy's `--save-inputs` wrote: one file, or a folder with one for each run.

    Raises:
        DataError: A file is damaged, or holds something else.
    """
    for file in sorted(path.glob(f"*{JSON}")) if path.is_dir() else [path]:
        check_regular(file, "data", DataError)
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(f"data '{file}' is not a JSON file that can be read") from error
        for run in held if isinstance(held, list) else [held]:
            if not isinstance(run, dict):
                raise DataError(f"data '{file}' does not hold inputs as Polygraphy saves them")
            yield {name: _array(value, f"'{name}' of data '{file}'") for name, value in run.items()}


def _array(value: Any, where: str) -> NDArray[Any]:
    """Read an array, which is an `.npy` file in base64."""
    text = value.get("array") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where} is no array as Polygraphy saves it")
    try:
        content = base64.b64decode(text, validate=True)
        return read_array(io.BytesIO(content), len(content), lambda: where)
    except (binascii.Error, *UNREADABLE) as error:
        raise DataError(f"{where} is not an array that numpy can read") from error


def joined(runs: Iterable[Arrays], axes: Axes, what: str) -> dict[str, NDArray[Any]]:
    """Put runs together: along the batch where an input has one, else one value for all or each.

    Args:
        runs: Arrays by name, all of the same names.
        axes: Along which axis inputs hold samples; what it lacks has them on the first.
        what: How messages call the samples.
    Raises:
        DataError: There are no runs, or they do not fit each other.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for number, run in enumerate(runs):
        if number and run.keys() != parts.keys():
            names = [", ".join(f"'{name}'" for name in own) for own in (parts, run)]
            raise DataError(f"run {number} of {what} holds {names[1]}, and the first {names[0]}")
        for name, array in run.items():
            parts.setdefault(name, []).append(array)
    if not parts:
        raise DataError(f"{what} holds no runs")
    along = {**axes, LABELS: axes.get(LABELS, 0), LENGTHS: axes.get(LENGTHS, 0)}
    return {name: _together(name, own, along.get(name, 0), what) for name, own in parts.items()}


def _together(
    name: str, parts: Sequence[NDArray[Any]], axis: int | None, what: str
) -> NDArray[Any]:
    first = parts[0]
    if axis is None and all(np.array_equal(first, part) for part in parts):
        return first
    for number, part in enumerate(parts):
        shapes = [[n for i, n in enumerate(a.shape) if i != axis] for a in (first, part)]
        if shapes[0] != shapes[1] or part.ndim != first.ndim or (axis or 0) >= max(part.ndim, 1):
            raise DataError(
                f"run {number} of {what} has '{name}' of shape {part.shape}, which does not go "
                f"with {first.shape} of the first: pad samples to one size"
            )
    if axis is None or first.ndim == 0:
        return np.stack(parts)
    return np.concatenate(parts, axis)
