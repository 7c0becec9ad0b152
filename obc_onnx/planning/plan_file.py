"""The file of a plan: written so that people can read and edit it, and checked when it is read."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obc_onnx.errors import RequestError
from obc_onnx.files import check_regular
from obc_onnx.planning.costs import COSTS
from obc_onnx.saliency.options import RANKINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT = 3
"""Version of the plan file; since 3 each group has its width as `keep`."""
_READ = (2, FORMAT)
"""Versions that are read; another one is refused."""
_LARGEST_COUNT = 2**63
_PAIR = 2


def written(fields: Mapping[str, Any]) -> str:
    """Write the fields of a plan as JSON: sorted, so that equal plans give equal bytes.

    Every list is one line, and every group has its width beside the units that stay.
    """
    groups = {
        name: {**entry, "keep": len(entry["kept"])} if "kept" in entry else entry
        for name, entry in fields["groups"].items()
    }
    return _object({**fields, "groups": groups}, "") + "\n"


def _object(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + " "
    lines = (f"{inner}{json.dumps(key)}: {_object(value[key], inner)}" for key in sorted(value))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def read(path: str | Path) -> dict[str, Any]:
    """Read the fields of a plan.

    Returns:
        The fields. Groups have the units that stay as `kept`; where a person has left those out,
        they have the width as `keep`.

    Raises:
        RequestError: The file is missing, of another format, or has a field that is not of a plan.
    """
    check_regular(Path(path), "plan", RequestError)
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"plan '{path}' cannot be read as JSON") from error
    if not isinstance(fields, dict) or fields.get("format") not in _READ:
        raise RequestError(f"'{path}' is not a plan of format {FORMAT}")
    for name, holds in _FIELDS.items():
        if name in fields and not holds(fields[name]):
            raise RequestError(f"plan '{path}' has a '{name}' that is not of a plan")
    groups = {name: _entry(path, name, own) for name, own in fields.get("groups", {}).items()}
    return {**fields, "groups": groups, "format": FORMAT}


def _entry(path: str | Path, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a group keeps, said in one way."""
    if "kept" not in entry:
        return dict(entry)
    n_kept = len(entry["kept"])
    if entry.get("keep", n_kept) != n_kept:
        raise RequestError(
            f"plan '{path}' keeps {entry['keep']} units of '{name}', but lists {n_kept}: leave "
            f"'kept' out, and those worth most are taken, or let both agree"
        )
    return {key: value for key, value in entry.items() if key != "keep"}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT


def _are_counts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == _PAIR and all(map(_is_count, value))


def _are_indices(value: Any) -> bool:
    increasing = isinstance(value, list) and all(map(_is_count, value))
    return increasing and all(first < second for first, second in pairwise(value))


def _are_groups(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and entry.keys() & {"keep", "kept"}
        and entry.keys() <= {"size", "keep", "kept"}
        and all(_is_count(entry[key]) for key in entry.keys() & {"size", "keep"})
        and _are_indices(entry.get("kept", []))
        for entry in value.values()
    )


def _are_slices(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(axes, dict)
        and all(axis.isdecimal() and _are_indices(kept) for axis, kept in axes.items())
        for axes in value.values()
    )


def _are_targets(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in COSTS and type(target) in (int, float) and 0 < target < _LARGEST_COUNT
        for name, target in value.items()
    )


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _are_pairs(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(names, list)
        and len(names) == _PAIR
        and all(isinstance(name, str) for name in names)
        for names in value.values()
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model_sha256": lambda value: isinstance(value, str),
    "criterion": lambda value: isinstance(value, str),
    "ranking": lambda value: value in RANKINGS,
    "targets": _are_targets,
    "seed": _is_count,
    "macs": _are_counts,
    "params": _are_counts,
    "groups": _are_groups,
    "initializers": _are_slices,
    "copies": _are_names,
    "merged": _are_names,
    "weights_sha256": _is_text_or_none,
    "profile_sha256": _is_text_or_none,
    "latency": lambda value: value is None or _are_counts(value),
    "round_to": lambda value: value is None or _is_count(value),
    "stripped": lambda value: isinstance(value, bool),
    "branches": _are_names,
    "low_rank": _are_pairs,
    "spans": _are_names,
}
"""What a plan file has to hold, since people may have edited it."""
