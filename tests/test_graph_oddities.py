"""What real files hold beside plain float tensors: overridable weights, odd types, odd names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import analyse, assert_close, assert_pruned_equals_masked, build, make_feed, run_onnx
from onnx import TensorProto, helper, numpy_helper

from obc_onnx import compress
from obc_onnx.errors import InvariantError, ModelError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import ElementTypes, infer_shapes, input_shapes
from obc_onnx.surgery.mask import mask_reads

TWO_CONVS = (
    "net (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[5,3,1,1] a, float[4,5,1,1] b>"
    "{ p = Conv(x, a) y = Conv(p, b) }"
)
PRODUCT = (
    "net (float[N,3,8,1] x) => (float[N,8,8] y) <float[5,3,1,1] a, float[5,3,1,1] b>"
    "{ p = Conv(x, a) q = Reshape(p, to) t = Transpose<perm=[0,2,1]>(q)"
    "  r = Conv(x, b) s = Reshape(r, to) y = MatMul(t, s) }"
)
KEEP = np.arange(5) < 3


def listed(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """List every initializer as an input too, as IR 3 asks for."""
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return model


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Give a value a name that ONNX text cannot spell."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    return model


def assert_survives(graph: Graph) -> Graph:
    """Export, check and read again."""
    model = graph.to_model()
    onnx.checker.check_model(model, full_check=True)
    again = Graph.from_model(model)
    assert again.to_model() == model
    return again


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


def test_a_missing_feed_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="Required inputs"):
        Session(Graph.from_model(build(TWO_CONVS))).run({})


def test_a_masked_weight_gets_a_name_that_is_not_taken() -> None:
    text = (
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z)"
        "<float[5,3,1,1] a, float[4,5,1,1] b, float[4,5,1,1] c>"
        "{ p = Conv(x, a) y = Conv(p, b) taken = Neg(p) z = Conv(taken, c) }"
    )
    coupling = analyse(renamed(build(text), "taken", "b.masked.y.1")).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)


def test_a_masked_product_makes_names_that_are_not_taken() -> None:
    model = build(PRODUCT, {"to": [-1, 5, 8]})
    for place in ("t.Mul.y.0", "t.Mul.y.0.operand", "s.Mul.y.1", "s.Mul.y.1.operand"):
        model.graph.node.append(helper.make_node("Neg", ["x"], [place]))
        model.graph.output.append(helper.make_tensor_value_info(place, 1, ["N", 3, 8, 1]))
    coupling = analyse(model).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)


def test_a_rewired_number_gets_a_name_that_is_not_taken() -> None:
    text = (
        "net (float[N,3,8,1] x) => (float[N,4,8] y, float[N,5,8] z, float[N,5,8,1] n)"
        "<float[5,3,1,1] a, float[5,3,1,1] b, float[4,5] c, int64[3] to = {-1,5,8}>"
        "{ p = Conv(x, a) q = Reshape(p, to) y = MatMul(c, q)"
        "  r = Conv(x, b) z = Reshape(r, to) taken = Neg(r) n = Relu(taken) }"
    )
    coupling = analyse(renamed(build(text), "taken", "to.q")).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    pruned = assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)
    assert "to.q.1" in pruned.initializers
    assert_survives(pruned)


def test_fresh_names_avoid_every_scope() -> None:
    graph = Graph.from_model(
        build(
            "net (float[2] x, bool c) => (float[2] y) <float[2] w>"
            "{ y = If (c) <then_branch = t () => (float[2] u) { u = Mul(x, w) },"
            " else_branch = f () => (float[2] v) { v = Neg(x) }> }"
        )
    )
    assert graph.fresh_name("new") == "new"
    names = {graph.fresh_name(name) for name in ("x", "y", "w", "u", "v")}
    assert names.isdisjoint({"x", "y", "w", "u", "v"})
    assert graph.fresh_name("new", ["new"]) != "new"


def test_an_edit_never_turns_a_computed_value_into_an_initializer() -> None:
    graph = Graph.from_model(build(TWO_CONVS))
    with pytest.raises(InvariantError, match="'p'"):
        graph.edit({"p": np.zeros(3, np.float32)})


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


def test_a_sequence_output_freezes_what_goes_into_it() -> None:
    text = TWO_CONVS.replace("(float[N,4,8,8] y)", "(float[N,4,8,8] y, seq(float[N,5,8,8]) z)")
    coupling = analyse(build(text.replace("y =", "z = SequenceConstruct(p) y ="))).coupling
    assert [group for group in coupling.groups if group.size == 5] == []


def test_quantization_annotations_are_kept() -> None:
    model = build(TWO_CONVS)
    model.graph.quantization_annotation.add(tensor_name="p").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="b"
    )
    exported = Graph.from_model(model).to_model()
    assert exported.graph.quantization_annotation == model.graph.quantization_annotation


@pytest.mark.parametrize(("shape", "batch"), [("8", None), ("8,3", 8), ("N,3", None)])
def test_only_an_input_with_more_than_one_axis_has_a_batch(shape: str, batch: int | None) -> None:
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}"
    assert Graph.from_model(build(text)).batch == batch


def test_unchanged_models_compute_the_same() -> None:
    model = listed(build(TWO_CONVS), 8)
    graph = Graph.from_model(model)
    feed = make_feed(graph, np.random.default_rng(0))
    assert_close(run_onnx(assert_survives(graph), feed), run_onnx(graph, feed), 0.0)


def test_a_fault_of_shape_inference_does_not_stop_what_onnx_runtime_runs() -> None:
    """onnx takes the numbers of a Cast in the other branch of an If for those of this one."""
    model = build(
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y)"
        "<float[5,3,1,1] a, float[4,5,1,1] b, int64[1] one = {1}>"
        "{ flag = Cast<to=9>(one) p = Conv(x, a) q = Conv(p, b)"
        "  t = If(flag) <then_branch = yes () => (float[1] z) { z = Cast<to=1>(one) },"
        "   else_branch = no () => (float[1] z) { z = Cast<to=1>(one) }> y = Mul(q, t) }"
    )
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    result = compress(model, budget=0.7)
    assert result.graph.params < 35
    faults = [check.detail for check in result.report.verification if check.detail]
    assert len(faults) == 1
    assert faults[0].startswith("fails as it does for the original: ")
