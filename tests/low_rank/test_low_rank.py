"""Layers of low rank: factors, graphs that compute the same, and plans in which they compete."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import TO_THE_UNIT, analyse, build, coupling_of, relative_error, run_onnx
from hypothesis import given
from hypothesis import strategies as st
from nets import draw_samples
from small import archive, assert_done, invoke

from obc_onnx.errors import RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.low_rank.factors import factors_of
from obc_onnx.low_rank.layers import find_dense
from obc_onnx.low_rank.moments import Moment, moments_of
from obc_onnx.low_rank.split import Halves, split
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.costs import Macs, Params
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.run.api import apply, compress, make_plan, verify
from obc_onnx.run.sweep import sweep
from obc_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.coupling.model import Coupling

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]> g (float[N,12] x) => (float[N,{out}] y)'
WIDE = (
    HEAD.format(opset=17, out=20)
    + """
<float[12,16] a, float[20,16] w, float[20] b> {
  h = MatMul (x, a)
  r = Relu (h)
  y = Gemm<transB=1> (r, w, b)
}
"""
)
"""A layer of 12 * 16 = 192 MACs, and one of 16 * 20 = 320 whose outputs keep their width."""
DEEP = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,8] x) => (float[N,24] y)
<float[8,24] a, float[24,24] b, float[24,24] c, float[24,24] w> {
  u = MatMul (x, a)
  b1 = MatMul (u, b)
  b2 = Relu (b1)
  v1 = MatMul (b2, c)
  v = Add (u, v1)
  r = Relu (v)
  y = MatMul (r, w)
}
"""
FORMS = {
    "matmul right": "y = MatMul (x, w)|float[12,20] w|20",
    "gemm": "y = Gemm (x, w, b)|float[12,20] w, float[20] b|20",
    "gemm turned": "y = Gemm<transB=1> (x, w, b)|float[20,12] w, float[20] b|20",
    "gemm without bias": "y = Gemm<transB=1> (x, w)|float[20,12] w|20",
    "narrow": "y = MatMul (x, w)|float[12,5] w|5",
    "matmul left": "t = Transpose<perm=[1,0]> (x) s = MatMul (w, t) y = Transpose<perm=[1,0]> (s)"
    "|float[20,12] w|20",
    "gemm left": "s = Gemm<transA=1, transB=1> (w, x) y = Transpose<perm=[1,0]> (s)"
    "|float[12,20] w|20",
}
WHOLE = {
    "scaled": "y = Gemm<alpha=2.0> (x, w, b)|float[12,20] w, float[20] b|20",
    "used twice": "s = MatMul (x, w) t = MatMul (x, w) y = Add (s, t)|float[12,20] w|20",
    "of rank one": "y = MatMul (x, w)|float[12,1] w|1",
}


def model_of(form: str, opset: int = 17) -> onnx.ModelProto:
    """Build a layer between the model's input and its output."""
    body, weights, out = form.split("|")
    return build(f"{HEAD.format(opset=opset, out=out)} <{weights}> {{ {body} }}")


def conv_of(attributes: str, kernel: int = 1, inputs: int = 6) -> onnx.ModelProto:
    """Build a convolution between the model's input and its output."""
    return build(
        f'<ir_version: 10, opset_import: ["" : 17]> g (float[N,6,7,7] x) => (float[N,10,H,W] y)'
        f"<float[10,{inputs},{kernel},{kernel}] w, float[10] b>"
        f"{{ y = Conv<{attributes}> (x, w, b) }}"
    )


def whole_split(coupling: Coupling, samples: Any = None, weight: str = "w") -> Coupling:
    """Split a layer."""
    layers = [layer for layer in find_dense(coupling) if layer.weight == weight]
    moments = {} if samples is None else moments_of(coupling, layers, samples)
    halves = [
        Halves.of(coupling, d, moments.get((d.node.inputs[d.entry], d.along))) for d in layers
    ]
    return split(coupling, halves, None)


def low_rank_model(text: str = WIDE, weight: str = "w", rank: int = 2) -> onnx.ModelProto:
    """Build a model one weight of which is nearly of low rank."""
    rng = np.random.default_rng(5)
    shape = coupling_of(text).graph.initializers[weight].shape
    factors = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    noise = 1e-3 * rng.standard_normal(shape)
    return build(text, {weight: (factors + noise).astype(np.float32)})


def moment_of(rows: np.ndarray) -> Moment:
    """Return the moment of rows, each of which is a sample."""
    moment = Moment.empty(rows.shape[1])
    for part in np.array_split(rows, 3):
        moment.add(part)
    return moment


@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    n_rows=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    dead=st.booleans(),
)
def test_a_product_is_the_weight_and_its_second_factor_turns(
    height: int, width: int, n_rows: int, seed: int, *, dead: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((height, width)), rng.standard_normal((n_rows, width))
    if dead:
        x[:, 0] = 0
    second, first = factors_of(weight, moment_of(x))
    np.testing.assert_allclose(second @ first, weight, atol=1e-9)
    np.testing.assert_allclose(second.T @ second, np.eye(min(height, width)), atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_the_first_directions_leave_the_least_error(shape: tuple[int, int]) -> None:
    """With many samples of few directions nothing is to be mixed in."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(shape)
    x = rng.standard_normal((20_000, shape[1])) * np.geomspace(1, 0.01, shape[1])
    second, first = factors_of(weight, moment_of(x))
    best = np.linalg.eigvalsh(weight @ x.T @ x @ weight.T)[::-1]
    for left in range(min(shape) + 1):
        error = np.square(x @ (second[:, :left] @ first[:left] - weight).T).sum()
        assert error <= best[left:].sum() + 1e-6 * best.sum()


def test_without_samples_all_inputs_count_alike() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4))
    for moment in (None, Moment.empty(4), moment_of(np.ones((1, 4)))):
        second, first = factors_of(weight, moment)
        best = np.linalg.svd(weight, compute_uv=False)
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), best)
        np.testing.assert_allclose(second @ first, weight, atol=1e-12)


@pytest.mark.parametrize("n_rows", [16, 60, 20_000])
def test_few_samples_are_trusted_as_far_as_they_deserve(n_rows: int) -> None:
    """On other samples the directions are no worse than those of the samples or of the weight."""
    rng = np.random.default_rng(2)
    scales, turn = np.geomspace(1, 0.2, 24), np.linalg.qr(rng.standard_normal((24, 24)))[0]
    truth = turn @ np.diag(scales**2) @ turn.T
    errors = []
    for _ in range(20):
        weight = rng.standard_normal((24, 24))
        x = rng.standard_normal((n_rows, 24)) * scales @ turn.T
        second, _ = factors_of(weight, moment_of(x))
        bases = [second, np.linalg.svd(weight @ x.T @ x @ weight.T)[0], np.linalg.svd(weight)[0]]
        outputs = weight @ truth @ weight.T
        errors.append([np.diag(basis.T @ outputs @ basis) @ np.arange(24) for basis in bases])
    found, of_samples, of_weight = np.mean(errors, 0)
    assert found < 1.01 * min(of_samples, of_weight)
    if n_rows == 16:
        assert found < 0.95 * of_samples


@pytest.mark.parametrize("name", FORMS)
def test_a_split_layer_computes_the_same_and_counts_as_one(name: str) -> None:
    model = model_of(FORMS[name])
    coupling = analyse(model).coupling
    (layer,) = find_dense(coupling)
    found = whole_split(coupling, draw_samples(coupling.graph, 16))
    assert layer.weight not in found.graph.initializers
    assert found.macs({}) == coupling.macs({})
    assert found.params({}) == coupling.params({})
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    expected, actual = (run_onnx(of.graph, {"x": x})["y"] for of in (coupling, found))
    assert relative_error(actual, expected) < 1e-5
    rank = min(12, coupling.graph.initializers["w"].size // 12)
    assert [group.size for group in found.groups if found.pair_of(group.dim)] == [rank]
    onnx.checker.check_model(found.graph.written(), full_check=True)


@pytest.mark.parametrize(
    "attributes", ["group=1", "strides=[2,2]", "strides=[2,1], dilations=[1,1]"]
)
def test_a_convolution_of_points_is_split_and_the_first_half_picks_positions(
    attributes: str,
) -> None:
    coupling = analyse(conv_of(attributes)).coupling
    found = whole_split(coupling, draw_samples(coupling.graph, 4))
    x = np.random.default_rng(0).standard_normal((3, 6, 7, 7)).astype(np.float32)
    expected, actual = (run_onnx(of.graph, {"x": x})["y"] for of in (coupling, found))
    assert relative_error(actual, expected) < 1e-5
    (pair,) = found.pairs
    assert found.shapes[pair.first][2:] == found.shapes["y"][2:]
    assert found.macs({}) == coupling.macs({})


@pytest.mark.parametrize(
    "model",
    [
        *(model_of(form) for form in WHOLE.values()),
        model_of(FORMS["gemm"], opset=9),
        conv_of("pads=[1,1,1,1]"),
        conv_of("group=1", kernel=3),
        conv_of("group=2", inputs=3),
        conv_of('auto_pad="SAME_UPPER"'),
    ],
)
def test_layers_stay_whole_that_two_cannot_stand_for(model: onnx.ModelProto) -> None:
    assert [layer.weight for layer in find_dense(analyse(model).coupling)] in ([], ["a"])


def test_layers_that_channels_narrow_on_both_sides_stay_whole() -> None:
    assert [layer.weight for layer in find_dense(coupling_of(DEEP))] == ["a", "w"]


@pytest.mark.parametrize(("cost", "splits"), [(Macs, False), (Params, False), (Params, True)])
def test_a_pair_costs_what_is_cheaper_two_layers_or_one(
    cost: type[Macs | Params], *, splits: bool
) -> None:
    coupling = whole_split(coupling_of(WIDE))
    width = coupling.by_name["a:1"]
    (group,) = (own for own in coupling.groups if coupling.pair_of(own.dim))
    counted, of_bias = cost(coupling, splits=splits), 0 if cost is Macs else 20
    for n_inputs in (16, 12):
        for left in range(1, 17):
            keep = {group.dim: np.arange(16) < left, width.dim: np.arange(16) < n_inputs}
            layer = min(left * (n_inputs + 20), n_inputs * 20)
            assert counted.total(keep) == 12 * n_inputs + layer + of_bias
            more = {**keep, group.dim: np.ones(16, np.bool_)}
            saved = counted.total(more) - counted.total(keep)
            assert counted.around(group.dim, more) - counted.around(group.dim, keep) == saved


def test_a_layer_of_low_rank_is_found_and_another_one_stays_whole() -> None:
    for model, target, expected in ((low_rank_model(), 0.53, {"w": 2}), (build(WIDE), 0.9, {})):
        samples = draw_samples(Graph.from_model(model), 64)
        budget = Budget(target, low_rank=True, scope=TO_THE_UNIT)
        result = compress(model, data=samples, budget=budget, recover="none", latency=False)
        found = {
            weight: len(result.graph.initializers[first])
            for weight, (first, _) in result.plan.low_rank.items()
        }
        assert found == expected
        assert result.report.macs.before == 512
        assert result.plan.macs[0] == 512
        assert result.plan.macs[1] == result.report.macs.after <= target * 512
        assert all(check.passed for check in verify(model, result.model, result.plan))
        told = [note for note in result.report.notes if "two layers of rank 2" in note]
        assert len(told) == len(expected)


def test_at_equal_macs_low_rank_is_nearer_where_the_weight_is() -> None:
    model = low_rank_model()
    samples = draw_samples(Graph.from_model(model), 96)
    errors = [
        compress(
            model,
            data=samples,
            budget=Budget(0.6, low_rank=low_rank, scope=TO_THE_UNIT),
            latency=False,
            recover_minutes=0,
        )
        .report.outputs[0]
        .error
        for low_rank in (True, False)
    ]
    assert errors[0] < 0.01 * errors[1]


def test_a_plan_without_gain_is_the_plan_without_low_rank() -> None:
    model, scope = build(WIDE), TO_THE_UNIT
    samples = draw_samples(Graph.from_model(model), 64)
    plans = [
        make_plan(model, data=samples, budget=Budget(0.9, low_rank=low, scope=scope))
        for low in (True, False)
    ]
    assert not plans[0].low_rank
    assert plans[0].groups.keys() == plans[1].groups.keys()
    assert plans[0].macs == plans[1].macs


def test_a_plan_is_applied_again_edited_and_refused_where_it_names_another_layer(
    tmp_path: Path,
) -> None:
    model = low_rank_model()
    samples = draw_samples(Graph.from_model(model), 64)
    budget = Budget(0.6, low_rank=True, scope=TO_THE_UNIT)
    asked: dict[str, Any] = {"data": samples, "recover": "none", "latency": False}
    first = compress(model, budget=budget, **asked)
    path = tmp_path / "plan.json"
    path.write_text(first.plan.to_json())
    plan = PruningPlan.load(path)
    assert plan == first.plan
    again = compress(model, plan=plan, **asked)
    assert again.model == first.model
    (group,) = (name for name in plan.groups if ".first" in name)
    wide = replace(plan, groups={**plan.groups, group: {"size": 16, "kept": list(range(14))}})
    whole = compress(model, plan=wide, **asked)
    assert not whole.plan.low_rank
    assert "w" in whole.graph.initializers
    for wrong in ({"z": ["p", "q"]}, {"w": ["p", "q"]}):
        with pytest.raises(RequestError, match=r"splits|names for the factors"):
            compress(model, plan=replace(plan, low_rank=wrong), **asked)
    broken = json.loads(path.read_text()) | {"low_rank": {"w": ["one"]}}
    path.write_text(json.dumps(broken))
    with pytest.raises(RequestError, match="'low_rank' that is not of a plan"):
        PruningPlan.load(path)


def test_a_plan_by_hand_says_which_directions_stay() -> None:
    """Without samples directions are those of the weight: two of them are all that it has."""
    model = low_rank_model()
    plan = make_plan(model, budget=Budget(0.6, low_rank=True, scope=TO_THE_UNIT))
    (group,) = (name for name in plan.groups if ".first" in name)
    kept = {name: list(range(entry["size"])) for name, entry in plan.groups.items()}
    groups = {n: {"size": len(k), "kept": k[:2] if n == group else k} for n, k in kept.items()}
    result = apply(model, replace(plan, groups=groups))
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    expected, actual = (run_onnx(Graph.from_model(m), {"x": x})["y"] for m in (model, result.model))
    assert relative_error(actual, expected) < 0.01


def test_branches_and_low_rank_go_into_one_plan() -> None:
    found = Graph.from_model(low_rank_model(DEEP))
    model = found.edit({"c": 1e-3 * found.initializers["c"]}).written()
    samples = draw_samples(Graph.from_model(model), 64)
    scope = replace(TO_THE_UNIT, exclude=("b",))
    budget = Budget(0.3, low_rank=True, depth=True, scope=scope)
    result = compress(model, data=samples, budget=budget, latency=False, recover_minutes=0)
    assert result.plan.low_rank
    assert result.plan.branches
    assert result.report.macs.after <= 0.3 * result.report.macs.before
    assert all(check.passed for check in verify(model, result.model, result.plan))


def test_layers_of_low_rank_are_trained() -> None:
    model = low_rank_model()
    samples = draw_samples(Graph.from_model(model), 32)
    training = TrainingOptions(epochs=1, batch_size=8)
    budget = Budget(0.6, low_rank=True, scope=TO_THE_UNIT)
    result = compress(model, data=samples, budget=budget, training=training, latency=False)
    assert result.plan.low_rank
    assert result.report.epochs


@pytest.mark.parametrize("more", [{"target_size": 0.5}, {"target_latency": 0.5}])
def test_costs_that_two_layers_are_not_predicted_for_are_refused(more: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="MACs and params"):
        Budget(low_rank=True, **more)  # type: ignore[arg-type]


def test_what_does_not_go_with_low_rank_is_refused() -> None:
    model = low_rank_model()
    samples = draw_samples(Graph.from_model(model), 16)
    low = Budget(0.6, low_rank=True)
    with pytest.raises(RequestError, match="shares of groups"):
        Budget(0.6, low_rank=True, ranking="uniform")
    with pytest.raises(RequestError, match="finds no layer"):
        compress(conv_of("group=1", kernel=3), budget=low)
    with pytest.raises(RequestError, match="share their scores"):
        sweep(model, data=samples, budget=Budget(low_rank=True))
    training = TrainingOptions(epochs=1, sparse_epochs=1)
    with pytest.raises(RequestError, match="sparse_epochs"):
        compress(model, data=samples, budget=low, training=training)


def test_the_command_line_splits_and_verifies(tmp_path: Path) -> None:
    model, out, plan = (tmp_path / name for name in ("m.onnx", "o.onnx", "p.json"))
    onnx.save(low_rank_model(), model)
    x = np.random.default_rng(1).standard_normal((64, 12)).astype(np.float32)
    data = archive(tmp_path, x=x)
    asked = ("--low-rank", "--target-macs", "0.6", "--round-to", "1", "--recover-minutes", "0")
    told = invoke("compress", model, "-o", out, "--plan-out", plan, "--data", data, *asked)
    assert_done(told)
    assert "is two layers of rank" in told.output
    assert "layers at full rank equal the original" in told.output
    assert_done(invoke("verify", model, out, "--plan", plan))
