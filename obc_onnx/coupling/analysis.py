"""What every command starts with: load a model, find its shapes and its coupling, keep the time."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from obc_onnx import progress
from obc_onnx.coupling.inference import axes_apart, find_coupling
from obc_onnx.errors import ModelError, RequestError
from obc_onnx.graph.feeds import check_runs
from obc_onnx.graph.malformed import faults_told
from obc_onnx.graph.model import Graph
from obc_onnx.graph.shapes import infer_shapes, infer_strictly, input_shapes
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.samples.batch_guesses import check_named
from obc_onnx.samples.batching import batch_of_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.batch_axes import Axes, BatchAxes
    from obc_onnx.ops.base.rule import RuleSet

    Feed = Mapping[str, NDArray[Any]]
    Shape = tuple[int, ...]

_TRIED_BATCH = 1009
"""A prime that no model spells out: a batch of 2 passes for any other 2, as of a table's rows."""

Model = str | Path | onnx.ModelProto | Graph
"""How a model may be given: a file, a loaded model, or a graph."""


class Clock:
    """Seconds of each stage; a stage that is entered again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a block, and say what it is where it takes long."""
        start = time.perf_counter()
        with progress.stage(stage):
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def load_model(model: Model) -> Graph:
    """Bring a model in any form into a graph."""
    if isinstance(model, Graph):
        return model
    return Graph.from_model(model) if isinstance(model, onnx.ModelProto) else Graph.load(model)


def model_name(model: Model) -> str:
    """Return what a report calls a model."""
    return str(model) if isinstance(model, (str, Path)) else "model"


def analyse(
    graph: Graph,
    given: Mapping[str, Shape] | None,
    rules: RuleSet,
    clock: Clock,
    named: Axes | None = None,
    feed: Feed | None = None,
) -> tuple[Coupling, dict[str, Shape]]:
    """Find the coupling of a graph, and the input shapes that it holds for.

    Args:
        graph: The model; where its batch is not proven yet, that comes first.
        given: Sizes of dynamic inputs, by input name.
        rules: What is known of operators.
        clock: Keeps the seconds of "shapes" and "coupling".
        named: The batch axis of inputs, where a user names it.
        feed: Samples, for shapes that only a run tells; random ones are tried without.
    Raises:
        ModelError: The model cannot be analysed, or is malformed.
    """
    with told(graph, given):
        with clock("shapes"):
            graph = settled(graph, given, named or {}, rules)
            inputs = input_shapes(graph, given)
            shapes = infer_shapes(graph, inputs, _feed_of(graph, inputs, feed))
        with clock("coupling"):
            coupling = find_coupling(graph, shapes, rules)
    if coupling.loses_batch:
        with clock("shapes"):
            coupling = replace(coupling, single=_shapes_of_one(graph, inputs, feed))
    return coupling, inputs


@contextmanager
def told(graph: Graph, given: Mapping[str, Shape] | None) -> Iterator[None]:
    """Turn faults of what works on a model into a sentence, where ONNX Runtime cannot run it.

    Args:
        graph: The model.
        given: Sizes of dynamic inputs, by input name.
    Raises:
        ModelError: A fault came up, and the model is to blame.
    """
    with faults_told(lambda: _why_not_run(graph, given)):
        yield


def _why_not_run(graph: Graph, given: Mapping[str, Shape] | None) -> str | None:
    """Say why ONNX Runtime runs a model on no random input, None where it does."""
    try:
        check_runs(graph, input_shapes(graph, given))
    except ModelError as error:
        return str(error)
    return None


def settled(
    graph: Graph,
    given: Mapping[str, Shape] | None,
    named: Axes,
    rules: RuleSet = DEFAULT_RULES,
) -> Graph:
    """Return a graph whose batch is proven.

    The declared axes are followed through the graph, which costs milliseconds. Where that does not
    prove them, and no samples have done so, the model runs on random inputs.

    Raises:
        RequestError: A name or an axis is not of the model, or a size contradicts the batch.
    """
    if not graph.batch_axes.proven:
        check_named(graph, named)
        declared = graph.batch_axes
        likely = graph.with_batch(replace(declared, inputs={**declared.inputs, **named}))
        shapes = input_shapes(likely, given)
        _check_samples(likely.batch_axes, shapes)
        found = follow_batch(likely, shapes, rules) or batch_of_shapes(likely, shapes, named)
        graph = graph.with_batch(found)
    batch = graph.batch_axes
    for name, shape in (given or {}).items():
        axis = batch.inputs.get(name)
        if batch.note and axis is not None and shape[axis] != batch.size:
            raise RequestError(
                f"input '{name}' cannot hold {shape[axis]} samples on axis {axis}, but "
                f"{batch.size}: {batch.note}"
            )
    return graph


def _check_samples(batch: BatchAxes, shapes: Mapping[str, Shape]) -> None:
    """Check that a model takes samples: ONNX Runtime may divide by how many there are."""
    for name, axis in batch.inputs.items():
        if axis is not None and shapes[name][axis] == 0:
            raise ModelError(
                f"input '{name}' is declared as {'x'.join(map(str, shapes[name]))}, which holds no "
                f"sample: leave its axis {axis} open"
            )


def follow_batch(graph: Graph, inputs: Mapping[str, Shape], rules: RuleSet) -> BatchAxes | None:
    """Return the batch as it is declared, where the graph itself shows that it is one."""
    batch = graph.batch_axes
    axes = {name: axis for name, axis in batch.inputs.items() if axis is not None}
    sizes = {inputs[name][axis] for name, axis in axes.items()}
    if batch.size is not None or len(axes) < len(batch.inputs) or len(sizes) != 1:
        return None
    tried = batch.resized(inputs, _TRIED_BATCH)
    try:
        outputs = axes_apart(graph, infer_strictly(graph, tried) | tried, rules)
    except ModelError:  # it does not take as many samples
        return None
    return None if outputs is None else replace(batch, outputs=outputs, proven=True)


def _feed_of(
    graph: Graph, shapes: Mapping[str, Shape], feed: Feed | None
) -> dict[str, NDArray[Any]] | None:
    """Return samples as inputs of the given shapes; None where they are of other sizes."""
    if feed is None:
        return None
    batch = graph.batch_axes
    places = [place % batch.count(feed) for place in range(batch.count_of(shapes))]
    chosen = batch.chosen(feed, places)
    return chosen if all(chosen[name].shape == shape for name, shape in shapes.items()) else None


def _shapes_of_one(
    graph: Graph, inputs: Mapping[str, Shape], feed: Feed | None
) -> dict[str, Shape] | None:
    """Find shapes for a batch of one; None where the model does not take one."""
    if graph.batch is not None:
        return None
    one = graph.batch_axes.resized(inputs, 1)
    try:
        return infer_shapes(graph, one, _feed_of(graph, one, feed))
    except ModelError:
        return None
