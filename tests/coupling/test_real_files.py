"""What exporters and optimisers make of networks: each case was seen in files, and must prune."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import (
    analyse,
    assert_close,
    assert_pruned_equals_masked,
    assert_recount_agrees,
    build,
    listed,
    make_feed,
    random_keep,
    run_onnx,
    run_twin,
)
from nets import HEAD
from onnx import helper, numpy_helper

from obc_onnx.graph.model import Graph
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.search import search_plan
from obc_onnx.run.api import compress, verify
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.magnitude import L2

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import ArrayLike

    from obc_onnx.coupling.model import Coupling

IMAGE = "(float[N,3,8,8] x) => (float[N,4,H,W] y)"
BETWEEN = "{{ p = Conv(x, a) q = Relu(p) {} r = Conv(q, w) s = Relu(r) y = Conv(s, c) }}"
"""A convolution between two others, whose weight `w` [6,5,1,1] is made by other nodes."""
OUTER = "float[5,3,3,3] a, float[4,6,1,1] c"


def sizes(coupling: Coupling) -> dict[str, int]:
    return {group.name: group.size for group in coupling.groups}


def check(model: onnx.ModelProto | Graph) -> Coupling:
    """Prune at random, at two batch sizes; compare with the mask, the twin and the forecast."""
    coupling = analyse(model).coupling
    assert coupling.groups
    rng = np.random.default_rng(0)
    for _ in range(4):
        keep = random_keep(coupling, rng)
        for batch in (1, 3):
            feed = make_feed(coupling.graph, rng, batch)
            pruned = assert_pruned_equals_masked(coupling, keep, feed)
        assert_recount_agrees(coupling, keep, pruned)
    graph, shapes, _ = analyse(pruned)
    feed = make_feed(graph, rng, 3)
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))
    return coupling


MADE_WEIGHTS: dict[str, tuple[str, str, Mapping[str, ArrayLike]]] = {
    "Identity": ("float[6,5,1,1] v", "w = Identity(v)", {}),
    "Identity in a row": ("float[6,5,1,1] v", "w1 = Identity(v) w2 = Identity(w1) w = Identity(w2)", {}),
    "Transpose": ("float[5,6,1,1] v", "w = Transpose<perm=[1,0,2,3]>(v)", {}),
    "Reshape": ("float[6,5] v", "w = Reshape(v, to)", {"to": [6, 5, 1, 1]}),
    "Reshape of a vector": ("float[30] v", "w = Reshape(v, to)", {"to": [6, -1, 1, 1]}),
    "Unsqueeze": ("float[6,5] v", "w = Unsqueeze(v, to)", {"to": [2, 3]}),
    "Cast": ("", "w = Cast<to=1>(v)", {"v": np.random.default_rng(0).standard_normal((6, 5, 1, 1))}),
    "scale": ("float[6,5,1,1] v, float[6,1,1,1] k", "w = Mul(v, k)", {}),
    "ConstantOfShape": (
        "float[6,1,1,1] k",
        "v = ConstantOfShape<value = float[1] {0.3}>(to) w = Mul(v, k)",
        {"to": [6, 5, 1, 1]},
    ),
    "Concat": ("float[2,5,1,1] v, float[4,5,1,1] u", "w = Concat<axis=0>(v, u)", {}),
    "Pad": ("float[6,3,1,1] v", "w = Pad(v, to)", {"to": [0, 1, 0, 0, 0, 1, 0, 0]}),
    "Slice": ("float[6,8,1,1] v", "w = Slice(v, one, six, axis)", {"one": [1], "six": [6], "axis": [1]}),
    "adapter": ("float[6,5] v, float[6,2] left, float[2,5] right",
                "d = MatMul(left, right) m = Add(v, d) w = Unsqueeze(m, to)", {"to": [2, 3]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE_WEIGHTS)
def test_a_weight_that_is_computed_from_initializers_is_a_weight(kind: str) -> None:
    declared, nodes, constants = MADE_WEIGHTS[kind]
    values = ", ".join(filter(None, (OUTER, declared)))
    model = build(f"net {IMAGE} <{values}> {BETWEEN.format(nodes)}", constants)
    coupling = check(model)
    assert sum(sizes(coupling).values()) >= 5 + 2


@pytest.mark.parametrize("kind", MADE_WEIGHTS)
def test_a_net_whose_weights_are_all_computed_has_groups_and_scores(kind: str) -> None:
    """Groups take their names from the initializers behind, and magnitude reads what comes out."""
    declared, nodes, constants = MADE_WEIGHTS[kind]
    values = ", ".join(filter(None, (declared, "float[5,3] f, float[4,6] g, int64[2] at = {2,3}")))
    outer = f"a = Unsqueeze(f, at) c = Unsqueeze(g, at) {nodes}"
    body = f"{{ {outer} p = Conv(x, a) q = Relu(p) r = Conv(q, w) s = Relu(r) y = Conv(s, c) }}"
    coupling = analyse(build(f"net {IMAGE} <{values}> {body}", constants)).coupling
    assert sum(group.size for group in coupling.groups) >= 5 + 2
    scores = L2().score(Scene(coupling), {})
    assert all((scores[group.name] > 0).any() for group in coupling.groups)
    plan = search_plan(coupling, lambda _keep: scores, Budget(0.6), "l2", 0)
    assert plan.macs[1] <= 0.6 * plan.macs[0]


def test_weights_in_constant_nodes_are_initializers() -> None:
    model = build(f"net {IMAGE} <{OUTER}, float[6,5,1,1] w> {BETWEEN.format('')}")
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in reversed(tensors):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    assert sizes(check(model)) == {"a:0": 5, "w:0": 6}


MERGED = (
    f"net {IMAGE} <float[6,3,1,1] a, float[6,6,1,1] b, float[6,6,1,1] c, float[4,6,1,1] d,"
    " float[6] k>"
    "{ k2 = Identity(k) p = Conv(x, a, k) q = Relu(p) r = Conv(q, b, k2) s = Relu(r)"
    "  k3 = Identity(k2) t = Conv(s, c, k3) u = Relu(t) y = Conv(u, d) }"
)


def test_equal_vectors_that_an_exporter_merged_do_not_tie_layers() -> None:
    """Cutting the bias of one layer through Identity would silently cut those of the others."""
    coupling = check(build(MERGED))
    assert sizes(coupling) == {"a:0": 6, "b:0": 6, "c:0": 6}


def test_a_matrix_that_is_shared_through_identity_ties_its_users() -> None:
    text = (
        f"net {IMAGE} <float[6,3,1,1] a, float[6,6,1,1] b, float[4,6,1,1] d>"
        "{ b2 = Identity(b) p = Conv(x, a) q = Conv(p, b) r = Relu(q) s = Conv(r, b2)"
        "  y = Conv(s, d) }"
    )
    assert sizes(check(build(text))) == {"a:0": 6}


def test_copies_of_a_shared_vector_are_cut_apart_and_written() -> None:
    coupling = analyse(build(MERGED)).coupling
    first, second, third = (group.dim for group in coupling.groups)
    keep = {first: np.arange(6) < 2, second: np.arange(6) >= 4, third: np.arange(6) < 5}
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    pruned = assert_pruned_equals_masked(coupling, keep, feed)
    lengths = sorted(array.size for array in pruned.initializers.values() if array.ndim == 1)
    assert lengths == [2, 2, 5]
    again = Graph.from_model(pruned.to_model())
    assert_close(run_onnx(again, feed), run_onnx(pruned, feed), 0.0)


STANDARDISED = {
    "BatchNormalization": (
        "f = Reshape(v, flat) n, m1, v1 = BatchNormalization<training_mode=1>"
        "(f, gain, zero, zero2, one) w = Reshape(n, back)"
    ),
    "ReduceMean and Sub": (
        "m = ReduceMean<axes=[1,2,3]>(v) d = Sub(v, m) e = Mul(d, d)"
        " m2 = ReduceMean<axes=[1,2,3]>(e) t = Add(m2, tiny) u = Sqrt(t) w = Div(d, u)"
    ),
    "weight norm": "m = ReduceL2<axes=[1,2,3]>(v) n = Div(v, m) w = Mul(n, gain4)",
}


@pytest.mark.parametrize("kind", STANDARDISED)
def test_standardised_weights_are_folded_and_prune_exactly(kind: str) -> None:
    """A statistic over input channels would be another one without some of them."""
    rng = np.random.default_rng(0)
    constants = {
        "flat": [1, 6, -1], "back": [6, 5, 1, 1], "tiny": 1e-5, "zero": np.zeros(6, np.float32),
        "zero2": np.zeros(6, np.float32), "one": np.ones(6, np.float32),
        "gain": rng.uniform(0.5, 1.5, 6).astype(np.float32),
        "gain4": rng.uniform(0.5, 1.5, (6, 1, 1, 1)).astype(np.float32),
    }  # fmt: skip
    used = {k: v for k, v in constants.items() if k in re.findall(r"\w+", STANDARDISED[kind])}
    text = f"net {IMAGE} <{OUTER}, float[6,5,1,1] v> {BETWEEN.format(STANDARDISED[kind])}"
    model = build(text, used)
    coupling = check(model)
    assert sizes(coupling) == {"a:0": 5, "w:0": 6}
    assert all(group.inexact is None for group in coupling.groups)
    assert [node.op_type for node in coupling.graph.nodes] == [
        "Conv",
        "Relu",
        "Conv",
        "Relu",
        "Conv",
    ]
    feed = make_feed(coupling.graph, rng, 3)
    unfolded = np.asarray(_session(model).run(None, feed)[0])
    assert_close(run_onnx(coupling.graph, feed), {"y": unfolded})


def _session(model: onnx.ModelProto) -> object:
    import onnxruntime

    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def test_a_norm_that_no_convolution_precedes_survives_folding() -> None:
    text = (
        f"net {IMAGE} <float[5,3,1,1] a, float[5,3,1,1] b, float[10] scale, float[10] bias,"
        " float[10] mean, float[10] var, float[6,10,1,1] c, float[4,6,1,1] d>"
        "{ p = Conv(x, a) q = Conv(x, b) j = Concat<axis=1>(p, q)"
        "  n = BatchNormalization(j, scale, bias, mean, var) r = Relu(n) s = Conv(r, c)"
        "  y = Conv(s, d) }"
    )
    assert sizes(check(build(text))) == {"a:0": 5, "b:0": 5, "c:0": 6}


def test_channels_last_between_transposes() -> None:
    """As exports of channels-last frameworks write them: one pair of transposes per convolution."""
    text = (
        "net (float[N,8,8,3] x) => (float[N,8,8,4] y) <float[5,3,1,1] a, float[1,1,1,5] k,"
        " float[5] scale, float[6,5,1,1] b, float[1,1,1,6] l, float[4,6,1,1] c>"
        "{ x1 = Transpose<perm=[0,3,1,2]>(x) p = Conv(x1, a) p1 = Transpose<perm=[0,2,3,1]>(p)"
        "  q = Add(p1, k) r = Relu(q) s = Mul(r, scale) s1 = Transpose<perm=[0,3,1,2]>(s)"
        "  t = Conv(s1, b) t1 = Transpose<perm=[0,2,3,1]>(t) u = Add(t1, l)"
        "  u1 = Transpose<perm=[0,3,1,2]>(u) v = Conv(u1, c) y = Transpose<perm=[0,2,3,1]>(v) }"
    )
    assert sizes(check(build(text))) == {"a:0": 5, "b:0": 6}


@pytest.mark.parametrize("shape", ["1,5,1,1", "5,1,1"])
def test_constants_behind_a_convolution_are_cut_with_it(shape: str) -> None:
    text = (
        f"net {IMAGE} <float[5,3,1,1] a, float[{shape}] scale, float[{shape}] shift,"
        " float[4,5,1,1] c> { p = Conv(x, a) q = Mul(p, scale) r = Add(shift, q) y = Conv(r, c) }"
    )
    assert sizes(check(build(text))) == {"a:0": 5}


STATES = (
    "net (float[S,N,3] x) => (float[S,N,4] y) <float[1,16,3] w1, float[1,16,4] r1,"
    " float[1,16,4] w2, float[1,16,4] r2, float[4,4] c, float zero = {0}, int64 at = {1},"
    " int64[1] one = {1}, int64[1] four = {4}, int64[1] lead = {0}>"
    "{ s = Shape(x) n0 = Gather(s, at) n = Unsqueeze(n0, lead) to = Concat<axis=0>(one, n, four)"
    "  h = Expand(STATE, to) p, p1, p2 = LSTM<hidden_size=4>(x, w1, r1, , , h, h)"
    "  q = Squeeze(p, one) t, t1, t2 = LSTM<hidden_size=4>(q, w2, r2, , , h, h)"
    "  u = Squeeze(t, one) y = MatMul(u, c) }"
)


def test_one_state_of_zeros_does_not_tie_all_recurrent_layers() -> None:
    coupling = analyse(build(STATES.replace("STATE", "zero")), shapes={"x": (5, 2, 3)}).coupling
    assert sizes(coupling) == {"w1:1.1": 4, "w2:1.1": 4}
    assert {node.op_type for node in coupling.graph.nodes} == {"LSTM", "Squeeze", "MatMul"}
    keep = {group.dim: np.arange(4) < 2 + i for i, group in enumerate(coupling.groups)}
    feed = {"x": np.random.default_rng(0).standard_normal((7, 3, 3)).astype(np.float32)}
    pruned = assert_pruned_equals_masked(coupling, keep, feed)
    assert [n.integer("hidden_size", 0) for n in pruned.nodes if n.op_type == "LSTM"] == [2, 3]


def test_one_state_that_is_not_zeros_ties_them() -> None:
    text = STATES.replace("STATE", "k").replace("float zero = {0}", "float[1,1,4] k")
    coupling = analyse(build(text), shapes={"x": (5, 2, 3)}).coupling
    assert sizes(coupling) == {"w1:1.1": 4}


def test_two_hundred_identities_in_a_row() -> None:
    nodes = "q1 = Identity(q) " + " ".join(f"q{i + 1} = Identity(q{i})" for i in range(1, 200))
    text = (
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] c>"
        f"{{ p = Conv(x, a) q = Relu(p) {nodes} y = Conv(q200, c) }}"
    )
    assert sizes(check(build(text))) == {"a:0": 5}


def test_layer_scale() -> None:
    text = (
        f"net {IMAGE} <float[5,3,1,1] a, float[9,5,1,1] b, float[5,9,1,1] c, float[5,1,1] gamma,"
        " float[4,5,1,1] d>"
        "{ p = Conv(x, a) q = Conv(p, b) r = Relu(q) s = Conv(r, c) t = Mul(gamma, s)"
        "  u = Add(p, t) y = Conv(u, d) }"
    )
    assert sizes(check(build(text))) == {"a:0": 5, "b:0": 9}


def test_bodies_of_if_that_hold_weights_stay_as_they_are() -> None:
    text = (
        "net (float[N,3,8,8] x, bool c) => (float[N,4,8,8] y)"
        "<float[5,3,1,1] a, float[4,5,1,1] b, float[6,3,1,1] d, float[4,6,1,1] e>"
        "{ p = Conv(x, a) q = If (c) <"
        "   then_branch = t () => (float[N,5,8,8] u) <float[5,5,1,1] w1 = {WEIGHTS}>"
        "     { u = Conv(p, w1) },"
        "   else_branch = f () => (float[N,5,8,8] v) { v = Neg(p) }>"
        "  r = Conv(q, b) s = Conv(x, d) t2 = Conv(s, e) y = Add(r, t2) }"
    ).replace("WEIGHTS", ",".join(f"{i / 25:g}" for i in range(25)))
    coupling = analyse(build(text)).coupling
    assert sizes(coupling) == {"d:0": 6}
    keep = {coupling.groups[0].dim: np.arange(6) < 4}
    rng = np.random.default_rng(0)
    for choice in (True, False):
        feed = {"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32), "c": np.array(choice)}
        assert_pruned_equals_masked(coupling, keep, feed)


def test_float16_weights_that_are_cast_where_they_are_used() -> None:
    rng = np.random.default_rng(0)
    half = {
        n: rng.standard_normal(s).astype(np.float16)
        for n, s in (("a", (5, 3, 1, 1)), ("b", (4, 5, 1, 1)))
    }
    text = f"net {IMAGE} {{ a32 = Cast<to=1>(a) p = Conv(x, a32) b32 = Cast<to=1>(b) y = Conv(p, b32) }}"
    coupling = check(build(text, half))
    assert sizes(coupling) == {"a:0": 5}
    assert coupling.graph.initializers["a"].dtype == np.float16


def test_a_product_with_the_weight_on_the_left_and_an_untransposed_gemm() -> None:
    text = (
        "net (float[N,6] x) => (float[N,4] y) <float[6,5] a, float[5] k, float[7,5] b, float[7,4] c>"
        "{ p = Gemm(x, a, k) q = Relu(p) t = Transpose(q) l = MatMul(b, t) r = Transpose(l)"
        "  y = Gemm(r, c) }"
    )
    assert sizes(check(build(text))) == {"a:1": 5, "b:0": 7}


def test_weights_stored_once_and_listed_as_inputs_are_overridable_and_still_prune() -> None:
    model = build(f"net {IMAGE} <{OUTER}, float[6,5,1,1] w, float[6] k> "
                  "{ p = Conv(x, a) r = Conv(p, w, k) s = Add(r, r) y = Conv(s, c) }")  # fmt: skip
    listed(model, 3)
    assert numpy_helper.to_array(model.graph.initializer[0]).size
    model.opset_import[0].version = 8
    assert sizes(check(model)) == {"a:0": 5, "w:0": 6}


def test_positions_that_a_node_picks_are_cut_with_their_units() -> None:
    text = (
        "net (float[N,3,6,6] x) => (float[N,4] y) <float[8,3,3,3] w1,"
        " float[5,8,1,1] w2, float[4,5] fc, float[4] fc_b>"
        f"{{ c1 = Conv(x, w1) p = Gather<axis=1>(c1, places) t = Tanh(p) last = Conv(t, w2) {HEAD} }}"
    )
    model = build(text, {"places": [3, 1, 0, 2, 7, 6, 5, 4]})
    result = compress(model, budget=Budget(0.7))
    assert all(check.passed for check in verify(model, result.model, result.plan))
