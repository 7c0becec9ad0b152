"""A model without its weights, and ONNX Runtime with weights by reference: nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import OPSET, build, listed, load_tool
from onnx import TensorProto, numpy_helper

from obc_onnx.errors import ModelError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.outline import KEPT_ELEMENTS, serialised
from obc_onnx.graph.session import Session, compute_constants

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WIDE = "net (float[N,40] x) => (float[N,40] y) <float[40,40] w> { p = MatMul(x, w) y = Relu(p) }"
CAPTURED = (
    "net (float[N,40] x, bool c) => (float[N,40] y) <float[40,40] w> { p = MatMul(x, w)"
    " y = If (c) <then_branch = t () => (float[N,40] u) { u = MatMul(p, w) },"
    " else_branch = f () => (float[N,40] v) { v = Neg(p) }> }"
)
INNER = CAPTURED.replace("p = MatMul(x, w)", "p = Relu(x)")
"""Only a subgraph uses the weight."""
GIVEN = (
    "net (float[N,40] x) => (float[N,40] y, float[40,40] w) <float[40,40] w> { y = MatMul(x, w) }"
)
FUNCTION = (
    f'<ir_version: 8, opset_import: ["" : {OPSET}, "local" : 1]>'
    "net (float[N,40] x) => (float[N,40] y) <float[40,40] w> { y = local.twice(x, w) }"
    f'<domain: "local", opset_import: ["" : {OPSET}]> twice (a, b) => (c)'
    "{ w = MatMul(a, b) c = MatMul(w, b) }"
)
"""A value in the function has the name of the weight."""


def narrow(dtype: Any) -> onnx.ModelProto:
    """A product with a weight of another type, which is widened first."""
    text = WIDE.replace("MatMul(x, w)", "MatMul(x, v)").replace("{ p", "{ v = Cast<to=1>(w) p")
    model = build(text, opset=19)
    (tensor,) = model.graph.initializer
    array = np.random.default_rng(0).standard_normal((40, 40)).astype(dtype)
    tensor.CopyFrom(numpy_helper.from_array(array, "w"))
    return model


MODELS = {
    "plain": build(WIDE),
    "captured by a subgraph": build(CAPTURED),
    "used by a subgraph alone": build(INNER),
    "an output": build(GIVEN),
    "in a function": build(FUNCTION),
    "an input too": listed(build(WIDE), 8),
    "of IR 3": listed(build(WIDE), 3),
    "float16": narrow(np.float16),
    "bfloat16": narrow(ml_dtypes.bfloat16),
    "float8": narrow(ml_dtypes.float8_e4m3fn),
}


def feed_of(graph: Graph) -> dict[str, NDArray[Any]]:
    pixels = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    return {"x": pixels, "c": np.array(True)} if len(graph.inputs) > 1 else {"x": pixels}


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_session_by_reference_gives_what_one_of_the_whole_model_gives(
    model: onnx.ModelProto, *, optimize: bool
) -> None:
    graph = Graph.from_model(model)
    alone = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = feed_of(graph)
    names = [port.name for port in graph.outputs]
    expected = dict(zip(names, alone.run(names, feed), strict=True))
    found = Session(graph, optimize=optimize).run(feed)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_an_outline_is_small_and_the_checker_takes_it(model: onnx.ModelProto) -> None:
    graph = Graph.from_model(model)
    outline = graph.outline()
    assert outline.weights.keys() == {n for n, a in graph.initializers.items() if a.size > 1024}
    assert not {t.name for t in outline.model.graph.initializer} & outline.weights.keys()
    if outline.weights:
        assert outline.model.ByteSize() < min(a.nbytes for a in outline.weights.values())
    onnx.checker.check_model(outline.declared(), full_check=True)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_weights_that_are_written_apart_are_read_again(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.from_model(model)
    monkeypatch.setattr("obc_onnx.graph.model.MAX_PROTOBUF_BYTES", 1000)
    graph.save(tmp_path / "model.onnx")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert graph.size_bytes() == size
    again = Graph.load(tmp_path / "model.onnx")
    assert again.file_bytes == size
    assert again.initializers.keys() == graph.initializers.keys()
    for name, array in graph.initializers.items():
        assert again.initializers[name].dtype == array.dtype
        assert again.initializers[name].tobytes() == array.tobytes()
    assert again.inputs == graph.inputs


def test_a_subgraph_keeps_its_weight_where_the_graph_has_another_one_by_now() -> None:
    graph = Graph.from_model(build(CAPTURED))
    changed = graph.edit({"w": graph.initializers["w"] * 2})
    message = changed.to_model().SerializeToString()
    alone = onnxruntime.InferenceSession(message, providers=["CPUExecutionProvider"])
    feed = feed_of(graph)
    expected = alone.run(["y"], feed)[0]
    np.testing.assert_allclose(Session(changed, optimize=False).run(feed)["y"], expected, rtol=1e-5)


def test_a_pruned_weight_that_callers_may_set_is_declared_as_it_is() -> None:
    graph = Graph.from_model(listed(build(WIDE), 8)).edit({"w": np.zeros((40, 30), np.float32)})
    port = graph.outline().model.graph.input[1]
    assert [size.dim_value for size in port.type.tensor_type.shape.dim] == [40, 30]


def test_a_new_weight_of_ir_3_is_an_input_too_as_that_version_asks() -> None:
    graph = Graph.from_model(listed(build(WIDE), 3))
    changed = graph.edit({"v": graph.initializers["w"] * 2}, None, {("p", 1): "v"})
    outline = changed.outline()
    assert [port.name for port in outline.model.graph.input] == ["x", "w", "v"]
    feed = feed_of(graph)
    expected = np.maximum(feed["x"] @ changed.initializers["v"], 0)
    np.testing.assert_allclose(Session(changed).run(feed)["y"], expected, rtol=1e-4, atol=1e-5)


def test_small_constants_stay_since_they_may_describe_shapes() -> None:
    text = WIDE.replace("y = Relu(p)", "y = Reshape(p, to)")
    graph = Graph.from_model(build(text, {"to": [-1, 40]}))
    assert [tensor.name for tensor in graph.outline().model.graph.initializer] == ["to"]
    assert graph.initializers["w"].size > KEPT_ELEMENTS


def test_constants_are_computed_from_weights_by_reference() -> None:
    text = WIDE.replace("MatMul(x, w)", "MatMul(x, t)").replace("{ p", "{ t = Neg(w) p")
    graph = Graph.from_model(build(text))
    (found,) = compute_constants(graph, ["t"]).values()
    np.testing.assert_array_equal(found, -graph.initializers["w"])


def test_a_graph_in_memory_is_told_from_one_with_another_weight() -> None:
    graph = Graph.from_model(build(WIDE))
    assert graph.sha256 == Graph.from_model(build(WIDE)).sha256
    changed = graph.initializers["w"].copy()
    changed[39, 39] += 1
    assert graph.edit({"w": changed}).sha256 != graph.sha256


def test_what_no_message_can_hold_is_refused_in_one_sentence() -> None:
    model = onnx.ModelProto()
    for number in range(2):
        held = model.graph.initializer.add(name=str(number), data_type=TensorProto.UINT8)
        held.raw_data = bytes(2**30)
    with pytest.raises(ModelError, match="2 GiB besides the weights"):
        serialised(model)


def test_the_original_does_not_keep_the_weights_too(tmp_path: Path) -> None:
    """A large model would take its size twice."""
    tool = load_tool("make_decoder")
    tool.write(tmp_path / "d.onnx", tool.Decoder(layers=1, width=64, vocabulary=50), seed=0)
    graph = Graph.load(tmp_path / "d.onnx")
    assert graph._structure.original.ByteSize() < 20_000


def test_an_outline_is_made_once_and_each_caller_may_change_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = Graph.from_model(build(WIDE))
    first = graph.outline()
    monkeypatch.setattr("obc_onnx.graph.model.export", None)
    first.declared()
    second = graph.outline()
    assert second.model != first.model
    assert [port.name for port in second.model.graph.input] == ["x"]
    monkeypatch.undo()
    doubled = graph.edit({"w": 2 * graph.initializers["w"]})
    feed = {"x": np.ones((1, 40), np.float32)}
    (before,), (after,) = (Session(g).run(feed).values() for g in (graph, doubled))
    np.testing.assert_allclose(after, 2 * before)


def test_a_missing_feed_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="Required inputs"):
        Session(Graph.from_model(build(WIDE))).run({})
