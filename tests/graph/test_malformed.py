"""Models that break the standard: one true sentence each, in little memory, and no traceback."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import analyse, build
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from small import CHAIN, archive, assert_refused, chain, invoke, saved

from obc_onnx.errors import ModelError
from obc_onnx.graph.folding import fold
from obc_onnx.graph.malformed import faults_told
from obc_onnx.graph.model import Graph
from obc_onnx.graph.operators import CHOICES
from obc_onnx.graph.session import Session
from obc_onnx.graph.soundness import check_sound
from obc_onnx.run.inspection import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Edit = Callable[[onnx.ModelProto], None]

HUGE = 2**33
ROOM = 2**29
KILO = 1024
PRODUCT = "net (float[N,4] x) => (float[N,4] y) <float[4,4] w> { y = MatMul(x, w) }"
SCALED = "net (float[2,4] x) => (float[2,4] y) {{ {} y = Mul(x, r) }}"
"""A product with a number that comes out of nodes."""


def weight(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def outside(**entries: str) -> Edit:
    """Let the weight lie in a file."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = weight(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return edit


def setting(**fields: object) -> Edit:
    """Set fields of the weight."""

    def edit(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            tensor = weight(model)
            tensor.ClearField(name)
            if isinstance(value, list):
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return edit


def held_in_numbers(model: onnx.ModelProto) -> None:
    setting(float_data=[1.0] * 15)(model)
    weight(model).ClearField("raw_data")


def in_a_constant(model: onnx.ModelProto) -> None:
    outside(location="gone.bin")(model)
    node = helper.make_node("Constant", [], ["w"], value=weight(model))
    del model.graph.initializer[:]
    model.graph.node.insert(0, node)


def typed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def calling(*functions: tuple[str, str, int]) -> Edit:
    """Replace the node by a call of local functions: (name, what it calls, how often)."""

    def edit(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        for name, called, times in functions:
            values = ["a", *(f"v{i}" for i in range(1, times)), "b"]
            calls = [
                helper.make_node(called, [x], [y], domain="" if called == "Relu" else "own")
                for x, y in itertools.pairwise(values)
            ]
            model.functions.append(helper.make_function("own", name, ["a"], ["b"], calls, opsets))
        model.graph.node[0].CopyFrom(helper.make_node("f0", ["x"], ["y"], domain="own"))
        model.opset_import.append(opsets[1])

    return edit


BOMB = [(f"f{i}", f"f{i + 1}", 2) for i in range(40)]
DEEP = [(f"f{i}", f"f{i + 1}", 1) for i in range(1500)]
EDITS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "too few bytes": (setting(raw_data=b"\0" * 60), ("'w'", "64 bytes", "60 bytes")),
    "too many bytes": (setting(raw_data=b"\0" * 68), ("'w'", "64 bytes", "68 bytes")),
    "too few numbers": (held_in_numbers, ("'w'", "16 numbers", "15 numbers")),
    "a size beyond all memory": (setting(dims=[2**40, 4]), ("'w'", "64 bytes")),
    "a size below 0": (setting(dims=[-4, 4]), ("'w'", "(-4, 4)")),
    "a size that no array can have": (
        setting(dims=[2**62, 0], raw_data=b""),
        ("'w'", "no array can have"),
    ),
    "an unknown type": (setting(data_type=77), ("'w'", "77")),
    "no type": (setting(data_type=0), ("'w'", "data type 0")),
    "an input of an unknown type": (typed_input, ("'x'", "99")),
    "a missing file": (outside(location="gone.bin"), ("'w'", "gone.bin", "missing")),
    "a missing file of a constant": (in_a_constant, ("'w'", "gone.bin", "missing")),
    "no file": (outside(), ("'w'", "missing")),
    "a name with NUL": (outside(location="a\0b"), ("'w'", "missing")),
    "a folder": (outside(location="."), ("'w'", "missing")),
    "a short file": (outside(location="short.bin"), ("'w'", "byte 64", "only 4")),
    "a part that is too short": (
        outside(location="short.bin", length="4"),
        ("'w'", "64 bytes", "short.bin"),
    ),
    "an offset in words": (outside(location="short.bin", offset="one"), ("'w'", "one")),
    "a function that calls itself": (calling(("f0", "f0", 1)), ("'f0'", "itself")),
    "functions that call each other": (calling(("f0", "f1", 1), ("f1", "f0", 1)), ("itself",)),
    "functions that are nested too deep": (
        calling(*DEEP, ("f1500", "Relu", 1)),
        ("local functions", "100 deep", "'f0'"),
    ),
    "calls that multiply": (calling(*BOMB, ("f40", "Relu", 1)), ("local functions", "nodes")),
}


@pytest.mark.parametrize(("edit", "parts"), EDITS.values(), ids=EDITS.keys())
def test_a_malformed_message_is_named(edit: Edit, parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"1234")
    model = build(PRODUCT)
    edit(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert_refused(invoke("inspect", path), *parts)
    target = tmp_path / "small.onnx"
    assert_refused(invoke("compress", path, "-o", target), *parts)
    assert not target.exists()


TEXTS = ("node_name", "weight_name", "input_name", "doc_text", "key_text", "MatMul")


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_not_utf_8_is_named(text: str, tmp_path: Path) -> None:
    model = build(
        PRODUCT.replace("x", "input_name")
        .replace("w)", "weight_name)")
        .replace("] w>", "] weight_name>")
    )
    model.graph.node[0].name, model.doc_string = "node_name", "doc_text"
    helper.set_model_props(model, {"key_text": "value"})
    content = model.SerializeToString()
    assert text.encode() in content
    path = tmp_path / "model.onnx"
    path.write_bytes(content.replace(text.encode(), b"\xff" + text[1:].encode()))
    assert_refused(invoke("inspect", path), "not UTF-8")


def test_an_attribute_that_is_not_utf_8_names_its_node(tmp_path: Path) -> None:
    model = chain()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.node[0].attribute.append(helper.make_attribute("auto_pad", b"\xff"))
    path = tmp_path / "model.onnx"
    path.write_bytes(copy.SerializeToString())
    assert_refused(invoke("inspect", path), "Conv 'p'", "not UTF-8")


@pytest.mark.parametrize("content", [b"", b"no model", os.urandom(1000)])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_refused(invoke("inspect", path), path)


@pytest.mark.parametrize("name", ["model.json", "model.onnxtxt", "model.textproto"])
def test_the_name_of_a_file_says_nothing_of_its_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(chain().SerializeToString())
    assert inspect(path).groups == inspect(chain()).groups


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m\udcff.onnx"
    path.write_bytes(chain().SerializeToString())
    assert_refused(invoke("inspect", path), "m\\udcff.onnx", "UTF-8")
    assert_refused(invoke("compress", saved(tmp_path), "-o", path, "--force"), "UTF-8")
    with pytest.raises(ModelError, match="NUL"):
        inspect("a\0b")


def test_an_input_that_is_left_out_and_needed_is_named(tmp_path: Path) -> None:
    model = build('net (float[2,4] x) => (float[2,2] y) { y = Einsum<equation="bi,ci->bc">(x, x) }')
    model.graph.node[0].input[1] = ""
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert_refused(invoke("inspect", path), "Einsum 'y' lacks input 1")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    model = saved(tmp_path)
    for command in (
        ("inspect", tmp_path / "pipe"),
        ("inspect", model, "--scores", tmp_path / "pipe"),
        ("compress", model, "-o", tmp_path / "a.onnx", "--config", tmp_path / "pipe"),
        ("compress", model, "-o", tmp_path / "a.onnx", "--data", tmp_path / "pipe"),
        ("apply", model, "-o", tmp_path / "a.onnx", "--plan", tmp_path / "pipe"),
    ):
        assert_refused(invoke(*command), "pipe")


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "deep.toml"
    config.write_text("a = " + "[" * 5000)
    command = ("compress", saved(tmp_path), "-o", tmp_path / "a.onnx", "--config", config)
    assert_refused(invoke(*command), "deep.toml", "nested")


RANKS = {
    "W of an LSTM": (
        "net (float[3,1,4] x) => (float[3,1,1,4] y) <float[16,4] w, float[1,16,4] r>"
        "{ y = LSTM<hidden_size=4>(x, w, r) }"
    ),
    "B of an LSTM": (
        "net (float[3,1,4] x) => (float[3,1,1,4] y)"
        "<float[1,16,4] w, float[1,16,4] r, float[32] b>"
        "{ y = LSTM<hidden_size=4>(x, w, r, b) }"
    ),
    "a scale": (
        "net (float[2,4] x) => (float[2,4] y) <float[1,4] s>"
        "{ y = BatchNormalization(x, s, s, s, s) }"
    ),
}


@pytest.mark.parametrize("text", RANKS.values(), ids=RANKS.keys())
def test_weights_of_another_rank_are_refused(text: str, tmp_path: Path) -> None:
    result = invoke("inspect", saved(tmp_path, text))
    assert_refused(result)


IMAGE = "net (float[2,4,3,3] x) => (float[2,4,a,b] y)"
ROWS = "net (float[2,4] x) => (float[2,4] y)"
TOKENS = "net (float[2,3,4] x) => (float[2,3,4] y)"
BIASES = {
    "Conv": f"{IMAGE} <float[4,4,1,1] w, float[1,4] b> {{ y = Conv(x, w, b) }}",
    "ConvTranspose": f"{IMAGE} <float[4,4,1,1] w, float[4,1] b> {{ y = ConvTranspose(x, w, b) }}",
    "InstanceNormalization": (
        f"{IMAGE} <float[4] s, float[1,4] b> {{ y = InstanceNormalization(x, s, b) }}"
    ),
    "Gemm": f"{ROWS} <float[1,4,4] b> {{ y = Gemm(x, b) }}",
    "LSTM": (
        "net (float[3,1,4] x) => (float[3,1,1,4] y)"
        "<float[1,16,4] w, float[1,16,4] r, float[32] b>"
        "{ y = LSTM<hidden_size=4>(x, w, r, b) }"
    ),
}


@pytest.mark.parametrize("op_type", BIASES)
def test_a_bias_of_another_rank_is_named(op_type: str, tmp_path: Path) -> None:
    result = invoke("inspect", saved(tmp_path, BIASES[op_type]))
    assert_refused(result, op_type, "'b'" if op_type != "Gemm" else "")


def test_an_empty_permutation_is_refused(tmp_path: Path) -> None:
    for source in ("w", "x"):
        model = build(
            "net (float[4,4] x) => (float[4,4] y) <float[4,4] w>"
            f"{{ t = Transpose<perm=[1,0]>({source}) y = MatMul(x, t) }}"
        )
        del model.graph.node[0].attribute[0].ints[:]
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        assert_refused(invoke("inspect", path))


def test_an_empty_list_of_an_attribute_stays_in_what_is_written() -> None:
    model = build("net (float[2,4] x) => (float[2,4] y) <float[4,4] w> { y = MatMul(x, w) }")
    empty = AttributeProto(name="own", type=AttributeProto.FLOATS)
    model.graph.node[0].attribute.append(empty)
    (node,) = Graph.from_model(model).to_model().graph.node
    assert [entry.name for entry in node.attribute] == ["own"]


def test_a_head_count_of_zero_is_refused_before_it_is_divided_by() -> None:
    model = build(
        "net (float[2,4,3,3] x) => (float[2,4,3,3] y) <float[4,4,1,1] w> { y = Conv(x, w) }"
    )
    model.graph.node[0].attribute.append(helper.make_attribute("group", 0))
    with pytest.raises(ModelError, match="Conv 'y' has group 0"):
        check_sound(model)


def test_a_choice_by_number_that_an_operator_does_not_know_is_refused() -> None:
    model = build(
        "net (float[1,4,8] q) => (float[1,4,8] y, float[1,2,4,4] s)"
        "{ y, k, v, s = Attention<q_num_heads=2, kv_num_heads=2>(q, q, q) }",
        opset=23,
    )
    mode = helper.make_attribute("qk_matmul_output_mode", 3)
    model.graph.node[0].attribute.append(mode)
    check_sound(model)
    for wrong in (4, 2**33, -1):
        mode = helper.make_attribute("qk_matmul_output_mode", wrong)
        del model.graph.node[0].attribute[-1]
        model.graph.node[0].attribute.append(mode)
        with pytest.raises(ModelError, match=f"qk_matmul_output_mode {wrong}: it goes from 0 to 3"):
            check_sound(model)


def test_a_split_into_another_number_of_outputs_is_refused() -> None:
    model = build(
        "net (float[2,4] x) => (float[2,4] y)"
        "{ a, b = Split<axis=1, num_outputs=2>(x) y = Concat<axis=1>(a, b) }",
        opset=18,
    )
    check_sound(model)
    model.graph.node[0].attribute[1].i = 1
    with pytest.raises(ModelError, match="Split 'a' has num_outputs 1 and 2 outputs"):
        check_sound(model)


def test_a_call_with_more_inputs_than_its_function_is_refused(tmp_path: Path) -> None:
    model = build("net (float[2,4] x) => (float[2,4] y) { y = Relu(x) }")
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = list(model.opset_import)
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(helper.make_node("f", ["x", "x"], ["y"], domain="own"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert_refused(invoke("inspect", path), "local functions cannot be inlined: Number of actual")


def test_an_input_that_a_call_leaves_out_is_missed_in_the_function(tmp_path: Path) -> None:
    model = build("net (float[2,4] x) => (float[2,4] y) <float[4,4] w> { y = MatMul(x, w) }")
    body = [helper.make_node("Einsum", ["a", "b"], ["c"], equation="ij,jk->ik")]
    opsets = list(model.opset_import)
    model.functions.append(helper.make_function("own", "f", ["a", "b"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(helper.make_node("f", ["x"], ["y"], domain="own"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert_refused(invoke("inspect", path), "Einsum 'y' lacks input 1, 'Inputs', which it needs")


def test_a_slot_at_the_end_that_nothing_is_given_to_is_dropped() -> None:
    model = build(
        "net (float[2,4] x) => (float[2,4] y) <float[4] s> { y = LayerNormalization(x, s) }"
    )
    model.graph.node[0].input.append("")
    (node,) = Graph.from_model(model).to_model().graph.node
    assert list(node.input) == ["x", "s"]
    assert list(model.graph.node[0].input) == ["x", "s", ""]


def test_a_text_that_an_operator_does_not_know_is_refused(tmp_path: Path) -> None:
    text = (
        "net (float[4,4] x) => (float[4,4] y) <float[1,4] w>"
        '{ y = ScatterND<reduction="">(x, i, w) }'
    )
    path = tmp_path / "model.onnx"
    onnx.save(build(text, {"i": [[0]]}), path)
    assert_refused(invoke("inspect", path), "ScatterND 'y' has reduction ''", "one of none, add")


def test_the_choices_that_are_known_are_of_the_standard() -> None:
    for operator, choices in CHOICES.items():
        schema = onnx.defs.get_schema(operator)
        for name, known in choices.items():
            default = schema.attributes[name].default_value.s.decode()
            assert not default or default in known, (operator, name)


def test_a_window_that_is_larger_than_its_input_is_named(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        "net (float[N,3,8,1] x) => (float[N,4,A,B] y) <float[4,3,3,3] w> { y = Conv(x, w) }",
    )
    for command in (("inspect", path), ("compress", path, "-o", tmp_path / "a.onnx")):
        assert_refused(invoke(*command), "value 'y' would have shape (2, 4, 6, -1)")


def test_an_output_that_is_declared_as_another_type_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, PRODUCT.replace("float[N,4] y", "float16[N,4] y"))
    assert_refused(invoke("inspect", path), "type")


def test_a_bias_of_another_rank_is_told_by_every_command(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        "net (float[N,4,3,3] x) => (float[N,4,A,B] y)"
        " <float[4,4,1,1] w, float[4,4,1,1] v> { a = Conv(x, w) y = Conv(a, v, v) }",
    )
    data = archive(tmp_path, x=np.ones((20, 4, 3, 3), np.float32))
    for command in (
        ("compress", path, "-o", tmp_path / "a.onnx"),
        ("plan", path, "-o", tmp_path / "a.json"),
        ("score", path, "-o", tmp_path / "a.npz"),
        ("sensitivity", path),
    ):
        assert_refused(invoke(*command, "--data", data), "Conv")
    assert_refused(invoke("twin", path, "-o", tmp_path / "a.pt2"), "Conv")
    assert_refused(invoke("strip", path, "-o", tmp_path / "a.onnx"), "Conv")


@pytest.mark.parametrize("times", [1000, 10_000])
def test_sizes_that_are_added_to_thousands_of_times_are_followed(times: int) -> None:
    steps = " ".join(f"n{i + 1} = Add(n{i}, one)" for i in range(times))
    text = (
        "net (float[N,4] x) => (float[a,b] y) <float[1,4] w>"
        f"{{ s = Shape(x) n0 = Gather(s, first) {steps} t = Concat<axis=0>(n{times}, four)"
        " y = Expand(w, t) }"
    )
    model = build(text, {"first": [0], "one": [1], "four": [4]})
    assert inspect(model).params == 4


def test_a_size_that_is_doubled_and_squared_again_and_again_is_followed() -> None:
    for operator in ("Add", "Mul"):
        steps = " ".join(f"n{i + 1} = {operator}(n{i}, n{i})" for i in range(60))
        text = (
            "net (float[N,4] x) => (float[a,b] y) <float[1,4] w>"
            f"{{ s = Shape(x) n0 = Gather(s, first) {steps} z = Mul(n60, zero)"
            " o = Add(z, one) t = Concat<axis=0>(o, four) y = Expand(w, t) }"
        )
        constants = {"first": [0], "one": [1], "four": [4], "zero": [0]}
        assert inspect(build(text, constants)).params == 4


def test_a_long_chain_of_constants_is_folded() -> None:
    steps = " ".join(f"w{i + 1} = Add(w{i}, w0)" for i in range(1500))
    text = (
        "net (float[N,4] x) => (float[N,4] y) <float[4,4] w0>"
        f"{{ {steps} v = Softmax(w1500) y = MatMul(x, v) }}"
    )
    assert [node.op_type for node in Graph.from_model(build(text)).nodes] == ["MatMul"]


FOLDED = {
    "GroupNormalization 21": (
        "v = GroupNormalization<num_groups=2>(w, s, s) f = Flatten(v)",
        "float[4,4,1] w, float[4] s",
        21,
    ),
    "Gelu 20": ("v = MatMul(w, w) f = Gelu(v)", "float[4,4] w", 20),
    "Clip 6": ("v = MatMul(w, w) f = Clip<min=0.0, max=1.0>(v)", "float[4,4] w", 6),
}


@pytest.mark.parametrize(("nodes", "weights", "opset"), FOLDED.values(), ids=FOLDED.keys())
def test_what_the_reference_evaluator_lacks_is_left_to_onnx_runtime(
    nodes: str, weights: str, opset: int
) -> None:
    text = f"net (float[2,4] x) => (float[2,4] y) <{weights}> {{ {nodes} y = MatMul(x, f) }}"
    model = build(text, opset=opset)
    graph = Graph.from_model(model)
    assert (len(graph.nodes) == 1) == (opset < 21)  # inference knows no size of the other
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    from onnxruntime import InferenceSession

    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(["y"], feed)[0]
    np.testing.assert_allclose(Session(graph).run(feed)["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_flag_is_what_onnx_runtime_takes_it_for() -> None:
    for text in (
        "net (float[N,4,3] x) => (float[a,b] y) { y = ReduceMax<axes=[2], keepdims=3>(x) }",
        "net (float[N,4] x) => (int64[a] y) { y = ArgMax<axis=1, keepdims=2>(x) }",
    ):
        (output,) = inspect_shapes(build(text, opset=13))
        assert len(output) == text.count(",", text.index("=>"), text.index(" y)")) + 1


def inspect_shapes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Return the axes that coupling finds of each output, by their sizes."""
    _, _, coupling = analyse(model)
    return [
        tuple(axis.size for axis in coupling.axes[port.name]) for port in coupling.graph.outputs
    ]


def test_what_nobody_computes_or_knows_the_size_of_is_not_folded() -> None:
    array = np.ones((4, 4), np.float32)
    for node in (
        helper.make_node("NonZero", ["w"], ["y"]),
        helper.make_node("Softmax", ["w"], ["y"], axis=9),
        helper.make_node("NoSuchOperator", ["w"], ["y"]),
    ):
        assert fold(node, {"w": array}, 17, 2**20) is None


LARGE: dict[str, tuple[str, dict[str, NDArray | list[int]]]] = {
    "ConstantOfShape": ("z = ConstantOfShape(n)", {"n": [HUGE]}),
    "Expand": ("z = Expand(one, n)", {"n": [HUGE]}),
    "Tile": ("z = Tile(one, n)", {"n": [HUGE]}),
    "Pad": ("z = Pad(one, n)", {"n": [0, HUGE]}),
    "OneHot": (
        "z = OneHot(i, d, v)",
        {"i": [0], "d": np.array(HUGE), "v": np.float32([0, 1])},
    ),
    "Resize": (
        'z = Resize<mode="nearest">(four, , , n)',
        {"n": [1, 1, 2**17, 2**17], "four": np.ones((1, 1, 1, 1), np.float32)},
    ),
}


LARGE |= {
    "Range, and a Cast of it": (
        "q = Range(none, much, one) i = Cast<to=7>(q) z = Cast<to=1>(i)",
        {"none": np.array(0), "much": np.array(2**28), "one": np.array(1)},
    ),
    "a Range up to a sum, and a Concat of it": (
        "m = Add(much, much) q = Range(none, m, one) i = Concat<axis=0>(q, q) z = Cast<to=1>(i)",
        {"none": np.array(0), "much": np.array(2**27), "one": np.array(1)},
    ),
    "Concat of itself": (
        " ".join(f"v{i + 1} = Concat<axis=0>(v{i}, v{i})" for i in range(18))
        + "z = Cast<to=1>(v18)",
        {"v0": [1] * 2},
    ),
}


@pytest.mark.parametrize(("nodes", "constants"), LARGE.values(), ids=LARGE.keys())
def test_a_constant_that_would_fill_the_memory_is_not_computed(
    nodes: str, constants: dict[str, NDArray | list[int]]
) -> None:
    text = SCALED.format(f"{nodes} r = ReduceMax<keepdims=0>(z)")
    model = build(text, {"one": np.ones(1, np.float32), **constants})
    assert len(model.SerializeToString()) < KILO
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert inspect(model).groups == []
    grown = KILO * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < ROOM


LONG = {
    "a vector that is cast": f"net (float[{2**28}] x) => (float16[a] y) {{ y = Cast<to=10>(x) }}",
    "an axis backwards": (
        f"net (float[N,{2**28}] x) => (float[N,a] y) <int64[1] s = {{-1}}, int64[1] e = {{-{2**62}}}>"
        "{ y = Slice(x, s, e, s, s) }"
    ),
    "a row of a matrix that is laid out flat": (
        f"net (float[N,{2**14},{2**14}] x) => (float[N,a] y)"
        f"<int64[1] s = {{3}}, int64[1] e = {{{2**62}}}, int64[1] i = {{1}}>"
        "{ f = Flatten(x) y = Slice(f, s, e, i) }"
    ),
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_a_long_axis_is_not_looked_at_position_by_position(text: str) -> None:
    model = build(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert inspect(model).groups == []
    assert KILO * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < ROOM


def test_a_value_that_is_too_large_to_run_is_named() -> None:
    model = build(
        f"net (float[1,{HUGE}] x) => (float[a,b] y) {{ z = NonZero(x) y = Cast<to=1>(z) }}"
    )
    with pytest.raises(ModelError, match=rf"'x' of shape \(1, {HUGE}\)"):
        inspect(model)


def test_a_sparse_constant_that_is_huge_when_dense_is_named(tmp_path: Path) -> None:
    model = build(PRODUCT)
    del model.graph.initializer[:]
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    places = numpy_helper.from_array(np.array([3]), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 2**34]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert_refused(invoke("inspect", path), "'w'", "(4, 17179869184)")


def test_eye_like_behind_an_operator_of_another_domain_is_followed(tmp_path: Path) -> None:
    model = build(
        "net (float[2,4] x) => (float[a,b] y) <float[4,6] w>"
        "{ r = com.microsoft.Gelu(x) q = EyeLike<dtype=1>(r) z = Add(q, x) y = MatMul(z, w) }"
    )
    path, target = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(model, path)
    for command in (("inspect", path), ("compress", path, "-o", target)):
        line = [sys.executable, "-m", "obc_onnx", *command]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) in {(0, ""), (1, done.stderr)}, done
        assert "ended the process" not in done.stderr


def test_a_model_of_no_samples_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, PRODUCT.replace("N,4] x", "0,4] x"))
    assert_refused(invoke("inspect", path), "'x' is declared as 0x4, which holds no sample")


def test_a_node_that_gives_nothing_is_named(tmp_path: Path) -> None:
    model = build(PRODUCT)
    model.graph.node.append(helper.make_node("FusedMatMul", ["x", "w"], [""], "n", None, "own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert_refused(invoke("inspect", path), "FusedMatMul 'n'", "reads 'x', 'w', gives no output")


def test_eye_like_behind_an_unknown_rank_does_not_end_the_process(tmp_path: Path) -> None:
    model = build(
        "net (float[2,4] x, int64[k] s) => (float[a,b] y)"
        "{ r = Reshape(x, s) q = EyeLike<dtype=1>(r) y = Mul(q, x) }"
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    command = [sys.executable, "-m", "obc_onnx", "inspect", path, "--input-shape", "s:2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done
    assert "Traceback" not in done.stderr


def test_a_fault_on_a_model_that_runs_is_a_bug_and_gives_its_traceback() -> None:
    with pytest.raises(IndexError), faults_told(lambda: None):
        raise IndexError
    with (
        pytest.raises(ModelError, match="malformed: no such rank"),
        faults_told(lambda: "no such rank"),
    ):
        raise IndexError


def test_a_long_message_is_cut_in_its_middle(tmp_path: Path) -> None:
    shape = ",".join("1" for _ in range(400))
    path = saved(tmp_path, CHAIN)
    result = invoke("inspect", path, "--input-shape", f"x:{'x'.join(['1'] * 400)}")
    assert_refused(result, "[...]", "-v")
    assert len(result.stderr) < 400 < len(shape)
    whole = invoke("inspect", path, "--input-shape", f"x:{'x'.join(['1'] * 400)}", "-v")
    assert_refused(whole, "x".join(["1"] * 400))
    assert "[...]" not in whole.stderr


def test_a_size_of_minus_one_is_open(tmp_path: Path) -> None:
    model = build(PRODUCT)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert invoke("inspect", path).exit_code == 0
    assert invoke("compress", path, "-o", tmp_path / "small.onnx").exit_code in {0, 1}
