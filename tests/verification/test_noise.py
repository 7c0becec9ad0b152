"""What a check allows follows the model's own rounding, and mistakes of one unit are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from helpers import Analysed, analyse, build, load_tool, make_feed, public_model, random_keep
from small import chain

import obc_onnx
from obc_onnx.graph.model import Graph
from obc_onnx.graph.precision import relative_error
from obc_onnx.graph.session import Session
from obc_onnx.measuring.noise import MARGIN, Limit, Reference, disturbed
from obc_onnx.surgery import cut as surgery
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import derived_twin
from obc_onnx.verification.checks import check_masked, check_twin, compare, compare_twin
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep

HEAD = (
    "(float[N,3,16,16] x) => (float[N,4] y) <float[40,3,3,3] a, float[40] a_bias,"
    " float[60,40,3,3] b, float[60] b_bias, float[4,60] fc, float[4] c>"
    "{ p = Conv(x, a, a_bias) q = Relu(p) r = Conv(q, b, b_bias) s = Relu(r)"
    "  t = GlobalAveragePool(s) u = Flatten(t) v = Gemm<transB=1>(u, fc) "
)
SHARP = f"sharp {HEAD} w = Mul(v, c) y = Sin(w) }}"
"""A sine of large numbers amplifies rounding."""
SATURATED = f"saturated {HEAD} w = Add(v, c) y = Sigmoid(w) }}"
"""A sigmoid of about -200 is 0 whatever the weights are."""
GATED = """
gated (float[1,8] x) => (float[1,1] y) <float[8,8] w, float[1,1] c> {
  p = MatMul(x, w) q = ReduceMean<keepdims=1>(p) z = Add(q, c) y = Sigmoid(z)
}"""
"""A sigmoid of -7 lies on a grid: ONNX Runtime computes it as a share of 1."""
SIZES = {"a": 12, "b": 20}
MODELS = ROOT / "models"


def sharp(gain: float = 1e4) -> Analysed:
    return analyse(build(SHARP, {"c": np.full(4, gain, np.float32)}))


def cut(found: Analysed, seed: int = 0) -> tuple[Keep, dict[str, NDArray[Any]]]:
    """Draw a cut and inputs."""
    rng = np.random.default_rng(seed)
    return random_keep(found.coupling, rng), make_feed(found.graph, rng, 3)


def shifted(coupling: Coupling, keep: Keep) -> Graph:
    """Remove the neighbours of what should go."""
    return remove_units(coupling, {dim: np.roll(mask, 1) for dim, mask in keep.items()})


@pytest.mark.parametrize(
    ("kind", "epsilon"),
    [
        (np.float64, 2.0**-52),
        (np.float32, 2.0**-23),
        (np.float16, 2.0**-10),
        (ml_dtypes.bfloat16, 2.0**-7),
    ],
)
def test_every_weight_of_several_axes_moves_by_its_last_bit(kind: type, epsilon: float) -> None:
    graph = analyse(chain()).graph
    graph = graph.edit({name: array.astype(kind) for name, array in graph.initializers.items()})
    moved = disturbed(graph, np.random.default_rng(0)).initializers
    for name, array in graph.initializers.items():
        change = moved[name].astype(np.float64) / array.astype(np.float64) - 1
        assert moved[name].dtype == array.dtype
        assert (np.abs(change) <= 2.1 * epsilon).all()
        assert (change != 0).all() == (array.ndim > 1)
        assert array.ndim == 1 or (change > 0).any() > (change > 0).all()


def test_numbers_that_mean_themselves_stay() -> None:
    graph = analyse(chain()).graph
    most = np.finfo(np.float32).max
    exact = np.resize(np.array([0, -0.0, 1, -7, np.inf, -np.inf, most], np.float32), (4, 20))
    moved = disturbed(graph.edit({"fc": exact}), np.random.default_rng(0))
    np.testing.assert_array_equal(moved.initializers["fc"], exact)


STEPS = """
steps (float[N,6] x) => (float[N,4] y) <float[1] s = {0.125}, float one> {
  q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
  v = DequantizeLinear(w, t, z) k = Mul(d, one) y = MatMul(k, v)
}"""
"""Numbers lie on the border between two steps: the last bit of a scale decides."""


def test_what_numbers_are_quantised_by_moves_and_single_numbers_stay() -> None:
    weight = np.arange(-12, 12, dtype=np.int8).reshape(6, 4)
    numbers = {"w": weight, "z": np.array(0, np.int8), "t": np.array(0.3, np.float32), "one": 1.1}
    graph = analyse(build(STEPS.replace(", float one", ""), numbers)).graph
    moved = disturbed(graph, np.random.default_rng(0)).initializers
    changed = {name for name, array in graph.initializers.items() if (moved[name] != array).any()}
    assert changed == {"s", "t"}
    x = np.full((2, 6), 0.125 * 2.5, np.float32)
    reference = Reference.of_outputs(graph, {"x": x})
    step = np.abs(weight.astype(np.float32) * 0.3).max() * 0.125 * 1.1
    rms = float(np.sqrt(np.mean(reference.values["y"] ** 2)))
    assert reference.limits["y"].noise * rms >= 0.5 * step


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        (Limit(1e-4), 1e-4),
        (Limit(1e-4, 1e-5), 1e-4),
        (Limit(1e-4, 1e-3), MARGIN * 1e-3),
        (Limit(1e-4, 1e-3, most=0.1), MARGIN * 1e-3),
        (Limit(1e-4, 0.1, most=0.1), 1e-4),
        (Limit(1e-4, float("inf")), 1e-4),
        (Limit(0.0, float("inf"), most=0.1), 0.0),
    ],
)
def test_noise_raises_a_limit_as_far_as_it_may(limit: Limit, allowed: float) -> None:
    assert limit.allowed == allowed


def test_a_calm_model_is_allowed_what_its_type_is() -> None:
    found = analyse(chain())
    keep, feed = cut(found)
    check = check_masked(found.coupling, keep, feed)
    assert check.passed
    assert 0 < check.noise < 1e-5
    assert check.tolerance <= 1e-4


def test_an_honest_cut_of_a_model_that_amplifies_rounding_passes_and_a_wrong_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = sharp()
    keep, feed = cut(found)
    honest, check = remove_units(found.coupling, keep), check_masked(found.coupling, keep, feed)
    oracle, masked = Oracle(found.coupling, keep, feed), mask_reads(found.coupling, keep)
    floors = Reference.of(masked, oracle.run_masked(masked))
    assert not compare("floors", oracle.run_pruned(honest), floors).passed
    assert check.passed
    assert check.planted == check.caught > 0
    monkeypatch.setattr(surgery, "remove_units", shifted)
    assert not check_masked(found.coupling, keep, feed).passed


def test_a_wrong_cut_is_found_inside_where_outputs_are_saturated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = analyse(build(SATURATED, {"c": np.full(4, -200, np.float32)}))
    keep, feed = cut(found)
    check = check_masked(found.coupling, keep, feed)
    assert check.passed
    assert not check.doubt
    assert check.planted == check.caught > 0
    monkeypatch.setattr(surgery, "remove_units", shifted)
    check = check_masked(found.coupling, keep, feed)
    assert not check.passed
    assert "value 'p'" in check.detail or "value 'r'" in check.detail


@pytest.mark.parametrize("bias", [-6.5, -7.0, -7.5, -8.0, -8.5, -9.5])
def test_a_value_on_a_grid_may_be_a_step_away(bias: float) -> None:
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 8), (1, 8)))
    graph = Graph.from_model(build(GATED, {"w": w, "c": np.full((1, 1), bias, np.float32)}))
    limit = Reference.of_outputs(graph, {"x": x}).limits["y"]
    z, y = Session(graph, optimize=False, outputs=["z", "y"]).run({"x": x}).values()
    alone = Graph.from_model(build("gate (float[1,1] z) => (float[1,1] y) { y = Sigmoid(z) }"))
    gate = Session(alone, optimize=False)
    near = [np.float32(z * (1 + roundings * 2.0**-23)) for roundings in range(-8, 9)]
    steps = [relative_error(gate.run({"z": beside})["y"], y) for beside in near]
    assert max(steps) <= limit.allowed < 1e-1
    assert limit.noise > 0


def test_a_value_that_nothing_moves_is_allowed_no_noise() -> None:
    found = analyse(build(SATURATED, {"c": np.full(4, 200, np.float32)}))
    limit = Reference.of_outputs(found.graph, make_feed(found.graph, np.random.default_rng(0), 3))
    assert limit.limits["y"].noise == 0


def oracle_warnings(result: obc_onnx.Result) -> list[str]:
    return [w for w in result.report.warnings if w.startswith("pruned equals masked")]


def test_samples_that_no_unit_changes_are_warned_of() -> None:
    found = analyse(chain())
    dead = found.graph.edit({f"{n}_bias": np.full(s, -99, np.float32) for n, s in SIZES.items()})
    result = obc_onnx.compress(dead, budget=0.5)
    (warning,) = oracle_warnings(result)
    assert "no unit that was tried changes anything" in warning
    assert not oracle_warnings(obc_onnx.compress(found.graph, budget=0.5))


@pytest.mark.parametrize(("text", "c"), [(SHARP, 1e6), (SATURATED, -200)], ids=["sharp", "flat"])
def test_a_twin_is_compared_inside_where_its_outputs_tell_nothing(text: str, c: float) -> None:
    found = analyse(build(text, {"c": np.full(4, c, np.float32)}))
    _, feed = cut(found)
    check = check_twin(found.coupling, feed)
    assert check.passed
    noisy = "output 'y' is mostly rounding, so that what follows 'w' is not proven"
    assert check.doubt.startswith(noisy) == bool(check.doubt) == (text is SHARP)
    twin = derived_twin(found.graph, found.coupling)
    wrong = found.graph.edit({"b": 1.05 * found.graph.initializers["b"]})
    check = compare_twin(twin, wrong, feed)
    assert not check.passed
    assert "value 'w'" in check.detail


def test_a_calm_output_of_a_twin_is_not_excused_by_its_rounding() -> None:
    calmer = sharp(1e2)
    _, feed = cut(calmer)
    check = check_twin(calmer.coupling, feed)
    assert check.passed
    assert not check.doubt


def test_outputs_that_are_mostly_rounding_are_warned_of() -> None:
    found = sharp(1e6)
    check = check_masked(found.coupling, *cut(found))
    assert check.passed
    assert check.caught == check.planted > 0
    assert check.doubt.startswith("output 'y' is mostly rounding")
    calmer = sharp(1e3)
    assert not check_masked(calmer.coupling, *cut(calmer)).doubt


def assert_mistakes_are_found(
    path: Path, least: float, shapes: dict[str, tuple[int, ...]] | None = None
) -> None:
    """Raise where an honest cut is refused, or where too few planted mistakes are found."""
    row = load_tool("check_noise").examine(path, 1, shapes or {})
    assert row.plans == 1
    assert row.refused[1] == 0
    assert sum(row.planted.values()) > 0
    assert sum(row.found.values()) >= least * sum(row.planted.values()), row


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_mistakes_of_one_unit_in_shipped_models_are_found(path: Path) -> None:
    assert_mistakes_are_found(path, 0.95)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rapidocr-onnxruntime/ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 160)}),
        ("rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 96, 96)}),
        ("magika/model.onnx", None),
    ],
)
def test_mistakes_of_one_unit_in_public_models_are_found(
    name: str, shape: dict[str, tuple[int, ...]] | None
) -> None:
    assert_mistakes_are_found(public_model(name), 0.9, shape)
