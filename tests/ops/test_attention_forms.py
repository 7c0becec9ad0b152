"""Forms of attention that the conformance table cannot hold.

ONNX Runtime does not load the newest opsets, so onnx's own evaluator runs them; and its CPU
provider refuses some forms of its own operators, whose shapes are written down here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from gradients import brute_force
from helpers import (
    Analysed,
    analyse,
    assert_close,
    build,
    make_feed,
    random_keep,
    run_twin,
)
from nets import error_of, sine_loss
from onnx.reference import ReferenceEvaluator
from ops import (
    cases_contrib_attention,
    cases_fused,
    cases_grouped_attention,
    cases_stateful,
)

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.inference import find_coupling
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.saliency.taps import Taps
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ops.cases import Case

NEWEST = onnx.defs.onnx_opset_version()
ORT = "com.microsoft"
ROUNDING = 1e-3
"""Of scores in float32, relative to the largest."""
PROJECT = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
FOUR = "float[3,24] wq, float[3,24] wk, float[3,20] wv, float[20,2] w"
CALLS = {
    "SwiGLU": (
        "a = MatMul(x, wa) b = MatMul(x, wb) c = SwiGLU<alpha=1.3>(a, b) y = MatMul(c, w)",
        "float[3,8] wa, float[3,8] wb, float[8,2] w",
        [8],
    ),
    "CausalConvWithState": (
        (
            "a = MatMul(x, wa) b = Transpose<perm=[0,2,1]>(a)"
            ' c, s = CausalConvWithState<activation="silu">(b, f, g)'
            " d = Transpose<perm=[0,2,1]>(c) y = MatMul(d, w)"
        ),
        "float[3,8] wa, float[8,1,3] f, float[8] g, float[8,2] w",
        [8],
    ),
    "LinearAttention": (
        (
            f"{PROJECT} d = MatMul(x, wd) r = MatMul(x, wr)"
            " c, s = LinearAttention<q_num_heads=4, kv_num_heads=4>(q, k, v, , d, r)"
            " y = MatMul(c, w)"
        ),
        f"{FOUR}, float[3,24] wd, float[3,4] wr",
        [4, 5, 6],
    ),
    "Attention": (
        (
            f"{PROJECT} c = Attention<q_num_heads=4, kv_num_heads=4, left_window_size=1,"
            " right_window_size=2>(q, k, v) y = MatMul(c, w)"
        ),
        FOUR,
        [4, 5, 6],
    ),
}
"""For each operator the nodes between weights, the weights, and the sizes of the groups."""
each_newest = pytest.mark.parametrize("op_type", CALLS)


def newest(op_type: str) -> Analysed:
    text, weights, _ = CALLS[op_type]
    return analyse(
        build(f"net (float[N,5,3] x) => (float[N,5,2] y) <{weights}> {{ {text} }}", opset=NEWEST)
    )


def evaluate(graph: Graph, feed: dict[str, NDArray]) -> dict[str, NDArray]:
    (y,) = ReferenceEvaluator(graph.to_model()).run(None, feed)
    return {"y": y}


@each_newest
def test_a_pruned_model_equals_the_masked_model(op_type: str, rng: np.random.Generator) -> None:
    graph, _, coupling = newest(op_type)
    assert sorted(group.size for group in coupling.groups) == CALLS[op_type][2]
    feed = make_feed(graph, rng)
    keep = random_keep(coupling, rng)
    pruned = evaluate(remove_units(coupling, keep), feed)
    assert_close(pruned, evaluate(mask_reads(coupling, keep), feed))


@each_newest
def test_the_twin_equals_the_evaluator(op_type: str, rng: np.random.Generator) -> None:
    graph, shapes, _ = newest(op_type)
    feed = make_feed(graph, rng)
    assert_close(run_twin(graph, shapes, feed), evaluate(graph, feed))


def known(text: str, weights: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> Analysed:
    """Analyse a model with shapes that are known beforehand, by name of a value."""
    model = build(f"net (float[2,5,3] x) => (float[2,5,2] y) <{weights}> {{ {text} }}", **options)
    values = [onnx.helper.make_tensor_value_info(n, 1, shape) for n, shape in shapes.items()]
    model.graph.value_info.extend(values)
    graph = Graph.from_model(model)
    found = {name: array.shape for name, array in graph.initializers.items()} | shapes
    found |= {port.name: port.shape for port in (*graph.inputs, *graph.outputs)}
    return Analysed(graph, found, find_coupling(graph, found, DEFAULT_RULES))


ROW = (2, 5, 24)
MAPS = (2, 4, 5, 6)
MANY = "com.microsoft.MultiHeadAttention<num_heads=4>"


def test_the_scores_of_many_heads(rng: np.random.Generator) -> None:
    """ONNX Runtime cannot tell their type, so torch has to do."""
    graph, shapes, coupling = known(
        f"{PROJECT} a, b, c, s = {MANY}(q, k, v) d = MatMul(s, ws)"
        " e = Transpose<perm=[0,2,1,3]>(d) f = Reshape(e, to) y = MatMul(f, wy)",
        "float[3,24] wq, float[3,24] wk, float[3,24] wv, float[5,6] ws, float[24,2] wy",
        {
            **dict.fromkeys("qkvaf", ROW),
            **dict.fromkeys("bcd", MAPS),
            "s": (2, 4, 5, 5),
            "e": (2, 5, 4, 6),
        },
        constants={"to": [0, 0, -1]},
        domain=ORT,
    )
    assert [group.size for group in coupling.groups] == [4, 6, 6, 6]
    feed, keep = make_feed(graph, rng), random_keep(coupling, rng)
    pruned, masked = remove_units(coupling, keep), mask_reads(coupling, keep)
    found, expected = (
        run_twin(g, {**shapes, **{n: a.shape for n, a in g.initializers.items()}}, feed)
        for g in (pruned, masked)
    )
    assert_close(found, expected)


REFUSED = {
    "queries, keys and values in one": (
        f"q = MatMul(x, w) p = Reshape(q, five) a = {MANY}(p) y = MatMul(a, wy)",
        "float[3,72] w, float[24,2] wy",
        {"q": (2, 5, 72), "p": (2, 5, 4, 3, 6), "a": ROW},
        ORT,
    ),
    "a cache of a fixed size": (
        (
            "a, c = com.microsoft.Attention<num_heads=4, past_present_share_buffer=1>"
            "(x, w, b, , past) y = MatMul(a, wy)"
        ),
        "float[3,72] w, float[72] b, float[2,2,4,9,6] past, float[24,2] wy",
        {"a": ROW, "c": (2, 2, 4, 9, 6)},
        ORT,
    ),
    "rotated inside": (
        "a = com.microsoft.Attention<num_heads=4, do_rotary=1>(x, w, b) y = MatMul(a, wy)",
        "float[3,72] w, float[72] b, float[24,2] wy",
        {"a": ROW},
        ORT,
    ),
    "normalised inside": (
        (
            "q = MatMul(x, w) a = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=1>"
            "(q, , , , , n, t, , , , , , , , s, s) y = MatMul(a, wy)"
        ),
        "float[3,32] w, float[8] s, float[16,2] wy",
        {"q": (2, 5, 32), "a": (2, 5, 16)},
        ORT,
    ),
    "states of several positions": (
        (
            "q = MatMul(x, w) a, s = com.microsoft.LinearAttention"
            '<q_num_heads=4, kv_num_heads=4, state_window=2, update_rule="linear">(q, q, q)'
            " y = MatMul(a, wy)"
        ),
        "float[3,24] w, float[24,2] wy",
        {"q": ROW, "a": ROW, "s": (2, 2, 4, 6, 6)},
        ORT,
    ),
    "scores changed by a subgraph": (
        (
            "q = MatMul(x, w) p = Reshape(q, four) h = Transpose<perm=[0,2,1,3]>(p)"
            " a = ai.onnx.preview.FlexAttention(h, h, h) b = Transpose<perm=[0,2,1,3]>(a)"
            " c = Reshape(b, three) y = MatMul(c, wy)"
        ),
        "float[3,24] w, float[24,2] wy",
        {"q": ROW, "p": (2, 5, 4, 6), "h": MAPS, "a": MAPS, "b": (2, 5, 4, 6), "c": ROW},
        "ai.onnx.preview",
    ),
}
NUMBERS = {
    "five": [0, 0, 4, 3, 6],
    "four": [0, 0, 4, 6],
    "three": [0, 0, -1],
    "n": np.array([4, 4], np.int32),
    "t": np.array(5, np.int32),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_form_without_a_rule_is_frozen_and_has_no_twin(form: str) -> None:
    text, weights, shapes, domain = REFUSED[form]
    graph, shapes, coupling = known(text, weights, shapes, constants=NUMBERS, domain=domain)
    assert not coupling.groups
    assert not coupling.unknown
    reasons = " ".join(frozen.reason for frozen in coupling.frozen)
    assert "a form without a rule of" in reasons or "that a subgraph may change of" in reasons
    with pytest.raises(UnsupportedOperatorError):
        build_twin(graph, shapes, DEFAULT_RULES)


def test_scores_that_grouped_attention_gives_have_no_twin() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(cases_grouped_attention.CASES[0].model)
    (node,) = (node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    graph, shapes, _ = analyse(model)
    assert build_twin(graph, shapes, DEFAULT_RULES)
    node.output[:] = [node.output[0], "keys", "values", "scores"]
    graph, shapes, _ = analyse(model)
    with pytest.raises(UnsupportedOperatorError, match="GroupQueryAttention"):
        build_twin(graph, shapes, DEFAULT_RULES)


UNSEEN = {
    "computed_weights",
    "mask_of_weights",
    "present",
    "present_keys",
    "short",
    "state",
}
"""Rows with weights that no gradient reaches, or that are not parameters."""
HIDING = tuple(
    case
    for case in (
        *cases_fused.CASES,
        *cases_contrib_attention.CASES,
        *cases_grouped_attention.CASES,
        *cases_stateful.CASES,
    )
    if case.domain == ORT and case.batch is None and case.has_twin and case.name not in UNSEEN
)


@pytest.mark.parametrize("case", HIDING, ids=lambda case: case.id)
def test_weights_are_scored_where_an_operator_hides_what_they_make(
    case: Case, rng: np.random.Generator
) -> None:
    graph, shapes, coupling = case.analysed
    inputs = [torch.from_numpy(make_feed(graph, rng, 1)[port.name]) for port in graph.inputs]
    rows = Taps(build_twin(graph, shapes, DEFAULT_RULES), coupling).rows(inputs, sine_loss)
    expected = brute_force(case.analysed, inputs, sine_loss)
    scored = {(name, dim) for (name, _), dim in rows}
    free = {group.dim for group in coupling.groups}
    wanted = {
        (name, dim)
        for name in case.weights
        if name.startswith("W")
        for axis in coupling.axes[name]
        for dim in free.intersection(leaves(axis))
    }
    assert wanted <= scored
    for key, row in rows.items():
        assert error_of(row, expected[key]) < ROUNDING, key
