"""What a file says beside what it computes survives; what lies inside of subgraphs stays inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import analyse, build, make_feed, run_onnx, run_twin
from onnx import TensorProto, helper, numpy_helper
from small import TWO_CONVS, assert_refused, chain, invoke

from obc_onnx.graph.model import Graph
from obc_onnx.run.api import compress
from obc_onnx.run.inspection import inspect

if TYPE_CHECKING:
    from pathlib import Path

BODY = (
    "<float[8,6] a, float[6,8] b, float[4,6] d>"
    "{ p = Gemm<transB=1>(x, a) q = Relu(p) r = Gemm<transB=1>(q, b)"
)


def with_constant(**value: object) -> onnx.ModelProto:
    """Add a Constant that is an output and nothing else."""
    model = onnx.ModelProto()
    model.CopyFrom(chain())
    model.graph.node.insert(0, helper.make_node("Constant", [], ["extra"], "tag", **value))
    kind = Graph.from_model(model).initializers.get("extra")
    data_type = (
        TensorProto.STRING if kind is None else int(helper.np_dtype_to_tensor_dtype(kind.dtype))
    )
    shape = [1] if kind is None else kind.shape
    model.graph.output.append(helper.make_tensor_value_info("extra", data_type, shape))
    return model


VALUES = {
    "value": numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "value_float": 2.5,
    "value_floats": [1.0, 2.0],
    "value_int": 3,
    "value_ints": [4, 5],
    "sparse_value": helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([7]), "s"),
        numpy_helper.from_array(np.int64([1]), "i"),
        [3],
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_constant_may_be_an_output(name: str) -> None:
    model = with_constant(**{name: VALUES[name]})
    graph = Graph.from_model(model)
    feed = make_feed(graph, np.random.default_rng(0))
    expected = run_onnx(graph, feed)
    np.testing.assert_array_equal(expected["extra"], graph.initializers["extra"])
    found = run_twin(graph, analyse(graph).shapes, feed)
    np.testing.assert_array_equal(found["extra"], expected["extra"])
    result = compress(model, budget=0.5, criterion="l2")
    np.testing.assert_array_equal(run_onnx(result.graph, feed)["extra"], expected["extra"])


def test_a_constant_of_strings_may_be_an_output_but_not_of_a_twin() -> None:
    result = compress(with_constant(value_strings=[b"cat"]), budget=0.5, criterion="l2")
    assert any("Constant 'tag'" in note for note in result.report.notes)
    feed = make_feed(result.graph, np.random.default_rng(0))
    assert run_onnx(result.graph, feed)["extra"].tolist() == ["cat"]


def test_constants_keep_their_notes() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(chain())
    weight = next(t for t in model.graph.initializer if t.name == "b")
    weight.doc_string = "of the second layer"
    weight.metadata_props.add(key="scope", value="layer2")
    bias = next(t for t in model.graph.initializer if t.name == "b_bias")
    model.graph.initializer.remove(bias)
    node = helper.make_node("Constant", [], ["b_bias"], value=bias, doc_string="its bias")
    node.metadata_props.add(key="scope", value="layer2.bias")
    model.graph.node.insert(0, node)
    written = compress(model, budget=0.5, criterion="l2").model
    found = {t.name: t for t in written.graph.initializer}
    assert found["b"].dims[0] < 20
    assert [found[n].doc_string for n in ("b", "b_bias")] == ["of the second layer", "its bias"]
    props = [{e.key: e.value for e in found[n].metadata_props} for n in ("b", "b_bias")]
    assert props == [{"scope": "layer2"}, {"scope": "layer2.bias"}]
    assert not found["a"].doc_string


def test_what_nothing_uses_stays_and_counts() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(chain())
    idle = numpy_helper.from_array(np.arange(7, dtype=np.float32), "idle")
    model.graph.initializer.append(idle)
    info = model.training_info.add()
    info.update_binding.add(key="b", value="b.new")
    before = Graph.from_model(chain()).params
    result = compress(model, budget=0.5, criterion="l2")
    assert result.report.params.before == before + 7
    assert result.report.params.after == sum(
        np.prod(t.dims, dtype=int) for t in result.model.graph.initializer
    )
    assert idle in result.model.graph.initializer
    assert list(result.model.training_info) == list(model.training_info)
    assert any("training_info" in note for note in result.report.notes)


INSIDE = (
    f"net (float[N,6] x, bool c) => (float[N,4] y) {BODY}"
    "  s = If(c) <then_branch = t () => (float[N,6] e) <float[6,6] w = {"
    + ",".join(["0.5"] * 36)
    + "}> {"
    "  five = Constant<value_float=5.0>() m = MatMul(r, w) e = Mul(m, five) },"
    "  else_branch = f () => (float[N,6] g) { g = MatMul(r, outer) }>"
    "  y = Gemm<transB=1>(s, d) }"
)


def inside() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = build(INSIDE, {"outer": rng.standard_normal((6, 6)).astype(np.float32)})
    branch = next(e.g for n in model.graph.node for e in n.attribute if e.name == "then_branch")
    branch.doc_string = "the first"
    branch.node[1].doc_string = "a product"
    return model


def test_subgraphs_stay_as_they_are_to_the_byte() -> None:
    model = inside()
    written = compress(model, budget=0.8, criterion="l2").model
    branches = [
        [e.g.SerializeToString() for e in node.attribute]
        for graph in (model.graph, written.graph)
        for node in graph.node
        if node.op_type == "If"
    ]
    assert branches[0] == branches[1]
    outer = [t for m in (model, written) for t in m.graph.initializer if t.name == "outer"]
    assert numpy_helper.to_array(outer[0]).tobytes() == numpy_helper.to_array(outer[1]).tobytes()
    feed = make_feed(Graph.from_model(model), np.random.default_rng(1)) | {"c": np.array(False)}
    graph = Graph.from_model(model)
    found = run_twin(graph, analyse(graph).shapes, feed)["y"]
    np.testing.assert_allclose(found, run_onnx(graph, feed)["y"], rtol=1e-4, atol=1e-5)


def test_weights_inside_of_subgraphs_are_named() -> None:
    (note,) = inspect(inside()).notes
    assert note.startswith("If 's' has 72 weights in subgraphs")
    assert note in compress(inside(), budget=0.8, criterion="l2").report.notes


def test_a_model_with_all_weights_in_an_if_says_so(tmp_path: Path) -> None:
    text = (
        "net (float[N,6] x, bool c) => (float[N,6] y)"
        "{ y = If(c) <then_branch = t () => (float[N,6] e) { e = MatMul(x, v) },"
        "  else_branch = f () => (float[N,6] g) { g = MatMul(x, w) }> }"
    )
    arrays = {name: np.eye(6, dtype=np.float32) for name in ("v", "w")}
    onnx.save(build(text, arrays), tmp_path / "model.onnx")
    shown = invoke("inspect", tmp_path / "model.onnx")
    assert "If 'y' has 72 weights" in shown.stdout
    refused = invoke("compress", tmp_path / "model.onnx", "-o", tmp_path / "small.onnx")
    assert_refused(refused, "no MACs to save", "If 'y' (72)")


def test_quantization_annotations_are_kept() -> None:
    model = build(TWO_CONVS)
    model.graph.quantization_annotation.add(tensor_name="p").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="b"
    )
    exported = Graph.from_model(model).to_model()
    assert exported.graph.quantization_annotation == model.graph.quantization_annotation
