"""Which groups may lose units, and how many: by patterns of names, and in a file of limits."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import leaves
from obc_onnx.errors import RequestError
from obc_onnx.planning.blocks import units_of_block
from obc_onnx.planning.costs import units_left
from obc_onnx.planning.scope import BLOCKS, MIN_CHANNELS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.planning.scope import Scope


_DIGITS = 9
"""Of a share times a width: what lies behind them is rounding."""


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
        """Removal units into runs, each of which leaves a width that is allowed.

        Args:
            order: The units that may go, the first one first.
            width: How many units are left now.
        """
        start, size = 0, width % self.round_to or self.round_to
        while start + size <= order.size and width - start - size >= self.least:
            yield order[start : start + size]
            start, size = start + size, self.round_to

    @property
    def widths(self) -> list[int]:
        """The widths that are allowed, widest first."""
        size = self.group.size
        gone = np.cumsum([0, *(units.size for units in self.cuts(np.arange(size), size))])
        return [int(size - units) for units in gone]

    def is_too_wide(self, keep: Keep) -> bool:
        """Say whether more units are left than may be."""
        return int(units_left(self.group, keep).sum()) > self.most


def rooms_of(
    coupling: Coupling, scope: Scope, steps: Mapping[Dim, int] | None = None
) -> list[Room]:
    """Return the groups that may lose units, each with its limits.

    Args:
        coupling: The groups.
        scope: What was asked.
        steps: In place of one multiple of channels for all groups, that of each.
    Raises:
        RequestError: A pattern matches nothing, or limits contradict each other.
    """
    whole = _all_touched(coupling, scope.exclude, "exclude")
    only = _all_touched(coupling, scope.only, "only")
    of_dim: dict[Dim, Limits] = {}
    named: dict[str, set[Dim]] = {}
    for pattern, limits in scope.limits.items():
        named[pattern] = touched(coupling, pattern, "limits")
        for dim in named[pattern]:
            of_dim[dim] = limits.over(of_dim.get(dim, Limits()))
    rooms = [
        _room(coupling, group, of_dim.get(group.dim, Limits()), scope, steps or {})
        for group in coupling.groups
        if (scope.allow_inexact or group.inexact is None)
        and group.dim not in whole
        and (not scope.only or group.dim in only)
        and not of_dim.get(group.dim, Limits()).keep
    ]
    free = {room.group.dim for room in rooms}
    for pattern, limits in scope.limits.items():
        if limits.max is not None and not free & named[pattern]:
            raise RequestError(
                f"`Scope.limits` '{pattern}' has a max, but touches no group that may lose "
                f"units: leave it out, or see `inspect` for what holds the groups there"
            )
    return rooms


def _room(
    coupling: Coupling, group: Group, limits: Limits, scope: Scope, steps: Mapping[Dim, int]
) -> Room:
    channels = limits.round_to or steps.get(group.dim) or scope.multiple or BLOCKS[0]
    round_to = units_of_block(coupling, group, channels)
    most = group.size if limits.max is None else max(_width(limits.max, group.size, math.floor), 1)
    asked = [width for width in (scope.min_channels, limits.min) if width is not None]
    usual = min(MIN_CHANNELS, most / group.size)  # a max goes before what nobody asked for
    least = max(_width(width, group.size, math.ceil) for width in asked or [usual])
    least = math.ceil(least / round_to) * round_to
    if most < group.size and most // round_to * round_to < least:
        raise RequestError(
            f"a max of `Scope.limits` leaves {most} of the {group.size} units of '{group.name}', "
            f"but its least width is {least}: a multiple of {round_to}, and no less than its min"
        )
    return Room(group, least, most, round_to)


def _width(limit: float, size: int, rounded: Callable[[float], int]) -> int:
    return limit if isinstance(limit, int) else rounded(round(limit * size, _DIGITS))


def _all_touched(coupling: Coupling, patterns: Sequence[str], field: str) -> set[Dim]:
    return {dim for pattern in patterns for dim in touched(coupling, pattern, field)}


def touched(coupling: Coupling, pattern: str, field: str) -> set[Dim]:
    """Find the dims that a name touches.

    Args:
        coupling: The groups.
        pattern: Of names, with `*`, `?` and `[]`. An initializer touches the dims of its axes, a
            node those of its inputs and outputs, and a group itself. A node without a name goes by
            that of its first output.
        field: What of a budget named the pattern.
    Raises:
        RequestError: Nothing has such a name.
    """
    values = [name for name in coupling.graph.initializers if fnmatch.fnmatchcase(name, pattern)]
    for node in coupling.graph.nodes:
        if fnmatch.fnmatchcase(node.name or node.key, pattern):
            values += [*node.inputs, *node.outputs]
    groups = {g.dim for g in coupling.groups if fnmatch.fnmatchcase(g.name, pattern)}
    if not values and not groups:
        raise RequestError(f"`Budget.{field}` '{pattern}' matches no node, initializer or group")
    axes = (axis for name in values for axis in coupling.axes.get(name, ()))
    return groups | {dim for axis in axes for dim in leaves(axis)}
