"""Criteria against their formulas, from weight gradients and tensors that ONNX Runtime gives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from gradients import along, brute_force, operands_of, twin_of
from helpers import build
from nets import NETS, Case, case_of, draw_samples, error_of, with_grads
from scoring import score_by, tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from obc_onnx.errors import RequestError
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import PRESETS, Scoring
from obc_onnx.saliency.scores import choose_criterion

if TYPE_CHECKING:
    from obc_onnx.samples.samples import Samples

EXACT = 1e-9
PLAIN = [name for name in NETS if name not in {"shared bias", "tied"}]
"""A bias of two weights counts with each use of it, which gradients of the bias cannot tell."""


def score(
    case: Case, criterion: str, samples: Samples | None = None, **scoring: object
) -> dict[str, np.ndarray]:
    return score_by(criterion, case, samples, **{"objective": "labels", **scoring})


def assert_scores(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert error_of(torch.from_numpy(found[name]), torch.as_tensor(values)) < EXACT, name


def mean_products(case: Case, samples: Samples, parts: list[slice]) -> list[dict]:
    """Weight times its gradient, of the mean cross entropy over each part; kept, as if stored."""
    twin = twin_of(case)
    weights = with_grads(dict(twin.named_parameters()))
    found = []
    for part in parts:
        inputs = [torch.from_numpy(samples.inputs[port.name][part]) for port in case.graph.inputs]
        (y, *_) = functional_call(twin, weights, tuple(inputs))
        loss = cross_entropy(y, torch.from_numpy(samples.labels[part]))
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        pairs = zip(weights.items(), grads, strict=True)
        found.append({n: (w * g).detach() for (n, w), g in pairs if g is not None})
    return found


def by_group(case: Case, products: list[dict], square: str) -> dict[str, torch.Tensor]:
    """Reduce products to units: squares of rows, or absolute values or squares of elements."""
    found = {}
    for group in case.coupling.groups:
        members = dict.fromkeys((role.node.inputs[role.slot], role.axis) for role in group.members)
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in members:
            for product in products:
                own = {n: p.abs() for n, p in product.items()} if square == "abs" else product
                own = {n: p.square() for n, p in product.items()} if square == "elements" else own
                places = operands_of(case)[member]
                row = sum((along(case, own, p, group.dim) for p in places), torch.zeros(()))
                total += row.square() if square == "rows" else row
        found[group.name] = total
    return found


PARTS = [slice(0, 3), slice(3, 6), slice(6, 7)]


@pytest.mark.parametrize("name", PLAIN)
def test_rows_of_batches_are_those_of_the_mean_loss(name: str) -> None:
    case = case_of(name)
    samples = draw_samples(case.graph, 7, labelled=True)
    expected = by_group(case, mean_products(case, samples, PARTS), "rows")
    assert_scores(score(case, "jacobian", samples, rows="batch", batch_size=3), expected)


@pytest.mark.parametrize("name", ["dense", "residual", "norm"])
def test_the_setting_of_the_paper_is_its_formula_on_stored_weight_gradients(name: str) -> None:
    case = case_of(name)
    samples = draw_samples(case.graph, 300, labelled=True)
    parts = [slice(i, min(i + 128, 300)) for i in range(0, 300, 128)]
    scene = Scene(case.coupling, samples, scoring=PRESETS["paper"])
    expected = by_group(case, mean_products(case, samples, parts), "rows")
    assert_scores(make_criterion("jacobian").score(scene, {}), expected)


def test_the_setting_of_the_paper_leaves_out_depthwise_weights() -> None:
    case = case_of("depthwise")
    samples = draw_samples(case.graph, 6, labelled=True)
    (product,) = mean_products(case, samples, [slice(0, 6)])
    group = next(g for g in case.coupling.groups if g.name == "w1:0")
    rows = [
        along(case, product, ("w1", 0), group.dim),
        along(case, product, ("w3", 1), group.dim),
    ]
    scene = Scene(case.coupling, samples, scoring=PRESETS["paper"])
    found = make_criterion("jacobian").score(scene, {})["w1:0"]
    assert error_of(torch.from_numpy(found), sum(row.square() for row in rows)) < EXACT


@pytest.mark.parametrize("reduction", ["mean", "max", "first", "coupled"])
def test_members_come_together_as_asked(reduction: str) -> None:
    case = case_of("residual")
    samples = draw_samples(case.graph, 5, labelled=True)
    labels = iter(torch.from_numpy(samples.labels).split(1))
    inputs = [torch.from_numpy(samples.inputs[port.name]) for port in case.graph.inputs]
    rows = brute_force(case, inputs, lambda y: cross_entropy(y[0], next(labels)))
    expected = {}
    for group in case.coupling.groups:
        members = dict.fromkeys((r.node.inputs[r.slot], r.axis) for r in group.members)
        own = torch.stack([rows[member, group.dim] for member in members])
        squares = own.square().sum(1)
        expected[group.name] = {
            "mean": squares.mean(0),
            "max": squares.amax(0),
            "first": squares[0],
            "coupled": own.sum(0).square().sum(0),
        }[reduction]
    assert any(len(group.members) > 1 for group in case.coupling.groups)
    assert_scores(score(case, "jacobian", samples, reduction=reduction), expected)


def test_scores_are_divided_by_what_is_asked_for() -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 5, labelled=True)
    plain = score(case, "jacobian", samples)
    for normalizer, statistic in {"mean": np.mean, "max": np.max, "sum": np.sum}.items():
        expected = {name: values / statistic(values) for name, values in plain.items()}
        assert_scores(score(case, "jacobian", samples, normalizer=normalizer), expected)
    found = score(case, "jacobian", samples, normalizer="parameters")
    per_unit = {"w1:0": 3 * 9 + 6 * 9, "w2:0": 5 * 9 + 5 * 4, "w3:0": 6 * 4 + 4}
    assert_scores(found, {name: plain[name] / count for name, count in per_unit.items()})


@pytest.mark.parametrize("name", PLAIN)
def test_taylor_sums_absolute_products_with_the_mean_gradient(name: str) -> None:
    case = case_of(name)
    samples = draw_samples(case.graph, 7, labelled=True)
    expected = by_group(case, mean_products(case, samples, [slice(0, 7)]), "abs")
    assert_scores(score(case, "taylor", samples, batch_size=3), expected)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("rows", ["sample", "batch"])
def test_fisher_sums_squared_products_of_every_row(name: str, rows: str) -> None:
    case = case_of(name)
    samples = draw_samples(case.graph, 7, labelled=True)
    parts = PARTS if rows == "batch" else [slice(i, i + 1) for i in range(7)]
    sums = by_group(case, mean_products(case, samples, parts), "elements")
    expected = {name: values / 2 for name, values in sums.items()}
    assert_scores(score(case, "fisher", samples, rows=rows, batch_size=3), expected)


def test_group_taylor_squares_the_product_of_all_weights_of_a_unit() -> None:
    case = case_of("residual")
    samples = draw_samples(case.graph, 7, labelled=True)
    coupled = score(case, "jacobian", samples, rows="batch", reduction="coupled", batch_size=3)
    assert_scores(score(case, "taylor-group", samples, batch_size=3), coupled)


def test_criteria_of_activations_look_at_what_is_read() -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 9)
    for group, value, weight in (("w2:0", "t2", "w3"), ("w1:0", "t1", "w2")):
        x = np.moveaxis(tensor(case, value, samples), 1, 0)
        x = x.reshape(len(x), -1)
        w = np.abs(case.graph.initializers[weight]).sum((0, 2, 3))
        for criterion, expected in {
            "activation": np.linalg.norm(x, axis=1) * w,
            "variance": x.var(1),
            "apoz": (x != 0).mean(1),
        }.items():
            found = score(case, criterion, samples, batch_size=4)[group]
            np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_group_obs_is_what_a_refit_cannot_make_up_for() -> None:
    """By numpy's own least squares, on the columns that are left."""
    case = case_of(
        build(
            "net (float[N,6] x) => (float[N,3] y) <float[6,5] a, float[5,3] b>"
            "{ h = MatMul(x, a) t = Tanh(h) y = MatMul(t, b) }"
        )
    )
    samples = draw_samples(case.graph, 40)
    t, b = tensor(case, "t", samples), case.graph.initializers["b"]
    ridge = 1e-3 * (t**2).sum() / 5
    x = np.concatenate([t, np.sqrt(ridge) * np.eye(5)])
    costs = []
    for unit in range(5):
        others = [i for i in range(5) if i != unit]
        _, residuals, *_ = np.linalg.lstsq(x[:, others], x @ b, rcond=None)
        costs.append(residuals.sum())
    np.testing.assert_allclose(score(case, "group-obs", samples)["a:1"], costs, rtol=1e-6)


def test_group_obs_takes_all_columns_of_a_kernel_together() -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 30)
    t2, w3 = torch.from_numpy(tensor(case, "t2", samples)), case.graph.initializers["w3"]
    padded = torch.nn.functional.pad(t2, (0, 0, 1, 1))
    x = torch.nn.functional.unfold(padded, (2, 2), dilation=(2, 1)).movedim(1, -1)
    x = x.reshape(-1, x.shape[-1]).numpy()
    ridge = 1e-3 * (x**2).sum() / x.shape[1]
    x = np.concatenate([x, np.sqrt(ridge) * np.eye(x.shape[1])])
    target = x @ w3.reshape(len(w3), -1).T
    costs = []
    for unit in range(6):
        others = [i for i in range(x.shape[1]) if i // 4 != unit]
        _, residuals, *_ = np.linalg.lstsq(x[:, others], target, rcond=None)
        costs.append(residuals.sum())
    np.testing.assert_allclose(score(case, "group-obs", samples)["w2:0"], costs, rtol=1e-6)


@pytest.mark.parametrize("name", ["grouped", "transposed", "depthwise"])
def test_group_obs_falls_back_on_the_diagonal(name: str) -> None:
    case = case_of(name)
    for values in score(case, "group-obs", draw_samples(case.graph, 5)).values():
        assert (values > 0).all()


def test_lamp_divides_by_what_is_no_smaller() -> None:
    case = case_of("dense")
    for name, norms in score(case, "l2").items():
        squares = norms**2
        expected = [s / squares[squares >= s].sum() for s in squares]
        np.testing.assert_allclose(score(case, "lamp")[name], expected, rtol=1e-9)


def test_filters_are_compared_pair_by_pair() -> None:
    case = case_of("dense")
    for group, weight in (("w1:0", "w1"), ("w2:0", "w2"), ("w3:0", "w3")):
        filters = case.graph.initializers[weight]
        filters = filters.reshape(len(filters), -1)
        norms = np.linalg.norm(filters, axis=1)
        distances, hybrid = np.zeros(len(filters)), np.zeros(len(filters))
        for i, f in enumerate(filters):
            for j, g in enumerate(filters):
                distances[i] += np.linalg.norm(f - g)
                cosine = abs(f @ g) / (norms[i] * norms[j])
                hybrid[i] += 0 if i == j else norms[i] * norms[j] * (1 - cosine)
        np.testing.assert_allclose(score(case, "fpgm")[group], distances, rtol=1e-6)
        np.testing.assert_allclose(score(case, "whc")[group], hybrid, rtol=1e-9)


def test_filters_are_compared_with_those_that_are_left() -> None:
    case = case_of("dense")
    group = next(g for g in case.coupling.groups if g.name == "w2:0")
    keep = {group.dim: np.array([1, 0, 1, 1, 0, 1], np.bool_)}
    found = make_criterion("fpgm").score(Scene(case.coupling), keep)["w2:0"]
    filters = case.graph.initializers["w2"].reshape(6, -1)[keep[group.dim]]
    expected = np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)
    np.testing.assert_allclose(found[keep[group.dim]], expected, rtol=1e-6)


def test_l1_sums_absolute_weights() -> None:
    case = case_of("dense")
    w2, w3 = (np.abs(case.graph.initializers[name]) for name in ("w2", "w3"))
    expected = w2.sum((1, 2, 3)) + w3.sum((0, 2, 3))
    np.testing.assert_allclose(score(case, "l1")["w2:0"], expected, rtol=1e-12)
    np.testing.assert_allclose(
        score(case, "l1", reduction="mean")["w2:0"], expected / 2, rtol=1e-12
    )


def test_batch_norm_scales_are_those_of_the_norms_along_a_unit() -> None:
    case = case_of(
        build(
            "net (float[N,3,6,6] x) => (float[N,4] y) <float[6,3,3,3] w1, float[6] scale,"
            " float[6] shift, float[6] mean, float[6] var, float[4,6] fc>"
            "{ c = Conv(x, w1) n = BatchNormalization(c, scale, shift, mean, var) r = Relu(n)"
            "  p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, fc) }"
        )
    )
    expected = np.abs(case.graph.initializers["scale"])
    np.testing.assert_allclose(score(case, "bn-scale")["w1:0"], expected, rtol=1e-12)


def test_batch_norm_scales_are_refused_where_a_group_has_none() -> None:
    with pytest.raises(RequestError, match="says nothing of any group"):
        score(case_of("dense"), "bn-scale")


def test_chance_depends_on_the_seed_alone() -> None:
    case = case_of("dense")
    one = make_criterion("random").score(Scene(case.coupling, seed=1), {})
    again = make_criterion("random").score(Scene(case.coupling, seed=1), {})
    other = make_criterion("random").score(Scene(case.coupling, seed=2), {})
    assert_scores(one, again)
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "bn-scale"])
@pytest.mark.parametrize("name", NETS)
def test_every_criterion_scores_every_unit_of_every_net(criterion: str, name: str) -> None:
    case = case_of(name)
    found = score(case, criterion, draw_samples(case.graph, 6, labelled=True))
    assert found.keys() == {group.name for group in case.coupling.groups}
    for group in case.coupling.groups:
        assert found[group.name].shape == (group.size,)
        assert found[group.name].dtype == np.float64
        assert np.isfinite(found[group.name]).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_name_of_a_criterion_is_that_in_the_table(criterion: str) -> None:
    assert make_criterion(criterion).name == criterion


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "loss"), ("rows", "both"), ("reduction", "prod"), ("normalizer", "lamp"),
        ("samples", 0), ("batches", 0), ("batch_size", 0),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_known_is_refused(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=str(value)):
        replace(Scoring(), **{field: value})


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "jacobian"])
def test_a_model_without_groups_has_no_scores(criterion: str) -> None:
    text = "net (float[N,6] x) => (float[N,4] y) <float[4,6] w> { y = Gemm<transB=1>(x, w) }"
    case = case_of(build(text))
    assert score(case, criterion, draw_samples(case.graph, 2, labelled=True)) == {}


def test_the_root_is_taken_before_scores_are_divided() -> None:
    case = case_of("residual")
    plain, shares = score(case, "l2"), score(case, "l2", normalizer="sum")
    for name, values in plain.items():
        np.testing.assert_allclose(shares[name], values / values.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("criterion", "field", "value"),
    [
        ("l2", "rows", "batch"),
        ("l1", "reduction", "coupled"),
        ("random", "normalizer", "max"),
        ("taylor-group", "reduction", "mean"),
        ("taylor", "rows", "batch"),
        ("variance", "objective", "output"),
    ],
)
def test_what_a_criterion_does_not_look_at_is_refused(
    criterion: str, field: str, value: object
) -> None:
    samples = draw_samples(case_of("gemm").graph, 2)
    assert choose_criterion(criterion, samples, Scoring()).name == criterion
    with pytest.raises(RequestError, match=f"'{criterion}' does not look at"):
        choose_criterion(criterion, samples, replace(Scoring(), **{field: value}))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_names_what_it_looks_at(criterion: str) -> None:
    known = {*Scoring.__dataclass_fields__, "coupled"}
    assert make_criterion(criterion).uses <= known
