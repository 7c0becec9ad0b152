"""One look at the samples, many targets: what each leaves of a cost, and of the quality."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import told
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import SWEPT, Budget
from obc_onnx.planning.max_drop import DropMeter
from obc_onnx.planning.tradeoff import NONE, Pick
from obc_onnx.progress import track
from obc_onnx.report.sweep import Point, Sweep
from obc_onnx.run.compression import Compression
from obc_onnx.run.request import request_of
from obc_onnx.saliency.scores import score_units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from obc_onnx.coupling.analysis import Model
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.latency.profile import Profile
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Method
    from obc_onnx.report.result import Result
    from obc_onnx.run.opened import Opened
    from obc_onnx.run.request import Request
    from obc_onnx.saliency.options import Scoring
    from obc_onnx.saliency.scores import Scores
    from obc_onnx.samples.options import DataOptions
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Swept:
    """What a sweep gives back.

    Attributes:
        sweep: What each target leaves.
        scores: What all plans were made by.
        plans: What each target that was reached cuts, with the digest of what was repaired.
        results: Those that were picked, by target.
    """

    sweep: Sweep
    scores: Scores
    plans: dict[float, PruningPlan]
    results: dict[float, Result]


def sweep(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples,
    targets: Sequence[float] = SWEPT,
    cost: str = "macs",
    pick: str = NONE,
    budget: Budget | None = None,
    criterion: str | None = None,
    scoring: Scoring | None = None,
    scores: Scores | None = None,
    recover: Method = "auto",
    recover_minutes: float = 0.0,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    latency: bool | None = None,
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Swept:
    """Compress a model to several targets, and measure what each costs in quality.

    The model and the samples are read once, the original runs once over the held-out samples, and
    units are scored once. Each result is the one that `compress` gives with these scores, this
    target and this `recover_minutes`.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        data: Samples to score, repair and measure on.
        targets: Of the cost, as in a `Budget`.
        cost: "macs", "params", "size" or "latency".
        pick: Which results to give back: "all", "none", "knee", "max-drop=0.01" for the smallest
            that is worse by no more, or a target. Others are not kept in memory.
        budget: The ranking, the steps and the scope of all plans; it names no target.
        criterion: As in `compress`.
        scoring: How the criterion looks at the samples.
        scores: What `score` gave, in place of a criterion.
        recover: How to repair; as in `compress`.
        recover_minutes: What refinement by gradient may take for each target.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice: equal seeds give equal bytes.
        device: Where torch scores and repairs.
        latency: Whether to time each result; None does where it takes a few seconds at most.
        costs: A profile, or its file, for a cost of "latency"; without, the model is profiled.
        rules: What is known of operators.
    Raises:
        InfeasibleTargetError: No target can be reached.
        ObcError: The request cannot be met; the message says why.
        VerificationError: A result failed a check.
    """
    request = request_of(
        model,
        data=data,
        budget=_without_targets(budget or Budget(), cost),
        criterion=criterion,
        scoring=scoring,
        scores=scores,
        recover=recover,
        recover_minutes=recover_minutes,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        device=device,
        latency=latency,
        costs=costs,
        rules=rules,
    )
    rule, ordered = _asked(pick, targets)
    first = Compression(replace(request, budget=request.goal.at(cost, ordered[0])))
    first.check_installed(repairs=True)
    opened = first.open(model)
    with told(opened.original.graph, opened.inputs):
        return _Run(request, opened, first, cost, rule).through(ordered)


class _Run:
    """A sweep that is under way."""

    def __init__(
        self, request: Request, opened: Opened, first: Compression, cost: str, rule: Pick
    ) -> None:
        if opened.distance is None:
            raise RequestError("a sweep is measured on samples: give `data`")
        self._opened, self._cost, self._rule = opened, cost, rule
        self._clock, self._notes = first.clock, list(first.notes)
        with self._clock("score"):
            scores = request.scores or score_units(
                opened.coupling,
                opened.samples,
                request.criterion,
                request.look,
                request.seed,
                request.device,
                depth=request.goal.depth,
            )
        self._scores = scores
        self._request = replace(request, scores=scores, criterion=None, scoring=None)
        self._judge = DropMeter(opened.distance, opened.metric)
        self._points: list[Point] = []
        self._unreachable: dict[float, str] = {}
        self._plans: dict[float, PruningPlan] = {}
        self._results: dict[float, Result] = {}

    def through(self, targets: Sequence[float]) -> Swept:
        """Reach one target after the other."""
        for target in track(targets, "targets"):
            self._reach(target)
        return self._swept()

    def _reach(self, target: float) -> None:
        """Plan, cut, repair, verify and measure."""
        asked = replace(self._request, budget=self._request.goal.at(self._cost, target))
        try:
            result = Compression(asked, self._clock, list(self._notes)).result_of(self._opened)
        except InfeasibleTargetError as error:
            self._unreachable[target] = str(error)
            return
        left = _left(result, self._cost)
        point = Point.of(target, left, self._judge.drop(result.graph), result.report)
        self._points.append(point)
        self._plans[target], self._results[target] = result.plan, result
        kept = self._rule.candidates([point.tradeoff for point in self._points])
        self._results = {found.target: self._results[found.target] for found in kept}

    def _swept(self) -> Swept:
        """Return what was found.

        Raises:
            InfeasibleTargetError: Nothing.
        """
        if not self._points:
            raise InfeasibleTargetError(next(iter(self._unreachable.values())))
        chosen = self._rule.chosen([point.tradeoff for point in self._points])
        picked = [found.target for found in chosen]
        found = Sweep(
            model=self._request.name,
            cost=self._cost,
            criterion=self._scores.criterion,
            what=self._judge.what,
            n_samples=self._judge.n_samples,
            points=self._points,
            unreachable=self._unreachable,
            picked=picked,
            seconds=self._clock.seconds,
        )
        results = {target: self._results[target] for target in picked}
        return Swept(found, self._scores, self._plans, results)


def _asked(pick: str, targets: Sequence[float]) -> tuple[Pick, list[float]]:
    """Return what to pick, and the targets, the largest first."""
    rule, ordered = Pick.of(pick), sorted({float(target) for target in targets}, reverse=True)
    if not ordered:
        raise RequestError("`targets` is empty: give some, as shares of the cost")
    if not rule.rule and rule.value not in ordered:
        known = ", ".join(f"{target:g}" for target in ordered)
        raise RequestError(f"`pick` '{pick}' is none of the targets: {known}")
    return rule, ordered


def _without_targets(budget: Budget, cost: str) -> Budget:
    """Check what all plans share."""
    if cost not in Budget.costs():
        known = ", ".join(Budget.costs())
        raise RequestError(f"`cost` '{cost}' is not known: choose from {known}")
    if budget.low_rank:
        raise RequestError(
            "all points of a sweep share their scores, and `Budget.low_rank` splits other layers "
            "at each: compress to one target with it"
        )
    asked = [f.name for f in Budget.target_fields() if getattr(budget, f.name) is not None]
    if asked or budget.max_drop is not None:
        named = ", ".join(f"`Budget.{name}`" for name in asked or ["max_drop"])
        raise RequestError(f"the targets of a sweep are its `targets`: leave out {named}")
    return budget


def _left(result: Result, cost: str) -> float:
    """Return the share of a cost that is left."""
    told = result.report
    changes = {"macs": told.macs, "params": told.params, "size": told.file_bytes}
    pairs = {name: (change.before, change.after) for name, change in changes.items()}
    pairs["latency"] = result.plan.latency or (None, None)
    before, after = pairs[cost]
    return (after or 0.0) / (before or 1.0)
