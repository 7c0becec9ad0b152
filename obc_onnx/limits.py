"""Which groups may lose units, and how many: by patterns of names, and in a file of limits."""

from __future__ import annotations

import fnmatch
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obc_onnx.axes import leaves, runs_of
from obc_onnx.costs import units_left
from obc_onnx.defaults import BLOCKS, MIN_CHANNELS
from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.axes import Dim
    from obc_onnx.coupling import Coupling, Group, Keep
    from obc_onnx.planning import Budget


_DIGITS = 9
"""Of a share times a width: what lies behind them is rounding."""


@dataclass(frozen=True)
class Limits:
    """What the groups of one pattern may become; None says nothing.

    Attributes:
        min: Least width, an int; or a float, the share of the units in (0, 1].
        max: Largest width, in the same way: wider groups are cut whatever the budget says.
        round_to: Widths that shrink stay a multiple of this, in channels.
        keep: Whether they stay whole.
    """

    min: float | None = None
    max: float | None = None
    round_to: int | None = None
    keep: bool | None = None

    def __post_init__(self) -> None:
        for key, holds in _HOLDS.items():
            value = getattr(self, key)
            if value is not None and not holds(value):
                raise RequestError(f"{key} = {value} is none of: {_MEANING[key]}")

    def over(self, other: Limits) -> Limits:
        """Return these limits, and those of `other` where these say nothing."""
        own = {key: value for key, value in vars(self).items() if value is not None}
        return Limits(**{**vars(other), **own})


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_width(value: Any) -> bool:
    return _is_count(value) or (type(value) is float and 0 < value <= 1)


_HOLDS: dict[str, Callable[[Any], bool]] = {
    "min": _is_width,
    "max": _is_width,
    "round_to": _is_count,
    "keep": lambda value: type(value) is bool,
}
_WIDTH = "a number of units such as 8, a share in (0, 1] such as 0.25"
_MEANING = {"min": _WIDTH, "max": _WIDTH, "round_to": "a number above 0", "keep": "true, false"}


def load_limits(path: str | Path) -> dict[str, Limits]:
    """Read a file of limits: TOML, with a table for each pattern of names.

    Raises:
        RequestError: It is missing, no TOML, or has a key or a value that is not known.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"config '{path}' cannot be read as TOML: {error}") from error
    found = {}
    for pattern, table in tables.items():
        if not isinstance(table, dict):
            raise RequestError(
                f"config '{path}' has '{pattern}' outside of any table: write it below the "
                f'pattern of names that it is for, such as ["conv1*"]'
            )
        for key, value in table.items():
            if key not in _HOLDS:
                hint = ": put quotes around the pattern" if isinstance(value, dict) else ""
                raise RequestError(
                    f"config '{path}' has an unknown key '{key}' for '{pattern}'{hint}; there are "
                    f"{', '.join(_HOLDS)}"
                )
        try:
            found[pattern] = Limits(**table)
        except RequestError as error:
            raise RequestError(f"config '{path}', '{pattern}': {error}") from error
    return found


@dataclass(frozen=True, eq=False)
class Room:
    """How narrow one group may get.

    Attributes:
        least: The least width that it may be cut to.
        most: The largest width that it may keep.
        round_to: Widths that shrink are a multiple of this, in units.
    """

    group: Group
    least: int
    most: int
    round_to: int

    def cuts(self, order: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
        """Cut units into runs, each of which leaves a width that is allowed.

        Args:
            order: The units that may go, the first one first.
            width: How many units are left now.
        """
        start, size = 0, width % self.round_to or self.round_to
        while start + size <= order.size and width - start - size >= self.least:
            yield order[start : start + size]
            start, size = start + size, self.round_to

    def is_too_wide(self, keep: Keep) -> bool:
        """Say whether more units are left than may be."""
        return int(units_left(self.group, keep).sum()) > self.most


def rooms_of(coupling: Coupling, budget: Budget) -> list[Room]:
    """Return the groups that may lose units, each with its limits.

    Raises:
        RequestError: A pattern matches nothing, or limits contradict each other.
    """
    whole = _all_touched(coupling, budget.exclude, "--exclude")
    only = _all_touched(coupling, budget.only, "--only")
    of_dim: dict[Dim, Limits] = {}
    named: dict[str, set[Dim]] = {}
    for pattern, limits in budget.limits.items():
        named[pattern] = touched(coupling, pattern, "the config's")
        for dim in named[pattern]:
            of_dim[dim] = limits.over(of_dim.get(dim, Limits()))
    rooms = [
        _room(coupling, group, of_dim.get(group.dim, Limits()), budget)
        for group in coupling.groups
        if (budget.allow_inexact or group.inexact is None)
        and group.dim not in whole
        and (not budget.only or group.dim in only)
        and not of_dim.get(group.dim, Limits()).keep
    ]
    free = {room.group.dim for room in rooms}
    for pattern, limits in budget.limits.items():
        if limits.max is not None and not free & named[pattern]:
            raise RequestError(
                f"the config's '{pattern}' has a max, but touches no group that may lose units: "
                f"leave it out, or see `inspect` for what holds the groups there"
            )
    return rooms


def _room(coupling: Coupling, group: Group, limits: Limits, budget: Budget) -> Room:
    channels = limits.round_to or budget.round_to or BLOCKS[0]
    round_to = _units_of_block(coupling, group, channels)
    most = group.size if limits.max is None else max(_width(limits.max, group.size, math.floor), 1)
    asked = [width for width in (budget.min_channels, limits.min) if width is not None]
    usual = min(MIN_CHANNELS, most / group.size)  # a max goes before what nobody asked for
    least = max(_width(width, group.size, math.ceil) for width in asked or [usual])
    least = math.ceil(least / round_to) * round_to
    if most < group.size and most // round_to * round_to < least:
        raise RequestError(
            f"the config's max leaves {most} of the {group.size} units of '{group.name}', but its "
            f"least width is {least}: a multiple of {round_to}, and no less than its min"
        )
    return Room(group, least, most, round_to)


def _units_of_block(coupling: Coupling, group: Group, channels: int) -> int:
    """Return how many units fill whole blocks of channels on every weight axis they lie on.

    A head of 64 channels fills eight blocks of 8 alone.
    """
    axes = {coupling.axes[r.node.inputs[r.slot]][r.axis] for r in group.members}
    runs = {run for axis in axes for run in runs_of(axis, group.dim)}
    return math.lcm(*(channels // math.gcd(channels, run) for run in runs or {1}))


def _width(limit: float, size: int, rounded: Callable[[float], int]) -> int:
    return limit if isinstance(limit, int) else rounded(round(limit * size, _DIGITS))


def _all_touched(coupling: Coupling, patterns: Sequence[str], option: str) -> set[Dim]:
    return {dim for pattern in patterns for dim in touched(coupling, pattern, option)}


def touched(coupling: Coupling, pattern: str, option: str) -> set[Dim]:
    """Find the dims that a name touches.

    Args:
        coupling: The groups.
        pattern: Of names, with `*`, `?` and `[]`. An initializer touches the dims of its axes, a
            node those of its inputs and outputs, and a group itself. A node without a name goes by
            that of its first output.
        option: What named the pattern.
    Raises:
        RequestError: Nothing has such a name.
    """
    values = [name for name in coupling.graph.initializers if fnmatch.fnmatchcase(name, pattern)]
    for node in coupling.graph.nodes:
        if fnmatch.fnmatchcase(node.name or node.key, pattern):
            values += [*node.inputs, *node.outputs]
    groups = {g.dim for g in coupling.groups if fnmatch.fnmatchcase(g.name, pattern)}
    if not values and not groups:
        raise RequestError(f"{option} '{pattern}' matches no node, initializer or group")
    axes = (axis for name in values for axis in coupling.axes.get(name, ()))
    return groups | {dim for axis in axes for dim in leaves(axis)}
