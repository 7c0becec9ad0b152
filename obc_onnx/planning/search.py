"""Decide which units stay under a budget."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.branches.find import Branch
from obc_onnx.branches.left import Left
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.planning.blocks import steps_of
from obc_onnx.planning.budget import REPAIRED_STEPS, STEPS
from obc_onnx.planning.costs import COSTS, Cost, share_of, units_left
from obc_onnx.planning.depth import Depth
from obc_onnx.planning.plan import PruningPlan, slices_of
from obc_onnx.planning.ranking import narrowest, ranked
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import AUTO, BLOCKS, Scope
from obc_onnx.saliency.criteria import usual_ranking
from obc_onnx.saliency.options import FORMER_RANKINGS, RANKINGS
from obc_onnx.surgery.bypass import without_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.branches.left import Removal
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.ranking import Saliency
    from obc_onnx.planning.rooms import Room
    from obc_onnx.saliency.options import Ranking

_BY_VALUE: tuple[Ranking, ...] = ("global", "per-cost")
"""Rankings that compare what units are worth; the others keep shares of groups equal."""


@dataclass(frozen=True)
class _Target:
    """One target as it is checked.

    Attributes:
        asked: What was asked for.
        share: The same as a share of the full cost.
        depth: Which branches may go.
    """

    cost: Cost
    asked: float
    share: float
    depth: Depth

    @classmethod
    def of(cls, cost: Cost, asked: float, depth: Depth) -> _Target:
        if not (0 < asked <= 1 or (float(asked).is_integer() and asked > 1)):
            raise RequestError(
                f"target {cost.label} must be a share in (0, 1] or a whole number above 1, "
                f"found {asked:g}"
            )
        return cls(cost, asked, share_of(asked, cost.full), depth)

    def total(self, left: Left) -> int:
        """Return what is left of the cost."""
        return self.depth.total(self.cost, left)

    def holds(self, left: Left, done: float = 1.0) -> bool:
        """Say whether `done` of the way to the target has been made."""
        # the last step is compared with the share itself, and not with what rounding makes of it
        share = self.share if done == 1 else 1 - (1 - self.share) * done
        return self.total(left) / self.cost.full <= share


def search_plan(
    coupling: Coupling,
    score: Callable[[Left], Saliency],
    budget: Budget,
    criterion: str,
    seed: int,
    *,
    splits: bool = False,
    repaired: bool = False,
    predictor: Predictor | None = None,
) -> PruningPlan:
    """Remove the least salient units until the budget holds.

    Args:
        coupling: The groups.
        score: Gives every unit, and with depth every branch, a saliency, with what was removed so
            far masked or left out.
        budget: What to meet.
        criterion: Its name, for the record and for the usual ranking.
        seed: For the record.
        splits: Whether repair or training comes after, see `Cost`.
        repaired: Whether `score` looks at what repair makes of the units that are left.
        predictor: What tells milliseconds, for a target of them.
    Raises:
        RequestError: A number is out of range, a pattern matches nothing, or a group that may lose
            units has no score.
        InfeasibleTargetError: Even the smallest plan does not meet the targets.
    """
    if budget.max_drop is not None:
        raise RequestError("a plan alone drops nothing that could be measured: give targets")
    ranking = _ranking(budget, criterion)
    depth = Depth.of(coupling, asked=budget.depth, ranking=ranking)
    targets = [
        _Target.of(COSTS[name](coupling, splits=splits, predictor=predictor), asked, depth)
        for name, asked in budget.targets.items()
    ]
    scope, rooms = _rooms(coupling, targets, budget.scope, predictor)
    budget = replace(budget, scope=scope)
    left, cuts = Left(), list["Removal"]()
    n_steps = budget.steps or (REPAIRED_STEPS if repaired else STEPS)
    for step in range(1, n_steps + 1):
        done, standing = step / n_steps, _standing(rooms, depth, left)
        met = all(target.holds(left, done) for target in targets)
        if not met or any(room.is_too_wide(left.keep) for room in standing):
            saliency = score(left)
            _check_scored(standing, depth.standing(left), saliency, criterion)
            order, n_due = _ordered(depth, standing, saliency, left, ranking, targets)
            cuts += _shortest(order, left, n_due, targets, done)
            if ranking in _BY_VALUE:
                cuts = _needed(cuts, rooms, targets, done)
            left = Left().without(cuts)
    _check_met(coupling, _standing(rooms, depth, left), targets, left, scope)
    plan = _record(depth, left, budget, ranking, criterion, seed)
    return plan if predictor is None else plan.timed(coupling, predictor)


def _ordered(
    depth: Depth,
    rooms: Sequence[Room],
    saliency: Saliency,
    left: Left,
    ranking: Ranking,
    targets: Sequence[_Target],
) -> tuple[list[Removal], int]:
    """List what may go of what is left, see `ranked`; costs count whose targets do not hold yet."""
    costs = [target.cost for target in targets if not target.holds(left)]
    return ranked(
        depth.network(left),
        rooms,
        saliency,
        left.keep,
        ranking,
        [depth.cost(cost, left) for cost in costs],
        depth.worth(left, saliency, ranking, costs),
    )


def _standing(rooms: Sequence[Room], depth: Depth, left: Left) -> list[Room]:
    """List the groups that no branch has taken along, as what is left has them."""
    groups = depth.network(left).by_name
    names = ((room, room.group.name) for room in rooms)
    return [replace(room, group=groups[name]) for room, name in names if name in groups]


def _ranking(budget: Budget, criterion: str) -> Ranking:
    asked = budget.ranking or usual_ranking(criterion)
    found = FORMER_RANKINGS.get(asked, asked)
    if found not in RANKINGS:
        raise RequestError(
            f"`Budget.ranking` '{asked}' is not known: choose from {', '.join(RANKINGS)}"
        )
    return found


def _rooms(
    coupling: Coupling, targets: Sequence[_Target], scope: Scope, predictor: Predictor | None
) -> tuple[Scope, list[Room]]:
    """Say how narrow each group may get, and by which multiples."""
    if scope.round_to == AUTO:
        return _with_steps(coupling, targets, scope, predictor)
    timed = predictor is not None and any(target.cost.is_timed for target in targets)
    own = predictor.round_to if timed and predictor is not None else None
    return _with_blocks(coupling, targets, scope, own)


def _with_blocks(
    coupling: Coupling, targets: Sequence[_Target], scope: Scope, profiled: int | None
) -> tuple[Scope, list[Room]]:
    """Fix the multiple of widths: what was asked, or the largest that meets the targets.

    Args:
        coupling: The groups.
        targets: What to meet.
        scope: What was asked.
        profiled: The multiple that a target of time knows of; it tells nothing between those.
    """
    blocks = BLOCKS if scope.multiple is None else (scope.multiple,)
    if profiled is not None:
        if blocks[0] % profiled and scope.multiple is not None:
            raise RequestError(
                f"the profile has times of multiples of {profiled} channels, and "
                f"`Scope.round_to` asks for {scope.multiple}: profile the model with "
                f"`round_to={scope.multiple}`"
            )
        blocks = (scope.multiple or profiled,)
    *larger, smallest = blocks
    for block in larger:
        with suppress(InfeasibleTargetError, RequestError):
            return _with_block(coupling, targets, scope, block)
    return _with_block(coupling, targets, scope, smallest)


def _with_steps(
    coupling: Coupling, targets: Sequence[_Target], scope: Scope, predictor: Predictor | None
) -> tuple[Scope, list[Room]]:
    """Take for each group the multiple at which its time steps."""
    if predictor is None:
        raise RequestError(
            "`Scope(round_to='auto')` takes the widths at which the times of a profile step: give "
            "`costs`, which `profile` measures"
        )
    steps = steps_of(coupling, predictor)
    return _with_block(coupling, targets, scope, predictor.round_to, steps)


def _with_block(
    coupling: Coupling,
    targets: Sequence[_Target],
    scope: Scope,
    block: int,
    steps: Mapping[Dim, int] | None = None,
) -> tuple[Scope, list[Room]]:
    scope = replace(scope, round_to=block, runtime=None)
    rooms = rooms_of(coupling, scope, steps)
    _check_feasible(coupling, rooms, targets, scope)
    return scope, rooms


def _check_scored(
    rooms: Sequence[Room], branches: Sequence[Branch], saliency: Saliency, criterion: str
) -> None:
    for branch in branches:
        if branch.name not in saliency:
            raise RequestError(
                f"criterion '{criterion}' says nothing of branch '{branch.name}': let units and "
                f"branches be scored together, and not from a file"
            )
    for room in rooms:
        if room.group.name not in saliency:
            raise RequestError(
                f"criterion '{criterion}' says nothing of group '{room.group.name}': use another "
                f"one, or leave the group whole with `Scope.exclude`"
            )


def _check_feasible(
    coupling: Coupling, rooms: Sequence[Room], targets: Sequence[_Target], scope: Scope
) -> None:
    """Remove all that may be removed, and compare."""
    for target in targets:
        if not target.cost.full:
            unknown = f"; {len(coupling.unknown)} nodes are not known" if coupling.unknown else ""
            raise InfeasibleTargetError(
                f"the model has no {target.cost.label} to save{unknown}{_enclosed(coupling)}"
            )
    least = Left(narrowest(coupling, rooms))
    least = targets[0].depth.shallowest(least) if targets else least
    _check_met(coupling, _standing(rooms, targets[0].depth, least), targets, least, scope)


def _check_met(
    coupling: Coupling,
    rooms: Sequence[Room],
    targets: Sequence[_Target],
    left: Left,
    scope: Scope,
) -> None:
    """Check the result: saliency may have protected units that had to go."""
    for target in targets:
        if not target.holds(left):
            raise _infeasible(coupling, len(rooms), target, left, scope)
    for room in rooms:
        if room.is_too_wide(left.keep):
            raise InfeasibleTargetError(
                f"cannot cut '{room.group.name}' to its max of {room.most} units: axes that take "
                f"positions of it would become empty"
            )


def _infeasible(
    coupling: Coupling, n_rooms: int, target: _Target, smallest: Left, scope: Scope
) -> InfeasibleTargetError:
    cost = target.depth.cost(target.cost, smallest)
    full, least = cost.full, target.total(smallest)
    parts = sorted(cost.parts(smallest.keep), reverse=True)
    holders = "; ".join(f"{label} {cost.share_told(part)}" for part, label in parts[:3])
    reasons = list(dict.fromkeys(frozen.reason for frozen in coupling.frozen))
    n_inexact = sum(group.inexact is not None for group in coupling.groups)
    held = len(coupling.groups) - n_rooms
    hint = f", of which `Scope.allow_inexact` prunes {n_inexact}" if not scope.allow_inexact else ""
    narrower = "; `Scope(min_channels=1)` leaves less" if scope.min_channels is None else ""
    is_share = target.asked <= 1
    asked = f"{target.asked:g} of the {cost.label}" if is_share else cost.told(int(target.asked))
    left = f"{least / full:.4g}" if is_share else f"{least:,}"
    left = cost.told(least) if cost.is_timed else left
    return InfeasibleTargetError(
        f"cannot reach {asked}: with the least width in each of {n_rooms} groups {left} are left "
        f"({held} more groups are excluded or inexact{hint if n_inexact else ''}{narrower}). "
        f"What holds it: "
        f"{holders}. Frozen: {'; '.join(reasons[:5]) or 'nothing'}{_enclosed(coupling)}"
    )


def _enclosed(coupling: Coupling) -> str:
    """Say which nodes hold weights in subgraphs, which nothing is cut from."""
    found = [f"{label} ({count:,})" for label, count in coupling.graph.enclosed.items()]
    return f"; weights inside of subgraphs stay as they are: {', '.join(found)}" if found else ""


def _shortest(
    order: Sequence[Removal], left: Left, n_due: int, targets: Sequence[_Target], done: float
) -> Sequence[Removal]:
    """Return the shortest prefix of cuts, those that are due at least, with which targets hold.

    Found by bisection: all hold at its upper end, and not at its lower one.
    """
    low, high = n_due, len(order)
    while low < high:
        middle = (low + high) // 2
        fewer = left.without(order[:middle])
        if all(target.holds(fewer, done) for target in targets):
            high = middle
        else:
            low = middle + 1
    return order[:low]


def _needed(
    cuts: list[Removal], rooms: Sequence[Room], targets: Sequence[_Target], done: float
) -> list[Removal]:
    """Leave out the cuts that targets hold without; of those the most valuable goes first.

    A cut may save far more than was missing: a block of channels of a residual stream runs through
    many layers. Cuts of a group are taken back in turn, so that widths stay allowed ones.
    """
    room_of = {room.group.dim: room for room in rooms}
    left = Left().without(cuts)
    needed: list[Removal] = []
    closed: set[Dim] = set()
    for removal in reversed(cuts):
        group = None if isinstance(removal, Branch) else removal[0]
        if group is None or group.dim not in closed:
            more = left.with_again(removal)
            is_due = group is not None and room_of[group.dim].is_too_wide(more.keep)
            if not is_due and all(target.holds(more, done) for target in targets):
                left = more
                continue
            closed |= set() if group is None else {group.dim}
        needed.append(removal)
    return needed[::-1]


def _record(
    depth: Depth, left: Left, budget: Budget, ranking: Ranking, criterion: str, seed: int
) -> PruningPlan:
    whole, coupling, gone = depth.coupling, depth.network(left), depth.needed(left.stand_ins)
    keep = without_gone(coupling, left.keep)
    kept = {group.name: np.flatnonzero(units_left(group, keep)) for group in coupling.groups}
    return PruningPlan(
        model_sha256=coupling.graph.sha256,
        criterion=criterion,
        ranking=ranking,
        round_to=budget.scope.multiple,
        targets=budget.targets,
        seed=seed,
        macs=(whole.macs({}), coupling.macs(keep)),
        params=(whole.params({}), coupling.params(keep)),
        branches={own.value: own.operand for own in gone if own.operand is not None},
        spans={own.value: own.stand_in for own in gone if own.operand is None},
        groups={
            group.name: {"size": group.size, "kept": kept[group.name].tolist()}
            for group in coupling.groups
        },
        **slices_of(coupling, keep, coupling.merged(keep)),
    )
