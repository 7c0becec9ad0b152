"""What a graph shows of its batch before it runs, held against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build

from obc_onnx.coupling.analysis import follow_batch, settled
from obc_onnx.errors import ModelError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES

if TYPE_CHECKING:
    from obc_onnx.graph.batch_axes import BatchAxes

CONSTANTS: dict[str, Any] = {
    "zero": [0], "one": [1], "two": [2], "last": [-1], "end": [9999], "start": [-9999],
    "first": np.int64(0), "step": np.int64(1), "ones": np.float32([1]), "swapped": [1, 0],
    "pair": [0, 1], "rows": [-1, 4], "heads": [0, 2, 2], "halves": [2, -1, 4], "table": [2, 4],
    "joined": [-1, 8], "back": [0, 4], "more": [1, 0, 0, 0], "seven": [7], "none": [0, 0, 0],
}  # fmt: skip
COUNT = "s = Shape(x) n = Gather(s, zero)"
GRAM = "t = Transpose<perm = [1, 0]>(x) g = MatMul(x, t)"
TOUCHING = {
    "a table of two rows": "y = Add(x, w)",
    "a choice by two rows": "c = Greater(x, w) y = Where(c, x, w)",
    "a shape of two rows": "y = Expand(x, table)",
    "a target of two rows": "y = Reshape(x, table)",
    "halves of all samples": "h = Reshape(x, halves) y = ReduceMax<axes = [1], keepdims = 0>(h)",
    "two samples in a row": "p = Reshape(x, joined) m = MatMul(p, w8) y = Reshape(m, rows)",
    "each beside every other": f"{GRAM} y = Identity(g)",
    "a sum over every other": f"{GRAM} y = ReduceSum<keepdims = 0>(g, one)",
    "attention": f"{GRAM} a = Softmax(g) y = MatMul(a, x)",
    "a product with every other": 'y = Einsum<equation = "bi,ci->bc">(x, x)',
    "an outer sum": "a = ReduceSum(x, one) b = Transpose<perm = [1, 0]>(a) y = Add(a, b)",
    "a mean over samples": "m = ReduceMean<axes = [0]>(x) y = Sub(x, m)",
    "the largest of all": "m = ReduceMax(x) y = Div(x, m)",
    "a softmax over samples": "y = Softmax<axis = 0>(x)",
    "a sum that runs": "y = CumSum(x, first)",
    "the largest samples": "y, i = TopK<axis = 0>(x, two)",
    "a layer norm of all": "y = LayerNormalization<axis = 0>(x, w)",
    "a scale of all": "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)",
    "a convolution over samples": (
        "t = Transpose<perm = [1, 0]>(x) u = Unsqueeze(t, zero) c = Conv<pads = [1, 1]>(u, wc)"
        " d = Squeeze(c, zero) y = Transpose<perm = [1, 0]>(d)"
    ),
    "time": (
        "u = Unsqueeze(x, one) a, b = RNN<hidden_size = 4>(u, wr, wr)"
        " d = Squeeze(a, one) y = Squeeze(d, one)"
    ),
    "turned round": "y = Slice(x, last, start, zero, last)",
    "swapped": "y = Gather<axis = 0>(x, swapped)",
    "the first two": "y = Gather<axis = 0>(x, pair)",
    "a part": "y = Slice(x, zero, two, zero)",
    "all but the first": "y = Slice(x, one, end, zero)",
    "the first behind the last": (
        "a = Slice(x, one, end, zero) b = Slice(x, zero, one, zero) y = Concat<axis = 0>(a, b)"
    ),
    "picked by the others": "i = ArgMax<axis = 1, keepdims = 0>(x) y = Gather<axis = 0>(x, i)",
    "twice": "y = Tile(x, table)",
    "one more": "y = Pad(x, more)",
    "padded by its remainder": (
        f"{COUNT} k = Mod(n, seven) q = Concat<axis = 0>(none, k) y = Pad(x, q)"
    ),
    "squeezed where it is one": "u = Unsqueeze(x, one) y = Squeeze(u)",
    "its number": f"{COUNT} c = Cast<to = 1>(n) y = Mul(x, c)",
    "its remainder": f"{COUNT} k = Mod(n, two) c = Cast<to = 1>(k) y = Add(x, c)",
    "its number, at least two": f"{COUNT} k = Max(n, two) c = Cast<to = 1>(k) y = Add(x, c)",
    "as many ones": "s = Shape(x) e = Expand(ones, s) m = ReduceSum<keepdims = 0>(e) y = Mul(x, m)",
    "its places": (
        f"{COUNT} m = Squeeze(n) r = Range(first, m, step) c = Cast<to = 1>(r)"
        " u = Unsqueeze(c, one) y = Add(x, u)"
    ),
    "its square": f"{COUNT} q = Concat<axis = 0>(n, n) e = Expand(ones, q) y = MatMul(e, x)",
    "a matrix of its size": f"{GRAM} e = EyeLike<dtype = 1>(g) o = Sub(e, ones) y = MatMul(o, x)",
}
APART = {
    "a layer": "a = MatMul(x, wl) b = Relu(a) y = Softmax(b)",
    "a table for all": "y = Add(x, wt)",
    "heads in a batch of their own": (
        "h = Reshape(x, heads) t = Transpose<perm = [0, 2, 1]>(h) m = MatMul(h, t)"
        " p = Softmax(m) o = MatMul(p, h) y = Reshape(o, back)"
    ),
    "a target with its number": f"{COUNT} q = Concat<axis = 0>(n, two, last) y = Reshape(x, q)",
    "zeros of its shape": "s = Shape(x) c = ConstantOfShape(s) y = Add(x, c)",
    "padded by what its width lacks": (
        "s = Shape(x) c = Gather(s, one) k = Mod(c, seven) l = Sub(seven, k)"
        " q = Concat<axis = 0>(none, l) y = Pad(x, q)"
    ),
    "last of several axes": "y = Transpose<perm = [1, 0]>(x)",
}


def graph_of(text: str) -> Graph:
    model = build(
        "net (float[N,4] x) => (float[y_] y) <float[2,4] w, float[8,8] w8, float[4,4,3] wc,"
        f" float[1,4,4] wr, float[4,4] wl, float[4] wt> {{ {text} }}",
        CONSTANTS,
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return Graph.from_model(model)


def found_in(graph: Graph) -> BatchAxes | None:
    return follow_batch(graph, {"x": (2, 4)}, DEFAULT_RULES)


def is_apart(graph: Graph, axis: int, count: int) -> bool:
    """Run samples together, and each alone, and look for what each gets along an axis."""
    x = np.random.default_rng(0).standard_normal((count, 4)) * np.arange(1, count + 1)[:, None]
    session = Session(graph, optimize=False)
    feeds = [rows.astype(np.float32) for rows in (x, *np.split(x, count))]
    try:
        both, *alone = (session.run({"x": feed})["y"] for feed in feeds)
    except ModelError:
        return False
    if alone[0].ndim <= axis or alone[0].shape[axis] != 1:
        return False
    beside = np.concatenate(alone, axis)
    return beside.shape == both.shape and np.allclose(beside, both, rtol=1e-5)


@pytest.mark.parametrize("text", TOUCHING.values(), ids=TOUCHING.keys())
def test_samples_that_touch_each_other_are_not_said_to_be_apart(text: str) -> None:
    graph = graph_of(text)
    assert found_in(graph) is None
    for axis in range(2):
        assert not all(is_apart(graph, axis, count) for count in (2, 3)), "the table is wrong"


def test_a_weight_that_no_node_reads_is_an_output_without_samples() -> None:
    model = build("net (float[N,4] x) => (float[N,4] y, float[3] w) <float[3] w> { y = Relu(x) }")
    found = settled(Graph.from_model(model), None, {}).batch_axes
    assert (found.outputs, found.size) == ({"y": 0, "w": None}, None)


@pytest.mark.parametrize("text", APART.values(), ids=APART.keys())
def test_samples_that_pass_every_node_are_said_to_be_apart(text: str) -> None:
    graph = graph_of(text)
    found = found_in(graph)
    assert found is not None
    assert found.proven
    axis = found.outputs["y"]
    assert axis is not None
    assert all(is_apart(graph, axis, count) for count in (2, 3))
