"""Initializers that are listed as inputs, which callers may set."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import (
    analyse,
    assert_close,
    assert_pruned_equals_masked,
    assert_survives,
    build,
    listed,
    make_feed,
    run_onnx,
)
from small import PRODUCT, TWO_CONVS

from obc_onnx.graph.model import Graph
from obc_onnx.surgery.mask import mask_reads

KEEP = np.arange(5) < 3


@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("text", [TWO_CONVS, PRODUCT])
def test_initializers_that_are_listed_as_inputs_survive_surgery(text: str, ir_version: int) -> None:
    constants = {"to": [-1, 5, 8]} if text is PRODUCT else None
    model = listed(build(text, constants, opset=8), ir_version)
    coupling = analyse(model).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    pruned = assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)
    masked = mask_reads(coupling, {group.dim: KEEP})
    names = {port.name for port in model.graph.input}
    for graph in (pruned, masked):
        assert names <= {port.name for port in graph.to_model().graph.input}
        assert [port.name for port in graph.inputs] == ["x"]
        onnx.checker.check_model(graph.to_model(), full_check=True)


def test_a_listed_initializer_that_a_subgraph_captures_is_written_once() -> None:
    model = listed(
        build(
            "net (float[2] x, bool c) => (float[2] y) <float[2] w>"
            "{ y = If (c) <then_branch = t () => (float[2] u) { u = Mul(x, w) },"
            " else_branch = f () => (float[2] v) { v = Neg(x) }> }"
        ),
        8,
    )
    assert_survives(Graph.from_model(model))


def test_constant_nodes_of_an_ir_3_model_are_valid_initializers() -> None:
    model = listed(
        build("net (float[2,3] x) => (float[3,2] y) { c = Constant<value = int64[2] {3, 2}>()"
              " y = Reshape(x, c) }", opset=8),
        3,
    )  # fmt: skip
    assert_survives(Graph.from_model(model))


@pytest.mark.parametrize(("ir_version", "ops"), [(8, ["Mul", "Reshape"]), (3, ["Reshape"])])
def test_amounts_that_a_caller_may_override_are_not_folded(ir_version: int, ops: list[str]) -> None:
    text = (
        "net (float[2,3] x) => (float[M,N] y) <int64[2] k = {3, 1}, int64[2] one = {1, 2}>"
        "{ s = Mul(k, one) y = Reshape(x, s) }"
    )
    graph = Graph.from_model(listed(build(text, opset=8), ir_version))
    assert [node.op_type for node in graph.nodes] == ops


def test_unchanged_models_compute_the_same() -> None:
    model = listed(build(TWO_CONVS), 8)
    graph = Graph.from_model(model)
    feed = make_feed(graph, np.random.default_rng(0))
    assert_close(run_onnx(assert_survives(graph), feed), run_onnx(graph, feed), 0.0)
