"""Named topologies, with the groups that must come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import analyse, build, coupling_of, make_feed, run_onnx
from small import TWO_CONVS

from obc_onnx.axes.expressions import Dim, Joined, Product, describe, leaves
from obc_onnx.run.inspection import inspect
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling

IMAGE = "(float[N,3,8,8] x) => (float[N,4,H,W] y)"
VECTOR = "(float[N,3,8,8] x) => (float[N,M] y)"


def sizes(coupling: Coupling) -> dict[str, int]:
    return {group.name: group.size for group in coupling.groups}


def places(coupling: Coupling, name: str) -> set[tuple[str, int, str]]:
    """List (operand, axis, role) of a group's members."""
    return {
        (role.node.inputs[role.slot], role.axis, role.kind)
        for role in coupling.by_name[name].members
    }


def reason(coupling: Coupling, where: str) -> str:
    return next(frozen.reason for frozen in coupling.frozen if frozen.where == where)


def test_a_chain_has_one_group_for_each_inner_layer() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,3,3] a, float[5] bias, float[6,5,1,1] b, float[4,6,1,1] c>"
        "{ p = Conv(x, a, bias) q = Relu(p) r = Conv(q, b) y = Conv(r, c) }"
    )
    assert sizes(coupling) == {"a:0": 5, "b:0": 6}
    assert places(coupling, "a:0") == {("a", 0, "writes"), ("b", 1, "reads")}
    assert places(coupling, "b:0") == {("b", 0, "writes"), ("c", 1, "reads")}
    assert coupling.axes["bias"] == coupling.axes["p"][1:2] == coupling.axes["q"][1:2]
    assert {frozen.where for frozen in coupling.frozen} == {"a:1", "c:0"}


def test_a_residual_stream_is_one_group() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[6,3,1,1] a, float[5,6,1,1] b, float[6,5,1,1] c, float[4,6,1,1] d>"
        "{ p = Conv(x, a) q = Conv(p, b) r = Conv(q, c) s = Add(r, p) y = Conv(s, d) }"
    )
    assert sizes(coupling) == {"a:0": 6, "b:0": 5}
    assert places(coupling, "a:0") == {
        ("a", 0, "writes"),
        ("b", 1, "reads"),
        ("c", 0, "writes"),
        ("d", 1, "reads"),
    }


def test_a_tensor_joined_with_itself_is_one_group_read_twice() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,10,1,1] b>"
        "{ p = Conv(x, a) q = Concat<axis=1>(p, p) y = Conv(q, b) }"
    )
    assert sizes(coupling) == {"a:0": 5}
    dim = coupling.groups[0].dim
    assert coupling.axes["b"][1] == Joined((dim, dim))


def test_squeeze_and_excite_ties_the_gate_to_the_map() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[6,3,1,1] a, float[2,6,1,1] b, float[6,2,1,1] c, float[4,6,1,1] d>"
        "{ p = Conv(x, a) g = GlobalAveragePool(p) h = Conv(g, b) r = Relu(h) e = Conv(r, c)"
        "  s = Sigmoid(e) m = Mul(p, s) y = Conv(m, d) }"
    )
    assert sizes(coupling) == {"a:0": 6, "b:0": 2}
    assert ("c", 0, "writes") in places(coupling, "a:0")


SHUFFLE = (
    f"net {IMAGE} <float[6,3,1,1] a, float[4,6,1,1] b, int64[5] to = {{0,2,3,8,8}},"
    " int64[4] back = {0,-1,8,8}>"
    "{ p = Conv(x, a) q = Reshape(p, to) r = Transpose<perm=[0,2,1,3,4]>(q)"
    "  s = Reshape(r, back) y = Conv(s, b) }"
)


def test_a_channel_shuffle_makes_a_product_whose_factors_swap() -> None:
    coupling = coupling_of(SHUFFLE)
    assert sizes(coupling) == {"a:0.0": 2, "a:0.1": 3}
    blocks, inner = (group.dim for group in coupling.groups)
    assert coupling.axes["a"][0] == Product((blocks, inner), 6)
    assert coupling.axes["b"][1] == Product((inner, blocks), 6)


CROSSING = (
    "net (float[N,3,8,8] x) => (float[N,4,H,W] y)"
    "<float[3,3,1,1] a, float[3,3,1,1] b, float[4,3,1,1] c,"
    " int64[5] to = {0,2,3,8,8}, int64[4] back = {0,6,8,8}, int64[2] k = {3,3}>"
    "{ p = Conv(x, a) q = Conv(x, b) j = Concat<axis=1>(p, q) r = Reshape(j, to)"
    "  s = Transpose<perm=[0,2,1,3,4]>(r) t = Reshape(s, back) u, v = Split<axis=1>(t, k)"
    "  w = Concat<axis=1>(v, u) z = Slice(w, n0, n3, n1) y = Conv(z, c) }"
)


def test_a_shuffle_and_a_split_that_cross_tie_positions() -> None:
    coupling = coupling_of(CROSSING, {"n0": [0], "n3": [3], "n1": [1]})
    (group,) = coupling.groups
    assert group.size == 3
    kept = np.array([True, False, True])
    pruned = remove_units(coupling, {group.dim: kept})
    feed = make_feed(pruned, np.random.default_rng(0))
    masked = mask_reads(coupling, {group.dim: kept})
    np.testing.assert_allclose(
        *(run_onnx(g, feed)["y"] for g in (pruned, masked)), rtol=1e-4, atol=1e-5
    )


def test_a_shuffle_whose_factors_are_both_free_cannot_be_split_across_and_is_frozen() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[6,3,1,1] a, float[4,3,1,1] b, int64[5] to = {{0,2,3,8,8}},"
        " int64[4] back = {0,6,8,8}, int64[2] k = {3,3}>"
        "{ p = Conv(x, a) q = Reshape(p, to) r = Transpose<perm=[0,2,1,3,4]>(q)"
        "  s = Reshape(r, back) t, u = Split<axis=1>(s, k) v = Add(t, u) y = Conv(v, b) }"
    )
    assert not coupling.groups
    assert "cannot be aligned" in reason(coupling, "a:0.1")


def test_depthwise_with_a_multiplier_keeps_whole_blocks_or_whole_copies() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[15,1,3,3] b, float[4,15,1,1] c>"
        "{ p = Conv(x, a) q = Conv<group=5>(p, b) y = Conv(q, c) }"
    )
    assert sizes(coupling) == {"a:0": 5, "b:0.1": 3}
    block, copies = (group.dim for group in coupling.groups)
    assert coupling.axes["b"][0] == coupling.axes["c"][1] == Product((block, copies), 15)


def test_a_grouped_convolution_can_lose_blocks_and_channels_of_each_block() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[6,3,1,1] a, float[8,3,3,3] b, float[4,8,1,1] c>"
        "{ p = Conv(x, a) q = Conv<group=2>(p, b) y = Conv(q, c) }"
    )
    assert sizes(coupling) == {"a:0.0": 2, "a:0.1": 3, "b:0.1": 4}
    block, read, written = (group.dim for group in coupling.groups)
    assert coupling.axes["a"][0] == Product((block, read), 6)
    assert coupling.axes["b"][:2] == (Product((block, written), 8), read)


def test_a_shared_weight_ties_what_it_reads_to_what_it_writes() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[5,5,1,1] b, float[4,5,1,1] c>"
        "{ p = Conv(x, a) q = Conv(p, b) r = Relu(q) s = Conv(r, b) y = Conv(s, c) }"
    )
    assert sizes(coupling) == {"a:0": 5}
    assert coupling.axes["b"][0] is coupling.axes["b"][1]


def test_both_outputs_are_frozen() -> None:
    coupling = coupling_of(
        "net (float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,4,8,8] z)"
        "<float[5,3,1,1] a, float[4,5,1,1] b> { y = Conv(x, a) z = Conv(y, b) }"
    )
    assert not coupling.groups
    assert reason(coupling, "a:0") == "graph output 'y'"
    assert reason(coupling, "b:0") == "graph output 'z'"


def test_a_dead_branch_does_not_hold_the_living_one() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[7,5,1,1] dead, float[4,5,1,1] b>"
        "{ p = Conv(x, a) q = Conv(p, dead) r = Relu(q) y = Conv(p, b) }"
    )
    assert sizes(coupling) == {"a:0": 5, "dead:0": 7}


SHORTCUT = (
    "net (float[N,3,8,8] x) => (float[N,4,H,W] y)"
    "<float[4,3,1,1] a, float[9,4,3,3] b, float[4,9,1,1] c,"
    " int64[2] from = {0,0}, int64[2] end = {99,99}, int64[2] at = {2,3}, int64[2] by = {2,2},"
    " int64[8] pads = {0,2,0,0,0,3,0,0}>"
    "{ p = Conv(x, a) q = Conv<strides=[2,2], pads=[1,1,1,1]>(p, b) s = Slice(p, from, end, at, by)"
    "  t = Pad(s, pads) u = Add(q, t) y = Conv(u, c) }"
)


def test_the_padding_of_a_shortcut_is_prunable_on_its_own() -> None:
    coupling = coupling_of(SHORTCUT)
    assert sizes(coupling) == {"a:0": 4, "b:0.0": 2, "b:0.2": 3}
    before, after = coupling.by_name["b:0.0"].dim, coupling.by_name["b:0.2"].dim
    stream = coupling.by_name["a:0"].dim
    assert coupling.axes["c"][1] == Joined((before, stream, after))


def test_the_amounts_of_a_pad_follow_what_is_kept() -> None:
    coupling = coupling_of(SHORTCUT)
    before, after = coupling.by_name["b:0.0"].dim, coupling.by_name["b:0.2"].dim
    keep = {before: np.array([False, True]), after: np.array([True, False, False])}
    pruned = remove_units(coupling, keep)
    assert pruned.initializers["pads"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert pruned.initializers["b"].shape[0] == 1 + 4 + 1


def test_flatten_keeps_all_positions_of_a_channel() -> None:
    coupling = coupling_of(
        f"net {VECTOR} <float[5,3,1,1] a, float[7,320] b>"
        "{ p = Conv(x, a) q = Flatten(p) y = Gemm<transB=1>(q, b) }"
    )
    assert sizes(coupling) == {"a:0": 5}
    channels = coupling.groups[0].dim
    factors = list(leaves(coupling.axes["b"][1]))
    assert factors[0] is channels
    assert np.prod([dim.size for dim in factors[1:]]) == 8 * 8
    names = {channels: "channels"}
    assert describe(coupling.axes["b"][1], names) == "channels(5) x 8 x 8"


def test_an_unknown_operator_freezes_and_says_which_node() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] b>"
        "{ p = Conv(x, a) [odd] q = com.microsoft.SampleOp(p) y = Conv(q, b) }"
    )
    assert not coupling.groups
    assert coupling.unknown == ("SampleOp 'odd'",)
    assert reason(coupling, "a:0") == "SampleOp 'odd': operator 'SampleOp' has no rule"
    assert reason(coupling, "b:1") == reason(coupling, "a:0")


def test_what_a_subgraph_captures_is_frozen() -> None:
    coupling = coupling_of(
        "net (float[N,3,8,8] x, bool c) => (float[N,4,8,8] y)"
        "<float[5,3,1,1] a, float[4,5,1,1] b, float[6,3,1,1] d, float[4,6,1,1] e>"
        "{ p = Conv(x, a) q = If (c) <then_branch = t () => (float[N,5,8,8] u) { u = Relu(p) },"
        " else_branch = f () => (float[N,5,8,8] v) { v = Neg(p) }>"
        "  r = Conv(q, b) s = Conv(x, d) t2 = Conv(s, e) y = Add(r, t2) }"
    )
    assert sizes(coupling) == {"d:0": 6}
    assert "If 'q'" in reason(coupling, "a:0")


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_the_axis_of_a_softmax_is_frozen(op_type: str) -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] b>"
        f"{{ p = Conv(x, a) [soft] q = {op_type}<axis=1>(p) y = Conv(q, b) }}"
    )
    assert not coupling.groups
    assert reason(coupling, "a:0") == f"the normalised axis of {op_type} 'soft'"


def test_the_other_axes_of_a_softmax_are_free() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] b>"
        "{ p = Conv(x, a) q = Softmax<axis=3>(p) y = Conv(q, b) }"
    )
    assert sizes(coupling) == {"a:0": 5}


def test_a_mean_over_channels_is_inexact() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[4,5,1,1] b>"
        "{ p = Conv(x, a) [centre] m = ReduceMean<axes=[1]>(p) q = Sub(p, m) y = Conv(q, b) }"
    )
    assert sizes(coupling) == {"a:0": 5}
    assert coupling.groups[0].inexact == "mean in ReduceMean 'centre'"


def test_positions_of_maxima_freeze_the_channels_they_count() -> None:
    coupling = coupling_of(
        "net (float[N,3,8,8] x) => (float[N,4,4,4] y, int64[N,5,4,4] i)"
        "<float[5,3,1,1] a, float[4,5,1,1] b> { p = Conv(x, a)"
        "  q, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(p) y = Conv(q, b) }"
    )
    assert not coupling.groups


def test_the_bias_of_a_product_lies_along_its_last_axis() -> None:
    coupling = coupling_of(
        "net (float[2,6] x) => (float[3,2] y) <float[5,6] w, float[2] c, float[3,5] v>"
        "{ h = Gemm<transB=1>(w, x, c) y = MatMul(v, h) }"
    )
    (writer,) = [role for role in coupling.groups[0].members if role.kind == "writes"]
    assert writer.node.inputs[writer.slot] == "w"
    assert writer.bias is None


def test_masking_a_contraction_of_computed_values_multiplies_one_of_them() -> None:
    model = build(
        "net (float[2,6] x) => (float[2,2] y) <float[6,5] a, float[6,5] b>"
        "{ p = MatMul(x, a) q = MatMul(x, b) y = Gemm<transB=1>(p, q) }"
    )
    coupling = analyse(model).coupling
    assert sizes(coupling) == {"a:1": 5}
    keep = {coupling.groups[0].dim: np.array([True, False, True, True, False])}
    masked = mask_reads(coupling, keep)
    assert [node.op_type for node in masked.nodes].count("Mul") == 1
    feed = make_feed(masked, np.random.default_rng(0))
    (y,) = run_onnx(masked, feed).values()
    weights = {name: masked.initializers[name][:, [0, 2, 3]] for name in "ab"}
    expected = (feed["x"] @ weights["a"]) @ (feed["x"] @ weights["b"]).T
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_macs_are_of_one_sample_whatever_the_batch() -> None:
    text = f"net {IMAGE} <float[5,3,3,3] a, float[4,5,1,1] b> {{ p = Conv(x, a) y = Conv(p, b) }}"
    expected = 6 * 6 * (5 * 3 * 9 + 4 * 5)
    assert coupling_of(text).macs({}) == expected
    assert analyse(build(text), batch=7).coupling.macs({}) == expected
    assert coupling_of(text.replace("N,3", "1,3")).macs({}) == expected


def test_nodes_are_costed_by_the_dims_they_meet() -> None:
    coupling = coupling_of(
        f"net {IMAGE} <float[5,3,1,1] a, float[6,5,1,1] b, float[4,6,1,1] c>"
        "{ p = Conv(x, a) q = Conv(p, b) y = Conv(q, c) }"
    )
    first = coupling.by_name["a:0"].dim
    assert isinstance(first, Dim)
    assert [node.key for node in coupling.costed_by_dim[first]] == ["p", "q"]


def test_an_analysis_leaves_the_model_as_it_is() -> None:
    model = build(SHUFFLE)
    before = onnx.ModelProto.FromString(model.SerializeToString())
    analyse(model)
    assert model == before


def test_macs_of_one_sample_are_counted_behind_operators_without_a_rule() -> None:
    """A constant of unknown layout takes part in the batch, so its axes cannot be followed."""
    text = (
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[6,3,1,1] a, float[4,6,1,1] b>"
        "{ p = Conv(x, a) s = Shape(p) z = ConstantOfShape(s) q = Add(z, p) l = com.microsoft.SampleOp(q)"
        "  y = Conv(l, b) }"
    )
    inspection = inspect(build(text))
    assert inspection.unknown
    assert inspection.macs == 8 * 8 * (3 * 6 + 6 * 4)


def test_a_sequence_output_freezes_what_goes_into_it() -> None:
    text = TWO_CONVS.replace("(float[N,4,8,8] y)", "(float[N,4,8,8] y, seq(float[N,5,8,8]) z)")
    coupling = analyse(build(text.replace("y =", "z = SequenceConstruct(p) y ="))).coupling
    assert [group for group in coupling.groups if group.size == 5] == []
