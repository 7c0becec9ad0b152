"""Loading, viewing, editing and saving models."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import OPSET, analyse, assert_close, build, make_feed, run_onnx
from onnx import helper, numpy_helper

import obc_onnx.graph.model as graph_module
from obc_onnx.errors import InvariantError, ModelError
from obc_onnx.files import file_sha256
from obc_onnx.graph.model import Graph
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "net (float[batch,3,8,8] x) => (float[batch,4,8,8] y) <float[5,3,1,1] a, float[4,5,1,1] b>"
    "{ [first] p = Conv(x, a) [second] y = Conv(p, b) }"
)


@pytest.fixture
def model() -> onnx.ModelProto:
    return build(TEXT)


@pytest.fixture
def path(tmp_path: Path, model: onnx.ModelProto) -> Path:
    target = tmp_path / "model.onnx"
    onnx.save(model, target)
    return target


def assert_same_function(left: Graph, right: Graph) -> None:
    feed = make_feed(left, np.random.default_rng(0))
    assert_close(run_onnx(left, feed), run_onnx(right, feed), 0.0)


def test_a_loaded_graph_has_the_hash_of_its_file(path: Path) -> None:
    assert Graph.load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_constant_nodes_become_initializers() -> None:
    graph = Graph.from_model(
        build(
            "net (float[2,3] x) => (float[2,3] y)"
            "{ c = Constant<value = float[3] {1.0, 2.0, 3.0}>() p = Mul(x, c)"
            "  d = Constant<value_float = 0.5>() q = Add(p, d)"
            "  i = Constant<value_ints = [2, 3]>() y = Reshape(q, i) }"
        )
    )
    assert [node.op_type for node in graph.nodes] == ["Mul", "Add", "Reshape"]
    assert graph.initializers["c"].tolist() == [1.0, 2.0, 3.0]
    assert graph.initializers["d"].dtype == np.float32
    assert graph.initializers["i"].tolist() == [2, 3]


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    graph = Graph.from_model(
        build(
            "net (float[2] x) => (float[2] y, float c) { c = Constant<value_float=2.0>() y = Mul(x, c) }"
        )
    )
    feed = {"x": np.array([1.0, -1.0], np.float32)}
    assert float(run_onnx(graph, feed)["c"]) == 2.0


def test_amounts_computed_from_constants_are_folded() -> None:
    graph = Graph.from_model(
        build(
            "net (float[2,3] x) => (float[N,M] y) <int64[2] k = {0, 1}, int64[4] order = {3,2,1,0}>"
            "{ z = Constant<value = int64[2] {0, 0}>() p = Concat<axis=0>(k, z)"
            "  r = Reshape(p, two) t = Transpose<perm=[1,0]>(r) pads = Reshape(t, four)"
            "  y = Pad(x, pads) }",
            {"two": [2, 2], "four": [4]},
        )
    )
    assert [node.op_type for node in graph.nodes] == ["Pad"]
    assert graph.initializers["pads"].tolist() == [0, 0, 1, 0]


def test_floats_are_not_folded() -> None:
    graph = Graph.from_model(
        build("net (float[2] x) => (float[2] y) <float[2] k> { s = Add(k, k) y = Mul(x, s) }")
    )
    assert [node.op_type for node in graph.nodes] == ["Add", "Mul"]


def test_nodes_are_sorted() -> None:
    model = build(TEXT)
    first, second = model.graph.node
    del model.graph.node[:]
    model.graph.node.extend([second, first])
    assert [node.name for node in Graph.from_model(model).nodes] == ["first", "second"]


def test_export_keeps_what_describes_the_model(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"author": "someone", "stride": "32"})
    model.doc_string, model.model_version, model.domain = "about", 7, "org.example"
    model.graph.node[0].doc_string = "the stem"
    model.graph.node[1].metadata_props.add(key="namespace", value="head")
    model.opset_import.add(domain="com.example", version=3)
    model.graph.input[0].doc_string = "an image"
    exported = Graph.from_model(model).to_model()
    assert exported.metadata_props == model.metadata_props
    assert exported.opset_import == model.opset_import
    assert (exported.doc_string, exported.model_version) == ("about", 7)
    assert exported.domain == "org.example"
    assert exported.ir_version == model.ir_version
    assert exported.graph.input == model.graph.input
    assert exported.graph.output == model.graph.output
    assert [node.doc_string for node in exported.graph.node] == ["the stem", ""]
    assert exported.graph.node[1].metadata_props == model.graph.node[1].metadata_props


def test_dynamic_axes_are_seen_by_name(model: onnx.ModelProto) -> None:
    (port,) = Graph.from_model(model).inputs
    assert (port.name, port.dtype, port.shape) == ("x", np.float32, ("batch", 3, 8, 8))
    assert Graph.from_model(model).nodes[0].opset == OPSET


def test_an_initializer_that_is_also_an_input_is_no_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(
        helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [5, 3, 1, 1])
    )
    coupling = analyse(model).coupling
    assert [port.name for port in coupling.graph.inputs] == ["x"]
    pruned = remove_units(coupling, {coupling.groups[0].dim: np.arange(5) < 2})
    declared = pruned.to_model().graph.input[1].type.tensor_type.shape
    assert [size.dim_value for size in declared.dim] == [2, 3, 1, 1]
    onnx.checker.check_model(pruned.to_model(), full_check=True)


def test_the_model_given_is_left_as_it_is(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    Graph.from_model(model).to_model()
    assert model.SerializeToString(deterministic=True) == before


def test_local_functions_are_inlined() -> None:
    model = build(
        f'<ir_version: 8, opset_import: ["" : {OPSET}, "local" : 1]>'
        "net (float[2,3] x) => (float[2,3] y) { y = local.twice(x) }"
        f'<domain: "local", opset_import: ["" : {OPSET}]> twice (a) => (b) {{ b = Add(a, a) }}'
    )
    graph = Graph.from_model(model)
    assert [node.op_type for node in graph.nodes] == ["Add"]
    onnx.checker.check_model(graph.to_model())
    feed = {"x": np.ones((2, 3), np.float32)}
    assert run_onnx(graph, feed)["y"].tolist() == [[2.0] * 3] * 2


def test_subgraphs_list_what_they_capture() -> None:
    graph = Graph.from_model(
        build(
            "net (float[2] x, bool c) => (float[2] y) <float[2] w> { p = Relu(x)"
            " y = If (c) <then_branch = t () => (float[2] u) { u = Mul(p, w) },"
            " else_branch = f () => (float[2] v) { v = Neg(x) }> }"
        )
    )
    assert graph.nodes[1].captures == ("p", "w", "x")


def test_a_round_trip_changes_nothing(path: Path) -> None:
    graph = Graph.load(path)
    graph.save(path)
    again = Graph.load(path)
    assert again.to_model() == graph.to_model()
    assert_same_function(again, graph)
    assert graph.size_bytes() == path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_external_data_is_read(tmp_path: Path, model: onnx.ModelProto) -> None:
    path = tmp_path / "model.onnx"
    plain = Graph.from_model(model)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert_same_function(Graph.load(path), plain)


def test_external_data_is_written_above_the_limit_of_a_message(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = build(TEXT.replace("5,", "500,"))
    graph = Graph.from_model(wide)
    monkeypatch.setattr(graph_module, "MAX_PROTOBUF_BYTES", 1000)
    graph.save(path)
    weights = sum(array.nbytes for array in graph.initializers.values())
    (data,) = set(path.parent.iterdir()) - {path}
    assert data.name == f"model.onnx-{file_sha256(data)[:12]}.data"
    assert data.stat().st_size >= weights
    assert path.stat().st_size < weights
    assert graph.size_bytes() >= weights
    assert_same_function(Graph.load(path), graph)


@pytest.mark.parametrize("fails_in", ["onnx.save", "pathlib.Path.replace"])
def test_a_failure_while_saving_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    graph, before = Graph.load(path), path.read_bytes()

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails_in, fail)
    with pytest.raises(ModelError, match="No space left on device"):
        graph.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_partial_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, before = Graph.load(path), path.read_bytes()

    def fail(model: onnx.ModelProto, target: Path, **options: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", fail)
    with pytest.raises(ModelError, match=r"cannot write .*model\.onnx"):
        graph.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_missing_folder_is_named(tmp_path: Path, model: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match=r"folder .*nowhere' does not exist"):
        Graph.from_model(model).save(tmp_path / "nowhere" / "model.onnx")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx' does not exist"):
        Graph.load(tmp_path / "absent.onnx")


@pytest.mark.parametrize("content", [b"no protobuf at all", b"", b"\xff" * 64])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"odd\.onnx"):
        Graph.load(path)


def test_a_model_that_fails_the_checker_is_refused(tmp_path: Path, model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nobody"
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(ModelError, match=r"broken\.onnx' fails the ONNX checker"):
        Graph.load(tmp_path / "broken.onnx")


def test_missing_external_data_is_refused(tmp_path: Path, model: onnx.ModelProto) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx"):
        Graph.load(path)


def test_a_model_without_nodes_is_refused() -> None:
    with pytest.raises(ModelError, match="holds no nodes"):
        Graph.from_model(onnx.ModelProto())


def test_edits_change_a_copy(model: onnx.ModelProto) -> None:
    graph = Graph.from_model(model)
    changed = graph.edit({"a": np.zeros((5, 3, 1, 1), np.float32)}, {"p": {"strides": [2, 2]}})
    assert graph.initializers["a"].any()
    assert not changed.initializers["a"].any()
    assert graph.nodes[0].integers("strides") is None
    assert changed.nodes[0].integers("strides") == (2, 2)


def test_an_edit_may_rewire_one_of_two_uses() -> None:
    graph = Graph.from_model(
        build(
            "net (float[N,3,8,8] x) => (float[N,3,8,8] y) <float[3,3,1,1] a>"
            "{ p = Conv(x, a) y = Conv(p, a) }"
        )
    )
    changed = graph.edit({"b": graph.initializers["a"] * 2}, None, {("y", 1): "b"})
    assert [node.inputs[1] for node in changed.nodes] == ["a", "b"]
    assert [node.inputs[1] for node in graph.nodes] == ["a", "a"]


def test_shared_weights_stay_shared() -> None:
    coupling = analyse(
        build(
            "net (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[5,3,1,1] a, float[4,5,1,1] b>"
            "{ p = Conv(x, a) q = Relu(x) r = Conv(q, a) s = Add(p, r) y = Conv(s, b) }"
        )
    ).coupling
    pruned = remove_units(coupling, {coupling.groups[0].dim: np.arange(5) % 2 == 0})
    assert set(pruned.initializers) == {"a", "b"}
    assert pruned.initializers["a"].shape[0] == 3
    assert [node.inputs[1] for node in pruned.nodes if node.op_type == "Conv"] == [
        "a",
        "a",
        "b",
    ]


def test_a_number_changes_for_one_of_its_uses_only() -> None:
    coupling = analyse(
        build(
            "net (float[N,3,8,1] x) => (float[N,4,8] y, float[N,5,8] z)"
            "<float[5,3,1,1] a, float[5,3,1,1] b, float[4,5] c, int64[3] to = {-1,5,8}>"
            "{ p = Conv(x, a) q = Reshape(p, to) y = MatMul(c, q) r = Conv(x, b) z = Reshape(r, to) }"
        )
    ).coupling
    (group,) = coupling.groups
    pruned = remove_units(coupling, {group.dim: np.arange(5) < 3})
    assert pruned.initializers["to"].tolist() == [-1, 5, 8]
    targets = {node.key: node.inputs[1] for node in pruned.nodes if node.op_type == "Reshape"}
    assert targets["z"] == "to"
    assert pruned.initializers[targets["q"]].tolist() == [-1, 3, 8]


def test_a_number_that_a_subgraph_captures_keeps_its_value() -> None:
    coupling = analyse(
        build(
            "net (float[N,3,8,1] x, float[N,40] v, bool c) => (float[N,4,8] y, float[N,5,8] z)"
            "<float[5,3,1,1] a, float[4,5] b, int64[3] to = {-1,5,8}>"
            "{ p = Conv(x, a) q = Reshape(p, to) y = MatMul(b, q)"
            "  z = If (c) <then_branch = t () => (float[N,5,8] e) { e = Reshape(v, to) },"
            "  else_branch = f () => (float[N,5,8] g) { h = Neg(v) g = Reshape(h, to) }> }"
        )
    ).coupling
    (group,) = coupling.groups
    pruned = remove_units(coupling, {group.dim: np.arange(5) < 3})
    onnx.checker.check_model(pruned.to_model(), full_check=True)
    feed = make_feed(pruned, np.random.default_rng(0)) | {"c": np.array(True)}
    before, after = run_onnx(coupling.graph, feed), run_onnx(pruned, feed)
    np.testing.assert_array_equal(after["z"], before["z"])


def test_params_count_float_initializers(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3), "integers"))
    model.graph.node.append(helper.make_node("Identity", ["integers"], ["unused"]))
    assert Graph.from_model(model).params == 5 * 3 + 4 * 5


def test_an_edit_never_turns_a_computed_value_into_an_initializer() -> None:
    graph = Graph.from_model(build(TEXT))
    with pytest.raises(InvariantError, match="'p'"):
        graph.edit({"p": np.zeros(3, np.float32)})


@pytest.mark.parametrize(("shape", "batch"), [("8", None), ("8,3", 8), ("N,3", None)])
def test_only_an_input_with_more_than_one_axis_has_a_batch(shape: str, batch: int | None) -> None:
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}"
    assert Graph.from_model(build(text)).batch == batch
