"""A quantised network made by hand through pruning, twin and scores; what forms allow."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import (
    analyse,
    assert_close,
    assert_pruned_equals_masked,
    build,
    make_feed,
    random_keep,
    run_onnx,
    run_twin,
)
from nets import draw_samples
from onnx import TensorProto
from ops import cases_quantized_fused
from ops.exports import assert_prunes_exactly

import obc_onnx
import obc_onnx.verification.result
from obc_onnx.coupling.members import Operands
from obc_onnx.errors import VerificationError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.quantised.linear import dequantize, quantize
from obc_onnx.planning.budget import Budget
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.jacobian import accumulate
from obc_onnx.saliency.options import Scoring
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import build_twin
from obc_onnx.verification.checks import Check

if TYPE_CHECKING:
    import onnx

IMAGE = (3, 8, 8)
BY_HAND = """
net (float[N,3,8,8] x) => (float[N,4,8,8] y) {{
  qx = QuantizeLinear(x, xs, xz)
  dx = DequantizeLinear(qx, xs, xz)
  {weights}
  h = Conv<pads=[1,1,1,1]>(dx, W1, B1)
  r = Relu(h)
  qr = QuantizeLinear(r, rs, rz)
  p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(qr)
  dr = DequantizeLinear(p, rs, rz)
  y = Conv(dr, W2)
}}"""
DEQUANTISED = """
  W1 = DequantizeLinear<axis=0>(w1, s1, z1)
  B1 = DequantizeLinear<axis=0>(b1, t1)
  W2 = DequantizeLinear<axis=1>(w2, s2)
"""
RNG = np.random.default_rng(7)
STORED = {
    "w1": RNG.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
    "s1": RNG.uniform(0.001, 0.01, 8).astype(np.float32),
    "z1": RNG.integers(-9, 9, 8).astype(np.int8),
    "b1": RNG.integers(-9000, 9000, 8).astype(np.int32),
    "t1": RNG.uniform(1e-5, 1e-4, 8).astype(np.float32),
    "w2": RNG.integers(-127, 128, (4, 8, 1, 1)).astype(np.int8),
    "s2": RNG.uniform(0.001, 0.01, 8).astype(np.float32),
}
RANGES = {
    "xs": 0.0231,
    "xz": np.array(125, np.uint8),
    "rs": 0.0417,
    "rz": np.array(0, np.uint8),
}


def by_hand() -> onnx.ModelProto:
    """A network with int8 weights, an int32 bias and uint8 activations."""
    return build(BY_HAND.format(weights=DEQUANTISED), {**STORED, **RANGES})


def dequantised() -> onnx.ModelProto:
    """The same network, with the floats that its weights stand for."""
    s = STORED
    floats = {
        "W1": (s["w1"] - s["z1"].astype(np.float32)[:, None, None, None])
        * s["s1"][:, None, None, None],
        "B1": s["b1"].astype(np.float32) * s["t1"],
        "W2": s["w2"] * s["s2"][:, None, None],
    }
    return build(BY_HAND.format(weights=""), {**floats, **RANGES})


def test_a_network_quantised_by_hand_prunes_exactly() -> None:
    assert_prunes_exactly(by_hand())


def test_scales_zero_points_and_biases_follow_their_weights() -> None:
    graph, _, coupling = analyse(by_hand())
    (group,) = coupling.groups
    assert group.name == "w1:0"
    kept = np.array([0, 1, 1, 0, 1, 0, 0, 1], np.bool_)
    pruned = remove_units(coupling, {group.dim: kept})
    for name in ("w1", "s1", "z1", "b1", "t1", "s2"):
        np.testing.assert_array_equal(pruned.initializers[name], graph.initializers[name][kept])
    np.testing.assert_array_equal(pruned.initializers["w2"], graph.initializers["w2"][:, kept])
    assert {a.dtype.name for a in pruned.initializers.values()} == {
        "int8", "uint8", "int32", "float32",
    }  # fmt: skip


def test_the_size_of_a_block_is_written_anew() -> None:
    text = (
        "net (float[N,3] x) => (float[N,2] y) <float[3,8] v> {"
        " h = MatMul(x, v) W = DequantizeLinear<axis=0, block_size=4>(w, s) y = MatMul(h, W) }"
    )
    constants = {"w": STORED["w2"][:, :2, 0, 0].repeat(2, 0), "s": np.ones((2, 2), np.float32)}
    graph, _, coupling = analyse(build(text, constants, opset=21))
    blocks, block = coupling.groups
    assert (blocks.size, block.size) == (2, 4)
    feed = make_feed(graph, np.random.default_rng(0), 3)
    keep = {block.dim: np.array([1, 0, 1, 1], np.bool_)}
    pruned = assert_pruned_equals_masked(coupling, keep, feed)
    assert pruned.producers["W"].attributes["block_size"] == 3
    keep = {blocks.dim: np.array([0, 1], np.bool_)}
    pruned = assert_pruned_equals_masked(coupling, keep, feed)
    assert pruned.producers["W"].attributes["block_size"] == 4
    assert pruned.initializers["s"].shape == (1, 2)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "bn-scale"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_quantised_weight_scores_as_the_floats_that_it_stands_for(
    criterion: str, masked: bool
) -> None:
    found = []
    for model in (by_hand(), dequantised()):
        graph, _, coupling = analyse(model)
        scene = Scene(coupling, draw_samples(graph, 6))
        kept = np.array([1, 1, 0, 1, 1, 0, 1, 1], np.bool_)
        (group,) = coupling.groups
        scores = make_criterion(criterion).score(scene, {group.dim: kept} if masked else {})
        found.append(scores[group.name][kept])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert found[0].min() > 0


PRODUCT = """
net (float[N,5,3] x) => (float[N,5,2] y) <float[3,8] v, float[6,2] u> {{
  h = MatMul(x, v)
  q = QuantizeLinear(h, s, o)
  {}
  r = Relu(p)
  y = MatMul(r, u)
}}"""
AS_INTEGERS = "i = MatMulInteger(q, w, o) f = Cast<to=1>(i) p = Mul(f, both)"
AS_FLOATS = "d = DequantizeLinear(q, s, o) D = DequantizeLinear(w, t) p = MatMul(d, D)"


@pytest.mark.parametrize("zero", [0, 5])
def test_a_product_of_integers_scores_as_that_of_floats(zero: int) -> None:
    constants = {
        "s": 0.0123,
        "o": np.array(zero, np.uint8),
        "w": np.random.default_rng(0).integers(-64, 64, (8, 6)).astype(np.int8),
        "t": 0.0039,
        "both": 0.0123 * 0.0039,
    }
    found = []
    for text in (AS_INTEGERS, AS_FLOATS):
        graph, _, coupling = analyse(build(PRODUCT.format(text), constants))
        scoring = Scoring(objective="output")
        scene = Scene(coupling, draw_samples(graph, 6), scoring=scoring)
        totals = accumulate(scene, {})
        rows = {(name.replace("D", "w"), axis): row for ((name, axis), _), row in totals.items()}
        found.append({member: row.numpy() for member, row in rows.items()})
    integers, floats = found
    assert floats.keys() == {("v", 1), ("w", 0), ("w", 1), ("u", 0)}
    assert floats.keys() == integers.keys()
    for member, row in integers.items():
        np.testing.assert_allclose(row, floats[member], rtol=1e-4)


def test_scales_and_zero_points_do_not_learn() -> None:
    graph, shapes, _ = analyse(by_hand())
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    assert {name for name, _ in twin.named_parameters()} == {"w1", "b1", "w2"}
    whole = build(
        "net (float[N,4] x) => (float[N,4] y) <float[4,4] w> {"
        " q = QuantizeLinear<axis=0>(w, s) d = DequantizeLinear<axis=0>(q, s) y = MatMul(x, d) }",
        {"s": np.full(4, 0.01, np.float32)},
    )
    graph, shapes, _ = analyse(whole)
    assert [n for n, _ in build_twin(graph, shapes, DEFAULT_RULES).named_parameters()] == ["w"]


def test_a_twin_with_quantised_weights_survives_pickling() -> None:
    graph, shapes, _ = analyse(by_hand())
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    x = torch.from_numpy(make_feed(graph, np.random.default_rng(0))["x"])
    assert torch.equal(pickle.loads(pickle.dumps(twin))(x)[0], twin(x)[0])


SCALE = torch.tensor(0.5)
ROUNDING = {"axis": 1, "block_size": 0, "data_type": TensorProto.UINT8, "saturate": True}


def test_rounding_passes_the_gradient_where_nothing_saturates() -> None:
    x = torch.tensor([-9.0, -1.0, 0.25, 0.75, 120.0, 130.0, torch.inf], requires_grad=True)
    y = quantize(x, SCALE, torch.tensor(10, dtype=torch.uint8), **ROUNDING)
    assert y.tolist() == [0.0, 8.0, 10.0, 12.0, 250.0, 255.0, 255.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0]


def test_a_double_twin_quantises_in_double() -> None:
    x = torch.tensor([0.1, 0.3], dtype=torch.float64)
    whole = quantize(x, SCALE.double(), **ROUNDING)
    back = dequantize(whole, SCALE.double(), axis=1, block_size=0, data_type=0)
    assert whole.dtype == back.dtype == torch.float64


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16"])
def test_a_quantised_output_has_its_declared_type(kind: str) -> None:
    model = build(
        f"net (float[N,3] x) => ({kind}[N,4] y, float[N,4] z) <float[3,4] w> {{"
        " h = MatMul(x, w) y = QuantizeLinear(h, s, o) z = DequantizeLinear(y, s, o) }",
        {"s": 0.0123, "o": np.array(5, kind)},
        opset=21,
    )
    graph, shapes, _ = analyse(model)
    feed = make_feed(graph, np.random.default_rng(0), 3)
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


def test_a_sum_of_whole_numbers_has_its_declared_type() -> None:
    model = build(
        "net (uint8[N,3] x) => (int32[N,4] y) { y = MatMulInteger(x, w, z) }",
        {"w": STORED["w1"][:3, :1, 0, 0].repeat(4, 1) // 2, "z": np.array(9, np.uint8)},
    )
    graph, shapes, _ = analyse(model)
    feed = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


def test_a_zero_point_may_be_computed() -> None:
    model = build(
        "net (float[N,3] x, uint8 o) => (float[N,3] y) {"
        " q = QuantizeLinear(x, s, o) y = DequantizeLinear(q, s, o) }",
        {"s": 0.0123},
    )
    graph, shapes, _ = analyse(model, shapes={"x": (2, 3), "o": ()})
    feed = {"x": make_feed(graph, np.random.default_rng(0), 3)["x"], "o": np.array(7, np.uint8)}
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


@pytest.mark.parametrize(("zero_of_a", "zero_of_b", "sizes"), [(0, 3, [8]), (3, 0, []), (3, 3, [])])
def test_a_pair_of_computed_factors_is_masked_where_the_first_stores_0_as_0(
    zero_of_a: int, zero_of_b: int, sizes: list[int]
) -> None:
    text = (
        "net (float[N,5,3] x, float[N,3,7] z) => (float[N,5,7] y) <float[3,8] v, float[8,3] u> {"
        " a = MatMul(x, v) qa = QuantizeLinear(a, s, o) b = MatMul(u, z)"
        " qb = QuantizeLinear(b, s, p) i = MatMulInteger(qa, qb, o, p) y = Cast<to=1>(i) }"
    )
    zeros = {"o": np.array(zero_of_a, np.uint8), "p": np.array(zero_of_b, np.uint8)}
    graph, _, coupling = analyse(build(text, {"s": 0.0123, **zeros}))
    assert [group.size for group in coupling.groups] == sizes
    if sizes:
        rng = np.random.default_rng(0)
        keep = random_keep(coupling, rng)
        assert_pruned_equals_masked(coupling, keep, make_feed(graph, rng, 2))
        assert "Mul" in {node.op_type for node in mask_reads(coupling, keep).nodes}


@pytest.mark.parametrize(
    ("zero_of_x", "zero_of_w", "sizes"), [(3, 0, [8]), (0, 3, [8]), (3, 3, [])]
)
def test_what_weights_read_may_go_where_either_factor_stores_0_as_0(
    zero_of_x: int, zero_of_w: int, sizes: list[int]
) -> None:
    text = (
        "net (float[N,3] x) => (float[N,4] y) <float[3,8] v> { h = MatMul(x, v)"
        " q = QuantizeLinear(h, s, o) i = MatMulInteger(q, w, o, p) y = Cast<to=1>(i) }"
    )
    zeros = {"o": np.array(zero_of_x, np.uint8), "p": np.array(zero_of_w, np.uint8)}
    w = np.random.default_rng(0).integers(0, 256, (8, 4)).astype(np.uint8)
    coupling = analyse(build(text, {"s": 0.0123, "w": w, **zeros})).coupling
    assert [group.size for group in coupling.groups] == sizes


@pytest.mark.parametrize(
    ("kind", "text", "beside"),
    [
        ("uint8", "QLinearMatMul(q, s, z, w, t, o, t, o)", ("s", "z")),
        ("int32", "MatMulInteger(q, w, z)", ("z",)),
    ],
)
def test_numbers_of_rows_lie_along_rows(kind: str, text: str, beside: tuple[str, ...]) -> None:
    """ONNX has this form, and ONNX Runtime cannot run it."""
    constants = {
        "s": np.full(8, 0.01, np.float32),
        "z": np.zeros(8, np.uint8),
        "w": np.ones((4, 5), np.uint8),
        "t": 0.01,
        "o": np.array(0, np.uint8),
    }
    model = build(f"net (uint8[8,4] q) => ({kind}[8,5] y) {{ y = {text} }}", constants)
    axes = analyse(model).coupling.axes
    assert all(axes[name] == axes["q"][:1] for name in beside)


def test_zero_points_of_filters_lie_along_filters() -> None:
    """ONNX has this form, and ONNX Runtime cannot run it."""
    text = "net (uint8[1,3,5,5] x) => (int32[1,8,3,3] y) { y = ConvInteger(x, w, z, p) }"
    zeros = {"z": np.array(0, np.uint8), "p": np.zeros(8, np.int8)}
    axes = analyse(build(text, {"w": STORED["w1"], **zeros})).coupling.axes
    assert axes["p"] == axes["w"][:1]


def test_whole_layers_are_counted_by_hand() -> None:
    found = {case.id: case.analysed.coupling.macs({}) for case in cases_quantized_fused.CASES}
    inside, outside = 5 * 6 * 24 + 2 * 5 * 5 * 8, 5 * 3 * 6 + 5 * 8 * 3
    assert found["com.microsoft.QAttention-plain"] == inside + outside
    with_past = 5 * 6 * 24 + 2 * 5 * (5 + 3) * 8
    assert found["com.microsoft.QAttention-past"] == 2 * (with_past + outside)
    assert found["com.microsoft.DynamicQuantizeLSTM-tensor"] == 5 * ((6 + 4) * 16 + 3 * 6 + 4 * 3)


def test_a_quantised_network_is_compressed_and_verified() -> None:
    model = by_hand()
    samples = draw_samples(analyse(model).graph, 32)
    for options in ({"criterion": "l2"}, {"data": samples}):
        result = obc_onnx.compress(
            model, budget=Budget(0.6), input_shape={"x": (2, *IMAGE)}, **options
        )
        assert result.report.macs.after <= 0.6 * result.report.macs.before
        assert {t.data_type for t in result.model.graph.initializer} >= {
            TensorProto.INT8,
            TensorProto.INT32,
        }


def test_kernels_that_saturate_matter_only_where_a_twin_was_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = by_hand()
    off = Check("twin equals ONNX Runtime", False, 0.3, 0.05, "output 'y': error 0.3 above 0.05")
    monkeypatch.setattr(obc_onnx.verification.result, "check_twin", lambda *_: off)
    options = {"budget": Budget(0.6), "input_shape": {"x": (2, *IMAGE)}}
    report = obc_onnx.compress(model, criterion="l2", **options).report
    (noted,) = [check for check in report.verification if check.name == off.name]
    assert noted.passed
    assert noted.detail.endswith("; no twin was used")
    with pytest.raises(VerificationError, match=r"error 0\.3 above"):
        obc_onnx.compress(model, data=draw_samples(analyse(model).graph, 32), **options)


@pytest.mark.parametrize("transposed", [0, 1])
def test_scales_of_columns_follow_a_second_factor_that_is_transposed(transposed: int) -> None:
    stored, scales = STORED["w1"].reshape(8, 27)[:, :6], STORED["s1"]
    weight = stored if transposed else stored.T
    of = analyse(
        build(
            f"net (float[N,6] x) => (float[N,4] y) <float[8,4] last, float[N,8] h>"
            f"{{ q = QuantizeLinear(x, s, z)"
            f" h = com.microsoft.QGemm<transB={transposed}>(q, s, z, w, ws, wz, c)"
            f" y = MatMul(h, last) }}",
            {
                "s": np.array(0.02, np.float32),
                "z": np.array(120, np.uint8),
                "w": weight,
                "ws": scales,
                "wz": np.zeros(8, np.int8),
                "c": np.zeros(8, np.int32),
            },
        )
    ).coupling
    real = stored * scales[:, None].astype(np.float64)
    np.testing.assert_allclose(Operands(of, {})["w"], real if transposed else real.T)
