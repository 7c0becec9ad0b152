"""Errors of outputs, each channel on its own scale: against numpy, and what does not change them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, build, random_keep
from nets import draw_samples

from obc_onnx.graph.session import Session
from obc_onnx.measuring import scales
from obc_onnx.measuring.error import Distance, output_error
from obc_onnx.measuring.scales import scales_of
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.report.doubts import doubts_of_outputs
from obc_onnx.report.terminal import report_text
from obc_onnx.run.api import compress, score
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph

DETECTOR = (
    "net (float[N,3,4,5] x) => (float[N,5,20] y)"
    "<float[8,3,3,3] a, float[6,8,1,1] b, float[6,8,1,1] c, float[2,6,1,1] box, float[2] box_bias,"
    " float[3,6,1,1] score, float[3] score_bias, int64[3] flat>"
    "{ h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv(r, b) p = Relu(i) j = Conv(r, c)"
    "  q = Relu(j) s = Conv(p, box, box_bias) t = Conv(q, score, score_bias)"
    "  u = Reshape(s, flat) v = Reshape(t, flat) w = Sigmoid(v) y = Concat<axis=1>(u, w) }"
)
"""Boxes and scores are joined along axis 1; anchors lie along axis 2."""
DENSE = (
    "net (float[N,4] x) => (float[N,6] y)"
    "<float[4,16] a, float[16,6] b, float[6] c>"
    "{ h = MatMul(x, a) r = Relu(h) m = MatMul(r, b) y = Add(m, c) }"
)


def detector(box: float = 1e2, score: float = 1e-1) -> onnx.ModelProto:
    """Boxes of hundreds, and scores far below one half, which move by thousandths."""
    drawn = np.random.default_rng(7)
    constants = {
        "flat": [0, 0, -1],
        "box": (box * drawn.standard_normal((2, 6, 1, 1))).astype(np.float32),
        "box_bias": np.array([5e2, -2e2], np.float32),
        "score": (score * drawn.standard_normal((3, 6, 1, 1))).astype(np.float32),
        "score_bias": np.array([-3, -4, -5], np.float32),
    }
    return build(DETECTOR.replace(", int64[3] flat", ""), constants)


def dense(factors: NDArray) -> onnx.ModelProto:
    """Return a net whose outputs are multiplied by factors."""
    drawn = np.random.default_rng(3)
    last = drawn.standard_normal((16, 6)) * factors
    return build(DENSE, {"b": last.astype(np.float32), "c": (factors * 3).astype(np.float32)})


def outputs_of(graph: Graph, samples: Samples) -> NDArray[np.float64]:
    feed = samples.feed(slice(0, None))
    return next(iter(Session(graph).run(feed).values())).astype(np.float64)


def pooled(errors: NDArray[np.float64]) -> float:
    return float(np.prod(1 + errors) ** (1 / len(errors)) - 1)


def test_a_channel_counts_by_its_own_deviation_around_the_mean_of_each_place() -> None:
    _, _, coupling = analyse(detector())
    samples = draw_samples(coupling.graph, 150)  # more than one run
    pruned = remove_units(coupling, random_keep(coupling, np.random.default_rng(1)))
    y, z = (outputs_of(graph, samples) for graph in (coupling.graph, pruned))
    centred = y - y.mean(0)
    variance = (centred**2).sum(0).mean(-1) / (len(y) - 1)
    errors = ((z - y) ** 2).mean((0, 2)) / variance
    assert variance.max() > 1e9 * variance.min()
    (found,) = Distance(coupling, samples).outputs(pruned)
    assert found.n_channels == 5
    worst = np.argsort(-errors)[:3]
    assert [channel.channel for channel in found.worst] == [f"[{i}, :]" for i in worst]
    assert [channel.error for channel in found.worst] == pytest.approx(errors[worst], rel=1e-3)
    deviations = [channel.deviation for channel in found.worst]
    assert deviations == pytest.approx(np.sqrt(variance[worst]), rel=1e-3)
    assert found.error == pytest.approx(pooled(errors), rel=1e-3)
    assert found.n_lost == (errors > 1).sum()
    assert output_error(coupling, pruned, samples) == found.error
    scale = 1 / np.sqrt(variance)[:, None]
    cosines = [
        (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
        for a, b in ((c * scale, (c + d) * scale) for c, d in zip(centred, z - y, strict=True))
    ]
    assert found.agreement == pytest.approx(np.mean(cosines), abs=1e-4)
    assert found.agreement_p5 == pytest.approx(np.percentile(cosines, 5), abs=1e-4)
    (same,) = Distance(coupling, samples).outputs(coupling.graph)
    assert (same.error, same.agreement, same.agreement_p5) == (
        0,
        pytest.approx(1),
        pytest.approx(1),
    )


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_neither_scores_nor_errors_depend_on_the_units_of_channels(spread: float) -> None:
    plain, scaled = (dense(f) for f in (np.ones(6), spread ** np.linspace(0, 1, 6)))
    found, errors = [], []
    for model in (plain, scaled):
        _, _, coupling = analyse(model)
        samples = draw_samples(coupling.graph, 64)
        scoring = Scoring(objective="output")
        found.append(score(model, data=samples, scoring=scoring).groups["a:1"])
        keep = {coupling.groups[0].dim: np.arange(16) < 12}
        errors.append(output_error(coupling, remove_units(coupling, keep), samples))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_what_scores_depend_on_is_not_cut_for_what_boxes_do() -> None:
    model = detector()
    _, _, coupling = analyse(model)
    samples = draw_samples(coupling.graph, 256)
    result = compress(model, data=samples, budget=Budget(0.7))
    kept = {group.name: group.kept for group in result.report.groups}
    assert kept["c:0"] >= 3, "the branch of the scores is as much worth as that of the boxes"
    (output,) = result.report.outputs
    assert output.n_lost == 0


def test_a_channel_at_rest_does_not_outweigh_the_others() -> None:
    """Channels 0 and 1 do not move; 0 is 3 throughout, 1 is 0."""
    factors = np.array([0, 0, 1, 1, 1, 1.0])
    model = dense(factors)
    constants = {"c": np.array([3, 0, 0, 0, 0, 0], np.float32)}
    _, _, coupling = analyse(model)
    graph = coupling.graph.edit(constants)
    coupling = analyse(graph).coupling
    samples = draw_samples(graph, 60)
    y = outputs_of(graph, samples)
    shift = np.array([3.3, 0.1, 0, 0, 0, 0], np.float32)
    changed = graph.edit({"c": shift})
    (found,) = Distance(coupling, samples).outputs(changed)
    errors = {channel.channel: channel.error for channel in found.worst}
    assert errors["[0]"] == pytest.approx(0.1**2, rel=1e-3)
    assert errors["[1]"] == pytest.approx(0.1**2 / y[:, 2:].var(0, ddof=1).mean(), rel=1e-3)
    assert found.error < 0.1


def test_what_a_softmax_makes_is_one_channel() -> None:
    text = DENSE.replace("y = Add(m, c)", "n = Add(m, c) y = Softmax(n)")
    _, _, coupling = analyse(build(text))
    samples = draw_samples(coupling.graph, 50)
    keep = {coupling.groups[0].dim: np.arange(16) < 9}
    pruned = remove_units(coupling, keep)
    y, z = (outputs_of(graph, samples) for graph in (coupling.graph, pruned))
    (found,) = Distance(coupling, samples).outputs(pruned)
    assert found.n_channels == 1
    error = ((z - y) ** 2).mean() / y.var(0, ddof=1).mean()
    assert found.error == pytest.approx(error, rel=1e-3)


def test_numbers_that_are_not_finite_and_one_sample_have_errors() -> None:
    text = DENSE.replace("y = Add(m, c)", "n = Add(m, c) o = Relu(n) y = Log(o)")
    _, _, coupling = analyse(build(text))
    samples = draw_samples(coupling.graph, 50)
    keep = {coupling.groups[0].dim: np.arange(16) < 15}
    pruned = remove_units(coupling, keep)
    assert np.isinf(outputs_of(coupling.graph, samples)).any()
    (same,) = Distance(coupling, samples).outputs(coupling.graph)
    assert same.error == 0
    assert output_error(coupling, pruned, samples) > 0
    _, _, coupling = analyse(detector())
    one = draw_samples(coupling.graph, 1)
    pruned = remove_units(coupling, random_keep(coupling, np.random.default_rng(1)))
    assert 0 < output_error(coupling, pruned, one) < np.inf


def test_outputs_of_any_shape_are_compared() -> None:
    """The values above 0 are as many as there are: no sample has its own."""
    text = (
        "net (float[N,4] x) => (float[K] y)"
        "<float[4,16] a, float[16,6] b, float zero>"
        "{ h = MatMul(x, a) r = Relu(h) m = MatMul(r, b) g = Greater(m, zero)"
        "  y = Compress(m, g) }"
    )
    text = text.replace("Compress(m, g)", "Compress(f, e)")
    text = text.replace("  y =", "  f = Reshape(m, all) e = Reshape(g, all) y =")
    model = build(text.replace(", float zero", ""), {"zero": np.float32(0), "all": [-1]})
    _, _, coupling = analyse(model)
    samples = draw_samples(coupling.graph, 40)
    (found,) = Distance(coupling, samples).outputs(coupling.graph)
    assert (found.error, found.n_channels, found.agreement) == (0, 1, pytest.approx(1))
    changed = coupling.graph.edit({"b": -coupling.graph.initializers["b"]})
    (found,) = Distance(coupling, samples).outputs(changed)
    assert found.error == pytest.approx(1, rel=0.1), "of another length: the mean stands for it"


def test_the_report_has_the_errors_of_held_out_samples_and_warns_of_what_is_lost() -> None:
    model = dense(np.ones(6))
    _, _, coupling = analyse(model)
    samples = draw_samples(coupling.graph, 100)
    mild = compress(
        model, data=samples, budget=Budget(0.9, scope=Scope(round_to=1)), recover="none"
    ).report
    held = samples.split(0.2)[1]
    hard = compress(model, data=samples, budget=Budget(0.15), recover="none")
    (output,) = hard.report.outputs
    y, z = (outputs_of(graph, held) for graph in (coupling.graph, hard.graph))
    errors = ((z - y) ** 2).mean(0) / y.var(0, ddof=1)
    assert output.error == pytest.approx(pooled(errors), rel=1e-3)
    assert output.n_lost == (errors > 1).sum() > 0
    assert not [w for w in mild.warnings if "channels of output" in w]
    (warning,) = (w for w in hard.report.warnings if "channels of output 'y'" in w)
    assert f"{output.n_lost} of 6 channels" in warning
    assert output.worst[0].channel in warning
    assert json.loads(hard.report.to_json())["outputs"][0]["worst"][0]["channel"] == (
        output.worst[0].channel
    )
    text = report_text(hard.report)
    assert f"5th percentile {output.agreement_p5:.3f}" in text
    assert output.worst[2].channel in text
    without = compress(model, budget=Budget(0.5)).report
    assert without.outputs == []
    assert doubts_of_outputs(mild.outputs) == []


def test_places_that_are_joined_are_places_of_the_same_channels() -> None:
    """Anchors of two levels: 20 and 5 of them, with 2 channels each."""
    text = (
        "net (float[N,3,4,5] x) => (float[N,2,25] y)"
        "<float[6,3,1,1] a, float[2,6,1,1] b, float[6,6,1,1] c, float[2,6,1,1] d>"
        "{ h = Conv(x, a) p = Relu(h) s = Conv(p, b) u = Reshape(s, flat)"
        "  k = Conv<strides=[2,1]>(p, c) q = Relu(k) w = AveragePool<kernel_shape=[2,1]>(q)"
        "  t = Conv(w, d) v = Reshape(t, flat) y = Concat<axis=2>(u, v) }"
    )
    _, _, coupling = analyse(build(text, {"flat": [0, 0, -1]}))
    samples = draw_samples(coupling.graph, 60)
    pruned = remove_units(coupling, random_keep(coupling, np.random.default_rng(1)))
    y, z = (outputs_of(graph, samples) for graph in (coupling.graph, pruned))
    (found,) = Distance(coupling, samples).outputs(pruned)
    assert [channel.channel for channel in sorted(found.worst, key=lambda c: c.channel)] == [
        "[0, :]",
        "[1, :]",
    ]
    errors = ((z - y) ** 2).mean((0, 2)) / y.var(0, ddof=1).mean(1)
    assert found.error == pytest.approx(pooled(errors), rel=1e-3)


@pytest.mark.parametrize("n_active", [2, 40])
def test_a_channel_that_few_samples_move_is_not_called_lost(n_active: int) -> None:
    """Channel 0 is a Relu that only some samples reach; what is compared never reaches it."""
    text = "net (float[N,2] x) => (float[N,2] y) <float[2,2] w, float[2] c> "
    body = "{ m = MatMul(x, w) s = Add(m, c) y = Relu(s) }"
    constants = {"w": np.eye(2, dtype=np.float32), "c": np.zeros(2, np.float32)}
    coupling = analyse(build(text + body, constants)).coupling
    x = np.random.default_rng(0).uniform(1, 2, (200, 2)).astype(np.float32)
    x[n_active:, 0] = -1
    samples = Samples({"x": x}, None, {"x": x.dtype})
    changed = coupling.graph.edit({"c": np.array([-4, 0], np.float32)})
    (found,) = Distance(coupling, samples).outputs(changed)
    errors = {channel.channel: channel.error for channel in found.worst}
    dead = np.square(np.maximum(x[:, 0], 0)).mean() / np.maximum(x[:, 0], 0).var(ddof=1)
    assert errors["[0]"] == pytest.approx(dead, rel=1e-4)
    assert errors["[0]"] > 1
    assert found.n_lost == (n_active > 2)
    assert bool(doubts_of_outputs([found])) == (n_active > 2)


def test_an_output_of_very_many_numbers_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, coupling = analyse(
        build("net (float[N,4] x) => (float[N,5] y) <float[4,5] w> { y = MatMul(x, w) }")
    )
    samples = draw_samples(graph, 8)
    ports, run = graph.outputs, Session(graph).run
    (each,) = scales_of(coupling, ports, samples, run, 4)
    monkeypatch.setattr(scales, "_MOST_NUMBERS", 9)
    (together,) = scales_of(coupling, ports, samples, run, 4)
    assert (len(each.variance), len(together.variance)) == (5, 1)
    values = run(samples.feed(slice(0, 8)))["y"]
    np.testing.assert_allclose(together.variance, values.var(ddof=1), rtol=1e-4)
