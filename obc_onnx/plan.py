"""Decide which units stay under a budget, and write the decision down.

A plan is plain data: a person can read it, edit it and apply it again, and check the surgery with
numpy alone.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from obc_onnx.axes import leaves, units_of
from obc_onnx.defaults import ROUND_TO, STEPS, TARGET_MACS
from obc_onnx.errors import InfeasibleTargetError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes import Dim
    from obc_onnx.coupling import Coupling, Group, Keep

    Saliency = Mapping[str, NDArray[np.float64]]
    Cut = tuple[Group, NDArray[np.int64]]

Ranking = Literal["global", "per-mac"]
RANKINGS: tuple[str, ...] = get_args(Ranking)
FORMAT = 1
"""Version of the plan file; another one is refused."""


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay.

    Attributes:
        model_sha256: Of the model that the plan is for.
        criterion: What scored the units.
        ranking: How units of different groups were compared.
        target_macs: Share of the MACs that may be left.
        macs: Before and after.
        params: Before and after.
        groups: For each group by name, its size and the kept units.
        initializers: For each initializer that shrinks, for each axis, the kept indices.
        weights_sha256: Digest of the written weights, where repair or training changed them.
    """

    model_sha256: str
    criterion: str
    ranking: str
    target_macs: float
    seed: int
    macs: tuple[int, int]
    params: tuple[int, int]
    groups: dict[str, dict[str, Any]]
    initializers: dict[str, dict[str, list[int]]]
    weights_sha256: str | None = None
    format: int = FORMAT

    def to_json(self) -> str:
        """Write as JSON with sorted keys: equal plans give equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan file.

        Raises:
            RequestError: It is missing, or not a plan of this format.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"plan '{path}' cannot be read as JSON") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise RequestError(f"'{path}' is not a plan of format {FORMAT}")
        try:
            plan = cls(**fields)
        except TypeError as error:
            raise RequestError(f"plan '{path}' lacks fields or has unknown ones") from error
        for field, holds in _FIELDS.items():
            if not holds(getattr(plan, field)):
                raise RequestError(f"plan '{path}' has a '{field}' that is not of a plan")
        (macs, fewer_macs), (params, fewer_params) = plan.macs, plan.params
        return replace(plan, macs=(macs, fewer_macs), params=(params, fewer_params))

    def keep(self, coupling: Coupling) -> Keep:
        """Say which units of each dim stay.

        Raises:
            RequestError: The plan names a group or a unit that the model does not have, or its
                initializers do not follow from its groups.
        """
        keep: dict[Dim, NDArray[np.bool_]] = {}
        for name, entry in self.groups.items():
            group = coupling.by_name.get(name)
            units = np.asarray(entry["kept"], np.int64)
            if group is None or group.size != entry["size"]:
                raise RequestError(f"the plan's group '{name}' is not in this model")
            if units.size == 0 or units.min() < 0 or units.max() >= group.size:
                raise RequestError(f"the plan keeps no units, or none that exist, of '{name}'")
            if units.size < group.size:
                keep[group.dim] = np.isin(np.arange(group.size), units)
        follow = _kept_indices(coupling, keep)
        for name in sorted(follow.keys() | self.initializers.keys()):
            if follow.get(name) != self.initializers.get(name):
                raise RequestError(
                    f"the plan's indices of initializer '{name}' do not follow from its groups"
                )
        return keep


@dataclass(frozen=True)
class Budget:
    """What a plan has to meet.

    Attributes:
        target_macs: Share of the original MACs that may be left, in (0, 1].
        ranking: "global" compares saliency across groups; "per-mac" divides it by the MACs that
            removing one more unit saves.
        steps: Score again this many times on the way.
        round_to: Widths that shrink stay a multiple of this: runtimes work in blocks of channels.
        exclude: Patterns of node or initializer names that stay whole.
    """

    target_macs: float = TARGET_MACS
    ranking: Ranking = "global"
    steps: int = STEPS
    round_to: int = ROUND_TO
    exclude: tuple[str, ...] = ()


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
        criterion: Its name, for the record.
        seed: For the record.
    Raises:
        RequestError: A number is out of range, or a pattern matches nothing.
        InfeasibleTargetError: Even the smallest plan does not meet the target.
    """
    if not 0 < budget.target_macs <= 1:
        raise RequestError(f"target MACs must be a share in (0, 1], found {budget.target_macs:g}")
    if budget.steps < 1 or budget.round_to < 1:
        raise RequestError("steps and the multiple of widths must be at least 1")
    if budget.ranking not in RANKINGS:
        raise RequestError(
            f"ranking '{budget.ranking}' is not known: choose from {', '.join(RANKINGS)}"
        )
    groups = prunable_groups(coupling, budget.exclude)
    _check_feasible(coupling, groups, budget)
    full = coupling.macs({})
    keep: dict[Dim, NDArray[np.bool_]] = {}
    for step in range(1, budget.steps + 1):
        share = 1 - (1 - budget.target_macs) * step / budget.steps
        if step == budget.steps:
            share = budget.target_macs  # and not what rounding made of it
        if coupling.macs(keep) / full > share:
            saliency = score(keep)
            order = _ranked(coupling, groups, saliency, keep, budget)
            keep = _cut_until(coupling, order, keep, share)
    if coupling.macs(keep) / full > budget.target_macs:  # saliency protected dearer units
        raise _infeasible(coupling, groups, keep, budget)
    return _record(coupling, keep, budget, criterion, seed)


def prunable_groups(coupling: Coupling, exclude: Sequence[str] = ()) -> list[Group]:
    """Return the groups that may lose units.

    Args:
        coupling: The groups.
        exclude: Patterns of names; what a matching initializer has, or a matching node touches,
            stays whole. A node without a name goes by that of its first output.
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
    return [g for g in coupling.groups if g.inexact is None and g.dim not in whole]


def _check_feasible(coupling: Coupling, groups: Sequence[Group], budget: Budget) -> None:
    """Remove all that may be removed, and compare."""
    equal = {group.name: np.zeros(group.size) for group in coupling.groups}
    smallest = _without({}, _ranked(coupling, groups, equal, {}, replace(budget, ranking="global")))
    full, least = coupling.macs({}), coupling.macs(smallest)
    if not full:
        raise InfeasibleTargetError("the model has no MACs to save: no Conv, Gemm or MatMul")
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
    n_held = len(coupling.groups) - len(groups)
    return InfeasibleTargetError(
        f"cannot reach {budget.target_macs:g} of the MACs: with the least width in each of "
        f"{len(groups)} groups {least / full:.4g} are left ({n_held} more groups are excluded or "
        f"inexact). What holds it: {holders}. Frozen: {'; '.join(reasons[:5]) or 'nothing'}"
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
    by_dim = {group.dim: saliency[group.name] for group in coupling.groups}
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
    return PruningPlan(
        model_sha256=coupling.graph.sha256,
        criterion=criterion,
        ranking=budget.ranking,
        target_macs=budget.target_macs,
        seed=seed,
        macs=(coupling.macs({}), coupling.macs(keep)),
        params=(coupling.params({}), coupling.params(keep)),
        groups={
            group.name: {"size": group.size, "kept": kept[group.name].tolist()}
            for group in coupling.groups
        },
        initializers=_kept_indices(coupling, keep),
    )


def _kept_indices(coupling: Coupling, keep: Keep) -> dict[str, dict[str, list[int]]]:
    return {
        name: {str(axis): positions.tolist() for axis, positions in axes.items()}
        for name, axes in coupling.kept_positions(keep).items()
    }


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
        and entry.keys() == {"size", "kept"}
        and _is_count(entry["size"])
        and _are_indices(entry["kept"])
        for entry in value.values()
    )


def _are_slices(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(axes, dict)
        and all(axis.isdecimal() and _are_indices(kept) for axis, kept in axes.items())
        for axes in value.values()
    )


_LARGEST_COUNT = 2**63
_PAIR = 2
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model_sha256": lambda value: isinstance(value, str),
    "criterion": lambda value: isinstance(value, str),
    "ranking": lambda value: value in RANKINGS,
    "target_macs": lambda value: isinstance(value, (int, float)) and 0 < value <= 1,
    "seed": _is_count,
    "macs": _are_counts,
    "params": _are_counts,
    "groups": _are_groups,
    "initializers": _are_slices,
    "weights_sha256": lambda value: value is None or isinstance(value, str),
}
"""What a plan file has to hold, since people may have edited it."""
