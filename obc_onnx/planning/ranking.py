"""In which order units go: how those of different groups are compared."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import leaves, units_of
from obc_onnx.planning.costs import units_left

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.branches.find import Branch
    from obc_onnx.branches.left import Removal
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.planning.costs import Cost
    from obc_onnx.planning.rooms import Room
    from obc_onnx.saliency.options import Ranking

    Saliency = Mapping[str, NDArray[np.float64]]


def ranked(
    coupling: Coupling,
    rooms: Sequence[Room],
    saliency: Saliency,
    keep: Keep,
    ranking: Ranking,
    costs: Sequence[Cost],
    branches: Mapping[Branch, float],
) -> tuple[list[Removal], int]:
    """List what may go, least valuable first; each cut leaves a width that is allowed.

    Args:
        coupling: The groups.
        rooms: Those that may lose units, and how many.
        saliency: Of every unit.
        keep: What is left.
        ranking: How to compare, see `Budget`.
        costs: What has to shrink: for the ranking per cost.
        branches: Those that may go, and what each is worth in terms of the ranking.
    Returns:
        The cuts, and how many of the first have to be made whatever the budget says.
    """
    protected = _protected(coupling, saliency, keep)
    cuts: list[tuple[Group, NDArray[np.int64]]] = []
    values: list[float] = []
    due: list[bool] = []
    for room in rooms:
        group = room.group
        left = np.flatnonzero(units_left(group, keep))
        width = left.size
        free = left[~np.isin(left, list(protected.get(group.dim, ())))]
        counted = costs if ranking == "per-cost" else ()
        if width == group.size and coupling.pair_of(group.dim) is not None:
            found = _until_it_pays(room, saliency[group.name], keep, costs, counted)
        else:
            found = _one_by_one(room, saliency[group.name], free, keep, counted)
        for units, value in found:
            due.append(width > room.most)
            width -= units.size
            values.append(value)
            cuts.append((group, units))
    if ranking == "uniform":
        values = _shares(cuts, values, keep, {room.group: room.group for room in rooms})
    if ranking == "isomorphic":
        sets = {room.group: _structure(coupling, room.group) for room in rooms}
        values = _shares(cuts, values, keep, sets)
    everything: list[Removal] = [*cuts, *branches]
    values, due = [*values, *branches.values()], [*due, *[False] * len(branches)]
    order = sorted(range(len(everything)), key=lambda number: (not due[number], values[number]))
    return [everything[number] for number in order], sum(due)


def _one_by_one(
    room: Room,
    saliency: NDArray[np.float64],
    free: NDArray[np.int64],
    keep: Keep,
    costs: Sequence[Cost],
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Yield the cuts of a group, and what each is worth.

    Args:
        room: The group.
        saliency: Of its units.
        free: Those that may go.
        keep: What is left.
        costs: By which the worth is divided; none for the saliency itself.
    """
    worth = _per_cost(saliency, room.group, keep, costs) if costs else saliency
    width = int(units_left(room.group, keep).sum())
    for units in room.cuts(free[np.argsort(worth[free], kind="stable")], width):
        yield units, float(worth[units].mean())


def _until_it_pays(
    room: Room,
    saliency: NDArray[np.float64],
    keep: Keep,
    costs: Sequence[Cost],
    counted: Sequence[Cost],
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Yield the cuts of a group whose first units save nothing; the first cut takes all of those.

    Two layers in the place of one save nothing until they are narrow. So the first cut is the one
    that is worth least for what it saves, and the others follow as they do elsewhere.

    Args:
        room: The group, at full width.
        saliency: Of its units.
        keep: What is left of others.
        costs: What has to shrink.
        counted: Those by which the worth is divided; none for the saliency itself.
    """
    group = room.group
    kept, best, gone = np.ones(group.size, np.bool_), float("inf"), 0
    order, before = np.argsort(saliency, kind="stable"), [c.around(group.dim, keep) for c in costs]
    for units in room.cuts(order, group.size):
        kept[units] = False
        now = {**keep, group.dim: kept}
        after = [cost.around(group.dim, now) for cost in costs]
        saved = sum((b - a) / c.full for b, a, c in zip(before, after, costs, strict=True))
        n_gone = group.size - int(kept.sum())
        loss = float(saliency[order[:n_gone]].sum())
        worth = loss / saved if counted and saved > 0 else loss / n_gone
        if saved > 0 and worth < best:
            best, gone = worth, n_gone
    if gone:
        yield order[:gone], best
        left = np.ones(group.size, np.bool_)
        left[order[:gone]] = False
        now = {**keep, group.dim: left}
        yield from _one_by_one(room, saliency, order[gone:], now, counted)


def narrowest(coupling: Coupling, rooms: Sequence[Room]) -> dict[Dim, NDArray[np.bool_]]:
    """Return what is left where everything goes that may."""
    equal = {group.name: np.zeros(group.size) for group in coupling.groups}
    protected = _protected(coupling, equal, {})
    keep = {}
    for room in rooms:
        units = np.arange(room.group.size)
        free = units[~np.isin(units, list(protected.get(room.group.dim, ())))]
        kept = np.ones(room.group.size, np.bool_)
        for cut in room.cuts(free, room.group.size):
            kept[cut] = False
        if not kept.all():
            keep[room.group.dim] = kept
    return keep


def _per_cost(
    saliency: NDArray[np.float64], group: Group, keep: Keep, costs: Sequence[Cost]
) -> NDArray[np.float64]:
    """Divide by what one more unit saves, as a share of each cost; what saves nothing goes last."""
    saved = np.zeros(group.size)
    for cost in costs:
        saved += cost.marginal(group, keep) / cost.full
    worth = np.full(group.size, np.inf)
    worth[saved > 0] = saliency[saved > 0] / saved[saved > 0]
    return worth


def _shares(
    cuts: Sequence[tuple[Group, NDArray[np.int64]]],
    values: Sequence[float],
    keep: Keep,
    sets: Mapping[Group, Hashable],
) -> list[float]:
    """Return the share of its set that is gone with each cut, all with lower values being made."""
    size, gone = Counter[Any](), Counter[Any]()
    for group, key in sets.items():
        size[key] += group.size
        gone[key] += group.size - int(units_left(group, keep).sum())
    shares = np.zeros(len(cuts))
    for number in np.argsort(np.asarray(values), kind="stable"):
        group, units = cuts[number]
        gone[sets[group]] += units.size
        shares[number] = gone[sets[group]] / size[sets[group]]
    return [float(share) for share in shares]


def _structure(coupling: Coupling, group: Group) -> Hashable:
    """Describe what a group's members are, so that equal groups have equal descriptions.

    Source: Fang et al., Isomorphic Pruning for Vision Models, arXiv 2407.04616: units are compared
    within sub-structures of the same topology.
    """
    members = Counter(
        (
            role.node.op_type,
            role.kind,
            role.axis,
            coupling.shapes[role.node.inputs[role.slot]][role.axis],
        )
        for role in group.members
    )
    return group.size, frozenset(members.items())


def _protected(coupling: Coupling, saliency: Saliency, keep: Keep) -> dict[Dim, set[int]]:
    """Find units to protect so that no axis that takes positions of others becomes empty."""
    by_dim = {
        group.dim: saliency.get(group.name, np.zeros(group.size)) for group in coupling.groups
    }
    place = {dim: number for number, dim in enumerate(by_dim)}
    protected: dict[Dim, set[int]] = {}
    for axis in coupling.tied_axes:
        best: tuple[float, Dim, int] | None = None
        for dim in sorted(by_dim.keys() & set(leaves(axis)), key=place.__getitem__):
            scores = by_dim[dim]
            for unit in units_of(axis, dim):
                if keep.get(dim) is not None and not keep[dim][unit]:
                    continue
                if best is None or scores[unit] > best[0]:
                    best = (float(scores[unit]), dim, int(unit))
        if best is not None:
            protected.setdefault(best[1], set()).add(best[2])
    return protected
