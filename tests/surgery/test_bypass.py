"""A graph without branches gives what the whole one gives with zeros in front of its sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import nets
from helpers import (
    analyse,
    assert_close,
    build,
    coupling_of,
    make_feed,
    random_keep,
    run_onnx,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from left_out import assert_left_out, drawn
from token_graphs import token_nets

from obc_onnx.branches.find import find_branches, stand_ins_of
from obc_onnx.errors import RequestError
from obc_onnx.surgery.bypass import bypassed
from obc_onnx.surgery.cut import Cut
from obc_onnx.surgery.gate import gated
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    import onnx

    from obc_onnx.branches.find import StandIns

BLOCK = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,4] y)
<float[6,3,3,3] a, float[8,6,3,3] b, float[6,8,3,3] c, float[6,6,3,3] d, float[6,4] e> {
  u = Conv <pads=[1,1,1,1]> (x, a)
  b1 = Conv <pads=[1,1,1,1]> (u, b)
  b2 = Relu (b1)
  w = Conv <pads=[1,1,1,1]> (b2, c)
  v = Add (u, w)
  r = Relu (v)
  z = Conv <pads=[1,1,1,1]> (r, d)
  t = Add (z, r)
  p = ReduceMean <axes=[2,3], keepdims=0> (t)
  y = MatMul (p, e)
}
"""
"""Two residual blocks: `w` may go with two convolutions, `z` with one."""


@settings(max_examples=100)
@given(model=st.one_of(nets, token_nets), seed=st.integers(0, 2**16))
def test_a_net_without_branches_and_units_equals_the_gated_and_masked_one(
    model: onnx.ModelProto, seed: int
) -> None:
    coupling, rng = analyse(model).coupling, np.random.default_rng(seed)
    branches, keep = drawn(coupling, rng), coupling.exact(random_keep(coupling, rng))
    pruned = assert_left_out(coupling, keep, branches, rng)
    cut, again = Cut.of(coupling, keep, branches), analyse(pruned).coupling
    assert cut.coupling.macs(cut.keep) == again.macs({}) < coupling.macs({})
    assert cut.coupling.params(cut.keep) == again.params({}) == pruned.params


@settings(max_examples=50)
@given(model=st.one_of(nets, token_nets), seed=st.integers(0, 2**16))
def test_what_goes_with_a_branch_is_what_was_said(model: onnx.ModelProto, seed: int) -> None:
    coupling, rng = analyse(model).coupling, np.random.default_rng(seed)
    found = find_branches(coupling)
    assume(found)
    branch = found[rng.integers(len(found))]
    left = {n.key for n in bypassed(coupling, {branch.value: branch.stand_in}).graph.nodes}
    gone = {node.key for node in coupling.graph.nodes} - left
    assert gone | {branch.value} == set(branch.nodes)


def test_the_zero_stands_in_front_of_the_sum_alone() -> None:
    """By numpy: the sum is then its other operand, and the operand itself stays what it was."""
    coupling = coupling_of(BLOCK)
    graph = gated(coupling.graph, {"v": "u"})
    oracle = Oracle(coupling, {}, make_feed(graph, np.random.default_rng(0)), {"v": "u"})
    whole = Oracle(coupling, {}, oracle.feed)
    shown = {"names": ["u", "v", "w"]}
    vars(oracle).update(shown)
    vars(whole).update(shown)
    zeroed, full = oracle.run_masked(graph), whole.run_masked(coupling.graph)
    assert_close({"v": zeroed["v"]}, {"v": zeroed["u"]}, 0)
    assert_close(full | {"v": full["u"] + full["w"]}, full, 1e-6)
    assert_close({"w": zeroed["w"]}, {"w": full["w"]}, 0)


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    model = build("""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y, float[N,2] q)
        <float[4,6] a, float[6,4] b, float[4,2] c> {
          h = MatMul (x, a)
          r = Relu (h)
          w = MatMul (r, b)
          y = Add (x, w)
          q = MatMul (y, c)
        }
    """)
    coupling, rng = analyse(model).coupling, np.random.default_rng(0)
    pruned = assert_left_out(coupling, {}, {"y": "x"}, rng)
    feed = make_feed(pruned, rng)
    assert np.array_equal(run_onnx(pruned, feed)["y"], feed["x"])
    assert [node.op_type for node in pruned.nodes] == ["Identity", "MatMul"]
    assert pruned.initializers.keys() == {"c"}
    assert_left_out(coupling, {}, {"y": "x"}, rng)


def test_one_branch_inside_of_another_goes_with_it() -> None:
    model = build("""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y)
        <float[4,4] a, float[4,4] b, float[4,4] c, float[4,4] d> {
          u = MatMul (x, a)
          h = MatMul (u, b)
          k = MatMul (h, c)
          i = Add (h, k)
          w = Relu (i)
          v = Add (u, w)
          y = MatMul (v, d)
        }
    """)
    coupling, rng = analyse(model).coupling, np.random.default_rng(0)
    known = {own.name: own.nodes for own in find_branches(coupling)}
    assert known == {
        "h as u": ("h",),
        "i without k": ("k", "i"),
        "v without w": ("h", "k", "i", "w", "v"),
    }
    for stand_ins in ({"i": "h"}, {"h": "u"}, {"v": "u"}, {"i": "h", "h": "u", "v": "u"}):
        pruned = assert_left_out(coupling, {}, stand_ins, rng)
        assert len(pruned.initializers) == (3 if "v" not in stand_ins else 2)


def test_a_sum_that_a_subgraph_reads_keeps_its_name() -> None:
    model = build("""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[N,4] x, bool p) => (float[N,4] y)
        <float[4,4] a> {
          w = MatMul (x, a)
          v = Add (x, w)
          y = If (p) <
            then_branch = t () => (float[N,4] s) { s = Neg (v) },
            else_branch = e () => (float[N,4] o) { o = Relu (v) }
          >
        }
    """)
    coupling = analyse(model).coupling
    (branch,) = find_branches(coupling)
    pruned = bypassed(coupling, {branch.value: branch.stand_in}).graph
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    assert np.array_equal(run_onnx(pruned, {"x": x, "p": np.array(True)})["y"], -x)


@pytest.mark.parametrize(
    ("sum_line", "why"),
    [
        ("v = Relu (w)", "nothing ties the axes of the two"),
        ("v = Add (w, w)", "both operands are one"),
        ("v = Add (u, k)", "an operand is constant"),
        ("v = Add (u, r)", "no weight goes with an operand"),
    ],
)
def test_what_is_no_branch(sum_line: str, why: str) -> None:
    model = build(f"""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y)
        <float[4,4] a, float[4,4] b, float[4,1] c, float[4] k, float[4,4] d> {{
          u = MatMul (x, a)
          r = Relu (u)
          w = MatMul (u, b)
          f = MatMul (u, c)
          {sum_line}
          y = MatMul (v, d)
        }}
    """)
    assert not find_branches(analyse(model).coupling), why


@pytest.mark.parametrize(
    ("branches", "said"),
    [
        ({"v": "u"}, "takes 'u' out of sum 'v', which can do without 'w' alone"),
        ({"y": "p"}, "takes 'p' out of 'y', but this model has no sum of that name"),
        ({"gone": "w"}, "takes 'w' out of 'gone', but this model has no sum of that name"),
    ],
)
def test_an_operand_that_is_no_branch_is_refused(branches: StandIns, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        stand_ins_of(coupling_of(BLOCK), branches, {})


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ({"v": "w"}, "'w' cannot stand in for 'v', for which 'u' alone could"),
        ({"b2": "b1"}, "'b1' cannot stand in for 'b2', for which nothing could: `inspect` lists"),
        ({"gone": "w"}, "'w' cannot stand in for 'gone', for which nothing could"),
    ],
)
def test_a_stand_in_that_is_none_is_refused(spans: StandIns, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        bypassed(coupling_of(BLOCK), spans)
    with pytest.raises(RequestError, match=said):
        stand_ins_of(coupling_of(BLOCK), {}, spans)


def test_a_value_goes_in_one_way() -> None:
    with pytest.raises(RequestError, match="'v' among its branches and its spans: name one"):
        stand_ins_of(coupling_of(BLOCK), {"v": "w"}, {"v": "u"})
