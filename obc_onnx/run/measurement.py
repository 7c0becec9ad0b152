"""What a result is worth: its outputs, accuracy and speed, held against the original's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.measuring.baseline import Baseline, examine
from obc_onnx.measuring.error import OutputError
from obc_onnx.measuring.latency import race
from obc_onnx.measuring.outputs import Outputs
from obc_onnx.report.doubts import (
    doubts_of_drop,
    doubts_of_outputs,
    doubts_of_quality,
    doubts_of_speed,
    doubts_of_stand_ins,
    doubts_of_widths,
)
from obc_onnx.report.summary import Change
from obc_onnx.run.timing import doubts_of_time, time_nodes
from obc_onnx.verification.checks import latency_feed

if TYPE_CHECKING:
    from obc_onnx.latency.nodes import NodeTime
    from obc_onnx.measuring.baseline import Fed
    from obc_onnx.measuring.latency import Race
    from obc_onnx.measuring.metric import MetricChange
    from obc_onnx.run.opened import Opened
    from obc_onnx.run.request import Request
    from obc_onnx.verification.result import Candidate

_USUAL_ENGINE = "ONNX Runtime"


class Measured(NamedTuple):
    """What samples and a clock say of a result; see `Report`."""

    outputs: list[OutputError]
    accuracy: Change
    metric: MetricChange | None
    fed: list[Fed]
    latency_ms: Change
    node_times: list[NodeTime]


class Measurement(NamedTuple):
    """What was measured, what to say of it, and what speaks against the result."""

    measured: Measured
    notes: list[str]
    warnings: list[str]


def measure(request: Request, opened: Opened, final: Candidate, *, trained: bool) -> Measurement:
    """Hold a result against the original.

    Args:
        request: What was asked for.
        opened: The original, and samples to measure on.
        final: The result.
        trained: Whether it was fine-tuned.
    """
    graph, held, distance = final.original.graph, opened.held, opened.distance
    baseline, outputs, change = Baseline(), list[OutputError](), Change(None, None)
    metric: MetricChange | None = None
    if opened.samples is not None and held is not None and distance is not None:
        apart, before = request.data.evaluation is not None, distance.reference
        after = Outputs(final.cut.pruned, held)
        baseline = examine(before, opened.samples, apart=apart)
        outputs = distance.errors(after)
        change = Change(baseline.accuracy, after.accuracy())
        if opened.metric is not None:
            metric = opened.metric.change(before, after)
    times, nodes, notes, warnings = _raced(request, opened, final)
    warnings += [
        *baseline.doubts,
        *doubts_of_stand_ins(graph, () if held is None else held.drawn),
        *doubts_of_quality(outputs, given=held is not None),
        *doubts_of_outputs(outputs),
        *doubts_of_drop(change, outputs, graph.outputs[0].name, trained=trained),
        *doubts_of_widths(final.cut.coupling, final.cut.keep),
        *doubts_of_speed(times, _engine(opened)),
    ]
    latency = Change(None, None) if times is None else Change(*times.medians_ms)
    measured = Measured(outputs, change, metric, baseline.fed, latency, nodes)
    return Measurement(measured, notes, warnings)


def _engine(opened: Opened) -> str:
    """Return what both models are timed in: that of a profile, where it is on this machine."""
    timing = opened.timing
    return _USUAL_ENGINE if timing is None or timing.absent else timing.profile.engine.engine


class _Speed(NamedTuple):
    """Times of both models and of their nodes, and what comes of that."""

    times: Race | None
    nodes: list[NodeTime]
    notes: list[str]
    warnings: list[str]


def _raced(request: Request, opened: Opened, final: Candidate) -> _Speed:
    """Time both models, where that was asked for or costs little; say what comes of it.

    Nodes are timed where speed was asked for, by an option or by a target.
    """
    graph, asked = (opened.came or final.original).graph, request.latency
    if asked is False:
        return _Speed(None, [], [], [])
    if opened.timing is not None and not opened.timing.absent:
        found, nodes = opened.timing.race_and_nodes(graph, final.cut.pruned)
        target = request.goal.target_latency if request.is_timed else None
        return _Speed(found, nodes, [], [] if target is None else doubts_of_time(target, found))
    feed = latency_feed(graph, opened.held, final.inputs, request.seed)
    times = race(graph, final.cut.pruned, feed, asked=asked is True)
    slow = "speed was not measured, since a run takes long: `latency` does it"
    nodes = time_nodes(graph, final.cut.pruned, feed) if asked else []
    return _Speed(times, nodes, [slow] if times is None else [], [])
