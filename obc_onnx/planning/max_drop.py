"""The smallest network that is hardly worse: found by bisection over targets of MACs.

Targets lie on a grid, so that the plan that is found is the one that `target_macs` with its share
gives: it can be made again, and its budget is verified like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import InfeasibleTargetError
from obc_onnx.measuring.outputs import Outputs, answers
from obc_onnx.samples.checks import classes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.error import Distance
    from obc_onnx.measuring.metric import Metric
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.plan import PruningPlan

_ROUNDING = 1e-9
"""Of a difference of two shares."""
GRID = 64
"""Targets are multiples of one part in so many: six plans are tried."""


@dataclass(frozen=True)
class Found:
    """What the search ended with.

    Attributes:
        plan: The smallest one that is good enough.
        share: Its target of MACs.
        drop: How much worse its result is; 0 where nothing is removed.
        n_tried: Results that were judged.
    """

    plan: PruningPlan
    share: float
    drop: float
    n_tried: int


def plan_within_drop(
    plan_of: Callable[[Budget], PruningPlan],
    budget: Budget,
    result_of: Callable[[PruningPlan], Graph],
    judge: DropMeter,
) -> tuple[PruningPlan, str]:
    """Find the plan of a budget with a `max_drop`.

    Args:
        plan_of: Plans under a budget with targets.
        budget: What was asked for.
        result_of: Cuts by a plan, and repairs.
        judge: Says how much worse that is.
    Returns:
        The plan, and for the report what was found, and on what.
    """
    allowed = budget.max_drop or 0.0
    found = find_plan(
        lambda share: plan_of(replace(budget, target_macs=share, max_drop=None)),
        result_of,
        judge.drop,
        allowed,
    )
    return found.plan, (
        f"the MACs were cut to {found.share:g}, as far as the {judge.what} on {judge.n_samples} "
        f"held-out samples allows: worse by {found.drop:.4g}, allowed {allowed:g}; "
        f"{found.n_tried} cuts were tried. What is measured on the same samples is flattered"
    )


def find_plan(
    plan_of: Callable[[float], PruningPlan],
    result_of: Callable[[PruningPlan], Graph],
    drop_of: Callable[[Graph], float],
    max_drop: float,
) -> Found:
    """Find a plan whose result is good enough, while that of the next target below is not.

    Where the drop never shrinks as more is cut, that is the smallest of all that are good enough.

    Args:
        plan_of: Plans for a share of the MACs.
        result_of: Cuts by a plan, and repairs.
        drop_of: Says how much worse a result is than the original.
        max_drop: How much worse it may be.
    Raises:
        InfeasibleTargetError: Not even what has to go whatever the target may go.
    """
    drops: dict[int, float] = {}
    plans = {GRID: plan_of(1.0)}
    low, high = 0, GRID
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plans[middle] = plan_of(middle / GRID)
            drops[middle] = drop_of(result_of(plans[middle]))
        except InfeasibleTargetError:
            drops[middle] = np.inf
        low, high = (low, middle) if drops[middle] <= max_drop + _ROUNDING else (middle, high)
    plan = plans[high]
    if high == GRID and plan.initializers:  # limits of widths cut whatever the target is
        drops[GRID] = drop_of(result_of(plan))
        if drops[GRID] > max_drop + _ROUNDING:
            raise InfeasibleTargetError(
                f"what the limits cut alone makes the model worse by {drops[GRID]:.4g}, and "
                f"{max_drop:g} is allowed: widen the limits"
            )
    n_tried = sum(np.isfinite(drop) for drop in drops.values())
    return Found(plan, high / GRID, drops.get(high, 0.0), int(n_tried))


class DropMeter:
    """Says how much worse graphs are than the original, on held-out samples.

    With labels, the loss of top-1 accuracy. Without, for a model whose first output is of shape
    [batch, classes], the share of samples whose largest class is another one. For any other model
    the error of the outputs, each channel on its own scale, see `measuring.error.Distance`. A
    metric of the user's comes before all of these, in its own units.

    Args:
        distance: From the model before, on samples that were neither scored nor repaired on.
        metric: Of the user's.
    """

    def __init__(self, distance: Distance, metric: Metric | None = None) -> None:
        self._distance, self._metric = distance, metric
        original, held = distance.original.graph, distance.samples
        self.n_samples, self._labels = len(held), held.labels
        if metric is not None:
            self.what = f"metric '{metric.name}'"
        elif held.labels is not None:
            self.what = "accuracy"
        elif classes_of(original) is None:
            self.what = "error of the outputs"
        else:
            self.what = "agreement with the original"
            self._labels = answers(original, held)
        self._before = self._quality(distance.reference)

    def drop(self, graph: Graph) -> float:
        """Return how much worse a graph is; below 0 where it is better."""
        after = self._quality(Outputs(graph, self._distance.samples))
        if self._before is None or after is None:
            return self._distance(graph)
        if self._metric is not None:
            return self._metric.drop(self._before, after)
        return self._before - after

    def _quality(self, outputs: Outputs) -> float | None:
        """Return what a network is worth by itself; None where only the error tells."""
        if self._metric is not None:
            return self._metric.value(outputs)
        return None if self._labels is None else outputs.share_right(self._labels)
