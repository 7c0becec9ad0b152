"""What stays: a plan that was given, filled in and counted, and what any plan would leave."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.branches.left import Left
from obc_onnx.recover.methods import SOLVE
from obc_onnx.report.branches import notes_on_branches
from obc_onnx.report.network import list_layers
from obc_onnx.report.summary import (
    Outlook,
    notes_on_edit,
    notes_on_graph,
    summarise_frozen,
    summarise_groups,
    summarise_saliency,
)
from obc_onnx.saliency.scores import choose_criterion, make_scene, score_left
from obc_onnx.surgery.bypass import bypassed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.run.request import Request
    from obc_onnx.samples.samples import Samples

    Saliency = Mapping[str, NDArray[np.float64]]
    Score = Callable[[Left], Saliency]


class Scorer(NamedTuple):
    """What scores units.

    Attributes:
        name: Of the criterion.
        score: Gives every unit a saliency, for the units that are left.
        repairs: Whether it looks at what repair makes of those.
    """

    name: str
    score: Score
    repairs: bool = False


def scorer_of(
    request: Request, coupling: Coupling, samples: Samples | None, notes: list[str]
) -> Scorer:
    """Return what scores units: scores that were given, or a criterion.

    Args:
        request: What asked for it.
        coupling: Of the network.
        samples: To score on.
        notes: Where it is said which criterion needs none.
    """
    if request.scores is not None:
        given = request.scores
        given.check(coupling)
        return Scorer(given.criterion, lambda _: given.groups)
    depth = request.goal.depth
    criterion = choose_criterion(request.criterion, samples, request.look, depth=depth)
    if request.criterion is None and samples is None:
        notes.append(
            f"no data was given, so units are scored by '{criterion.name}', which needs none"
        )
    scene = make_scene(coupling, samples, request.look, request.seed, request.device, depth=depth)
    repaired = request.recover in SOLVE and not request.trains
    if scene.samples is None or not repaired or not criterion.needs_data:
        return Scorer(criterion.name, partial(score_left, criterion, scene))
    from obc_onnx.recover.stage import rehearse

    repair = partial(
        rehearse, coupling, samples=scene.samples, seed=request.seed, device=request.device
    )
    score = partial(score_left, criterion, scene, repair=repair)
    return Scorer(criterion.name, score, repairs=True)


def given_plan(
    made: PruningPlan,
    coupling: Coupling,
    scorer: Callable[[], Scorer],
    predictor: Predictor | None,
) -> tuple[PruningPlan, list[str]]:
    """Bring a plan that was given into the form of one that was made.

    Args:
        made: As a file says it, which a person may have edited.
        coupling: Of the model.
        scorer: Gives what scores units; asked where the plan says how many units of a group stay,
            and not which.
        predictor: What tells milliseconds, where there is a profile.
    Returns:
        The plan, and what to say of it.
    Raises:
        RequestError: It does not fit the model.
    """
    plan = made
    if made.open_groups:
        asked = scorer()
        plan = made.filled(coupling, asked.score(Left()), asked.name)
    edited = plan.is_edited(coupling)
    recounted = plan.recounted(coupling, predictor)
    return recounted, notes_on_edit(made, recounted) if edited else []


def outlook_of(
    request: Request, plan: PruningPlan, coupling: Coupling, scores: Saliency, notes: list[str]
) -> Outlook:
    """Say what a plan would leave.

    Args:
        request: What asked for it.
        plan: What was decided.
        coupling: Of the model.
        scores: Of all units, before any was removed.
        notes: What is to be said of it.
    """
    gone = notes_on_branches(coupling, plan.stand_ins(coupling))
    keep, coupling = plan.keep(coupling), bypassed(coupling, plan.stand_ins(coupling))
    return Outlook(
        model=request.name,
        plan=plan,
        groups=summarise_groups(coupling, keep),
        layers=list_layers(coupling, keep),
        saliency=summarise_saliency(coupling, scores, keep),
        frozen=summarise_frozen(coupling),
        unknown=list(coupling.unknown),
        notes=[*notes, *gone, *notes_on_graph(coupling.graph)],
    )


def remembering(score: Score, first: dict[str, NDArray[np.float64]]) -> Score:
    """Let units of the whole network be scored once, with however many plans they are ranked.

    Args:
        score: What scores units.
        first: Where the scores of the whole network go.
    """

    def scored(left: Left) -> Saliency:
        if not left.is_whole:
            return score(left)
        if not first:
            first.update(score(left))
        return first

    return scored
