"""Targets of time: a profile to plan from, and plans that are measured until the time holds."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.engines.options import EngineOptions
from obc_onnx.engines.table import make_engine
from obc_onnx.errors import EngineError, InfeasibleTargetError, InstallationError, RequestError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.latency.measure import loaded
from obc_onnx.latency.nodes import compared
from obc_onnx.latency.predictor import fit
from obc_onnx.measuring.latency import race_closely
from obc_onnx.run.profiling import profile_coupling
from obc_onnx.surgery.bypass import bypassed
from obc_onnx.surgery.cut import Cut
from obc_onnx.twin.processes import world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.engines.engine import Feed, Loaded
    from obc_onnx.graph.model import Graph
    from obc_onnx.latency.nodes import NodeTime
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.latency.profile import Profile
    from obc_onnx.measuring.latency import Race
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.plan import PruningPlan

    Shape = tuple[int, ...]

MOST_PLANS = 6
"""Plans that are measured for a target of time."""
_SURE = 1.64
"""Deviations below which a normal number lies in 19 of 20 cases."""
_BELOW = 0.98
"""How far below the target the next plan aims, so that it is not missed by a hair again."""
_NEAR = 0.95
"""Share of the target from which on a plan that holds is not made slower."""
_NS_PER_MS = 1e6
_HOLDERS = 3
"""Parts that are named where no plan is fast enough."""


@dataclass(frozen=True)
class Timing:
    """A profile, what it predicts, and whether its engine is here to measure.

    Attributes:
        profile: The times.
        predictor: What is fitted to them.
        graph: The model.
        seed: Of what models are fed.
    """

    profile: Profile
    predictor: Predictor
    graph: Graph
    seed: int

    @classmethod
    def of(cls, coupling: Coupling, profile: Profile, seed: int) -> Timing:
        """Fit a profile.

        Raises:
            RequestError: The profile is of another model.
        """
        return cls(profile, fit(coupling, profile), coupling.graph, seed)

    @classmethod
    def measured(cls, coupling: Coupling, inputs: Mapping[str, Shape], seed: int) -> Timing:
        """Profile a model in ONNX Runtime as it is, where nobody gave a profile.

        Raises:
            RequestError: There are several processes.
        """
        _check_alone()
        batch = coupling.graph.batch_axes
        shapes = batch.resized(inputs, coupling.graph.batch or 1)
        return cls.of(
            coupling, profile_coupling(coupling, EngineOptions(), shapes, seed=seed), seed
        )

    def holders(self, coupling: Coupling, plan: PruningPlan) -> str:
        """Say which parts take longest with a plan, as predicted."""
        forecast = self.predictor.on(bypassed(coupling, plan.stand_ins(coupling)))
        parts = sorted(forecast.parts(plan.keep(coupling)), reverse=True)
        named = "; ".join(f"{label} {ms:.4g} ms" for ms, label in parts[:_HOLDERS])
        return f"What holds it, as predicted: {named}"

    @property
    def note(self) -> str:
        """What was predicted with, and how well."""
        own, error = self.profile, 100 * self.predictor.error
        return (
            f"times are those of {own.engine.engine} on {own.device}: {len(own.timings) - 1} "
            f"networks were timed, and each is told by the others to {error:.1f} % in the median, "
            f"{100 * max(self.predictor.errors):.1f} % at most"
        )

    def race(self, before: Graph, after: Graph) -> Race:
        """Time two models in turns in the engine of the profile.

        Raises:
            EngineError: The engine does not run one of them.
        """
        with self._pair(before, after) as pair:
            return race_closely(*pair)

    def race_and_nodes(self, before: Graph, after: Graph) -> tuple[Race, list[NodeTime]]:
        """Time two models in turns, and then the nodes of each, where the engine tells them.

        Raises:
            EngineError: The engine does not run one of them.
        """
        with self._pair(before, after) as pair:
            return race_closely(*pair), _nodes(before, pair)

    def _pair(self, before: Graph, after: Graph) -> AbstractContextManager[tuple[Loaded, Loaded]]:
        feed = random_feed(before, self._shapes, self.seed)
        return _pair(self.profile.engine, before, after, feed)

    @cached_property
    def absent(self) -> str:
        """Why the engine of the profile does not run here, or not as it did; empty where it does.

        To find that out it loads the model, which may build an engine for minutes.
        """
        own = self.profile
        try:
            engine = make_engine(own.engine)
            feed = random_feed(self.graph, self._shapes, self.seed)
            with loaded(engine, self.graph, feed) as here:
                found = (here.version, here.device)
        except (EngineError, InstallationError) as error:
            return str(error)
        if found != (own.version, own.device):
            there, here_is = (
                " on ".join(filter(None, pair)) for pair in ((own.version, own.device), found)
            )
            return f"the profile is of {there}, and this machine has {here_is}"
        return ""

    @property
    def _shapes(self) -> dict[str, Shape]:
        return {name: tuple(shape) for name, shape in self.profile.shapes.items()}


def time_nodes(before: Graph, after: Graph, feed: Feed) -> list[NodeTime]:
    """Time the nodes of two models in ONNX Runtime as it is.

    Args:
        before: The original.
        after: The result.
        feed: An array for each input.
    Raises:
        EngineError: ONNX Runtime does not run one of them.
    """
    with _pair(EngineOptions(), before, after, feed) as pair:
        return _nodes(before, pair)


@contextmanager
def _pair(
    options: EngineOptions, before: Graph, after: Graph, feed: Feed
) -> Iterator[tuple[Loaded, Loaded]]:
    engine = make_engine(options)
    with loaded(engine, before, feed) as first, loaded(engine, after, feed) as second:
        first.warm_up()
        second.warm_up()
        yield first, second


def _nodes(graph: Graph, pair: tuple[Loaded, Loaded]) -> list[NodeTime]:
    before, after = (one.layers() or [] for one in pair)
    return compared(graph, before, after)


def plan_in_time(
    plan_of: Callable[[Budget], PruningPlan], budget: Budget, coupling: Coupling, timing: Timing
) -> tuple[PruningPlan, str]:
    """Plan until the measured time of the cut network is within the target, and not far below it.

    After each plan the prediction is corrected by what it was off there: the next one aims lower
    where the time was missed, and higher where the network was too fast. Of those that hold, the
    slowest is taken. Nothing is repaired for that, since no time depends on what weights are.

    Args:
        plan_of: Plans under a budget.
        budget: What was asked for, with a target of time.
        coupling: Of the model.
        timing: What measures.
    Returns:
        The plan, and for the report what was measured.
    Raises:
        InfeasibleTargetError: No plan is fast enough; the message says how fast the fastest is.
        RequestError: There are several processes.
    """
    _check_alone()
    asked = aim = budget.target_latency or 1.0
    tried: list[_Tried] = []
    why, out_of_reach = f"{MOST_PLANS} plans were measured", ""
    while len(tried) < MOST_PLANS and not any(_NEAR <= one.over <= 1 for one in tried):
        try:
            plan = plan_of(replace(budget, target_latency=aim))
        except InfeasibleTargetError as error:
            if not tried:
                raise
            out_of_reach = str(error)  # which says what holds it
            break
        if any(plan.groups == one.plan.groups for one in tried):
            why = "no other plan comes nearer"
            break
        found = timing.race(
            coupling.graph, Cut.of(coupling, plan.keep(coupling), plan.stand_ins(coupling)).pruned
        )
        tried.append(_Tried(plan, aim, found, excess(asked, found)))
        aim = _next_aim(asked, tried[-1])
    holding = [one for one in tried if one.over <= 1]
    if not holding:
        best = min(tried, key=lambda one: one.race.ratio)
        held = "" if out_of_reach else f". {timing.holders(coupling, best.plan)}"
        raise _too_slow(asked, best.race, (out_of_reach or why) + held)
    best = max(holding, key=lambda one: one.over)
    return best.plan, (
        f"measured in {timing.profile.engine.engine}, in turns with the original, the cut network "
        f"takes {best.race.ratio:.3f} of its time ({_told(best.race)}), known to "
        f"{100 * best.race.spread:.1f} %; it is the best of {len(tried)} plans, and aims at "
        f"`Budget(target_latency={best.aim:g})`"
    )


def _check_alone() -> None:
    """Check that no other process measures other times, and so makes another plan."""
    if world_size() > 1:
        raise RequestError(
            "a target of latency is measured in one process: make the plan without torchrun, and "
            "give it as `plan`"
        )


class _Tried(NamedTuple):
    """A plan that was measured.

    Attributes:
        plan: What stays.
        aim: The target that it was made for.
        race: Its time.
        over: By what that exceeds what was asked for, see `excess`.
    """

    plan: PruningPlan
    aim: float
    race: Race
    over: float


def _next_aim(asked: float, last: _Tried) -> float:
    """Return what to aim at where predictions are off as they were for the last plan."""
    before, after = last.plan.latency or (1, 1)
    predicted = after / before if asked <= 1 else float(after)
    aim = predicted * _BELOW / last.over
    return min(aim, 1.0) if asked <= 1 else float(max(round(aim), 2))


def excess(asked: float, found: Race) -> float:
    """Return by what a measured time exceeds its target; at most 1 where it holds.

    Args:
        asked: A share of the original's time, or nanoseconds.
        found: What was measured; it counts with its error.
    """
    return _share(asked, found) * (1 + _SURE * found.spread)


def doubts_of_time(asked: float, found: Race) -> list[str]:
    """Warn where the result takes longer than its plan did, and than was asked for.

    Args:
        asked: A share of the original's time, or nanoseconds.
        found: The result as it was measured last.
    """
    if _share(asked, found) * (1 - _SURE * found.spread) <= 1:  # within, for all that is known
        return []
    what = f"slower than asked for: {found.ratio:.3f} of the original's time ({_told(found)})"
    cause = "its plan was measured to be faster, so other work may have held this machine up"
    return [f"{what}: {cause}; `latency` of `apply` measures again"]


def _share(asked: float, found: Race) -> float:
    """Return the median by the target."""
    return (found.ratio if asked <= 1 else found.medians_ms[1] * _NS_PER_MS) / asked


def _told(found: Race) -> str:
    before, after = found.medians_ms
    return f"{before:.4g} -> {after:.4g} ms"


def _too_slow(asked: float, best: Race, why: str) -> InfeasibleTargetError:
    wanted = f"{asked:g} of the original's time" if asked <= 1 else f"{asked / _NS_PER_MS:g} ms"
    return InfeasibleTargetError(
        f"cannot reach {wanted} as measured: the fastest plan takes {best.medians_ms[1]:.4g} ms, "
        f"{best.ratio:.3f} of it; {why}"
    )
