"""Where a graph shows that its batch is one, every form of an operator leaves samples alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from ops.test_conformance import CASES, generator

from obc_onnx.coupling.analysis import follow_batch
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ops.cases import Case

    from obc_onnx.graph.batch_axes import BatchAxes

SIZES = np.float32([1, 7, 0.2])
"""What samples are multiplied with, so that no scale or largest number is that of all."""


def opened(case: Case, axis: int) -> Graph | None:
    """Leave one axis of the inputs open, as if samples were there; None where it is static."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = case.analysed.shapes
    names = [f"x_{name}" for name in case.inputs if len(inputs[f"x_{name}"]) > axis]
    for port in model.graph.input:
        for i, dim in enumerate(port.type.tensor_type.shape.dim):
            if i == axis and port.name in names:
                dim.dim_param = "samples"
            else:
                dim.dim_value = inputs[port.name][i]
    graph = Graph.from_model(model)
    if case.given or len(names) < len(case.inputs) or (case.batch is not None and axis == 0):
        return None
    return graph.with_batch(
        replace(graph.batch_axes, inputs={port.name: axis for port in graph.inputs}, size=None)
    )


def draw(graph: Graph, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Draw a sample for each of `SIZES`."""
    feed = {}
    for port in graph.inputs:
        axis = graph.batch_axes.inputs[port.name]
        shape = [n if isinstance(n, int) else len(SIZES) for n in port.shape or ()]
        factors = SIZES.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        feed[port.name] = rng.standard_normal(shape, np.float32) * factors
    return feed


def assert_samples_are_alone(
    graph: Graph, found: BatchAxes, rng: np.random.Generator, tolerance: float
) -> None:
    """Raise where samples in one run get something else than each of them alone."""
    session, feed = Session(graph, optimize=False), draw(graph, rng)
    both = session.run(feed)
    for place in range(len(SIZES)):
        alone = session.run(found.chosen(feed, [place]))
        for name, axis in found.outputs.items():
            assert axis is not None
            assert both[name].shape[axis] == len(SIZES)
            own = both[name].take([place], axis)
            assert own.shape == alone[name].shape
            largest = np.abs(alone[name][np.isfinite(alone[name])]).max(initial=0)
            np.testing.assert_allclose(own, alone[name], tolerance, tolerance * largest)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_samples_that_are_said_to_be_apart_are_apart(case: Case) -> None:
    """Along every axis of the inputs that may be the batch, and not along the first alone."""
    rng, tried = generator(case), 0
    shapes = {f"x_{name}": case.analysed.shapes[f"x_{name}"] for name in case.inputs}
    ranks = [len(shape) for shape in shapes.values()]
    features = {rank - 1 if case.last or rank == 2 else 1 for rank in ranks}  # weights read those
    for axis in {*range(max(ranks, default=0))} - features:
        graph = opened(case, axis)
        found = None if graph is None else follow_batch(graph, shapes, DEFAULT_RULES)
        if graph is not None and found is not None:
            assert_samples_are_alone(graph, found, rng, case.tolerance)
            tried += 1
    if not tried:
        pytest.skip("the graph shows of no axis that it is a batch, so that runs have to")
