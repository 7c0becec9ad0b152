"""What can be pruned in a model, what it costs, and how far that could go; loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Clock, Model, analyse, load_model, model_name
from obc_onnx.coupling.explain import explain
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.ranking import narrowest
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import Scope
from obc_onnx.report.branches import summarise_branches
from obc_onnx.report.network import count_operators, list_layers
from obc_onnx.report.summary import (
    Inspection,
    notes_on_graph,
    summarise_axes,
    summarise_frozen,
    summarise_groups,
    summarise_scores,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.saliency.scores import Scores

    Shape = tuple[int, ...]


def inspect(
    model: Model,
    *,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    explained: str | None = None,
    scores: Scores | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Inspection:
    """Find what can be pruned, and what cannot and why.

    Args:
        model: A file, a loaded model, or a graph.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        explained: A tensor, or one of its axes as `tensor:1`, to follow to all that it is tied to.
        scores: What `score` gave, to show with each group.
        rules: What is known of operators.
    Raises:
        ModelError: The model cannot be read or analysed.
        RequestError: An input name or shape does not fit, or there is no such tensor.
    """
    clock = Clock()
    with clock("load"):
        graph = load_model(model)
    coupling, _ = analyse(graph, input_shape, rules, clock, batch_axes)
    if scores is not None:
        scores.check(coupling)
    least_macs = _least_macs(coupling, allow_inexact=False)
    inexact = any(group.inexact is not None for group in coupling.groups)
    return Inspection(
        model=model_name(model),
        sha256=graph.sha256,
        macs=coupling.macs({}),
        least_macs=least_macs,
        least_macs_inexact=_least_macs(coupling, allow_inexact=True) if inexact else least_macs,
        params=graph.params,
        groups=summarise_groups(coupling, {}),
        layers=list_layers(coupling, {}),
        operators=count_operators(coupling),
        axes=summarise_axes(coupling),
        frozen=summarise_frozen(coupling),
        unknown=list(coupling.unknown),
        batch=coupling.graph.batch_axes.notes,
        explained=[] if explained is None else explain(coupling, explained),
        salient=[] if scores is None else summarise_scores(scores.groups),
        seconds=clock.seconds,
        notes=notes_on_graph(graph),
        branches=summarise_branches(coupling),
    )


def _least_macs(coupling: Coupling, *, allow_inexact: bool) -> int:
    """Count what is left where every group becomes as narrow as it may."""
    rooms = rooms_of(coupling, Scope(allow_inexact=allow_inexact, round_to=1))
    return coupling.macs(narrowest(coupling, rooms))
