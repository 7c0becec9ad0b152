"""The analysis takes milliseconds, and grows with the number of nodes and no faster."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from helpers import IR_VERSION, OPSET, build
from onnx import TensorProto, helper, numpy_helper

from obc_onnx.coupling.inference import find_coupling
from obc_onnx.graph.model import Graph
from obc_onnx.graph.shapes import infer_shapes, input_shapes
from obc_onnx.ops.catalogue import DEFAULT_RULES

WIDTH = 4


def chain(n_nodes: int, *, residual: bool) -> Graph:
    """Convolutions and activations one after the other, or in residual blocks of one stream."""
    nodes, arrays, last = [], [], "x"
    for i in range(n_nodes // (3 if residual else 2)):
        weight = np.ones((WIDTH, WIDTH if i else 3, 1, 1), np.float32)
        arrays.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        if residual and i:
            nodes.append(helper.make_node("Add", [f"r{i}", last], [f"a{i}"]))
        last = nodes[-1].output[0]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width, 4, 4])
        for name, width in (("x", 3), (last, WIDTH))
    ]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], arrays)
    opsets = [helper.make_opsetid("", OPSET)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return Graph.from_model(model)


def seconds(graph: Graph, repeats: int = 5) -> float:
    """Return the least time that the coupling takes, without that of other processes."""
    shapes = infer_shapes(graph, input_shapes(graph))
    times = []
    for _ in range(repeats):
        start = time.process_time()
        coupling = find_coupling(graph, shapes, DEFAULT_RULES)
        times.append(time.process_time() - start)
    assert len(coupling.axes) >= len(graph.nodes)
    return min(times)


@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
def test_six_thousand_nodes_take_less_than_half_a_second(*, residual: bool) -> None:
    assert seconds(chain(6000, residual=residual)) < 0.5


def test_no_node_is_looked_for_among_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """graphsurgeon compares nodes piece by piece, so that the last one of a list takes long."""

    def refuse(*_nodes: object) -> bool:
        raise AssertionError("two nodes were compared")

    monkeypatch.setattr(gs.Node, "__eq__", refuse)
    graph = Graph.from_model(
        build(
            "net (float[N,6] x) => (float[N,4] y) {"
            " a = Relu(x) one = Constant<value_ints=[1]>() two = Neg(one) three = Abs(two)"
            " b = ReduceSum(a, three) c = Constant<value_floats=[0.0, 1, 2, 3, 4, 5]>()"
            " d = Identity(c) e = Sub(b, d) y = Gemm<transB=1>(e, w) }",
            {"w": np.ones((4, 6), np.float32)},
        )
    )
    assert [node.op_type for node in graph.nodes] == ["Relu", "ReduceSum", "Sub", "Gemm"]
    masked = graph.insert_before("Mul", {("y", 0): np.ones(6, np.float32)})
    assert [node.op_type for node in masked.nodes] == ["Relu", "ReduceSum", "Sub", "Mul", "Gemm"]
    copied = graph.edit(copied={"f": ("b", {}), "g": ("b", {})}, rewired={("e", 0): "f"})
    assert [node.key for node in copied.nodes] == ["a", "b", "g", "f", "e", "y"]
    short = graph.edit(rewired={("y", 0): "a"}, dispensable="be")
    assert [node.key for node in short.nodes] == ["a", "y"]


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
def test_the_cost_of_a_node_does_not_grow_with_the_graph(*, residual: bool) -> None:
    """Twice is allowed for the memory that a large graph takes: caches and garbage collection."""
    costs = [seconds(chain(n, residual=residual)) / n for n in (1000, 10_000, 50_000)]
    assert max(costs) < 2 * costs[0], [f"{1e6 * cost:.0f} us a node" for cost in costs]
