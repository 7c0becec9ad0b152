"""Numbers that run with the model, beside others that are written again."""

from __future__ import annotations

import numpy as np
import pytest
from coupling.test_spelling import sizes
from helpers import analyse, assert_pruned_equals_masked, build

from obc_onnx.graph.model import Graph

OPEN = (
    "net (float[n,s,8] x, int64[n,s] mask) => (float[n,S,6] y)"
    "<float[8,12] q, float[8,3] k, float[12,6] o, int64[1] one = {1}, int64[1] three = {3},"
    " int64[1] four = {4}, int64[1] twelve = {12}, int64[1] minus = {-1}, int64[1] zero = {0},"
    " int64[1] limit = {64}, int64[1] last = {2}, int64[1] many = {9223372036854775807}>"
    "{ h = MatMul(x, q) b = Shape<start=0, end=1>(x) t = Shape<start=1, end=2>(x) BODY }"
)
REPEATED = (
    "g = MatMul(x, k) f = Concat<axis=0>(b, t, one, three) r = Reshape(g, f)"
    " c = Concat<axis=0>(b, t, four, three) u = Reshape(h, c) TARGET m = Mul(u, e)"
    " back = Concat<axis=0>(b, t, minus) z = Reshape(m, back) y = MatMul(z, o)"
)
SPLIT_BY = (
    "c = Concat<axis=0>(b, {0}, four, three) r = Reshape(h, c) u = Relu(r)"
    " back = Concat<axis=0>(b, {0}, twelve) z = Reshape(u, back) y = MatMul(z, o)"
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (SPLIT_BY.format("t"), {"q:1.0": 4, "q:1.1": 3}),
        ("w = Shape<start=1, end=2>(mask)" + SPLIT_BY.format("w"), {"q:1.0": 4, "q:1.1": 3}),
        ("w = Min(t, limit)" + SPLIT_BY.format("w"), {"q:1.0": 4, "q:1.1": 3}),
        (REPEATED.replace("TARGET", "e = Expand(r, c)"), {"q:1.0": 4, "q:1.1": 3}),
        (
            REPEATED.replace("TARGET", "a = Cast<to = 7>(c) e = Expand(r, a)"),
            {"q:1.0": 4, "q:1.1": 3},
        ),
        (
            REPEATED.replace(
                "TARGET",
                "l = Shape(c) ones = ConstantOfShape<value = int64[1] {1}>(l) v = Mul(ones, minus)"
                " w = Equal(c, v) a = Where(w, ones, c) e = Expand(r, a)",
            ),
            {"q:1.0": 4, "q:1.1": 3},
        ),
        (
            "p = Concat<axis=0>(zero, zero, zero, zero, t, zero) a = Pad(h, p) y = MatMul(a, o)",
            {"q:1": 12},
        ),
        (
            "e = Slice(h, twelve, many, last) j = Concat<axis=2>(h, e) y = MatMul(j, o)",
            {"q:1": 12},
        ),
    ],
    ids=[
        "its own size", "that of another input", "a size of no axis", "Expand", "Expand behind a Cast", "Where",
        "one amount of a Pad", "nothing behind the end",
    ],
)  # fmt: skip
def test_what_runs_with_the_model_leaves_alone_what_is_written_beside_it(
    body: str, expected: dict[str, int]
) -> None:
    """As exporters write heads, repeated heads and masks; found in real language models."""
    graph = Graph.from_model(build(OPEN.replace("BODY", body), opset=18))
    coupling = analyse(graph, shapes={"x": (2, 5, 8), "mask": (2, 5)}).coupling
    assert sizes(coupling) == expected
    rng = np.random.default_rng(0)
    keep = {group.dim: np.arange(group.size) < group.size - 1 for group in coupling.groups}
    for n, s in ((1, 5), (3, 7)):
        feed = {
            "x": rng.standard_normal((n, s, 8)).astype(np.float32),
            "mask": np.ones((n, s), np.int64),
        }
        pruned = assert_pruned_equals_masked(coupling, keep, feed)
    assert pruned.outputs == graph.outputs


def test_a_size_that_cannot_be_written_freezes_no_other_of_its_shape() -> None:
    """Twice two heads, as a sum: neither a factor nor a part that could be written."""
    body = (
        "d = Mul(t, last) e = Add(d, d) f = Concat<axis=0>(minus, e, three) r = Reshape(h, f)"
        " u = Relu(r) back = Concat<axis=0>(b, t, twelve) z = Reshape(u, back) y = MatMul(z, o)"
    )
    graph = Graph.from_model(build(OPEN.replace("BODY", body), opset=18))
    coupling = analyse(graph, shapes={"x": (2, 5, 8), "mask": (2, 5)}).coupling
    assert sizes(coupling) == {"q:1.1": 3}
    reasons = {frozen.where: frozen.reason for frozen in coupling.frozen}
    assert reasons["q:1.0"] == "a size in Reshape 'r' that cannot be written before the model runs"
    keep = {group.dim: np.arange(3) < 2 for group in coupling.groups}
    feed = {"x": np.ones((3, 7, 8), np.float32), "mask": np.ones((3, 7), np.int64)}
    assert_pruned_equals_masked(coupling, keep, feed)


def test_a_range_that_is_empty_now_may_not_be_as_the_model_runs() -> None:
    """From position 70 on: nothing of 5 x 12, but 14 of 7 x 12."""
    body = (
        "f = Concat<axis=0>(b, minus) r = Reshape(h, f) e = Slice(r, start, many, one)"
        " v = ReduceSum(e) y = Add(x, v)"
    )
    text = OPEN.replace("BODY", body).replace("(float[n,S,6] y)", "(float[n,s,8] y)")
    graph = Graph.from_model(build(text, {"start": [70]}, opset=18))
    coupling = analyse(graph, shapes={"x": (2, 5, 8), "mask": (2, 5)}).coupling
    assert not coupling.groups
    reasons = {frozen.where: frozen.reason for frozen in coupling.frozen}
    assert reasons["q:1"] == "a range of an open axis of Slice 'e'"
