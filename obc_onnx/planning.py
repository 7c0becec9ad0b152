"""Decide which units stay under a budget."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes import leaves, units_of
from obc_onnx.defaults import ROUND_TO, STEPS, TARGET_MACS
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.plan import RANKINGS, PruningPlan, kept_indices
from obc_onnx.saliency import CRITERIA, make_criterion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes import Dim
    from obc_onnx.coupling import Coupling, Group, Keep
    from obc_onnx.plan import Ranking

    Saliency = Mapping[str, NDArray[np.float64]]
    Cut = tuple[Group, NDArray[np.int64]]


@dataclass(frozen=True)
class Budget:
    """What a plan has to meet.

    Attributes:
        target_macs: Share of the original MACs that may be left, in (0, 1].
        ranking: "global" compares saliency across groups; "per-mac" divides it by the MACs that
            removing one more unit saves. None is what suits the criterion.
        steps: Score again this many times on the way.
        round_to: Widths that shrink stay a multiple of this: runtimes work in blocks of channels.
        exclude: Patterns of node or initializer names that stay whole.
        allow_inexact: Whether groups may shrink over which a statistic is taken, such as the mean
            in a layer norm: that changes more than the removed units.
    """

    target_macs: float = TARGET_MACS
    ranking: Ranking | None = None
    steps: int = STEPS
    round_to: int = ROUND_TO
    exclude: tuple[str, ...] = ()
    allow_inexact: bool = False


def make_plan(
    coupling: Coupling,
    score: Callable[[Keep], Saliency],
    budget: Budget,
    criterion: str,
    seed: int,
) -> PruningPlan:
    """Remove the least salient units until the budget holds.

    Args:
        coupling: The groups.
        score: Gives every unit a saliency, with what was removed so far masked.
        budget: What to meet.
        criterion: Its name, for the record and for the usual ranking.
        seed: For the record.
    Raises:
        RequestError: A number is out of range, a pattern matches nothing, or a group that may lose
            units has no score.
        InfeasibleTargetError: Even the smallest plan does not meet the target.
    """
    if not 0 < budget.target_macs <= 1:
        raise RequestError(f"target MACs must be a share in (0, 1], found {budget.target_macs:g}")
    if budget.steps < 1 or budget.round_to < 1:
        raise RequestError("steps and the multiple of widths must be at least 1")
    if budget.ranking is None:
        known = make_criterion(criterion) if criterion in CRITERIA else None
        budget = replace(budget, ranking="global" if known is None else known.ranking)
    if budget.ranking not in RANKINGS:
        raise RequestError(
            f"ranking '{budget.ranking}' is not known: choose from {', '.join(RANKINGS)}"
        )
    groups = prunable_groups(coupling, budget.exclude, allow_inexact=budget.allow_inexact)
    _check_feasible(coupling, groups, budget)
    full = coupling.macs({})
    keep: dict[Dim, NDArray[np.bool_]] = {}
    for step in range(1, budget.steps + 1):
        share = 1 - (1 - budget.target_macs) * step / budget.steps
        if step == budget.steps:
            share = budget.target_macs  # and not what rounding made of it
        if coupling.macs(keep) / full > share:
            saliency = score(keep)
            _check_scored(groups, saliency, criterion)
            order = _ranked(coupling, groups, saliency, keep, budget)
            keep = _cut_until(coupling, order, keep, share)
    if coupling.macs(keep) / full > budget.target_macs:  # saliency protected dearer units
        raise _infeasible(coupling, groups, keep, budget)
    return _record(coupling, keep, budget, criterion, seed)


def _check_scored(groups: Sequence[Group], saliency: Saliency, criterion: str) -> None:
    for group in groups:
        if group.name not in saliency:
            raise RequestError(
                f"criterion '{criterion}' says nothing of group '{group.name}': use another one, "
                f"or leave the group whole with --exclude"
            )


def prunable_groups(
    coupling: Coupling, exclude: Sequence[str] = (), *, allow_inexact: bool = False
) -> list[Group]:
    """Return the groups that may lose units.

    Args:
        coupling: The groups.
        exclude: Patterns of names; what a matching initializer has, or a matching node touches,
            stays whole. A node without a name goes by that of its first output.
        allow_inexact: As in `Budget`.
    Raises:
        RequestError: A pattern matches no node and no initializer.
    """
    whole: set[Dim] = set()
    for pattern in exclude:
        values = [
            name for name in coupling.graph.initializers if fnmatch.fnmatchcase(name, pattern)
        ]
        for node in coupling.graph.nodes:
            if fnmatch.fnmatchcase(node.name or node.key, pattern):
                values += [*node.inputs, *node.outputs]
        if not values:
            raise RequestError(f"--exclude '{pattern}' matches no node and no initializer")
        axes = (axis for name in values for axis in coupling.axes.get(name, ()))
        whole.update(dim for axis in axes for dim in leaves(axis))
    allowed = (g for g in coupling.groups if allow_inexact or g.inexact is None)
    return [group for group in allowed if group.dim not in whole]


def _check_feasible(coupling: Coupling, groups: Sequence[Group], budget: Budget) -> None:
    """Remove all that may be removed, and compare."""
    equal = {group.name: np.zeros(group.size) for group in coupling.groups}
    smallest = _without({}, _ranked(coupling, groups, equal, {}, replace(budget, ranking="global")))
    full, least = coupling.macs({}), coupling.macs(smallest)
    if not full:
        unknown = f"; {len(coupling.unknown)} nodes have no rule" if coupling.unknown else ""
        raise InfeasibleTargetError(
            f"the model has no MACs to save: no Conv, Gemm or MatMul that is known{unknown}"
        )
    if least / full > budget.target_macs:
        raise _infeasible(coupling, groups, smallest, budget)


def _infeasible(
    coupling: Coupling, groups: Sequence[Group], smallest: Keep, budget: Budget
) -> InfeasibleTargetError:
    full, least = coupling.macs({}), coupling.macs(smallest)
    costs = sorted(
        ((coupling.node_macs(node, smallest), node.label) for node in coupling.costed),
        reverse=True,
    )
    holders = "; ".join(f"{label} {100 * cost / full:.1f} %" for cost, label in costs[:3])
    reasons = list(dict.fromkeys(frozen.reason for frozen in coupling.frozen))
    n_inexact = sum(group.inexact is not None for group in coupling.groups)
    held = len(coupling.groups) - len(groups)
    hint = f", of which --allow-inexact prunes {n_inexact}" if not budget.allow_inexact else ""
    return InfeasibleTargetError(
        f"cannot reach {budget.target_macs:g} of the MACs: with the least width in each of "
        f"{len(groups)} groups {least / full:.4g} are left ({held} more groups are excluded or "
        f"inexact{hint if n_inexact else ''}). What holds it: {holders}. "
        f"Frozen: {'; '.join(reasons[:5]) or 'nothing'}"
    )


def _ranked(
    coupling: Coupling, groups: Sequence[Group], saliency: Saliency, keep: Keep, budget: Budget
) -> list[Cut]:
    """List what may go, least valuable first; each cut leaves a width that is allowed."""
    protected = _protected(coupling, saliency, keep)
    values: list[float] = []
    cuts: list[Cut] = []
    for group in groups:
        left = np.flatnonzero(_units_left(group, keep))
        cost = 1.0 if budget.ranking == "global" else _marginal_macs(coupling, group, keep, left)
        own = saliency[group.name]
        free = left[~np.isin(left, list(protected.get(group.dim, ())))]
        order = free[np.argsort(own[free], kind="stable")]
        for units in _chunks(order, left.size, budget.round_to):
            values.append(float(own[units].mean()) / cost if cost else np.inf)
            cuts.append((group, units))
    return [cuts[i] for i in np.argsort(np.asarray(values), kind="stable")]


def _chunks(order: NDArray[np.int64], width: int, round_to: int) -> Iterator[NDArray[np.int64]]:
    """Cut units into runs whose removal leaves a multiple of `round_to`, but never nothing."""
    start, size = 0, width % round_to or round_to
    while start + size <= order.size and width - start - size >= round_to:
        yield order[start : start + size]
        start, size = start + size, round_to


def _protected(coupling: Coupling, saliency: Saliency, keep: Keep) -> dict[Dim, set[int]]:
    """Find units to protect so that no axis that takes positions of others becomes empty."""
    by_dim = {
        group.dim: saliency.get(group.name, np.zeros(group.size)) for group in coupling.groups
    }
    protected: dict[Dim, set[int]] = {}
    for axis in coupling.tied_axes:
        best: tuple[float, Dim, int] | None = None
        for dim, scores in by_dim.items():
            for unit in units_of(axis, dim):
                if keep.get(dim) is not None and not keep[dim][unit]:
                    continue
                if best is None or scores[unit] > best[0]:
                    best = (float(scores[unit]), dim, int(unit))
        if best is not None:
            protected.setdefault(best[1], set()).add(best[2])
    return protected


def _marginal_macs(coupling: Coupling, group: Group, keep: Keep, left: NDArray[np.int64]) -> float:
    """Return the MACs that removing one more unit of a group saves."""
    nodes = coupling.costed_by_dim.get(group.dim, ())
    mask = _units_left(group, keep).copy()
    mask[left[0]] = False
    fewer = {**keep, group.dim: mask}
    return float(
        sum(coupling.node_macs(node, keep) - coupling.node_macs(node, fewer) for node in nodes)
    )


def _cut_until(
    coupling: Coupling, order: Sequence[Cut], keep: Keep, share: float
) -> dict[Dim, NDArray[np.bool_]]:
    """Apply the shortest prefix of `order` that leaves `share` of the MACs; found by bisection."""
    full = coupling.macs({})
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if coupling.macs(_without(keep, order[:middle])) / full <= share:
            high = middle
        else:
            low = middle + 1
    return _without(keep, order[:low])


def _without(keep: Keep, cuts: Sequence[Cut]) -> dict[Dim, NDArray[np.bool_]]:
    result = {dim: mask.copy() for dim, mask in keep.items()}
    for group, units in cuts:
        if group.dim not in result:
            result[group.dim] = np.ones(group.size, np.bool_)
        result[group.dim][units] = False
    return result


def _units_left(group: Group, keep: Keep) -> NDArray[np.bool_]:
    """Say which units of a group are still there; do not write into the result."""
    return keep.get(group.dim, np.ones(group.size, np.bool_))


def _record(
    coupling: Coupling, keep: Keep, budget: Budget, criterion: str, seed: int
) -> PruningPlan:
    kept = {group.name: np.flatnonzero(_units_left(group, keep)) for group in coupling.groups}
    initializers = kept_indices(coupling, keep)
    copies = coupling.graph.copies
    return PruningPlan(
        model_sha256=coupling.graph.sha256,
        criterion=criterion,
        ranking=str(budget.ranking),
        target_macs=budget.target_macs,
        seed=seed,
        macs=(coupling.macs({}), coupling.macs(keep)),
        params=(coupling.params({}), coupling.params(keep)),
        groups={
            group.name: {"size": group.size, "kept": kept[group.name].tolist()}
            for group in coupling.groups
        },
        initializers=initializers,
        copies={name: copies[name] for name in initializers if name in copies},
    )
