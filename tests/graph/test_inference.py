"""Sizes of values, against onnx's own inference with all of its data propagation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from conftest import ROOT
from graph_families import subgraphs
from helpers import build

from obc_onnx.graph import computed_sizes
from obc_onnx.graph.inference import infer_sizes
from obc_onnx.graph.model import Graph
from obc_onnx.graph.operators import OF_NUMBERS
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from pathlib import Path

SHAPED = (
    "net (float[2,12] x) => (float[a,b,c] y)"
    "{ s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, three, four) r = Reshape(x, t)"
    "  u = Shape(r) m = Gather(u, one) v = Add(m, m) w = ConstantOfShape(v) k = Shape(w)"
    "  q = Expand(r, big) y = Neg(q) }"
)
CONSTANTS = {"zero": [0], "one": [1], "three": [3], "four": [4], "big": [2, 3, 4]}


def all_of_onnx(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Infer with data propagation, as onnx has it."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {port.name: port.type.tensor_type for port in (*graph.value_info, *graph.output)}
    return {
        name: tuple(dim.dim_value for dim in kind.shape.dim)
        for name, kind in kinds.items()
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    }


def assert_infers_as_onnx(model: onnx.ModelProto) -> None:
    """Check that no size is lost, and none is another one."""
    found, expected = infer_sizes(model), all_of_onnx(model)
    assert expected
    assert {name: found.get(name) for name in expected} == expected


def test_sizes_that_are_computed_are_found() -> None:
    model = build(SHAPED, CONSTANTS)
    assert infer_sizes(model)["w"] == (6,)
    assert_infers_as_onnx(model)


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/*.onnx")), ids=lambda path: path.stem)
def test_sizes_of_shipped_models_are_those_of_onnx(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert_infers_as_onnx(model)


def test_numbers_behind_a_short_vector_are_followed_again() -> None:
    """What may be long is left out at first; once its length is known, it is taken in."""
    model = build(
        "net (float[2,12] x) => (float[a,b] y)"
        "{ s = Shape(x) n = Gather(s, one) t = Concat<axis=0>(two, n) f = ConstantOfShape(one)"
        "  e = Expand(f, n) i = Cast<to=7>(e) p = Shape(i) q = Concat<axis=0>(two, p)"
        "  y = Reshape(x, q) }",
        {"one": [1], "two": [2]},
    )
    assert infer_sizes(model)["y"] == (2, 12)


def test_a_long_vector_leaves_other_sizes_as_they_are() -> None:
    model = build(
        "net (float[2,12] x, float[4096] v) => (float[a,b,c] y, float[d] z)"
        "{ s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, three, four) y = Reshape(x, t)"
        "  z = Mul(v, v) }",
        {name: np.array(value) for name, value in CONSTANTS.items()},
    )
    found = infer_sizes(model)
    assert (found["y"], found["z"]) == ((2, 3, 4), (4096,))


ARITHMETIC = {
    "Abs": "a = Neg(s) t = Abs(a)",
    "Add": "t = Add(s, three)",
    "And": "e = Equal(s, two) f = And(e, e) t = Cast<to=7>(f)",
    "Cast": "a = Cast<to=6>(s) t = Cast<to=7>(a)",
    "Concat": "t = Concat<axis=0>(s, three)",
    "ConstantOfShape": "a = ConstantOfShape<value = int64[1] {3}>(two) t = Mul(a, two)",
    "CumSum": "t = CumSum(s, first)",
    "Div": "t = Div(s, two)",
    "Equal": "e = Equal(s, two) t = Cast<to=7>(e)",
    "Expand": "t = Expand(three, two)",
    "Flatten": "a = Flatten<axis=0>(s) t = Reshape(a, last)",
    "Gather": "t = Gather(s, turned)",
    "GatherElements": "t = GatherElements(s, turned)",
    "GatherND": "t = GatherND(s, place)",
    "Greater": "e = Greater(s, three) t = Cast<to=7>(e)",
    "GreaterOrEqual": "e = GreaterOrEqual(s, three) t = Cast<to=7>(e)",
    "Identity": "t = Identity(s)",
    "Less": "e = Less(s, three) t = Cast<to=7>(e)",
    "LessOrEqual": "e = LessOrEqual(s, two) t = Cast<to=7>(e)",
    "Max": "t = Max(s, three)",
    "Min": "t = Min(s, three)",
    "Mod": "t = Mod(s, seven)",
    "Mul": "t = Mul(s, two)",
    "Neg": "a = Neg(s) t = Neg(a)",
    "Not": "e = Equal(s, two) f = Not(e) t = Cast<to=7>(f)",
    "Or": "e = Equal(s, two) f = Or(e, e) t = Cast<to=7>(f)",
    "Range": "a = Squeeze(two) r = Range(first, a, step) t = Add(r, three)",
    "ReduceMax": "t = ReduceMax(s)",
    "ReduceMin": "t = ReduceMin(s)",
    "ReduceProd": "t = ReduceProd(s)",
    "ReduceSum": "t = ReduceSum(s)",
    "Reshape": "a = Reshape(s, pair) t = Squeeze(a)",
    "ScatterElements": "t = ScatterElements(s, one, three)",
    "ScatterND": "t = ScatterND(s, place, three)",
    "Shape": "a = Shape<start=-1>(x) b = Shape<end=1>(x) t = Concat<axis=0>(a, b)",
    "Sign": "t = Sign(s)",
    "Size": "a = Size(x) t = Reshape(a, one)",
    "Slice": "t = Slice(s, last, begin, zero, last)",
    "Squeeze": "a = Unsqueeze(s, zero) t = Squeeze(a, zero)",
    "Sub": "t = Sub(s, one)",
    "Tile": "t = Tile(s, two)",
    "Transpose": "a = Reshape(s, pair) b = Transpose(a) t = Squeeze(b)",
    "Trilu": "a = Reshape(s, pair) b = Trilu(a) t = Squeeze(b)",
    "Unsqueeze": "a = Unsqueeze(s, zero) t = ReduceSum<keepdims=0>(a, zero)",
    "Where": "e = Equal(s, two) t = Where(e, three, s)",
    "Xor": "e = Equal(s, two) f = Equal(s, seven) g = Xor(e, f) t = Cast<to=7>(g)",
}
"""For each operator, how it makes a vector `t` of the sizes `s` of `x`, 2 and 12."""
NUMBERS = {
    "zero": [0], "one": [1], "two": [2], "three": [3], "seven": [7], "last": [-1], "begin": [-9],
    "turned": [1, 0], "pair": [1, 2], "place": [[1]], "first": np.int64(0), "step": np.int64(1),
    "hundred": [100], "many": np.int64(2**40),
}  # fmt: skip


def with_numbers(nodes: str) -> onnx.ModelProto:
    model = build(f"net (float[2,12] x) => (float[y_] y) {{ s = Shape(x) {nodes} }}", NUMBERS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("op_type", sorted(OF_NUMBERS))
def test_sizes_behind_arithmetic_are_those_of_a_run(op_type: str) -> None:
    """The remainder keeps onnx from following the numbers itself."""
    model = with_numbers(f"{ARITHMETIC[op_type]} m = Mod(t, hundred) y = ConstantOfShape(m)")
    session = Session(Graph.from_model(model), optimize=False)
    run = session.run({"x": np.zeros((2, 12), np.float32)})["y"]
    assert "y" not in all_of_onnx(model)
    assert infer_sizes(model)["y"] == run.shape


def test_sizes_behind_many_numbers_are_left_open() -> None:
    """They would fill the memory."""
    model = with_numbers("r = Range(first, many, step) m = ReduceMax(r) y = ConstantOfShape(m)")
    assert "y" not in infer_sizes(model)


def test_sizes_behind_numbers_of_an_input_are_left_open() -> None:
    model = build(
        "net (float[2,12] x, int64[1] n) => (float[a,b,c] y)"
        "{ s = Shape(x) q = Concat<axis=0>(s, n) m = Mod(q, q) y = ConstantOfShape(m) }"
    )
    assert "y" not in infer_sizes(model)


def test_sizes_behind_a_long_chain_of_numbers_are_found() -> None:
    chain = " ".join(f"t{i + 1} = Mod(t{i}, seven)" for i in range(1200))
    model = with_numbers(f"t0 = Identity(s) {chain} y = ConstantOfShape(t1200)")
    assert infer_sizes(model)["y"] == (2, 5)


def test_sizes_of_nested_graphs_are_those_of_onnx() -> None:
    model = subgraphs(36)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert_infers_as_onnx(model)


def test_onnx_is_told_of_few_values_outside_of_nested_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It copies all of them for each graph."""
    given: list[int] = []
    infer = computed_sizes.infer_node_outputs

    def count(schema: Any, node: onnx.NodeProto, types: Any, *others: Any, **options: Any) -> Any:
        given.append(len(types))
        return infer(schema, node, types, *others, **options)

    monkeypatch.setattr(computed_sizes, "infer_node_outputs", count)
    model = subgraphs(180)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    infer_sizes(model)
    assert len(given) == len(model.graph.node)
    assert max(given) < 20


def test_sizes_behind_a_choice_of_graphs_are_found() -> None:
    model = build(
        "net (float[2,12] x, bool c) => (float[a,b] y)"
        "{ h = If (c) <then_branch = t () => (float[2,12] p) { p = Relu(x) },"
        "              else_branch = e () => (float[2,12] q) { q = Neg(x) }>"
        "  s = Shape(h) m = Mod(s, seven) y = ConstantOfShape(m) }",
        {"seven": [7]},
    )
    assert infer_sizes(model)["y"] == (2, 5)


def test_a_node_that_lacks_an_input_is_inconsistent() -> None:
    model = build("net (float[2,3] x) => (float[2,3] y) <float[3,3] w> { y = MatMul(x, w) }")
    model.graph.node[0].input[1] = ""
    with pytest.raises(onnx.shape_inference.InferenceError, match="input 1"):
        computed_sizes.completed(model, (), {"x": (2, 3)})
