"""Models with graphs inside of nodes, against what graphsurgeon imports by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graph_families import subgraphs
from helpers import IR_VERSION, build
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from obc_onnx.graph.importing import imported
from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from collections.abc import Callable

OPSET = 17


def port(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", 4])


def chosen() -> onnx.ModelProto:
    """Make a model whose branches use an input, a value, weights of the graph and their own."""
    held = {"w": np.ones((4, 4)), "inside": np.ones(4), "own": np.ones(4)}
    tensors = {n: numpy_helper.from_array(a.astype(np.float32), n) for n, a in held.items()}
    inner = helper.make_graph(
        [helper.make_node("Add", ["h", "inside"], ["i"])], "inner", [], [port("i")]
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["j"])], "other", [], [port("j")]
    )
    nested = helper.make_node("If", ["c"], ["k"], then_branch=inner, else_branch=other)
    then = helper.make_graph(
        [nested, helper.make_node("Add", ["k", "own"], ["l"])],
        "then", [], [port("l")], [tensors["own"]],
    )  # fmt: skip
    rest = helper.make_graph([helper.make_node("Neg", ["h"], ["m"])], "rest", [], [port("m")])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=rest),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [port("x"), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [port("y")],
        [tensors["w"], tensors["inside"]],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return model


def looped() -> onnx.ModelProto:
    """Make a model with a Loop, whose body has inputs and a scalar attribute beside it."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Gemm", ["v", "w"], ["u"], alpha=0.5),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            port("v"),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), port("u")],
    )
    constants = {"w": np.eye(4, dtype=np.float32), "n": np.array(3), "true": np.array(True)}
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "true", "x"], ["y"], body=body)],
        "net",
        [port("x")],
        [port("y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


@pytest.mark.parametrize("make", [chosen, looped, lambda: subgraphs(36)])
def test_a_model_is_imported_as_graphsurgeon_does(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    before = model.SerializeToString(deterministic=True)
    found, expected = imported(model), gs.import_onnx(model)
    assert model.SerializeToString(deterministic=True) == before
    assert gs.export_onnx(found) == gs.export_onnx(expected)
    for scope, other in zip(
        (found, *found.subgraphs(recursive=True)),
        (expected, *expected.subgraphs(recursive=True)),
        strict=True,
    ):
        assert list(scope.tensors()) == list(other.tensors())


def test_a_weight_that_two_graphs_use_is_one() -> None:
    surgeon = imported(chosen())
    weight = surgeon.tensors()["w"]
    inside = [g.tensors()["w"] for g in surgeon.subgraphs(recursive=True) if "w" in g.tensors()]
    assert inside
    assert all(tensor is weight for tensor in inside)


def test_graphs_inside_are_given_few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    import_graph = OnnxImporter.import_graph

    def count(graph: onnx.GraphProto, tensor_map: Any = None, **options: Any) -> gs.Graph:
        given.append(len(tensor_map or ()))
        return import_graph(graph, tensor_map, **options)

    monkeypatch.setattr(OnnxImporter, "import_graph", staticmethod(count))
    imported(subgraphs(180))
    assert len(given) > 180
    assert max(given) < 20


def test_slots_that_zero_states_leave_at_the_end_are_gone_before_anything_is_compared() -> None:
    """Exporters give an LSTM states of zeros; without them its last slots have nothing."""
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[5,N,6] x) => (float[5,1,N,8] y)
    <float[1,32,6] w, float[1,32,8] r, float[1,64] b, int64[3] sizes = {1, 3, 8}> {
      h = ConstantOfShape (sizes)
      c = ConstantOfShape (sizes)
      y = LSTM <hidden_size = 8> (x, w, r, b, , h, c)
    }
    """
    graph = Graph.from_model(build(text))
    (node,) = (node for node in graph.nodes if node.op_type == "LSTM")
    assert node.inputs == ("x", "w", "r", "b")
    (again,) = (n for n in Graph.from_model(graph.written()).nodes if n.op_type == "LSTM")
    assert again.inputs == node.inputs
