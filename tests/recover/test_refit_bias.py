"""Refit where a weight cannot change: its bias takes the mean of what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from helpers import analyse, build
from nets import HEAD, IMAGE, draw_samples

from obc_onnx.graph.session import Session
from obc_onnx.recover import refit as module
from obc_onnx.recover.refit import refit
from obc_onnx.surgery.cut import Cut, remove_units

if TYPE_CHECKING:
    import pytest

    from obc_onnx.graph.model import Graph

SHARED = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6] b1, float[5,6,1,1] w2, float[5] b2, float[5] b3,"
    " float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1, b1) r1 = Relu(c1) n = Neg(r1) c2 = Conv(r1, w2, b2) c3 = Conv(n, w2, b3)"
    f" e = Exp(c3) last = Mul(c2, e) {HEAD} }}"
)
LARGE = (
    "net (float[N,5,7] x) => (float[N,5,4] y) <float[7,6] w1, float[6] b1, float[6,4] w2,"
    " float[4] b2> { c1 = MatMul(x, w1) a1 = Add(c1, b1) t1 = Relu(a1) c2 = MatMul(t1, w2)"
    " y = Add(c2, b2) }"
)


def repaired(text: str, group: str) -> tuple[Graph, Graph, Graph, Any]:
    """Cut two units of the first layer, and refit on 300 samples."""
    graph, _, coupling = analyse(build(text))
    keep = {coupling.by_name[group].dim: np.arange(6) < 4}
    cut, samples = remove_units(coupling, keep), draw_samples(graph, 300)
    return graph, cut, refit(Cut(coupling, keep, cut), samples, 0)[0], samples


def means(graph: Graph, values: list[str], samples: Any, channels: int) -> list[np.ndarray]:
    found = Session(graph, outputs=values).run(samples.feed(slice(0, 300)))
    return [
        np.moveaxis(v, channels, -1).reshape(-1, v.shape[channels]).mean(0) for v in found.values()
    ]


def test_weights_that_two_layers_share_stay_and_both_means_come_back() -> None:
    graph, cut, found, samples = repaired(SHARED, "w1:0")
    assert np.array_equal(found.initializers["w2"], cut.initializers["w2"])
    wanted, bare, got = (means(g, ["c2", "c3"], samples, 1) for g in (graph, cut, found))
    for w, b, g in zip(wanted, bare, got, strict=True):
        assert np.abs(b - w).max() > 0.1
        # the mean of the rows that were looked at, and of the pull, is not quite that of all
        np.testing.assert_allclose(g, w, atol=0.02)


def test_a_layer_too_large_to_solve_for_gets_its_means_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LARGEST", 3)
    graph, cut, found, samples = repaired(LARGE, "w1:1")
    assert np.array_equal(found.initializers["w2"], cut.initializers["w2"])
    wanted, bare, got = (means(g, ["y"], samples, 2)[0] for g in (graph, cut, found))
    assert np.abs(bare - wanted).max() > 0.1
    np.testing.assert_allclose(got, wanted, atol=0.02)
    assert np.abs(got - wanted).max() < np.abs(bare - wanted).max() / 5


def test_a_weight_beside_a_bias_that_stays_is_solved_for_without_it() -> None:
    """A bias of two layers, or one that is an output, is a fact for the weight."""
    text = LARGE.replace("(float[N,5,4] y)", "(float[N,4] y, float[4] b2)").replace("N,5,7", "N,7")
    text = text.replace("c2 = MatMul(t1, w2) y = Add(c2, b2)", "y = Gemm(t1, w2, b2)")
    graph, cut, found, samples = repaired(text, "w1:1")
    assert np.array_equal(found.initializers["b2"], cut.initializers["b2"])
    feed = samples.feed(slice(0, 300))
    wanted, t1 = (Session(g, outputs=[v]).run(feed)[v] for g, v in ((graph, "y"), (cut, "t1")))
    wanted = wanted - cut.initializers["b2"]
    best = np.linalg.lstsq(t1, wanted, rcond=None)[0]
    errors = [
        float(np.square(t1 @ weight - wanted).sum())
        for weight in (cut.initializers["w2"], found.initializers["w2"], best)
    ]
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] < 1.02 * errors[2]
