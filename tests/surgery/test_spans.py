"""Spans: what lies between two values of equal axes that no sum joins, such as a convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, assert_close, build, coupling_of, make_feed, random_keep, run_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from left_out import assert_left_out, drawn

from obc_onnx.branches.find import find_branches
from obc_onnx.surgery.bypass import bypassed
from obc_onnx.surgery.gate import gated

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from obc_onnx.coupling.model import Coupling

WIDTH = 6
LAYERS = {
    "convolution": "{y} = Conv<pads=[1,1,1,1]>({x}, {k})",
    "behind a norm": "{y}n = BatchNormalization({x}, {s}, {b}, {m}, {var}) {y}r = Relu({y}n)"
    " {y} = Conv<pads=[1,1,1,1]>({y}r, {k})",
    "in front of one": "{y}c = Conv<pads=[1,1,1,1]>({x}, {k})"
    " {y}n = BatchNormalization({y}c, {s}, {b}, {m}, {var}) {y} = Relu({y}n)",
    "excitation": "{y}p = GlobalAveragePool({x}) {y}c = Conv({y}p, {one}) {y}s = Sigmoid({y}c)"
    " {y} = Mul({x}, {y}s)",
    "gate": "{y}c = Conv({x}, {one}) {y}s = Sigmoid({y}c) {y} = Mul({y}s, {x})",
    "depthwise": f"{{y}} = Conv<group={WIDTH}, pads=[1,1,1,1]>({{x}}, {{deep}})",
    "branch": "{y}c = Conv<pads=[1,1,1,1]>({x}, {k}) {y}r = Relu({y}c) {y} = Add({y}r, {x})",
    "activation": "{y} = Tanh({x})",
}
"""Layers of a stream: `{x}` is what comes, `{y}` what goes on."""
SHAPES = {
    "k": f"{WIDTH},{WIDTH},3,3",
    "one": f"{WIDTH},{WIDTH},1,1",
    "deep": f"{WIDTH},1,3,3",
    **dict.fromkeys(("s", "b", "m", "var"), str(WIDTH)),
}
CHAIN = ("convolution", "behind a norm", "in front of one", "excitation", "gate", "depthwise")


def stream(layers: Sequence[str], *, tied: bool = True, seed: int = 0) -> onnx.ModelProto:
    """Build a chain of layers; where they are `tied`, the head reads the sum of what all give."""
    weights = {"stem": f"{WIDTH},3,3,3", "head": f"{WIDTH},4"}
    lines, total = [], "x0"
    for i, kind in enumerate(layers):
        own = {key: f"{key}{i}_" for key in SHAPES if f"{{{key}}}" in LAYERS[kind]}
        weights |= {own[key]: SHAPES[key] for key in own}
        lines.append(LAYERS[kind].format(x=f"x{i}", y=f"x{i + 1}", **own))
        if tied:
            lines.append(f"t{i + 1} = Add({total}, x{i + 1})")
            total = f"t{i + 1}"
    last = total if tied else f"x{len(layers)}"
    declared = ", ".join(f"float[{shape}] {name}" for name, shape in weights.items())
    return build(
        f"""g (float[N,3,8,8] x) => (float[N,4] y) <{declared}> {{
          x0 = Conv<pads=[1,1,1,1]>(x, stem) {" ".join(lines)}
          p = ReduceMean<axes=[2,3], keepdims=0>({last})
          y = MatMul(p, head)
        }}""",
        seed=seed,
    )


def spans_of(coupling: Coupling) -> dict[str, str]:
    """Return what could stand in for values, but for sums."""
    return {b.value: b.stand_in for b in find_branches(coupling) if b.operand is None}


@settings(max_examples=60)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_a_stream_without_spans_and_units_equals_the_gated_and_masked_one(
    layers: list[str], seed: int
) -> None:
    coupling, rng = analyse(stream(layers, seed=seed)).coupling, np.random.default_rng(seed)
    keep = coupling.exact(random_keep(coupling, rng))
    assert_left_out(coupling, keep, drawn(coupling, rng), rng)


def test_each_layer_of_a_stream_is_one_span_from_what_it_reads() -> None:
    """A norm behind a convolution goes with it, one in front does not; the last is of a sum."""
    coupling = analyse(stream(CHAIN)).coupling
    assert spans_of(coupling) == {
        "x1": "x0", "x2": "x2r", "x3": "x2", "x4": "x3", "x5": "x4",
    }  # fmt: skip
    nodes = {branch.value: branch.nodes for branch in find_branches(coupling)}
    assert nodes["x3"] == ("x3c", "x3n", "x3")
    assert nodes["x4"] == ("x4p", "x4c", "x4s", "x4")


def test_layers_of_equal_widths_that_nothing_ties_are_no_spans() -> None:
    """The widths of a plain chain may become different ones; a depthwise layer has but one."""
    coupling = analyse(stream(CHAIN, tied=False)).coupling
    assert spans_of(coupling) == {"x4": "x3", "x5": "x4"}


@pytest.mark.parametrize("n_layers", [8, 32])
def test_there_are_no_more_branches_than_layers(n_layers: int) -> None:
    kinds = sorted(LAYERS)
    layers = [kinds[i % len(kinds)] for i in range(n_layers)]
    found = find_branches(analyse(stream(layers)).coupling)
    assert len(found) <= 2 * n_layers  # one of a layer, and one of the sum behind it


@pytest.mark.parametrize(("joined", "how"), [("Add", "without"), ("Mul", "as")])
def test_either_of_two_operands_may_go(joined: str, how: str) -> None:
    coupling = coupling_of(f"""
        g (float[N,4] x) => (float[N,4] y)
        <float[4,6] a, float[4,6] b, float[6,4] c> {{
          p = MatMul(x, a) q = MatMul(x, b) v = {joined}(p, q) y = MatMul(v, c)
        }}
    """)
    found = {own.name: own.nodes for own in find_branches(coupling)}
    first, second = ("q", "p") if how == "without" else ("p", "q")
    assert found == {f"v {how} {first}": ("q", "v"), f"v {how} {second}": ("p", "v")}
    rng = np.random.default_rng(0)
    for stays in "pq":
        assert_left_out(coupling, random_keep(coupling, rng), {"v": stays}, rng)


def test_what_stands_in_may_go_itself() -> None:
    coupling, rng = analyse(stream(CHAIN)).coupling, np.random.default_rng(0)
    every = spans_of(coupling)
    pruned = assert_left_out(coupling, {}, every, rng)
    norm = {"s1_", "b1_", "m1_", "var1_"}
    assert pruned.initializers.keys() == {"stem", "head", "deep5_"} | norm


def test_the_mixture_is_the_stand_in_to_all_who_read_the_value() -> None:
    """By numpy; an output of the model that is such a value keeps its name."""
    model = build("""
        g (float[N,4] x) => (float[N,4] y, float[N,4] q)
        <float[4,4] a, float[4,4] b> {
          u = MatMul(x, a) h = Relu(u) m = MatMul(h, b) y = Tanh(m) q = Add(y, h)
        }
    """)
    coupling, rng = analyse(model).coupling, np.random.default_rng(0)
    assert spans_of(coupling) == {"y": "h"}
    feed = make_feed(coupling.graph, rng)
    inside = np.maximum(feed["x"] @ coupling.graph.initializers["a"], 0)
    wanted = {"y": inside, "q": 2 * inside}
    assert_close(run_onnx(gated(coupling.graph, {"y": "h"}), feed), wanted)
    assert_close(run_onnx(bypassed(coupling, {"y": "h"}).graph, feed), wanted)


def test_a_value_that_a_subgraph_reads_is_replaced_there() -> None:
    coupling = coupling_of("""
        g (float[N,4] x, bool p) => (float[N,4] y)
        <float[4,4] a> {
          w = MatMul(x, a) v = Sub(x, w)
          y = If (p) <
            then_branch = t () => (float[N,4] s) { s = Neg(v) },
            else_branch = e () => (float[N,4] o) { o = Relu(v) }
          >
        }
    """)
    assert spans_of(coupling) == {"v": "x"}
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    for graph in (bypassed(coupling, {"v": "x"}).graph, gated(coupling.graph, {"v": "x"})):
        assert np.array_equal(run_onnx(graph, {"x": x, "p": np.array(True)})["y"], -x)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("v = Mul(u, w) r = Mul(v, v)", {"r": "u"}),
        ("v = Mul(u, w) r = Relu(v)", {"r": "u"}),
        ("v = Sub(u, f) r = Relu(v)", {"r": "u"}),
        ("v = Mul(u, k) r = Relu(v)", {}),
        ("v = Add(u, w) r = Relu(v)", {}),
        ("c = Cast<to=11>(u) e = Cast<to=11>(w) v = Mul(e, c) r = Cast<to=1>(v)", {"r": "u"}),
        ("s, z = Split<axis=1>(w) v = Concat<axis=1>(s, z) r = Mul(u, v)", {"r": "u"}),
    ],
)
def test_what_is_a_span(lines: str, found: dict[str, str]) -> None:
    coupling = coupling_of(f"""
        g (float[N,4] x) => (float[N,4] y)
        <float[4,4] a, float[4,4] b, float[4,1] c0, float[4] k, float[4,4] d> {{
          u = MatMul(x, a) w = MatMul(u, b) f = MatMul(u, c0) {lines} y = MatMul(r, d)
        }}
    """)
    assert spans_of(coupling) == found


@pytest.mark.parametrize(("second", "found"), [("z", {}), ("x", {"r": "u"})])
def test_what_also_gives_another_value_that_is_read_stays(
    second: str, found: dict[str, str]
) -> None:
    coupling = coupling_of(
        f"""
        g (float[N,4] x) => (float[N,4] y, float[N,4] q)
        <float[4,4] a, float[4,4] b, float[4,4] d> {{
          u = MatMul(x, a) w = MatMul(u, b) v, z = TopK<axis=1>(w, four)
          r = Mul(v, u) y = MatMul(r, d) q = Cast<to=1>({second})
        }}
    """,
        {"four": [4]},
    )
    assert spans_of(coupling) == found
