"""Moments that batch norms tell, against those of real activations where inputs are white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import analyse, build
from nets import draw_samples

from obc_onnx.equivalent import starts
from obc_onnx.equivalent.starts import find_readers
from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import output_error
from obc_onnx.recover.fuse import fuse
from obc_onnx.recover.norm_moments import norm_moments
from obc_onnx.surgery.cut import Cut, remove_units

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling, Keep

N_UNITS = 6
HEAD = (
    "net (float[N,5,2,2] x) => (float[N,4] y) <float[6,5,1,1] w1, float[6] scale, float[6] shift,"
    " float[6] mean, float[6] var, float[4,6,1,1] w2, float[4] b2, float[6,1,1,1] dw,"
    " float low, float high> { c1 = Conv(x, w1) n1 = BatchNormalization(c1, scale, shift, mean, var)"
)
TAIL = " c2 = Conv(t, w2, b2) g = GlobalAveragePool(c2) y = Flatten(g) }"
FORMS = {
    "relu": "t = Relu(n1)",
    "none": "t = Identity(n1)",
    "clipped": "t = Clip(n1, low, high)",
    "two": "a = LeakyRelu<alpha=0.3>(n1) t = Tanh(a)",
}
UNKNOWN = {
    "a sum": "a = Relu(n1) t = Add(a, c1)",
    "a gate": "a = Sigmoid(n1) t = Mul(a, n1)",
    "filters of one channel": "a = Relu(n1) t = Conv<group=6>(a, dw)",
    "an average in front of the activation": "a = GlobalAveragePool(n1) t = Relu(a)",
    "a function that draws leave": "a = Sqrt(n1) t = Identity(a)",
    "a largest": "a = Relu(n1) t = MaxPool<kernel_shape=[2,2]>(a)",
}
PASSED = {
    "an average of all": "a = Relu(n1) t = GlobalAveragePool(a)",
    "an average of some": "a = Relu(n1) t = AveragePool<kernel_shape=[2,2]>(a)",
    "a mean": "a = Relu(n1) t = ReduceMean<axes=[2,3]>(a)",
    "another shape": "a = Relu(n1) t = Reshape(a, flat)",
}
"""What keeps the means of activations."""


def case(form: str, head: str = HEAD, tail: str = TAIL) -> tuple[Coupling, Keep]:
    """A net whose first filters are alike in pairs, with the norm that normal inputs give."""
    constants = {"low": np.float32(-0.5), "high": np.float32(1.0)}
    constants |= {"flat": np.array([0, 6, 4, 1])} if "flat" in form else {}
    model = build(f"{head} {form} {tail}", constants)
    graph = analyse(model).graph
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((N_UNITS, 5)).astype(np.float32)
    w1[4:] = w1[:2] + 0.3 * w1[4:]
    arrays = {
        "w1": w1.reshape(N_UNITS, 5, 1, 1),
        "mean": np.zeros(N_UNITS, np.float32),
        "var": (w1**2).sum(1),
        "scale": rng.uniform(-1.5, 1.5, N_UNITS).astype(np.float32),
        "shift": rng.standard_normal(N_UNITS).astype(np.float32),
    }
    coupling = analyse(graph.edit(arrays).to_model()).coupling
    return coupling, {coupling.by_name["w1:0"].dim: np.arange(N_UNITS) < 4}


def moments_of(coupling: Coupling, keep: Keep) -> Any:
    readers = find_readers(coupling, keep)
    return {read[0][0]: own for (read, _), own in norm_moments(coupling, readers).items()}


@pytest.mark.parametrize("name", FORMS)
def test_moments_are_those_of_activations_where_inputs_are_white(name: str) -> None:
    coupling, keep = case(FORMS[name])
    found = moments_of(coupling, keep)["c2"]
    feed = draw_samples(coupling.graph, 8000).feed(slice(0, 8000))
    t = Session(coupling.graph, outputs=["t"]).run(feed)["t"]
    rows = np.moveaxis(t, 1, -1).reshape(-1, N_UNITS).astype(np.float64)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    np.testing.assert_allclose(found / found[-1, -1], rows.T @ rows / len(rows), atol=0.06)


@pytest.mark.parametrize("name", PASSED)
def test_moments_behind_an_average_are_those_in_front(name: str) -> None:
    found, expected = (moments_of(*case(form))["c2"] for form in (PASSED[name], FORMS["relu"]))
    np.testing.assert_array_equal(found, expected)


def test_a_norm_of_the_run_tells_no_moments() -> None:
    head = HEAD.replace("n1 = BatchNormalization", "n1, m, v = BatchNormalization<training_mode=1>")
    assert moments_of(*case(FORMS["relu"])).keys() == {"c2"}
    assert not moments_of(*case(FORMS["relu"], head))


@pytest.mark.parametrize(
    ("reader", "moved"),
    [
        ("g = GlobalAveragePool(t) f = Flatten(g) y = Gemm<transB=1>(f, w2, b2)", True),
        ("g = GlobalAveragePool(t) f = Flatten(g) y = Gemm<transB=1,alpha=2.0>(f, w2, b2)", False),
        ("c2 = ConvTranspose(t, w2, b2) g = GlobalAveragePool(c2) y = Flatten(g)", True),
    ],
)
def test_a_bias_takes_constants_where_it_is_beside_the_outputs(reader: str, moved: bool) -> None:
    size = "4,6" if "Gemm" in reader else "6,4,1,1"
    head = HEAD.replace("4,6,1,1", size)
    coupling, keep = case(FORMS["relu"], head, f"{reader} }}")
    repaired = fuse(Cut.of(coupling, keep)).initializers["b2"]
    assert np.array_equal(repaired, coupling.graph.initializers["b2"]) != moved


@pytest.mark.parametrize(("blocks", "found"), [(1, ("b", 1)), (2, None)])
def test_a_bias_along_blocks_is_not_beside_the_outputs(blocks: int, found: Any) -> None:
    text = (
        f"net (float[N,6,4,4] x) => (float[N,4,4,4] y) <float[6,{4 // blocks},1,1] w, float[4] b>"
        f"{{ t = Tanh(x) y = ConvTranspose<group={blocks}>(t, w, b) }}"
    )
    coupling = analyse(build(text)).coupling
    (role,) = (role for role in coupling.roles if role.kind == "reads")
    assert starts._bias_beside(coupling, role) == found


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_norm_does_not_tell_is_left_alone(name: str) -> None:
    assert "c2" not in moments_of(*case(UNKNOWN[name]))


@pytest.mark.parametrize("name", FORMS)
def test_consumers_make_up_for_what_is_gone_without_data(name: str) -> None:
    coupling, keep = case(FORMS[name])
    cut = remove_units(coupling, keep)
    repaired = fuse(Cut(coupling, keep, cut))
    samples = draw_samples(coupling.graph, 500)
    before, after = (output_error(coupling, g, samples) for g in (cut, repaired))
    assert after < before / 2
    for norm in ("w1", "scale", "shift", "mean", "var"):
        assert np.array_equal(cut.initializers[norm], repaired.initializers[norm])


@pytest.mark.parametrize("seed", range(6))
def test_units_that_are_constant_give_finite_weights(seed: int) -> None:
    """Their covariance is rounding alone, which says nothing of others."""
    coupling, keep = case(FORMS["relu"])
    rng = np.random.default_rng(seed)
    arrays = {
        "scale": np.array([0, 0, 0, 0, 1, 1], np.float32),
        "shift": rng.standard_normal(N_UNITS).astype(np.float32),
    }
    graph = coupling.graph.edit(arrays)
    coupling = analyse(graph.to_model()).coupling
    keep = {coupling.by_name["w1:0"].dim: np.arange(N_UNITS) < 4}
    repaired = fuse(Cut.of(coupling, keep)).initializers["w2"]
    assert np.abs(repaired).max() < 2 * np.abs(coupling.graph.initializers["w2"]).max()


def test_a_bias_that_is_an_output_stays() -> None:
    text = f"{HEAD} {FORMS['relu']} {TAIL}".replace("(float[N,4] y)", "(float[N,4] y, float[4] b2)")
    coupling = analyse(build(text)).coupling
    keep = {coupling.by_name["w1:0"].dim: np.arange(N_UNITS) < 4}
    cut = remove_units(coupling, keep)
    assert np.array_equal(
        fuse(Cut(coupling, keep, cut)).initializers["b2"], coupling.graph.initializers["b2"]
    )
