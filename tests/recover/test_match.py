"""Statistics of folded networks, against numpy on what ONNX Runtime gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, build
from nets import HEAD, IMAGE, draw_samples

from obc_onnx.graph.session import Session
from obc_onnx.recover import stage
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.match import Statistics, match
from obc_onnx.recover.methods import LayerFit
from obc_onnx.recover.stage import recover
from obc_onnx.surgery.cut import Cut, remove_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

PLAIN = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6] b1, float[4,6,3,3] w2, float[4] b2, float[8,2,1,1] w3,"
    " float[8] b3, float[4,8] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1, b1) r1 = Relu(c1) c2 = Conv(r1, w2, b2) r2 = Relu(c2)"
    f" last = Conv<group=2>(r2, w3, b3) {HEAD} }}"
)
TWICE = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6] b1, float[6,6,1,1] w2, float[6] b2, float[4,6] fc,"
    " float[4] fc_b>"
    f"{{ c1 = Conv(x, w1, b1) r1 = Relu(c1) c2 = Conv(r1, w2, b2) last = Conv(c2, w2, b2) {HEAD} }}"
)
LINES = (
    "net (float[N,5,7] x) => (float[N,5,4] y) <float[7,6] w1, float[6] b1, float[6,4] w2,"
    " float[4] b2, float[4,4] w3> { c1 = MatMul(x, w1) a1 = Add(c1, b1) t1 = Relu(a1)"
    " c2 = MatMul(t1, w2) a2 = Add(c2, b2) t2 = Tanh(a2) y = MatMul(t2, w3) }"
)


def matched(text: str, group: str) -> tuple[Graph, Graph, Graph, Samples]:
    """Cut two units of the first layer, and match on 300 samples, of which some are large."""
    graph, _, coupling = analyse(build(text))
    keep = {coupling.by_name[group].dim: np.arange(6) < 4}
    cut, samples = remove_units(coupling, keep), draw_samples(graph, 300)
    samples.inputs["x"][::20] *= 10.0
    found, _ = match(Cut(coupling, keep, cut), samples, 0)
    return graph, cut, found, samples


def outputs(graph: Graph, name: str, samples: Samples, channels: int) -> NDArray[np.float64]:
    (value,) = Session(graph, outputs=[name]).run(samples.feed(slice(0, 300))).values()
    rows: NDArray[np.float64] = np.moveaxis(value, channels, -1).astype(np.float64)
    return rows.reshape(-1, rows.shape[-1])


def assert_layer_is_matched(
    matched: tuple[Graph, Graph, Graph, Samples], name: str, channels: int
) -> None:
    """Compare what a layer gives with the original's: rows count as they do in a refit."""
    graph, cut, found, samples = matched
    wanted, bare, own = (outputs(g, name, samples, channels) for g in (graph, cut, found))
    size = np.square(wanted).sum(1)
    usual = 3 * np.median(size)
    weights = np.minimum(usual / np.maximum(size, usual), 1.0)[:, None]
    assert weights.min() < 0.1

    def statistics(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = (rows * weights).sum(0) / weights.sum()
        return mean, np.sqrt((np.square(rows - mean) * weights).sum(0) / weights.sum())

    for there, before, after in zip(*map(statistics, (wanted, bare, own)), strict=True):
        assert np.abs(before - there).max() > 0.02 * np.abs(there).max()
        np.testing.assert_allclose(after, there, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layer", ["c2", "last"])
def test_outputs_get_back_their_mean_and_variance(layer: str) -> None:
    assert_layer_is_matched(matched(PLAIN, "w1:0"), layer, 1)


def test_a_bias_behind_a_product_is_that_of_the_layer() -> None:
    found = matched(LINES, "w1:1")
    assert_layer_is_matched(found, "a2", 2)
    _, cut, result, _ = found
    assert np.array_equal(cut.initializers["w3"], result.initializers["w3"])  # it has no bias


def test_a_layer_that_is_applied_twice_is_matched_over_both_uses() -> None:
    graph, _, coupling = analyse(build(TWICE))
    keep = {coupling.by_name["w1:0"].dim: np.arange(6) < 4}
    cut, samples = remove_units(coupling, keep), draw_samples(graph, 300)
    found, fits = match(Cut(coupling, keep, cut), samples, 0)
    assert [fit.layer for fit in fits].count("w2") == 1
    # before the match the second use sees what the first gives with the old weights
    wanted, bare = (
        np.concatenate([outputs(g, name, samples, 1) for name in ("c2", "last")])
        for g in (graph, cut)
    )
    ratio = found.initializers["w2"] / cut.initializers["w2"]
    expected = np.clip(wanted[:, :4].std(0) / bare.std(0), 1 / 3, 3)
    np.testing.assert_allclose(ratio.mean((1, 2, 3)), expected, rtol=0.05)


def test_sums_give_the_factor_and_the_shift_of_rows() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((4000, 3)) @ np.triu(np.ones((3, 3))) + 100.0
    wanted = rng.standard_normal((4000, 3)) * [0.5, 1.0, 1.5] + [1.0, -2.0, 0.0]
    ones = np.ones((4000, 1))
    halves = [(own[:1000], wanted[:1000], ones[:1000]), (own[1000:], wanted[1000:], ones[1000:])]
    parts = [Statistics.of(*map(torch.from_numpy, half)) for half in halves]
    found = parts[0] + parts[1]
    factor, shift = found.match()
    matched = own * factor.numpy() + shift.numpy()
    np.testing.assert_allclose(matched.mean(0), wanted.mean(0), atol=1e-9)
    np.testing.assert_allclose(matched.std(0), wanted.std(0), rtol=1e-9)
    np.testing.assert_allclose(
        found.error(factor, shift), np.square(matched - wanted).sum(0), rtol=1e-6
    )
    same, shift = found.match(scales=False)
    assert same.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(shift, (wanted - own).mean(0), rtol=1e-9)


def test_an_output_at_rest_and_one_that_hardly_moves_are_not_blown_up() -> None:
    own, wanted = np.full((50, 2), 3.0), np.random.default_rng(0).standard_normal((50, 2))
    own[:, 1] += np.linspace(0, 1e-3, 50)
    factor, shift = Statistics.of(*map(torch.from_numpy, (own, wanted, np.ones((50, 1))))).match()
    assert factor.tolist() == [1.0, 3.0]
    np.testing.assert_allclose(shift, wanted.mean(0) - own.mean(0) * [1.0, 3.0], rtol=1e-9)


def test_behind_least_squares_that_helped_nothing_is_matched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer of least squares comes no nearer by a factor; where they did not help it may."""
    graph, _, coupling = analyse(build(PLAIN))
    keep = {coupling.by_name["w1:0"].dim: np.arange(6) < 4}
    cut, samples = Cut(coupling, keep, remove_units(coupling, keep)), draw_samples(graph, 300)
    helped = recover(cut, Bench(cut.coupling, samples), "auto", 0)
    assert [(step.step, step.kept) for step in helped.steps] == [("least-squares refit", True)]
    assert any("leave nothing for a factor" in note for note in helped.notes)
    monkeypatch.setattr(stage, "refit", lambda *_, **__: (cut.pruned, [LayerFit("w2", 1.0, 1.0)]))
    without = recover(cut, Bench(cut.coupling, samples), "auto", 0)
    assert [step.step for step in without.steps] == ["least-squares refit", "statistics"]
    assert not without.steps[0].kept
