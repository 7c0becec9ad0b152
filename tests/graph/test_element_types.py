"""Element types beside float: half, types that numpy lacks, strings, sequences, optionals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import (
    analyse,
    assert_pruned_equals_masked,
    assert_survives,
    build,
    make_feed,
    run_onnx,
)
from onnx import TensorProto, helper, numpy_helper

from obc_onnx.errors import ModelError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session, run_file
from obc_onnx.graph.shapes import ElementTypes, infer_shapes, input_shapes

if TYPE_CHECKING:
    from pathlib import Path

KEEP = np.arange(5) < 3


def test_masks_have_the_type_of_the_value_they_multiply() -> None:
    text = (
        "net (float[N,3,8,1] x) => (float16[N,8,8] y) <float[5,3,1,1] a, float[5,3,1,1] b>"
        "{ p = Conv(x, a) q = Reshape(p, to) q16 = Cast<to=10>(q)"
        "  t = Transpose<perm=[0,2,1]>(q16)"
        "  r = Conv(x, b) s = Reshape(r, to) s16 = Cast<to=10>(s) y = MatMul(t, s16) }"
    )
    coupling = analyse(build(text, {"to": [-1, 5, 8]})).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed, 1e-2)


def test_types_that_inference_does_not_know_come_from_onnx_runtime() -> None:
    model = build(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
        "net (float[2,4] x, float16[2] h) => (float[2,4] y, float16[2] g)"
        "{ p = com.microsoft.QuickGelu(x) y = Relu(p) g = Neg(h) }"
    )
    found = ElementTypes(Graph.from_model(model))
    types = {name: found[name] for name in ("p", "g", "h")}
    assert types == {"p": np.float32, "g": np.float16, "h": np.float16}


@pytest.mark.parametrize(
    "name",
    ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT4"],
)
def test_initializers_of_types_that_numpy_lacks_survive(name: str) -> None:
    kind = getattr(TensorProto, name)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> net (float[3] x) => (float[3] y)'
        "<int64[1] to = {3}> { k = Reshape(w, to) z = Cast<to=1>(k) y = Add(x, z) }"
    )
    tensor = helper.make_tensor("w", kind, [1, 3], [1.0, 2.0, -3.0])
    model.graph.initializer.append(tensor)
    again = assert_survives(Graph.from_model(model))
    (kept,) = (t for t in again.to_model().graph.initializer if t.name == "w")
    assert kept.data_type == kind
    expected = numpy_helper.to_array(tensor).astype(np.float32)
    np.testing.assert_array_equal(numpy_helper.to_array(kept).astype(np.float32), expected)


@pytest.mark.parametrize("cast", [False, True])
def test_bfloat16_is_run_in_float32_where_the_runtime_has_no_code(
    cast: bool, tmp_path: Path
) -> None:
    text = "net (bfloat16[N,4] x) => (bfloat16[N,3] y) { y = MatMul(x, w) }"
    if cast:
        text = (
            "net (float[N,4] x) => (float[N,3] y)"
            " { a = Cast<to=16>(x) b = MatMul(a, w) y = Cast<to=1>(b) }"
        )
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    graph = Graph.from_model(build(text, {"w": weight}))
    x = np.eye(4, dtype=np.float32 if cast else ml_dtypes.bfloat16)
    graph.save(tmp_path / "brain.onnx")
    for found in (
        Session(graph).run({"x": x})["y"],
        run_file(tmp_path / "brain.onnx", {"x": x})["y"],
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, weight.astype(np.float32))


def test_a_bfloat16_input_is_a_port() -> None:
    graph = Graph.from_model(
        build(
            '<ir_version: 10, opset_import: ["": 19]>'
            "net (bfloat16[2] x) => (bfloat16[2] y) { y = Neg(x) }"
        )
    )
    assert graph.inputs[0].dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("kind", "constant"),
    [
        ("string[2]", 'value = string[2] {"a", "b"}'),
        ("string[2]", 'value_strings = ["a", "b"]'),
        ("string", 'value_string = "a"'),
    ],
)
def test_string_constants_stay_nodes(kind: str, constant: str) -> None:
    graph = Graph.from_model(
        build(
            f"net (float[2] x) => ({kind} s, float[2] y)"
            f"{{ c = Constant<{constant}>() s = Identity(c) y = Relu(x) }}"
        )
    )
    assert sorted(node.op_type for node in graph.nodes) == ["Constant", "Identity", "Relu"]
    assert_survives(graph)
    assert np.ravel(run_onnx(graph, {"x": np.zeros(2, np.float32)})["s"])[0] == "a"
    analyse(graph)


def test_string_initializers_survive() -> None:
    text = "net (float[2] x) => (string[2] s, float[2] y) { s = Identity(c) y = Relu(x) }"
    model = build(text, {"c": np.array(["a", "b"], object)})
    graph = assert_survives(Graph.from_model(model))
    assert list(run_onnx(graph, {"x": np.zeros(2, np.float32)})["s"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "nodes"),
    [
        ("string[2] s, float[2] x", "float[2] y, string[2] z", "y = Relu(x) z = Identity(s)"),
        ("float[2] x", "float[2] y, seq(float[2]) z", "y = Relu(x) z = SequenceConstruct(x, y)"),
        ("float[2] x", "float[2] y, optional(float[2]) z", "y = Relu(x) z = Optional(x)"),
    ],
)
def test_values_that_are_no_numbers_are_inspectable(inputs: str, outputs: str, nodes: str) -> None:
    graph = Graph.from_model(build(f"net ({inputs}) => ({outputs}) {{ {nodes} }}"))
    assert_survives(graph)
    assert graph.outputs[1].dtype == np.dtype(object)
    assert analyse(graph).shapes["y"] == (2,)


@pytest.mark.parametrize("kind", ["seq", "optional"])
def test_an_input_that_is_no_tensor_is_named(kind: str) -> None:
    op = {"seq": "SequenceAt(s, i)", "optional": "OptionalGetElement(s)"}[kind]
    graph = Graph.from_model(
        build(f"net ({kind}(float[2]) s) => (float[2] y) <int64 i = {{0}}> {{ y = {op} }}")
    )
    assert graph.inputs[0].dtype == np.dtype(object)
    with pytest.raises(ModelError, match="input 's' is no tensor of numbers"):
        infer_shapes(graph, input_shapes(graph))
