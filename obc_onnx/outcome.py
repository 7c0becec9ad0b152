"""What a compressed model is measured by: its outputs, its accuracy, its speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.feeds import random_feed
from obc_onnx.measure import accuracy, latencies_ms
from obc_onnx.recover.error import Distance
from obc_onnx.report.summary import Change

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph
    from obc_onnx.recover.error import OutputError


class Outcome(NamedTuple):
    """What was measured; the fields are those of `Report`."""

    outputs: list[OutputError]
    accuracy: Change
    latency_ms: Change


def measure_result(
    original: Coupling,
    result: Graph,
    held: Samples | None,
    sizes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
) -> Outcome:
    """Measure a result beside its original, in ONNX Runtime.

    Args:
        original: Of the model as it came.
        result: What became of it.
        held: Samples that neither scores nor repair nor training have seen, or None.
        sizes: Of inputs to time both on, or None.
        seed: Of these inputs.
    """
    outputs: list[OutputError] = []
    scores, times, graph = Change(None, None), Change(None, None), original.graph
    if held is not None:
        outputs = Distance(original, held).outputs(result)
        if held.labels is not None:
            scores = Change(accuracy(graph, held), accuracy(result, held))
    if sizes is not None:
        one = {name: (graph.batch or 1, *shape[1:]) for name, shape in sizes.items()}
        feed = random_feed(graph, one, seed)
        measured = latencies_ms({"before": graph, "after": result}, feed)
        times = Change(measured["before"], measured["after"])
    return Outcome(outputs, scores, times)
