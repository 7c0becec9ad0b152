"""Scores of criteria: sums of squares, invariances, and norms by formula, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from gradients import brute_force
from helpers import analyse, build
from nets import (
    NETS,
    Case,
    case_of,
    draw_keep,
    draw_samples,
    error_of,
    make_double,
    model_of,
    prune,
)
from onnx import numpy_helper
from torch.nn.functional import cross_entropy

from obc_onnx.errors import DataError, RequestError
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.jacobian import accumulate
from obc_onnx.saliency.options import Scoring

if TYPE_CHECKING:
    import onnx

    from obc_onnx.samples.samples import Samples

EXACT = 1e-10
PLAIN = [name for name in NETS if name != "shared bias"]
"""A bias of two weights counts with each use of it, which gradients of the bias cannot tell."""


LABELS, OUTPUTS = Scoring(objective="labels"), Scoring(objective="output")


def scores(case: Case, samples: Samples, batch_size: int = 64) -> dict[str, np.ndarray]:
    usual = OUTPUTS if samples.labels is None else LABELS
    scene = Scene(case.coupling, samples, scoring=replace(usual, batch_size=batch_size))
    return make_criterion("jacobian").score(scene, {})


@pytest.mark.parametrize("name", PLAIN)
def test_scores_are_sums_of_squared_rows_of_the_cross_entropy(name: str) -> None:
    case = case_of(name)
    samples = draw_samples(case.graph, 5, labelled=True)
    labels = iter(torch.from_numpy(samples.labels).split(1))
    inputs = [torch.from_numpy(samples.inputs[port.name]) for port in case.graph.inputs]
    rows = brute_force(case, inputs, lambda y: cross_entropy(y[0], next(labels)))
    found = scores(case, samples, batch_size=2)
    assert found.keys() == {group.name for group in case.coupling.groups}
    for group in case.coupling.groups:
        squares = [row.square().sum(0) for (_, dim), row in rows.items() if dim is group.dim]
        assert error_of(torch.from_numpy(found[group.name]), torch.stack(squares).sum(0)) < EXACT


def test_permuting_channels_permutes_saliency() -> None:
    model = make_double(model_of("norm"))
    order = np.random.default_rng(1).permutation(6)
    axes = {"w1": 0, "b1": 0, "scale": 0, "shift": 0, "mean": 0, "var": 0, "slope": 0, "w2": 1}
    for tensor in model.graph.initializer:
        if tensor.name in axes:
            array = numpy_helper.to_array(tensor).take(order, axes[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    case = case_of("norm")
    samples = draw_samples(case.graph, 4, labelled=True)
    before, after = scores(case, samples), scores(Case(*analyse(model)), samples)
    np.testing.assert_allclose(after["w1:0"], before["w1:0"][order], rtol=EXACT)
    np.testing.assert_allclose(after["w2:0"], before["w2:0"], rtol=EXACT)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_order_and_batch_size_do_not_change_scores(batch_size: int) -> None:
    case = case_of("residual")
    samples = draw_samples(case.graph, 7, labelled=True)
    shuffled = samples.part(np.random.default_rng(1).permutation(7))
    found = scores(case, shuffled, batch_size)
    for name, score in scores(case, samples, 7).items():
        np.testing.assert_allclose(found[name], score, rtol=EXACT)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c not in {"random", "bn-scale"}])
@pytest.mark.parametrize("name", NETS)
def test_kept_units_score_as_in_the_pruned_network(name: str, criterion: str) -> None:
    case = case_of(name)
    keep = draw_keep(case.coupling)
    samples = draw_samples(case.graph, 6, labelled=True)
    scorer = make_criterion(criterion)
    masked = scorer.score(Scene(case.coupling, samples, scoring=LABELS), keep)
    cut = Case(*analyse(prune(case, keep)))
    pruned = scorer.score(Scene(cut.coupling, samples, scoring=LABELS), {})
    assert pruned.keys() == masked.keys()
    for group in case.coupling.groups:
        kept = masked[group.name][keep[group.dim]]
        atol = EXACT * np.abs(kept).max()
        np.testing.assert_allclose(kept, pruned[group.name], rtol=1e-7, atol=atol)


def linear_model() -> onnx.ModelProto:
    return make_double(
        build(
            "net (float[N,6] x) => (float[N,4] y) <float[5,6] w1, float[4,5] w2>"
            "{ h = Gemm<transB=1>(x, w1) y = Gemm<transB=1>(h, w2) }"
        )
    )


def test_without_labels_the_score_estimates_the_change_of_the_outputs() -> None:
    """Both members of unit u change y by h_u w2[:, u], a share of what each of 4 outputs does.

    So S = 2 sum_n h_nu^2 mean_o w2[o, u]^2 / var y_o.
    """
    case = Case(*analyse(linear_model()))
    samples = draw_samples(case.graph, 32)
    w1, w2 = (case.graph.initializers[name] for name in ("w1", "w2"))
    hidden = samples.inputs["x"] @ w1.T
    variance = (hidden @ w2.T).var(0, ddof=1)
    expected = 2 * (hidden**2).sum(0) * (w2**2 / variance[:, None]).mean(0)
    scenes = [Scene(case.coupling, samples, seed, scoring=OUTPUTS) for seed in range(100)]
    drawn = [make_criterion("jacobian").score(scene, {})["w1:0"] for scene in scenes]
    assert not np.allclose(drawn[0], drawn[1])
    spread = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (np.abs(np.mean(drawn, axis=0) - expected) < 5 * spread).all()
    assert (spread < 0.1 * expected).all()


def test_the_seed_decides_the_score() -> None:
    case = case_of("dense")
    scene = Scene(case.coupling, draw_samples(case.graph, 4), seed=3, scoring=OUTPUTS)
    one, two = (make_criterion("jacobian").score(scene, {}) for _ in range(2))
    for name, score in one.items():
        np.testing.assert_array_equal(score, two[name])


@pytest.mark.parametrize("batch", [1, 4])
def test_a_static_batch_gives_one_row_for_each_of_its_batches(batch: int) -> None:
    case, free = case_of("residual", batch), case_of("residual")
    samples = draw_samples(free.graph, 8, labelled=True)
    inputs, labels = torch.from_numpy(samples.inputs["x"]), torch.from_numpy(samples.labels)
    totals = accumulate(Scene(case.coupling, samples, scoring=LABELS), {})
    answers = iter(labels.split(1))
    rows = brute_force(free, [inputs], lambda y: cross_entropy(y[0], next(answers)))
    found = {(member, dim.size): total for (member, dim), total in totals.items()}
    for (member, dim), row in rows.items():
        expected = row.reshape(-1, batch, dim.size).sum(1).square().sum(0)
        assert error_of(found[member, dim.size], expected) < EXACT


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("criterion", ["jacobian", "fisher"])
def test_rows_of_batches_are_as_large_as_asked_whatever_a_model_takes(
    criterion: str, batch: int
) -> None:
    samples = draw_samples(case_of("residual").graph, 20, labelled=True)
    scoring = Scoring(rows="batch", batch_size=8)
    found = [
        make_criterion(criterion).score(Scene(case.coupling, samples, scoring=scoring), {})
        for case in (case_of("residual", batch), case_of("residual"))
    ]
    for name, values in found[1].items():
        np.testing.assert_allclose(found[0][name], values, rtol=1e-9)


def test_labels_belong_to_the_first_output() -> None:
    text = NETS["gemm"].replace("=> (float[N,4] y)", "=> (float[N,4] y, float[N,6] t3)")
    case, alone = case_of(build(text)), case_of("gemm")
    samples = draw_samples(case.graph, 4, labelled=True)
    scoring = Scoring(rows="sample", objective="labels")
    scene = Scene(case.coupling, samples, scoring=scoring)
    two, one = make_criterion("jacobian").score(scene, {}), scores(alone, samples)
    for name in two.keys() & one.keys() - {"w3:0"}:
        np.testing.assert_allclose(two[name], one[name], rtol=EXACT)


def test_every_float_output_counts_where_there_are_no_labels() -> None:
    model = build(
        "net (float[N,6] x) => (float[N,4] y, float[N,3] z, int64[N,4] k)"
        "<float[5,6] w1, float[4,5] w2, float[3,5] w3>"
        "{ h = Gemm<transB=1>(x, w1) y = Gemm<transB=1>(h, w2) z = Gemm<transB=1>(h, w3)"
        "  k = Cast<to=7>(y) }"
    )
    case = case_of(model)
    totals = accumulate(Scene(case.coupling, draw_samples(case.graph, 4), scoring=OUTPUTS), {})
    assert {member for member, _ in totals} == {("w1", 0), ("w2", 1), ("w3", 1)}
    assert all((total > 0).all() for total in totals.values())


def test_a_model_without_groups_has_no_scores() -> None:
    model = build(
        "net (float[N,6] x) => (float[N,4] y) <float[4,6] w> { y = Gemm<transB=1>(x, w) }"
    )
    case = case_of(model)
    assert scores(case, draw_samples(case.graph, 2)) == {}


def test_a_model_without_float_outputs_is_refused() -> None:
    text = NETS["gemm"].replace("(float[N,4] y)", "(int64[N,4] k)")
    case = case_of(build(text[:-1] + " k = Cast<to=7>(y) }"))
    with pytest.raises(RequestError, match="no output"):
        scores(case, draw_samples(case.graph, 2))


def test_a_loss_that_is_not_finite_names_the_data() -> None:
    case = case_of("gemm")
    samples = draw_samples(case.graph, 2, labelled=True)
    samples.inputs["x"][1, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        scores(case, samples)


def test_the_jacobian_needs_samples() -> None:
    with pytest.raises(DataError, match="`criterion='l2'`"):
        make_criterion("jacobian").score(Scene(case_of("gemm").coupling), {})


def test_magnitude_is_the_norm_of_all_weights_of_a_unit() -> None:
    case = case_of("grouped")
    w1, w2, w3 = (case.graph.initializers[name] ** 2 for name in ("w1", "w2", "w3"))
    blocks = w1.reshape(3, -1).sum(1) + w2.reshape(3, -1).sum(1)
    blocks += w3.reshape(5, 3, 3).sum((0, 2))
    inner = w1.reshape(3, 4, -1).sum((0, 2)) + w2.sum((0, 2, 3))
    outer = w2.reshape(3, 3, -1).sum((0, 2)) + w3.reshape(5, 3, 3).sum((0, 1))
    found = make_criterion("l2").score(Scene(case.coupling), {})
    for name, squares in {"w1:0.0": blocks, "w1:0.1": inner, "w2:0.1": outer}.items():
        np.testing.assert_allclose(found[name], np.sqrt(squares), rtol=EXACT)


def test_magnitude_counts_a_weight_once_where_a_unit_holds_it_twice() -> None:
    case = case_of("gram")
    w1, fc = (case.graph.initializers[name] ** 2 for name in ("w1", "fc"))
    pairs = fc.reshape(4, 5, 5).sum(0)
    owned = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
    found = make_criterion("l2").score(Scene(case.coupling), {})["w1:0"]
    np.testing.assert_allclose(found, np.sqrt(w1.sum((1, 2, 3)) + owned), rtol=EXACT)


def test_magnitude_counts_a_shared_weight_once_for_each_axis() -> None:
    case = case_of("shared weight")
    w0, w, fc = (case.graph.initializers[name] ** 2 for name in ("w0", "w", "fc"))
    squares = w0.sum((1, 2, 3)) + w.sum((1, 2, 3)) + w.sum((0, 2, 3)) + fc.sum(0)
    found = make_criterion("l2").score(Scene(case.coupling), {})["w0:0"]
    np.testing.assert_allclose(found, np.sqrt(squares), rtol=EXACT)
