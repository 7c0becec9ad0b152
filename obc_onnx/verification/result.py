"""A plan on its way through surgery, repair and training, and what must hold of its result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.precision import is_quantised
from obc_onnx.planning.costs import COSTS
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.verification.apart import checks_apart
from obc_onnx.verification.checks import (
    Check,
    check_budget,
    check_description,
    check_format,
    check_interface,
    check_plan,
    check_runs,
    check_structure,
    check_twin,
    check_weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.surgery.cut import Cut

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A plan and what it made of a model, on its way through repair and training.

    Attributes:
        cut: The pruned graph, beside what it was cut from.
        plan: What says which units stay.
        inputs: Sizes of the model's inputs.
        feed: What both are run on.
        no_twin: Why torch cannot compute the graph, or is not there; empty where it can.
        original: Of the model as it came; sparse learning may have changed its weights.
        predictor: What tells milliseconds, where there is a profile.
    """

    cut: Cut
    plan: PruningPlan
    inputs: Mapping[str, Shape]
    feed: Mapping[str, Any]
    no_twin: str
    original: Coupling
    predictor: Predictor | None = None

    def holding(self, pruned: Graph) -> Candidate:
        """Return the same with other weights."""
        return replace(self, cut=self.cut.holding(pruned))


def check_result(candidate: Candidate, result: Graph, clock: Clock) -> list[Check]:
    """Check everything that must hold of a result as it is read back, trained or not."""
    original = candidate.original.graph
    repaired = candidate.plan.weights_sha256 is not None
    checks = [
        check_plan(original, result, candidate.plan),
        check_weights(original, result, candidate.plan),
        check_structure(
            candidate.cut.pruned.settled(),
            result,
            candidate.plan.merged,
            candidate.cut.coupling.rules,
            repaired=repaired,
        ),
        check_description(original, result, candidate.plan.copies),
        check_interface(original, result),
        *checks_apart(original, result),
        *check_format(original, result, candidate.inputs),
        check_runs(result, candidate.feed),
    ]
    if not all(check.passed for check in checks):
        return checks  # what follows would only stumble over the same fault
    recounted, _ = analyse(
        result, candidate.inputs, candidate.cut.coupling.rules, clock, feed=candidate.feed
    )
    checks += _check_targets(candidate, recounted)
    check = check_twin(recounted, candidate.feed, candidate.no_twin)
    if not check.passed and is_quantised(original) and not _uses_twin(candidate.plan):
        # integer kernels may saturate where torch computes what the model says
        check = replace(check, passed=True, detail=f"{check.detail}; no twin was used")
    return [*checks, check]


def _check_targets(candidate: Candidate, recounted: Coupling) -> list[Check]:
    """Count each cost of the result again; what takes a profile says so where there is none."""
    checks = []
    for name, target in candidate.plan.targets.items():
        cost, told = COSTS[name], candidate.predictor
        if cost.is_timed and told is None:
            doubt = "that takes the profile that the plan is from, as `costs`"
            checks.append(Check(f"{cost.label} was not counted", passed=True, doubt=doubt))
            continue
        full = cost(candidate.cut.original, predictor=told).full
        left = cost(recounted, predictor=told).total({})
        checks.append(check_budget(left, full, target, cost.label))
    return checks


def _uses_twin(plan: PruningPlan) -> bool:
    """Say whether a plan or its weights depend on what torch computed."""
    return make_criterion(plan.criterion).needs_data or plan.weights_sha256 is not None
