"""Saliency against weight gradients, one sample and one unit at a time, in float64."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from nets import (
    NETS,
    Case,
    case_of,
    draw_inputs,
    draw_keep,
    draw_samples,
    error_of,
    make_double,
    model_of,
    prune,
    sine_loss,
    with_grads,
)
from onnx import numpy_helper
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from helpers import analyse, build
from obc_onnx.axes import Dim, leaves, mask
from obc_onnx.errors import DataError, RequestError
from obc_onnx.ops import DEFAULT_RULES
from obc_onnx.saliency import Scene, make_criterion
from obc_onnx.saliency.jacobian import accumulate
from obc_onnx.saliency.taps import Taps
from obc_onnx.twin import build_twin, parameter_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from torch import Tensor, fx

    from obc_onnx.data import Samples

    Loss = Callable[[tuple[Tensor, ...]], Tensor]
    Rows = dict[tuple[tuple[str, int], Dim], Tensor]

EXACT = 1e-10
PLAIN = [name for name in NETS if name != "shared bias"]
"""A bias of two weights counts with each use of it, which gradients of the bias cannot tell."""
MEMBERS = {
    "grouped": {("w1", 0), ("w2", 0), ("w2", 1), ("w3", 0), ("w3", 1), ("fc", 1)},
    "multiplier": {("w1", 0), ("w2", 0), ("w3", 0), ("w3", 1), ("fc", 1)},
    "transposed blocks": {("w1", 0), ("w2", 0), ("w2", 1), ("w3", 0), ("w3", 1), ("fc", 1)},
    "matmul right": {("w1", 1), ("b1", 0), ("w2", 0), ("w2", 1), ("b2", 2), ("fc", 0)},
    "matmul left": {("w1", 0), ("b1", 0), ("fc", 1)},
    "norm": {("w1", 0), ("scale", 0), ("slope", 0), ("w2", 0), ("w2", 1), ("fc", 1)},
    "bare": {("w1", 0), ("p", 1), ("q", 1), ("r", 0), ("w2", 0), ("w2", 1), ("fc", 1)},
    "shared weight": {("w0", 0), ("w", 0), ("w", 1), ("fc", 1)},
    "tied": {("w0", 0), ("w", 0), ("w", 1), ("fc", 1)},
}


def twin_of(case: Case) -> fx.GraphModule:
    return build_twin(case.graph, case.shapes, DEFAULT_RULES)


def operands_of(case: Case) -> dict[tuple[str, int], set[tuple[str, int]]]:
    """For each member, the axes along which its unit lies: its own, and that of its bias."""
    members: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for role in case.coupling.roles:
        names = role.node.inputs
        member = (names[role.slot], role.axis)
        if member[0] not in case.graph.initializers:
            continue
        owned = members.setdefault(member, {member})
        if role.kind == "writes" and role.bias is not None:
            owned.add((names[role.bias], case.graph.initializers[names[role.bias]].ndim - 1))
        if role.node.op_type == "BatchNormalization":
            owned.add((names[2], 0))
    return members


def products_by_sample(case: Case, inputs: list[Tensor], loss: Loss) -> list[dict[str, Tensor]]:
    """Weight times its gradient, element by element, from a backward pass for every sample."""
    twin = twin_of(case)
    weights = with_grads(dict(twin.named_parameters()))
    found = []
    for i in range(len(inputs[0])):
        value = loss(functional_call(twin, weights, tuple(x[i : i + 1] for x in inputs)))
        grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        pairs = zip(weights.items(), grads, strict=True)
        found.append({n: (w * g).detach() for (n, w), g in pairs if g is not None})
    return found


def along(case: Case, products: dict[str, Tensor], place: tuple[str, int], dim: Dim) -> Tensor:
    """Sum the products of the positions that go when one unit goes, for every unit."""
    name, axis = place
    product = products[parameter_name(name)].movedim(axis, 0)
    sums = []
    for unit in range(dim.size):
        others = {dim: np.arange(dim.size) != unit}
        gone = ~mask(case.coupling.axes[name][axis], others)
        sums.append(product[torch.from_numpy(gone)].sum())
    return torch.stack(sums)


def brute_force(case: Case, inputs: list[Tensor], loss: Loss) -> Rows:
    by_sample = products_by_sample(case, inputs, loss)
    dims = {group.dim for group in case.coupling.groups}
    rows: Rows = {}
    for member, places in operands_of(case).items():
        for dim in dims.intersection(leaves(case.coupling.axes[member[0]][member[1]])):
            rows[member, dim] = torch.stack(
                [
                    sum((along(case, p, place, dim) for place in places), torch.zeros(()))
                    for p in by_sample
                ]
            )
    return rows


def tapped(case: Case, inputs: list[Tensor], loss: Loss) -> Rows:
    return Taps(twin_of(case), case.coupling).rows(inputs, loss)


def assert_rows_equal(actual: Rows, expected: Rows) -> None:
    assert actual.keys() == expected.keys()
    for key, row in expected.items():
        assert error_of(actual[key], row) < EXACT, key


def scores(case: Case, samples: Samples, batch_size: int = 64) -> dict[str, np.ndarray]:
    scene = Scene(case.coupling, samples, batch_size=batch_size)
    return make_criterion("jacobian").score(scene, {})


@pytest.mark.parametrize("name", PLAIN)
def test_taps_equal_weights_times_their_gradients(name: str) -> None:
    case = case_of(name)
    inputs = draw_inputs(case.graph, 3)
    assert_rows_equal(tapped(case, inputs, sine_loss), brute_force(case, inputs, sine_loss))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_weight_that_meets_a_group_is_scored(name: str) -> None:
    case = case_of(name)
    rows = tapped(case, draw_inputs(case.graph, 1), sine_loss)
    assert {member for member, _ in rows} == MEMBERS[name]


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


@pytest.mark.parametrize("name", ["multiplier", "norm"])
def test_the_grouped_slices_are_those_of_the_layout(name: str) -> None:
    """Written out by hand for the two layouts in which a unit is easily misplaced."""
    case = case_of(name)
    inputs = draw_inputs(case.graph, 2)
    rows = tapped(case, inputs, sine_loss)
    for i, p in enumerate(products_by_sample(case, inputs, sine_loss)):
        for (member, dim), row in rows.items():
            if name == "multiplier" and member == ("w2", 0):
                both = p["w2"].sum((1, 2, 3)) + p["b2"]
                expected = both.reshape(4, 3).sum(0 if dim.size == 3 else 1)
                assert error_of(row[i], expected) < EXACT
            if name == "norm" and member == ("scale", 0):
                assert error_of(row[i], p["scale"] + p["shift"]) < EXACT


def test_a_shared_bias_counts_with_each_of_its_uses() -> None:
    case, model = case_of("shared bias"), model_of("shared bias")
    copy = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "b"))
    model.graph.initializer.append(numpy_helper.from_array(copy, "b2"))
    next(n for n in model.graph.node if n.output[0] == "c2").input[2] = "b2"
    apart, inputs = case_of(model), draw_inputs(case.graph, 2)
    expected = brute_force(apart, inputs, sine_loss)
    found = tapped(case, inputs, sine_loss)
    sizes = {(m, d.size): row for (m, d), row in expected.items()}
    assert len(sizes) == len(found) > 0
    for (member, dim), row in found.items():
        assert error_of(row, sizes[member, dim.size]) < EXACT


def test_scoring_runs_in_evaluation_mode() -> None:
    case = case_of("norm")
    inputs = draw_inputs(case.graph, 3)
    taps = Taps(twin_of(case).train(), case.coupling)
    assert not taps.twin.training
    assert_rows_equal(taps.rows(inputs, sine_loss), brute_force(case, inputs, sine_loss))
    for name in ("mean", "var"):
        state = taps.twin.get_buffer(name).numpy()
        np.testing.assert_array_equal(state, case.graph.initializers[name])


def test_no_weight_gradient_is_computed() -> None:
    case = case_of("residual")
    taps = Taps(twin_of(case), case.coupling)
    taps.rows(draw_inputs(case.graph, 2), sine_loss)
    weights = list(taps.twin.parameters())
    assert weights
    assert not any(weight.requires_grad for weight in weights)
    assert all(weight.grad is None for weight in weights)


def test_taps_change_no_output() -> None:
    case = case_of("residual")
    inputs = draw_inputs(case.graph, 2)
    expected = twin_of(case)(*inputs)[0]
    assert torch.equal(Taps(twin_of(case), case.coupling).twin(*inputs)[0], expected)


def test_rows_do_not_pile_up_between_runs() -> None:
    case = case_of("shared weight")
    taps, inputs = Taps(twin_of(case), case.coupling), draw_inputs(case.graph, 2)
    assert_rows_equal(taps.rows(inputs, sine_loss), taps.rows(inputs, sine_loss))


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


@pytest.mark.parametrize("name", NETS)
def test_kept_units_score_as_in_the_pruned_network(name: str) -> None:
    case = case_of(name)
    keep = draw_keep(case.coupling)
    samples = draw_samples(case.graph, 4, labelled=True)
    masked = make_criterion("jacobian").score(Scene(case.coupling, samples), keep)
    pruned = scores(Case(*analyse(prune(case, keep))), samples)
    assert pruned.keys() == masked.keys()
    for group in case.coupling.groups:
        kept = masked[group.name][keep[group.dim]]
        np.testing.assert_allclose(kept, pruned[group.name], rtol=EXACT)


def linear_model() -> onnx.ModelProto:
    return make_double(
        build(
            "net (float[N,6] x) => (float[N,4] y) <float[5,6] w1, float[4,5] w2>"
            "{ h = Gemm<transB=1>(x, w1) y = Gemm<transB=1>(h, w2) }"
        )
    )


def test_without_labels_the_score_estimates_the_change_of_the_outputs() -> None:
    """Both members of unit u change y by h_u w2[:, u], so S = 2 sum_n h_nu^2 |w2[:, u]|^2."""
    case = Case(*analyse(linear_model()))
    samples = draw_samples(case.graph, 32)
    w1, w2 = (case.graph.initializers[name] for name in ("w1", "w2"))
    hidden = samples.inputs["x"] @ w1.T
    expected = 2 * (hidden**2).sum(0) * (w2**2).sum(0)
    drawn = [
        make_criterion("jacobian").score(Scene(case.coupling, samples, seed), {})["w1:0"]
        for seed in range(100)
    ]
    assert not np.allclose(drawn[0], drawn[1])
    spread = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (np.abs(np.mean(drawn, axis=0) - expected) < 5 * spread).all()
    assert (spread < 0.1 * expected).all()


def test_the_seed_decides_the_score() -> None:
    case = case_of("dense")
    scene = Scene(case.coupling, draw_samples(case.graph, 4), seed=3)
    one, two = (make_criterion("jacobian").score(scene, {}) for _ in range(2))
    for name, score in one.items():
        np.testing.assert_array_equal(score, two[name])


@pytest.mark.parametrize("batch", [1, 4])
def test_a_static_batch_gives_one_row_for_each_of_its_batches(batch: int) -> None:
    case, free = case_of("residual", batch), case_of("residual")
    samples = draw_samples(free.graph, 8, labelled=True)
    inputs, labels = torch.from_numpy(samples.inputs["x"]), torch.from_numpy(samples.labels)
    totals = accumulate(Scene(case.coupling, samples), {})
    answers = iter(labels.split(1))
    rows = brute_force(free, [inputs], lambda y: cross_entropy(y[0], next(answers)))
    found = {(member, dim.size): total for (member, dim), total in totals.items()}
    for (member, dim), row in rows.items():
        expected = row.reshape(-1, batch, dim.size).sum(1).square().sum(0)
        assert error_of(found[member, dim.size], expected) < EXACT


def test_labels_belong_to_the_first_output() -> None:
    text = NETS["gemm"].replace("=> (float[N,4] y)", "=> (float[N,4] y, float[N,6] t3)")
    case, alone = case_of(build(text)), case_of("gemm")
    samples = draw_samples(case.graph, 4, labelled=True)
    two, one = scores(case, samples), scores(alone, samples)
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
    totals = accumulate(Scene(case.coupling, draw_samples(case.graph, 4)), {})
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
    with pytest.raises(DataError, match="--criterion l2"):
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


def test_all_members_of_all_nets_have_a_tap() -> None:
    for case in map(case_of, NETS):
        roles = [r for r in case.coupling.roles if r.node.inputs[r.slot] in case.graph.initializers]
        assert all(role.tap is not None for role in roles)
        assert set(chain(*(group.members for group in case.coupling.groups))) <= set(
            case.coupling.roles
        )
