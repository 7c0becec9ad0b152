"""Refit by least squares: what layers multiply, what is solved for, and what becomes of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers import analyse, assert_layers_are_linear, build, run_onnx
from nets import HEAD, IMAGE, NETS, case_of, draw_keep, draw_samples, model_of, prune

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.measuring.error import output_error
from obc_onnx.planning.budget import Budget
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.calibration import looks_like_noise
from obc_onnx.recover.fuse import fuse
from obc_onnx.recover.layers import find_layers
from obc_onnx.recover.refit import refit
from obc_onnx.recover.stage import recover
from obc_onnx.run.api import compress, verify
from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin.build import derived_twin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph

FORMS = {
    "conv": "float[5,3,3,2] w, float[5] b> { y = Conv<strides=[2,1],pads=[1,0,2,1],dilations=[1,2]>(x, w, b) }",
    "same": 'float[5,3,3,3] w> { y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w) }',
    "grouped": "float[6,1,3,3] w, float[6] b> { y = Conv<group=3>(x, w, b) }",
    "transposed": "float[3,5,3,2] w, float[5] b>"
    " { y = ConvTranspose<strides=[2,3],pads=[1,0,0,1],output_padding=[1,0]>(x, w, b) }",
    "transposed blocks": "float[3,2,2,2] w> { y = ConvTranspose<group=3,strides=[2,2]>(x, w) }",
}
FLAT = {
    "gemm": ("float[N,6]", "float[4,6] w, float[4] b> { y = Gemm<transB=1>(x, w, b) }"),
    "gemm right": ("float[N,6]", "float[6,4] w> { y = Gemm(x, w) }"),
    "tokens": ("float[N,5,6]", "float[6,4] w> { y = MatMul(x, w) }"),
    "tokens and a sum": (
        "float[N,5,6]",
        "float[6,4] w, float[4] b> { h = MatMul(x, w) y = Add(b, h) }",
    ),
    "left": ("float[N,5,6]", "float[4,5] w> { y = MatMul(w, x) }"),
    "line": ("float[N,3,9]", "float[4,3,3] w> { y = Conv<pads=[1,1]>(x, w) }"),
    "volume": ("float[N,2,5,4,6]", "float[4,2,2,1,3] w> { y = Conv<strides=[1,2,1]>(x, w) }"),
}
ALL = {**{name: ("float[N,3,7,8]", text) for name, text in FORMS.items()}, **FLAT}


@pytest.mark.parametrize("name", ALL)
def test_the_matrix_of_a_layer_times_its_inputs_is_its_output(name: str) -> None:
    source, text = ALL[name]
    graph, _, coupling = analyse(build(f"net ({source} x) => (float y) <{text}"))
    (layer,) = find_layers(coupling, graph, derived_twin(graph, coupling))
    assert layer.output == "y"
    assert (" b>" in text) == (layer.bias == "b")
    assert assert_layers_are_linear(graph, coupling, draw_samples(graph, 6).feed(slice(0, 6))) == 1


@pytest.mark.parametrize(("order", "count"), [("bto", 1), ("tbo", 0)])
def test_rows_of_inputs_and_outputs_are_in_one_order(order: str, count: int) -> None:
    model = build(
        "net (float[3,5,6] x) => (float y) <float[4,6] w>"
        f'{{ y = Einsum<equation="bti,oi->{order}">(x, w) }}'
    )
    graph, _, coupling = analyse(model)
    twin = derived_twin(graph, coupling)
    assert len(list(find_layers(coupling, graph, twin))) == count


# Networks.

LINEAR = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6] b1, float[5,6,3,3] w2, float[5] b2, float[4,5] fc,"
    " float[4] fc_b>"
    f"{{ c1 = Conv(x, w1, b1) last = Conv<pads=[1,1,1,1]>(c1, w2, b2) {HEAD} }}"
)


def redundant() -> tuple[Any, Any, Graph, Samples]:
    """A net two of whose units are sums of others, which are cut."""
    model = build(LINEAR)
    graph = analyse(model).graph
    arrays = {name: graph.initializers[name].copy() for name in ("w1", "b1")}
    for array in arrays.values():
        array[4], array[5] = array[0] - 2 * array[1], array[2] + array[3]
    graph = graph.edit(arrays)
    coupling = analyse(graph.to_model()).coupling
    group = coupling.by_name["w1:0"]
    keep = {group.dim: np.arange(6) < 4}
    return coupling, keep, remove_units(coupling, keep), draw_samples(coupling.graph, 300)


def test_what_others_can_stand_for_is_not_missed() -> None:
    """Zero padding does not know of the bias of what is cut, so that the bias is left at zero."""
    coupling, keep, pruned, samples = redundant()
    assert output_error(coupling, pruned, samples) > 0.005
    repaired, fits = refit(Cut(coupling, keep, pruned), samples, 0)
    assert output_error(coupling, repaired, samples) < 1e-4
    assert {fit.layer for fit in fits} >= {"w2"}
    assert all(fit.after <= fit.before for fit in fits)


@pytest.mark.parametrize("net", NETS)
def test_repair_never_makes_a_network_worse(net: str) -> None:
    graph, _, coupling = analyse(model_of(net))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 200)
    repaired, steps, *_ = recover(Cut(coupling, keep, pruned), Bench(coupling, samples), "auto", 0)
    held = samples.part(slice(160, 200))
    before, after = (output_error(coupling, g, held) for g in (pruned, repaired))
    assert after <= before * (1 + 1e-6)
    assert [step.kept for step in steps] == [step.after < step.before for step in steps]


@pytest.mark.parametrize(
    "net", ["dense", "residual", "norm", "concat", "transposed", "gemm", "depthwise"]
)
def test_a_refit_brings_outputs_nearer(net: str) -> None:
    graph, _, coupling = analyse(model_of(net))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 400)
    repaired, _ = refit(Cut(coupling, keep, pruned), samples, 0)
    before, after = (output_error(coupling, g, samples) for g in (pruned, repaired))
    assert after < 0.8 * before


def test_a_sum_repairs_what_its_other_side_has_lost() -> None:
    """The stem loses what only the shortcut carries; the branch can stand for it."""
    text = (
        f"{IMAGE} <float[5,3,1,1] w0, float[5] b0, float[5,3,1,1] w1, float[5] b1, float[5,5,1,1] w2,"
        " float[5] b2, float[4,5] fc, float[4] fc_b>"
        f"{{ s = Conv(x, w0, b0) i = Relu(s) t = Conv(i, w1s, b1) u = Tanh(t) c = Conv(u, w2, b2)"
        f" last = Add(c, s) {HEAD} }}"
    ).replace("float[5,3,1,1] w1,", "float[5,5,1,1] w1s,")
    graph, _, coupling = analyse(build(text))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 400)
    repaired, fits = refit(Cut(coupling, keep, pruned), samples, 0)
    assert "w2" in {fit.layer for fit in fits}
    before, after = (output_error(coupling, g, samples) for g in (pruned, repaired))
    assert after < 0.7 * before


@pytest.mark.parametrize("net", NETS)
def test_training_starts_from_the_repaired_network(net: str) -> None:
    case = case_of(net)
    keep = draw_keep(case.coupling)
    pruned = prune(case, keep)
    rng = np.random.default_rng(0)
    changed = {
        name: array + rng.standard_normal(array.shape).astype(array.dtype) / 9
        for name, array in pruned.initializers.items()
        if np.issubdtype(array.dtype, np.floating) and array.ndim > 0 and name != "var"
    }
    repaired = pruned.edit(changed)
    student = EquivalentTwin(Cut(case.coupling, keep, repaired))
    folded = student.fold(repaired)
    for name, array in changed.items():
        np.testing.assert_array_equal(folded.initializers[name], array)


@pytest.mark.parametrize("method", ["auto", "refit", "stats", "fuse", "none"])
@pytest.mark.parametrize("net", ["norm", "dense", "residual"])
def test_results_of_every_method_are_verified(net: str, method: Any) -> None:
    graph = analyse(model_of(net)).graph
    samples = draw_samples(graph, 100)
    result = compress(graph, data=samples, budget=Budget(0.6), recover=method)
    assert all(check.passed for check in verify(graph, result.model, result.plan))
    assert bool(result.report.recovery) == (method != "none")


def test_the_seed_decides_every_byte() -> None:
    graph, _, coupling = analyse(model_of("dense"))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 2000)
    made = [refit(Cut(coupling, keep, pruned), samples, seed)[0].initializers for seed in (0, 0, 1)]
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])
    assert not all(np.array_equal(made[0][name], made[2][name]) for name in made[0])


# Fusion.


def test_a_twin_of_a_unit_that_goes_takes_its_place() -> None:
    """Two equal filters: cutting one and fusing it into the other changes nothing."""
    graph = analyse(model_of("dense")).graph
    arrays = {name: graph.initializers[name].copy() for name in ("w1", "b1", "w2")}
    arrays["w1"][3], arrays["b1"][3] = arrays["w1"][1], arrays["b1"][1]
    arrays["w2"][:, 3] = arrays["w2"][:, 1]
    graph = graph.edit(arrays)
    coupling = analyse(graph.to_model()).coupling
    keep = {coupling.by_name["w1:0"].dim: np.arange(5) != 3}
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 20)
    assert output_error(coupling, pruned, samples) > 1e-3
    fused = fuse(Cut(coupling, keep, pruned))
    own = fused.initializers["w2"][:, 1]
    assert np.abs(own - 2 * arrays["w2"][:, 1]).max() < np.abs(arrays["w2"]).max()


def test_fusion_needs_no_data() -> None:
    graph = analyse(model_of("dense")).graph
    result = compress(graph, budget=Budget(0.6), recover="fuse")
    assert all(check.passed for check in verify(graph, result.model, result.plan))
    assert any("no data judged" in note for note in result.report.notes)


# Samples.


def test_noise_is_told_from_pictures() -> None:
    graph = analyse(model_of("dense")).graph
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 3, 6, 6)).astype(np.float32)
    smooth = np.cumsum(np.cumsum(noise, -1), -2).astype(np.float32)
    dtypes = {"x": np.dtype(np.float32)}
    assert looks_like_noise(graph, Samples({"x": noise}, None, dtypes)) == "x"
    assert not looks_like_noise(graph, Samples({"x": smooth}, None, dtypes))
    result = compress(graph, data=Samples({"x": noise}, None, dtypes), budget=Budget(0.6))
    assert any("looks like noise" in note for note in result.report.notes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("method", ["refit", "stats"])
def test_a_gpu_repairs_as_a_cpu_does(method: Any) -> None:
    graph, _, coupling = analyse(model_of("norm"))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 200)
    found = [
        recover(Cut(coupling, keep, pruned), Bench(coupling, samples), method, 0, device).graph
        for device in ("cpu", "cuda")
    ]
    for name, array in found[0].initializers.items():
        np.testing.assert_allclose(found[1].initializers[name], array, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("biased", [False, True], ids=["weight", "weight and bias"])
def test_rows_that_outweigh_all_others_do_not_decide(biased: bool) -> None:
    """One sample of 20 is a hundred times larger than the others, and is not looked at here."""
    text = (
        "net (float[N,8] x) => (float[N,5] y) <float[8,24] w, float[24] b, float[24,5] v, float[5] c>"
        "{ h = MatMul(x, w) a = Add(h, b) r = Relu(a) m = MatMul(r, v) y = END }"
    )
    model = build(text.replace("END", "Add(m, c)" if biased else "Identity(m)"))
    coupling = analyse(model).coupling
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 8)).astype(np.float32)
    large = rng.random(600) < 0.05
    x[large] *= 100
    samples = Samples({"x": x}, None, {"x": x.dtype})
    (group,) = coupling.groups
    keep = {group.dim: np.arange(24) < 8}
    pruned = remove_units(coupling, keep)
    fitted, _ = refit(Cut(coupling, keep, pruned), samples, 0)
    fresh = rng.standard_normal((400, 8)).astype(np.float32)
    wanted, found = (
        run_onnx(graph, {"x": fresh})["y"].astype(np.float64) for graph in (coupling.graph, fitted)
    )
    known = {name: coupling.graph.initializers[name] for name in ("w", "b")}

    def hidden(rows: NDArray[Any]) -> NDArray[np.float64]:
        units = np.maximum(rows @ known["w"][:, :8] + known["b"][:8], 0)
        return np.column_stack([units, np.ones(len(rows))] if biased else [units])

    def error_of(rows: NDArray[np.bool_]) -> float:
        y = run_onnx(coupling.graph, {"x": x[rows]})["y"]
        matrix = np.linalg.lstsq(hidden(x[rows]), y, rcond=None)[0]
        return float(np.square(hidden(fresh) @ matrix - wanted).mean())

    best, misled = error_of(~large), error_of(np.ones(600, np.bool_))
    assert misled > 1.5 * best, "so it matters"
    assert np.square(found - wanted).mean() < best + 0.3 * (misled - best)


def test_a_weight_that_is_an_output_stays() -> None:
    text = (
        "net (float[N,6] x) => (float[N,4] y, float[7,4] fc) <float[6,7] w, float[7,4] fc>"
        "{ a = MatMul(x, w) t = Tanh(a) y = MatMul(t, fc) }"
    )
    graph, _, coupling = analyse(build(text))
    twin = derived_twin(graph, coupling)
    assert "fc" not in {layer.weight for layer in find_layers(coupling, graph, twin)}


def test_a_layer_whose_input_is_the_same_is_not_reported() -> None:
    graph, _, coupling = analyse(model_of("dense"))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 200)
    _, fits = refit(Cut(coupling, keep, pruned), samples, 0)
    assert "w1" not in {fit.layer for fit in fits}
    assert "w2" in {fit.layer for fit in fits}
