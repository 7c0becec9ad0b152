"""Numbers that nodes spell out: what follows by itself, what is written again, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, assert_pruned_equals_masked, build, coupling_of, make_feed

from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from obc_onnx.coupling.model import Coupling

IMAGE = "(float[N,3,8,8] x) => (float[N,4,H,W] y)"
VECTOR = "(float[N,3,8,8] x) => (float[N,M] y)"
TOKENS = "(float[N,S,6] x) => (float[N,S,4] y)"


def sizes(coupling: Coupling) -> dict[str, int]:
    return {group.name: group.size for group in coupling.groups}


def cut(coupling: Coupling, kept: Mapping[str, ArrayLike] | None = None) -> Graph:
    """Drop the last unit of every group, or keep what is asked; check at two batch sizes."""
    keep = {}
    for group in coupling.groups:
        mask = np.arange(group.size) < group.size - 1
        keep[group.dim] = np.asarray(kept[group.name], bool) if kept else mask
    assert keep
    for batch in (1, 3):
        feed = make_feed(coupling.graph, np.random.default_rng(0), batch)
        pruned = assert_pruned_equals_masked(coupling, keep, feed)
    return pruned


def node_types(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def test_a_size_that_is_a_factor_keeps_its_value() -> None:
    """A scale that is computed from a size belongs to the trained function."""
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] b, int64 one = {{1}}>"
        "{ p = Conv(x, a) s = Shape(p) n = Gather(s, one) f = Cast<to=1>(n) r = Sqrt(f)"
        "  q = Div(p, r) y = Conv(q, b) }"
    )
    assert sizes(coupling) == {"a:0": 5}
    pruned = cut(coupling)
    (factor,) = [array for name, array in pruned.initializers.items() if name.startswith("n.")]
    assert factor.tolist() == 5
    assert "Shape" not in node_types(pruned), "what only served the old number goes with it"


def test_a_size_beside_the_batch_that_is_used_as_a_number_is_frozen() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] b>"
        "{ p = Conv(x, a) s = Shape(p) f = Cast<to=1>(s) [mean] m = ReduceMean<keepdims=0>(f)"
        "  q = Mul(p, m) y = Conv(q, b) }"
    )
    assert not coupling.groups
    reason = next(frozen.reason for frozen in coupling.frozen if frozen.where == "a:0")
    assert reason == "a size in Cast 'f' that cannot be written before the model runs"


COUNTED = (
    "net (float[N,3,8,8] x) => (float[N,4,H,W] y)"
    "<float[6,3,1,1] a, float[5,3,1,1] b, float[4,11,1,1] c,"
    " int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}>"
    "{ p = Conv(x, a) q = Conv(x, b) s = Shape(q) n = Gather(s, one) r = Slice(p, zero, n, two)"
    "  g = GlobalMaxPool(r) h = GlobalMaxPool(q) j = Concat<axis=1>(g, h) y = Conv(j, c) }"
)


def test_a_bound_that_is_some_other_size_keeps_its_value() -> None:
    """The rows that a slice takes are counted by channels: they stay as many."""
    coupling = coupling_of(COUNTED)
    assert sizes(coupling) == {"a:0": 6, "b:0": 5}
    assert coupling.axes["r"][0] is coupling.batch
    cut(coupling)


NUMBER = (
    "net (float[N,3,2,1] x, float[N,12] v) => (float[N,M] y)"
    "<float[4,3,1,1] a, float[16,5] b, int64[1] zero = {0}, int64[1] k = {8}, int64[1] one = {1}>"
    "{ p = Conv(x, a) s = Shape(p) n = Gather(s, zero) to = Concat<axis=0>(n, k)"
    "  q = Reshape(p, to) r = Slice(v, zero, k, one) j = Concat<axis=1>(q, r) y = MatMul(j, b) }"
)


def test_a_number_that_others_use_too_is_written_for_one_use_alone() -> None:
    coupling = coupling_of(NUMBER)
    assert sizes(coupling) == {"a:0": 4}
    pruned = cut(coupling)
    assert pruned.initializers["k"].tolist() == [8]
    joined = pruned.producers["to"]
    assert pruned.initializers[joined.inputs[1]].tolist() == [3 * 2 * 1]


HEADS = (
    f"net {TOKENS} <float[6,12] q, float[12,4] o, int64 zero = {{0}}, int64 one = {{1}},"
    " int64[1] lead = {0}, int64[1] three = {3}, int64[1] four = {4}, int64[1] twelve = {12}>"
    "{ h = MatMul(x, q) s = Shape(h) n0 = Gather(s, zero) s0 = Gather(s, one)"
    "  n = Unsqueeze(n0, lead) t = Unsqueeze(s0, lead) BODY y = MatMul(z, o) }"
)


def tokens(body: str, constants: Mapping[str, ArrayLike] | None = None) -> Coupling:
    graph = Graph.from_model(build(HEADS.replace("BODY", body), constants))
    return analyse(graph, shapes={"x": (2, 5, 6)}).coupling


MEETING = (
    "to = Concat<axis=0>(n, t, three, four) r = Reshape(h, to) u = Relu(r)"
    " back = Concat<axis=0>(n, t, twelve) z = Reshape(u, back)"
)
TIMES_BATCH = (
    "to = Concat<axis=0>(n, t, three, four) r = Reshape(h, to) p = Transpose<perm=[0,2,1,3]>(r)"
    " m = Mul(n, three) f = Concat<axis=0>(m, t, four) g = Reshape(p, f) u = Relu(g)"
    " b = Concat<axis=0>(n, three, t, four) v = Reshape(u, b) w = Transpose<perm=[0,2,1,3]>(v)"
    " back = Concat<axis=0>(n, t, twelve) z = Reshape(w, back)"
)
LEFT_OVER = (
    "c = Constant<value = int64[1] {7}>() l = Mul(t, c) k = Add(l, n) j = Sub(k, l)"
    " to = Concat<axis=0>(j, t, three, four) r = Reshape(h, to) u = Relu(r)"
    " x7 = Mul(twelve, n) back = Concat<axis=0>(t, x7) p = Transpose<perm=[1,0,2,3]>(u)"
    " q2 = Reshape(p, back) o2 = Concat<axis=0>(t, n, twelve) y2 = Reshape(q2, o2)"
    " z = Transpose<perm=[1,0,2]>(y2)"
)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (MEETING, {"Concat": 2, "Shape": 1}),
        (TIMES_BATCH, {"Concat": 4, "Mul": 1, "Shape": 1}),
        (LEFT_OVER, {"Concat": 3, "Mul": 2, "Shape": 1}),
    ],
    ids=["where numbers meet", "in front of a batch", "through a sum"],
)
def test_heads_behind_two_open_axes(body: str, operators: dict[str, int]) -> None:
    """Sizes that run with the model stay computed; heads and head width are written."""
    coupling = tokens(body)
    assert sizes(coupling) == {"q:1.0": 3, "q:1.1": 4}
    pruned = cut_tokens(coupling)
    assert {name: node_types(pruned).count(name) for name in operators} == operators


def cut_tokens(coupling: Coupling) -> Graph:
    keep = {group.dim: np.arange(group.size) < group.size - 1 for group in coupling.groups}
    rng = np.random.default_rng(0)
    for shape in ((1, 5, 6), (3, 7, 6)):
        feed = {"x": rng.standard_normal(shape).astype(np.float32)}
        pruned = assert_pruned_equals_masked(coupling, keep, feed)
    return pruned


def test_a_size_that_follows_by_itself_is_left_alone() -> None:
    """`width // 3` is the width of a head as long as heads are three."""
    body = (
        "two = Constant<value = int64 {2}>() c = Gather(s, two) k = Constant<value = int64 {3}>()"
        " d = Div(c, k) w = Unsqueeze(d, lead) to = Concat<axis=0>(n, t, three, w)"
        " r = Reshape(h, to) u = Relu(r) back = Concat<axis=0>(n, t, twelve) z = Reshape(u, back)"
    )
    coupling = tokens(body)
    width = coupling.by_name["q:1.1"]
    keep = {width.dim: np.array([True, False, True, True])}
    feed = {"x": np.random.default_rng(0).standard_normal((3, 7, 6)).astype(np.float32)}
    pruned = assert_pruned_equals_masked(coupling, keep, feed)
    assert "Div" in node_types(pruned)
    heads = coupling.by_name["q:1.0"]
    pruned = assert_pruned_equals_masked(coupling, {heads.dim: np.array([1, 0, 1], bool)}, feed)
    assert "Div" not in node_types(pruned), "12 // 3 is no head width of two heads"


def test_sizes_that_run_with_the_model_freeze_what_cannot_be_written() -> None:
    """Two open sizes in one number, multiplied by heads: neither 0 nor -1 stands for both."""
    body = (
        "h3 = Mul(n, three) h4 = Mul(t, four) to = Concat<axis=0>(h3, h4) r = Reshape(h, to)"
        " u = Relu(r) back = Concat<axis=0>(n, t, twelve) z = Reshape(u, back)"
    )
    coupling = tokens(body)
    reasons = {frozen.where: frozen.reason for frozen in coupling.frozen}
    assert not coupling.groups, sizes(coupling)
    assert "Reshape" in reasons["q:1"]


EXPANDED = (
    f"net {IMAGE} <float[5,3,1,1] a, float[1,5,1,1] k, float[4,5,1,1] b, int64[1] zero = {{0}},"
    " int64[3] rest = {5,1,1}, int64[1] axes = {-1}>"
    "{ p = Conv(x, a) s = Shape(p) n = Gather(s, zero) to = Concat<axis=0>(n, rest)"
    "  e = Expand(k, to) q = Mul(p, e) y = Conv(q, b) }"
)


def test_the_shape_of_an_expand_is_written_where_it_is_put_together() -> None:
    coupling = coupling_of(EXPANDED)
    assert sizes(coupling) == {"a:0": 5}
    pruned = cut(coupling)
    assert {"Shape", "Gather", "Concat", "Expand"} <= set(node_types(pruned))


SHARED = (
    f"net {IMAGE} <float[5,3,1,1] a, float[5,3,1,1] c, float[1,5,1,1] k, float[1,5,1,1] l,"
    " float[4,10,1,1] b, int64[1] zero = {0}, int64[1] five = {5}, int64[2] rest = {1,1}>"
    "{ p = Conv(x, a) o = Conv(x, c) s = Shape(p) n = Gather(s, zero)"
    "  m = Concat<axis=0>(n, five) to = Concat<axis=0>(m, rest)"
    "  e = Expand(k, to) q = Mul(p, e) f = Expand(l, to) r = Mul(o, f)"
    "  j = Concat<axis=1>(q, r) y = Conv(j, b) }"
)


@pytest.mark.parametrize(("second", "targets"), [([1, 1, 1, 1, 0], 2), ([1, 0, 1, 1, 0], 4)])
def test_a_shape_that_several_nodes_use_is_written_for_each(
    second: list[int], targets: int
) -> None:
    """Users that need the same numbers keep one shape, which leads through two nodes here."""
    coupling = coupling_of(SHARED)
    assert sizes(coupling) == {"a:0": 5, "c:0": 5}
    pruned = cut(coupling, {"a:0": [1, 1, 1, 1, 0], "c:0": second})
    assert node_types(pruned).count("Concat") == targets + 1
    pruned = cut(coupling, {"a:0": [1, 1, 1, 1, 0], "c:0": [1, 1, 1, 0, 0]})
    assert node_types(pruned).count("Concat") == 4 + 1


IF = (
    " flag = Cast<to=9>(zero) t = If(flag) <then_branch = yes () => (int64[1] z) { z = Neg(zero) },"
    " else_branch = no () => (int64[1] z) { z = ReduceSum(to) }>"
)


@pytest.mark.parametrize(("use", "output"), [("", "int64[4] to"), (IF, "int64[1] t")])
def test_a_shape_that_is_used_otherwise_stays_for_that_use(use: str, output: str) -> None:
    """A graph output, or the body of an If that captures it, still reads the old numbers."""
    text = EXPANDED.replace("e = Expand", f"{use} e = Expand")
    coupling = coupling_of(text.replace("(float[N,4,H,W] y)", f"(float[N,4,H,W] y, {output})"))
    assert sizes(coupling) == {"a:0": 5}
    pruned = cut(coupling)
    assert node_types(pruned).count("Concat") == 2


SEARCH = (
    f"net {IMAGE} <float[5,3,1,1] a, float[1,5,1,1] k, float[4,5,1,1] b, int64[1] zero = {{0}},"
    " int64[3] rest = {-1,1,-1}, int64 minus = {-1}>"
    "{ p = Conv(x, a) s = Shape(p) n = Gather(s, zero) to = Concat<axis=0>(n, rest)"
    "  l = Shape(to) o = ConstantOfShape<value = int64[1] {1}>(l) m = Mul(o, minus)"
    "  f = Equal(to, m) w = Where(f, o, to) e = Expand(k, w) q = Mul(p, e) y = Conv(q, b) }"
)


def test_minus_ones_in_a_target_shape_are_searched_as_an_exporter_does() -> None:
    coupling = coupling_of(SEARCH)
    assert sizes(coupling) == {"a:0": 5}
    cut(coupling)


def test_a_squeeze_that_names_no_axes_is_given_those_that_it_drops() -> None:
    text = (
        f"net {VECTOR} <float[5,3,1,1] a, float[5,7] b>"
        "{ p = Conv(x, a) g = GlobalMaxPool(p) s = Squeeze(g) y = MatMul(s, b) }"
    )
    for opset in (11, 17):
        coupling = analyse(build(text, opset=opset)).coupling
        keep = {group.dim: np.arange(5) == 2 for group in coupling.groups}
        assert keep
        feed = make_feed(coupling.graph, np.random.default_rng(0), 3)
        assert_pruned_equals_masked(coupling, keep, feed)


@pytest.mark.parametrize(("opset", "options"), [(11, ""), (13, ""), (18, ", num_outputs=2")])
def test_parts_that_are_equal_by_default_may_become_unequal(opset: int, options: str) -> None:
    text = (
        f"net {IMAGE} <float[6,3,1,1] a, float[4,3,1,1] b, float[4,3,1,1] c>"
        f"{{ p = Conv(x, a) l, r = Split<axis=1{options}>(p) u = Conv(l, b) v = Conv(r, c)"
        "  y = Add(u, v) }"
    )
    coupling = analyse(build(text, opset=opset)).coupling
    assert sizes(coupling) == {"a:0.0": 3, "a:0.1": 3}
    assert cut(coupling, {"a:0.0": [1, 0, 0], "a:0.1": [1, 1, 0]})


@pytest.mark.parametrize(
    ("kept", "starts", "ends"),
    [([1, 1, 1, 1, 1, 1, 0, 0], -6, -1), ([1, 1, 1, 0, 1, 1, 1, 0], 2, 6)],
    ids=["untouched", "touched"],
)
def test_bounds_that_count_from_the_end(kept: list[int], starts: int, ends: int) -> None:
    text = (
        f"net {IMAGE} <float[8,3,1,1] a, float[4,5,1,1] b, float[4,8,1,1] c,"
        " int64[1] s = {-6}, int64[1] e = {-1}, int64[1] axis = {1}>"
        "{ p = Conv(x, a) q = Slice(p, s, e, axis) u = Conv(q, b) v = Conv(p, c) y = Add(u, v) }"
    )
    coupling = coupling_of(text)
    assert sizes(coupling) == {"a:0.0": 2, "a:0.1": 5}
    keep = {coupling.by_name["a:0.0"].dim: np.array(kept[:2], bool)}
    keep[coupling.by_name["a:0.1"].dim] = np.array(kept[2:7], bool)
    feed = make_feed(coupling.graph, np.random.default_rng(0), 3)
    assert_pruned_equals_masked(coupling, keep, feed)


def test_positions_that_a_gather_picks_are_numbered_anew() -> None:
    text = (
        f"net {IMAGE} <float[5,3,1,1] a, float[4,4,1,1] b, float[4,5,1,1] c,"
        " int64[4] order = {4,0,-2,0}>"
        "{ p = Conv(x, a) q = Gather<axis=1>(p, order) u = Conv(q, b) v = Conv(p, c)"
        "  y = Add(u, v) }"
    )
    coupling = coupling_of(text)
    assert sizes(coupling) == {"a:0": 5}
    pruned = cut(coupling, {"a:0": [1, 0, 0, 1, 1]})
    assert pruned.initializers["order"].tolist() == [2, 0, 1, 0]
    pruned = cut(coupling, {"a:0": [0, 1, 1, 1, 0]})
    assert pruned.initializers["order"].tolist() == [2]


def test_positions_in_rows_are_picked_as_those_of_a_gather() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,3,1,1] b, int64[3,1] i = {{0,3,-1}}>"
        "{ p = Conv(x, a) t = Transpose<perm=[1,0,2,3]>(p) g = GatherND(t, i)"
        "  u = Transpose<perm=[1,0,2,3]>(g) y = Conv(u, b) }"
    )
    assert sizes(coupling) == {"a:0": 5}
    pruned = cut(coupling, {"a:0": [1, 0, 1, 1, 0]})
    assert pruned.initializers["i"].tolist() == [[0], [2]]
