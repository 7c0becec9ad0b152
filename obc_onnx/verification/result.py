"""A plan on its way through surgery, repair and training, and what must hold of its result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.precision import is_quantised
from obc_onnx.planning.costs import COSTS
from obc_onnx.saliency.criteria import make_criterion
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

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.planning.plan import PruningPlan

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """A plan on its way through surgery, repair and training.

    Attributes:
        coupling: Of what is cut.
        no_twin: Why torch cannot compute the graph, or is not there; empty where it can.
        original: Of the model as it came; sparse learning may have changed its weights.
    """

    coupling: Coupling
    plan: PruningPlan
    keep: Keep
    pruned: Graph
    inputs: Mapping[str, Shape]
    feed: Mapping[str, Any]
    no_twin: str
    original: Coupling


def check_result(cut: Cut, result: Graph, clock: Clock) -> list[Check]:
    """Check everything that must hold of a result as it is read back, trained or not."""
    original = cut.original.graph
    repaired = cut.plan.weights_sha256 is not None
    checks = [
        check_plan(original, result, cut.plan),
        check_weights(original, result, cut.plan),
        check_structure(cut.pruned.settled(), result, cut.plan.merged, repaired=repaired),
        check_description(original, result, cut.plan.copies),
        check_interface(original, result),
        *check_format(original, result, cut.inputs),
        check_runs(result, cut.feed),
    ]
    if not all(check.passed for check in checks):
        return checks  # what follows would only stumble over the same fault
    recounted, _ = analyse(result, cut.inputs, cut.coupling.rules, clock, feed=cut.feed)
    for name, target in cut.plan.targets.items():
        cost = COSTS[name]
        full = cost(cut.coupling).full
        checks.append(check_budget(cost(recounted).total({}), full, target, cost.label))
    check = check_twin(recounted, cut.feed, cut.no_twin)
    if not check.passed and is_quantised(original) and not _uses_twin(cut.plan):
        # integer kernels may saturate where torch computes what the model says
        check = replace(check, passed=True, detail=f"{check.detail}; no twin was used")
    return [*checks, check]


def _uses_twin(plan: PruningPlan) -> bool:
    """Say whether a plan or its weights depend on what torch computed."""
    return make_criterion(plan.criterion).needs_data or plan.weights_sha256 is not None
