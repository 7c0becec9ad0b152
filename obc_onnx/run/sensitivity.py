"""Measure what each group of a model can lose alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Model, model_name, told
from obc_onnx.errors import RequestError
from obc_onnx.latency.predictor import fit
from obc_onnx.latency.profile import Profile
from obc_onnx.measuring.masks import with_padding
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import MEASURED_SAMPLES
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.sensitivity import Sensitivity, measure_groups
from obc_onnx.run.opened import analysed, read
from obc_onnx.run.request import check_device
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import score_units
from obc_onnx.samples.options import DataOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]


def measure_sensitivity(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples,
    criterion: str | None = None,
    scoring: Scoring | None = None,
    scope: Scope | None = None,
    n_samples: int = MEASURED_SAMPLES,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Sensitivity:
    """Cut shares of each group alone, without any repair, and measure what that does.

    Args:
        model: A file, a loaded model, or a graph.
        data: Samples to score on; the held-out ones are measured on.
        criterion: What says which units go first; as in `score`.
        scoring: How the criterion looks at the samples.
        scope: Which groups are measured; the widths that it asks for have no meaning here.
        n_samples: Held-out samples to measure on, at most.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice.
        device: Where torch scores.
        costs: A profile, or its file: then milliseconds are told too.
        rules: What is known of operators.
    Raises:
        ObcError: The request cannot be met; the message says why.
    """
    check_device(device)
    given = DataOptions.of(data)
    if given.metric is not None or given.lower_is_better:
        raise RequestError(
            "sensitivity is measured by the error of outputs and by labels: leave "
            "`DataOptions.metric` and `DataOptions.lower_is_better` out"
        )
    options = replace(given, eval_samples=n_samples)
    graph, samples, held = read(model, options, input_shape, batch_axes)
    if samples is None or held is None:
        raise RequestError("sensitivity is measured on samples: give `data`")
    coupling, inputs = analysed(graph, samples, input_shape, batch_axes, rules)
    told_by = None if costs is None else fit(coupling, Profile.of(costs))
    forecast = None if told_by is None else told_by.on(coupling)
    with told(coupling.graph, inputs):
        samples, held = with_padding(coupling, samples, held)
        scores = score_units(coupling, samples, criterion, scoring or Scoring(), seed, device)
        groups = [room.group for room in rooms_of(coupling, scope or Scope())]
        found = measure_groups(coupling, groups, scores.groups, held, forecast)
        before = accuracy(graph, held)
    whole = None if forecast is None else forecast.ms({})
    return Sensitivity(model_name(model), scores.criterion, len(held), before, found, whole)
