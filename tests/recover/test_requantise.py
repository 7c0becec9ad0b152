"""Repair through QuantizeLinear and DequantizeLinear: what is solved for, and in which scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, budget_of, build, run_onnx
from nets import draw_keep, draw_samples
from onnxruntime.quantization import QuantFormat, QuantType
from ops.exports import CONVOLUTIONS, of_floats, quantise

from obc_onnx.measuring.error import output_error
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.layers import find_layers, find_shared
from obc_onnx.recover.refit import refit
from obc_onnx.recover.rescale import Family, Reach, find_families, rescale
from obc_onnx.recover.stage import recover
from obc_onnx.recover.targets import target_of
from obc_onnx.run.api import compress
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.codes import find_ties
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs
from obc_onnx.verification.checks import check_structure

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph

QDQ = QuantFormat.QDQ
SYMMETRIC = {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}
FORMS: dict[str, dict[str, object]] = {
    "per tensor": {"per_channel": False, "activation_type": QuantType.QUInt8},
    "per channel": {"per_channel": True},
    "symmetric": {"per_channel": True, **SYMMETRIC},
    "unsigned weights": {"weight_type": QuantType.QUInt8, "activation_type": QuantType.QUInt8},
    "floats that are quantised": {
        "per_channel": True,
        "extra_options": {"AddQDQPairToWeight": True, "QuantizeBias": False},
    },
    "16 bits": {
        "per_channel": True,
        "activation_type": QuantType.QUInt16,
        "extra_options": {"UseQDQContribOps": True},
    },
}
each_form = pytest.mark.parametrize("form", FORMS)
N_SAMPLES = 256


def quantised(form: str, folder: Path) -> onnx.ModelProto:
    return quantise(of_floats(CONVOLUTIONS), folder, QDQ, **FORMS[form])


def cut_of(model: onnx.ModelProto) -> Cut:
    _, _, coupling = analyse(model)
    keep = draw_keep(coupling, 1)
    return Cut(coupling, keep, remove_units(coupling, keep))


def layer_names(graph: Graph, coupling: Coupling) -> set[str]:
    return {layer.weight for layer in find_layers(coupling, graph, derived_twin(graph, coupling))}


@each_form
def test_the_layers_of_a_quantised_graph_are_those_of_floats(tmp_path: Path, form: str) -> None:
    graph, _, coupling = analyse(of_floats(CONVOLUTIONS))
    floats = layer_names(graph, coupling)
    graph, _, coupling = analyse(quantised(form, tmp_path))
    found = layer_names(graph, coupling)
    assert {name.removesuffix("_quantized") for name in found} == floats
    assert floats == {"w1", "w2", "w3", "w4", "w5"}


@each_form
def test_a_refit_brings_outputs_nearer_and_leaves_the_graph_what_it_was(
    tmp_path: Path, form: str
) -> None:
    cut = cut_of(quantised(form, tmp_path))
    samples = draw_samples(cut.pruned, N_SAMPLES)
    found, fits = refit(cut, samples, 0)
    assert len(fits) >= 3
    held = draw_samples(cut.pruned, N_SAMPLES, seed=1)
    before, after = (output_error(cut.coupling, g, held) for g in (cut.pruned, found))
    assert after < 0.6 * before
    assert check_structure(cut.pruned, found, found.merged, repaired=True).passed
    assert_numbers_are_full(cut, found)
    assert_biases_are_in_scale(found, cut.coupling)


def assert_numbers_are_full(cut: Cut, found: Graph) -> None:
    """Raise where a weight that moved takes larger numbers than it did, or far smaller ones."""
    original, moved = cut.coupling.graph.initializers, 0
    for name in ("w1_quantized", "w3_quantized", "w4_quantized", "w5_quantized"):
        if name not in original or np.array_equal(
            found.initializers[name], cut.pruned.initializers[name]
        ):
            continue
        zero = next(
            array
            for key, array in original.items()
            if key == name.replace("quantized", "zero_point")
        )
        offset = zero.astype(np.int64).flat[0]
        before, after = (g[name].astype(np.int64) - offset for g in (original, found.initializers))
        least, most = before.min(), before.max()
        assert least <= after.min() <= 0 <= after.max() <= most
        assert after.max() == most or after.min() == least
        moved += 1
    assert moved or not any(name.endswith("_quantized") for name in original)


def assert_biases_are_in_scale(found: Graph, coupling: Coupling) -> None:
    """Raise where the scale of a bias is no longer that of the input times that of the weight."""
    ties = {tie.bias.name: tie for tie in find_ties(found, coupling.rules)}
    biases = [name for name in found.initializers if name.endswith("b1_quantized")]
    assert {"b1_quantized", "b2_quantized", "b3_quantized"} <= ties.keys() or not biases
    for tie in ties.values():
        left, right = (found.initializers[name].reshape(-1) for name in tie.factors)
        own = found.initializers[tie.bias.through[0].inputs[1]].reshape(-1)
        np.testing.assert_allclose(own, left * right, rtol=1e-6)


def test_what_is_made_of_weights_is_made_where_it_is_read() -> None:
    """The file has the node that dequantises in front of all others."""
    text = (
        "net (float[N,4] x) => (float[N,3] y) <int8[4,3] w, float s = {0.5}>"
        "{ d = DequantizeLinear(w, s) r = Relu(x) y = MatMul(r, d) }"
    )
    weight = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    graph, _, coupling = analyse(build(text.replace("int8[4,3] w, ", ""), {"w": weight}))
    twin = derived_twin(graph, coupling)
    x = np.ones((2, 4), np.float32)
    run = Lockstep(twin, [as_inputs(graph.inputs, {"x": x})])
    run.advance(run.places["y"])
    twin.get_parameter("w").data.mul_(2)
    wanted = x @ (weight * 2 * 0.5)
    np.testing.assert_allclose(next(run.preview("y")).detach(), wanted)
    np.testing.assert_allclose(run.arguments("y")[0][1].detach(), weight * 1.0)
    np.testing.assert_allclose(next(run.fork().preview("y")).detach(), wanted)
    run.advance(run.places["y"] + 1)
    np.testing.assert_allclose(run.values("y")[0].detach(), wanted)


def test_a_quantised_weight_that_two_layers_read_is_no_layers_own() -> None:
    text = (
        "net (float[N,4] x) => (float[N,4] y, float[N,4] z) <float s = {0.5}>"
        "{ d = DequantizeLinear(w, s) h = MatMul(x, d) r = Relu(h) y = MatMul(r, d)"
        " z = MatMul(x, e) }"
    )
    weight = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    graph, _, coupling = analyse(build(text, {"w": weight, "e": np.eye(4, dtype=np.float32)}))
    twin = derived_twin(graph, coupling)
    assert {layer.weight for layer in find_layers(coupling, graph, twin)} == {"e"}
    ((first, second),) = find_shared(coupling, graph, twin)
    assert first.own
    assert second.own
    assert first.weight == second.weight == "w"


# What follows a layer.


@pytest.mark.parametrize(("zero", "kind"), [(0, np.uint8), (128, np.uint8), (0, np.int8)])
def test_a_quantiser_changes_nothing_beyond_its_limits(zero: int, kind: type) -> None:
    text = "net (float[N,9] x) => (uint8[N,9] y) <float s = {0.25}> { y = QuantizeLinear(x, s, z) }"
    text = text.replace("uint8[N,9] y", f"{np.dtype(kind).name}[N,9] y")
    graph, _, coupling = analyse(build(text, {"z": np.array(zero, kind)}))
    low, high = coupling.rules.changing(graph.nodes[0], graph.initializers)
    limits = np.iinfo(kind)
    assert (low, high) == ((limits.min - zero) / 4, (limits.max - zero) / 4)
    x = np.linspace(2 * low - 9, 2 * high + 9, 9, dtype=np.float32)[None]
    beyond, there = (run_onnx(graph, {"x": value})["y"] for value in (x, np.clip(x, low, high)))
    np.testing.assert_array_equal(beyond, there)


@pytest.mark.parametrize(("zero", "value"), [(0, "h"), (100, "sum")])
def test_a_target_lies_behind_a_quantiser_that_cuts_off_nothing(zero: int, value: str) -> None:
    text = (
        "net (float[N,4,6,6] x) => (float[N,4,6,6] y)"
        " <float[4,4,3,3] w, float[4,4,3,3] v, float s = {0.1}> {"
        " r = Conv<pads=[1,1,1,1]>(x, v) h = Conv<pads=[1,1,1,1]>(r, w)"
        " q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) sum = Add(d, r) y = Relu(sum) }"
    )
    graph, _, coupling = analyse(build(text, {"z": np.array(zero, np.uint8)}))
    twin = derived_twin(graph, coupling)
    layer = next(own for own in find_layers(coupling, graph, twin) if own.weight == "w")
    inputs = as_inputs(graph.inputs, draw_samples(graph, 2).feed(slice(0, 2)))
    target = target_of(layer, Cut(coupling, {}, graph), Lockstep(twin, [inputs]))
    assert target.value == value
    assert target.changing[0] == 0
    assert target.saturates
    np.testing.assert_allclose(target.factor, 1)
    np.testing.assert_allclose(target.shift, 0, atol=1e-9)


# Scales of activations.


def test_scale_and_zero_point_follow_both_ends() -> None:
    family = Family(0.1, 100, (0, 255))
    scale, zero = family.fitted(Reach(-8, 12), Reach(-4, 12), moves_zero=True)
    assert scale == pytest.approx((15.5 + 10.0 / 2) / 255)
    assert zero == round(5.0 / scale)
    scale, zero = family.fitted(Reach(-8, 12), Reach(-4, 9), moves_zero=False)
    assert (scale, zero) == (pytest.approx(0.1 * 0.75), 100)


@pytest.mark.parametrize(("zero", "limits"), [(0, (-128, 127)), (128, (0, 255))])
def test_a_symmetric_scale_stays_symmetric(zero: int, limits: tuple[int, int]) -> None:
    found = Family(0.1, zero, limits).fitted(Reach(-8, 4), Reach(-2, 6), moves_zero=True)
    assert found == (pytest.approx(0.1 * 6 / 8), zero)


def test_where_nothing_lies_below_0_the_upper_end_alone_says() -> None:
    found = Family(0.1, 0, (0, 255)).fitted(Reach(-90, 8), Reach(-1, 4), moves_zero=True)
    assert found == (pytest.approx(0.05), 0)


def test_values_that_are_gone_leave_a_scale_as_it_is() -> None:
    assert Family(0.1, 0, (0, 255)).fitted(Reach(0, 8), Reach(0, 0), moves_zero=True) == (0.1, 0)


POOLED = (
    "net (float[N,2] x) => (float[N,1] y) <float s = {0.1}, float t = {0.1}, float u = {0.02}> {"
    " m = MatMul(x, w) q = QuantizeLinear(m, s, z) d = DequantizeLinear(q, s, z)"
    " r = Relu(d) p = QuantizeLinear(r, t, z) e = DequantizeLinear(p, t, z)"
    " c = QuantizeLinear(v, u, i) k = DequantizeLinear(c, u, i) y = MatMul(e, k) }"
)
WIDE = {
    "w": np.array([[4.0, 1.0, 0.0], [0.0, 1.0, 2.0]], np.float32),
    "v": np.array([[1.0], [1.0], [1.0]], np.float32),
    "z": np.array(0, np.uint8),
    "i": np.array(0, np.int8),
}


def narrow_pool() -> tuple[Cut, NDArray[np.float32]]:
    """Leave the unit out that reaches farthest."""
    _, _, coupling = analyse(build(POOLED, WIDE))
    (group,) = coupling.groups
    keep = {group.dim: np.array([False, True, True])}
    cut = Cut(coupling, keep, remove_units(coupling, keep))
    return cut, np.array([[1.0, 0.5], [2.0, -1.0], [0.5, 2.0], [-1.0, 1.0]], np.float32)


def test_scales_that_are_equal_stay_equal_and_weights_keep_theirs() -> None:
    cut, x = narrow_pool()
    samples = draw_samples(cut.pruned, len(x))
    samples.inputs["x"][:] = x
    found = rescale(cut, samples).initializers
    reach = [(x @ w).max() for w in (WIDE["w"], WIDE["w"][:, 1:])]
    assert found["s"] == found["t"] == pytest.approx(0.1 * reach[1] / reach[0])
    assert found["u"] == np.float32(0.02)
    assert found["z"] == 0


def test_one_scale_for_weights_and_activations_is_left() -> None:
    shared = POOLED.replace("(v, u, i)", "(v, s, i)").replace("(c, u, i)", "(c, s, i)")
    graph, _, coupling = analyse(build(shared.replace(", float u = {0.02}", ""), WIDE))
    assert not find_families(graph, coupling.rules)


@pytest.mark.parametrize("form", ["per tensor", "per channel", "symmetric", "unsigned weights"])
def test_biases_follow_the_scales_of_inputs(tmp_path: Path, form: str) -> None:
    cut = cut_of(quantised(form, tmp_path))
    found = rescale(cut, draw_samples(cut.pruned, 64))
    assert_biases_are_in_scale(found, cut.coupling)
    moved = 0
    for tie in find_ties(found, cut.coupling.rules):
        node = tie.bias.through[0]
        floats = [
            g.initializers[tie.bias.name] * g.initializers[node.inputs[1]]
            for g in (cut.pruned, found)
        ]
        step = found.initializers[node.inputs[1]]
        assert (np.abs(floats[0] - floats[1]) <= 0.51 * step).all()
        moved += not np.array_equal(step, cut.pruned.initializers[node.inputs[1]])
    assert moved


# Whole runs.


@each_form
def test_a_quantised_network_is_repaired_and_verified(tmp_path: Path, form: str) -> None:
    model = quantised(form, tmp_path)
    samples = draw_samples(analyse(model).graph, N_SAMPLES)
    result = compress(model, data=samples, budget=budget_of(target_macs=0.7), recover_minutes=0)
    steps = {step.step: step for step in result.report.recovery}
    assert steps["least-squares refit"].kept
    assert "scales of activations" in steps
    assert all(check.passed for check in result.report.verification)
    kinds = [
        {n: a.dtype for n, a in g.stored.items()}
        for g in (analyse(model).graph, analyse(result.model).graph)
    ]
    assert kinds[0] == kinds[1]


def test_a_repaired_cut_masked_in_the_whole_network_is_the_cut(tmp_path: Path) -> None:
    """Biases of 32 bits go back there with their scales."""
    cut = cut_of(quantised("per channel", tmp_path))
    found = recover(cut, Bench(cut.coupling, draw_samples(cut.pruned, N_SAMPLES)), "refit", 0).graph
    whole = cut.holding(found).whole()
    again = remove_units(whole, cut.keep)
    for name, array in found.initializers.items():
        np.testing.assert_array_equal(again.initializers[name], array, err_msg=name)
