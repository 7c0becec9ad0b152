"""Which units go, and why: those without which every product that reads them gives the same.

The graph without units equals the graph with zeros where they are read. So a unit may go where
those zeros change nothing, or what they change can be made up for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import count, leaves
from obc_onnx.ops.base.effect import Effect
from obc_onnx.stripping.facts import Facts
from obc_onnx.stripping.fold import Edits, Shift, add_columns, can_add_columns, shift_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Group
    from obc_onnx.ops.base.context import Role
    from obc_onnx.stripping.scenes import Scenes

    Flags = NDArray[np.bool_]


class Reason(StrEnum):
    """Why a unit does nothing."""

    UNREAD = "unread"
    """All weights that read it are zero."""
    ZERO = "zero"
    """It is zero wherever a weight reads it that is not."""
    CONSTANT = "constant"
    """It is the same in every run: biases of what reads it hold that."""
    DUPLICATE = "duplicate"
    """It is as another one in every run: what reads that one reads both."""


@dataclass(frozen=True)
class Finding:
    """Units of a group that go for one reason.

    Attributes:
        group: Its name.
        reason: Why.
        units: Their indices.
        equals: For duplicates, the unit that each of them equals and that stays.
    """

    group: str
    reason: Reason
    units: tuple[int, ...]
    equals: tuple[int, ...] = ()


@dataclass(frozen=True)
class Found:
    """What can go at once.

    Attributes:
        findings: Which units, and why.
        edits: What takes their place.
        kept: For each group by name that loses units, which stay.
    """

    findings: tuple[Finding, ...]
    edits: Edits
    kept: dict[str, Flags]


def find(scenes: Scenes) -> Found:
    """Find units that do nothing, in a graph at whose sizes they were tried.

    Products that take in what one group leaves behind are left alone by the others: those go when
    the graph is looked at again.
    """
    facts = Facts(scenes)
    claimed: set[str] = set()
    findings: list[Finding] = []
    edits = Edits()
    kept: dict[str, Flags] = {}
    for group in facts.groups:
        own = _Units(facts, group, claimed, folds=scenes.settled)
        found = list(own.findings())
        if not found or _empties(facts, {**kept, group.name: own.stays}):
            continue
        findings += found
        kept[group.name] = own.stays
        edits.shifts += own.shifts
        for role in own.merged:
            name = role.node.inputs[role.slot]
            pairs = own.pairs
            edits.arrays[name] = add_columns(facts, edits.arrays, role, group.name, pairs)
        claimed |= own.claims
    return Found(tuple(findings), edits, kept)


class _Units:
    """The units of one group on their way out.

    Attributes:
        stays: Which are left.
        shifts: What constants leave behind.
        merged: The weights that read duplicates, each once.
        pairs: For each duplicate the unit that it equals.
        claims: Keys of the nodes whose weights or biases change.
    """

    def __init__(self, facts: Facts, group: Group, claimed: set[str], *, folds: bool) -> None:
        self._facts, self._group, self._name = facts, group, group.name
        self._folds = folds
        self._readers = [role for role in group.members if role.kind == "reads"]
        self._is_free = claimed.isdisjoint(role.node.key for role in self._readers)
        self.stays = np.ones(group.size, np.bool_)
        self.shifts: list[Shift] = []
        self.merged: list[Role] = []
        self.pairs: dict[int, int] = {}
        self.claims: set[str] = set()

    def findings(self) -> Iterator[Finding]:
        """Take out units for each reason in turn; one always stays."""
        unread = self._everywhere([self._is_unread(role) for role in self._readers])
        free = self._everywhere([self._is_free_of(role) for role in self._readers])
        yield from self._take(Reason.UNREAD, unread)
        yield from self._take(Reason.ZERO, free)
        if not self._is_free:
            return
        if self._folds and np.count_nonzero(self.stays) > 1:
            yield from self._take(Reason.CONSTANT, self._constants())
        yield from self._duplicates()

    def _take(self, reason: Reason, units: Flags) -> Iterator[Finding]:
        gone = units & self.stays
        if not (self.stays & ~gone).any():
            gone[np.argmax(gone)] = False
        if gone.any() and (reason is not Reason.CONSTANT or self._leave_behind(gone)):
            self.stays &= ~gone
            yield Finding(self._name, reason, _indices(gone))

    def _everywhere(self, flags: Sequence[Flags]) -> Flags:
        found = np.ones(self._group.size, np.bool_)
        for own in flags:
            found &= own
        return found

    def _is_unread(self, role: Role) -> Flags:
        """Say for which units a weight is zero; a computed factor is none."""
        name = role.node.inputs[role.slot]
        found = self._facts.zero(name, self._name)
        return found if self._facts.is_constant(name) else np.zeros_like(found)

    def _is_free_of(self, role: Role) -> Flags:
        """Say of which units a product takes nothing: one of its factors is zero."""
        found = self._facts.zero(role.node.inputs[role.slot], self._name)
        partner = self._partner(role)
        return found if partner is None else found | self._facts.zero(partner, self._name)

    def _partner(self, role: Role) -> str | None:
        """Name the other factor along the contracted axis, None where that is not known."""
        if role.tap is not None:
            return role.node.inputs[role.tap.slot] if role.tap.at == "input" else None
        if Effect.MULTIPLIES_MATRICES in self._facts.rules.effect(role.node):
            return role.node.inputs[1 - role.slot]
        return None

    def _constants(self) -> Flags:
        """Say which units are constant wherever they are read, and can be made up for there."""
        found = np.ones(self._group.size, np.bool_)
        for role in self._readers:
            free = self._is_free_of(role)
            known = free.copy()
            partner = self._partner(role)
            if role.tap is not None and partner is not None:
                known |= self._facts.constant(partner, self._name)
            candidates = found & known & ~free & self.stays
            found &= free | self._foldable(role, candidates)
        return found

    def _foldable(self, role: Role, units: Flags) -> Flags:
        """Say which constant units the bias of a product can stand for: all, or as many as can."""
        if not units.any() or shift_of(self._facts, role, self._name, units) is not None:
            return units
        found = np.zeros_like(units)
        for unit in np.flatnonzero(units):
            alone = np.arange(units.size) == unit
            found[unit] = shift_of(self._facts, role, self._name, alone) is not None
        return found

    def _leave_behind(self, gone: Flags) -> bool:
        """Put constant units into biases; say whether that is possible everywhere."""
        shifts: list[Shift] = []
        for role in _once(self._readers):
            units = gone & ~self._is_free_of(role)
            if units.any():
                shift = shift_of(self._facts, role, self._name, units)
                if shift is None:  # each alone fits, but not their sum
                    return False
                shifts.append(shift)
                self.claims |= {role.node.key, shift.bias.key}
        self.shifts += shifts
        return True

    def _duplicates(self) -> Iterator[Finding]:
        """Find units that equal others wherever they are read."""
        facts, name, left = self._facts, self._name, np.flatnonzero(self.stays)
        labels = []
        for role in self._readers:
            partner = self._partner(role)
            if role.tap is None or partner is None or not can_add_columns(facts, role, name):
                return
            labels.append(facts.alike(partner, name)[left].tolist())
        first: dict[tuple[int, ...], int] = {}
        for unit, place in zip(left.tolist(), zip(*labels, strict=True), strict=False):
            stays = first.setdefault(place, unit)
            if stays != unit:
                self.pairs[unit] = stays
        if self.pairs:
            self.stays[list(self.pairs)] = False
            self.merged = _once_by_weight(self._readers)
            self.claims |= {role.node.key for role in self._readers}
            equals = tuple(self.pairs.values())
            yield Finding(name, Reason.DUPLICATE, tuple(self.pairs), equals)


def _once(roles: Sequence[Role]) -> list[Role]:
    """Leave out roles of a product that reads the same value along the same axis again."""
    return list({(role.node.key, role.slot): role for role in roles}.values())


def _once_by_weight(roles: Sequence[Role]) -> list[Role]:
    return list({role.node.inputs[role.slot]: role for role in roles}.values())


def _indices(flags: Flags) -> tuple[int, ...]:
    return tuple(int(unit) for unit in np.flatnonzero(flags))


def _empties(facts: Facts, kept: dict[str, Flags]) -> bool:
    """Say whether some axis, whose positions are tied one by one, would lose them all."""
    by_name = facts.coupling.by_name
    keep = {by_name[name].dim: flags for name, flags in kept.items()}
    touched = (
        axis for axis in facts.coupling.tied_axes if any(dim in keep for dim in leaves(axis))
    )
    return any(count(axis, keep) == 0 for axis in touched)
