"""Repair of graphs that are not chains of layers, and budgets at their edges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import analyse, build
from nets import HEAD, IMAGE, draw_keep, draw_samples, model_of

from obc_onnx.errors import RequestError
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Limits
from obc_onnx.recover.layers import find_layers
from obc_onnx.recover.refit import refit
from obc_onnx.recover.stage import recover
from obc_onnx.recover.targets import target_of
from obc_onnx.run.api import apply, compress, make_plan, verify
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs

ODD = {
    "dead": f"{IMAGE} <float[6,3,3,3] w1, float[5,6,3,3] w2, float[4,6,1,1] d, float[4,5] fc,"
    f" float[4] fc_b> {{ c1 = Conv(x, w1) t1 = Tanh(c1) dead = Conv(t1, d) last = Conv(t1, w2) {HEAD} }}",
    "context": f"{IMAGE} <float[6,3,3,3] w1, float[6,6,1,1] g, float[4,6] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) p = GlobalAveragePool(c1) q = Conv(p, g) t = Add(q, c1)"
    f"  last = Tanh(t) {HEAD} }}",
    "tokens": "net (float[N,5,6] x, float[N,1,6] z) => (float[N,5,4] y) <float[6,7] w1, float[6,7] w2,"
    " float[7,4] fc> { a = MatMul(x, w1) t = Tanh(a) b = MatMul(z, w2) s = Add(b, t)"
    "  u = Tanh(s) y = MatMul(u, fc) }",
    "twice": f"{IMAGE} <float[6,3,3,3] w1, float[6,6,1,1] w2, float[4,6] fc, float[4] fc_b>"
    f"{{ c1 = Conv(x, w1) c2 = Conv(c1, w2) s = Add(c2, c2) last = Tanh(s) {HEAD} }}",
}


@pytest.mark.parametrize("method", ["auto", "stats", "fuse"])
@pytest.mark.parametrize("net", ODD)
def test_odd_graphs_are_repaired_and_verified(net: str, method: Any) -> None:
    graph = analyse(build(ODD[net])).graph
    samples = draw_samples(graph, 60)
    result = compress(graph, data=samples, budget=Budget(0.7), recover=method)
    assert all(check.passed for check in verify(graph, result.model, result.plan))


def test_a_norm_of_zero_scale_leaves_its_layer_alone() -> None:
    text = (
        f"{IMAGE} <float[6,3,1,1] w0, float[6,6,1,1] w1, float[6] scale, float[6] shift, float[6] mean,"
        " float[6] var, float[4,6] fc, float[4] fc_b>"
        "{ s = Conv(x, w0) t = Tanh(s) c = Conv(t, w1) n = BatchNormalization(c, scale, shift, mean, var)"
        f"  last = Add(n, s) {HEAD} }}"
    )
    graph = analyse(build(text)).graph.edit({"scale": np.zeros(6, np.float32)})
    coupling = analyse(graph.to_model()).coupling
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(coupling.graph, 60)
    repaired, _ = refit(Cut(coupling, keep, pruned), samples, 0)
    np.testing.assert_array_equal(repaired.initializers["w1"], pruned.initializers["w1"])


@pytest.mark.parametrize(
    ("behind", "value"),
    [
        ("BatchNormalization(c, scale, shift, mean, var)", "last"),
        ("BatchNormalization<training_mode=1>(c, scale, shift, mean, var)", "c"),
        ("Identity(c)", "last"),
        ("Reshape(c, same)", "last"),
        ("Relu(c)", "c"),
    ],
)
@pytest.mark.parametrize(("joins", "sign"), [("Add(n, s)", 1), ("Sub(n, s)", -1)])
def test_a_sum_is_the_target_where_what_lies_between_is_undone(
    behind: str, value: str, joins: str, sign: int
) -> None:
    text = (
        "net (float[N,3,6,6] x) => (float[N,6,6,6] y) <float[6,3,1,1] w0, float[6,6,1,1] w1,"
        " float[6] scale, float[6] shift, float[6] mean, float[6] var>"
        "{ s = Conv(x, w0) t = Tanh(s) c = Conv(t, w1) n = BEHIND last = JOINS y = Relu(last) }"
    )
    outputs = "n, m, v" if "training" in behind else "n"
    constants = {"same": np.array([0, 0, 6, 6])} if "same" in behind else {}
    model = build(
        text.replace("n = BEHIND", f"{outputs} = {behind}").replace("JOINS", joins), constants
    )
    graph, _, coupling = analyse(model)
    twin = derived_twin(graph, coupling)
    layer = next(layer for layer in find_layers(coupling, graph, twin) if layer.weight == "w1")
    inputs = as_inputs(graph.inputs, draw_samples(graph, 4).feed(slice(0, 4)))
    target = target_of(layer, coupling, {}, graph, Lockstep(twin, [inputs]))
    assert (target.value, target.sign) == (value, sign if value == "last" else 1)


def test_a_weight_that_is_an_output_stays() -> None:
    text = (
        "net (float[N,6] x) => (float[N,4] y, float[7,4] fc) <float[6,7] w, float[7,4] fc>"
        "{ a = MatMul(x, w) t = Tanh(a) y = MatMul(t, fc) }"
    )
    graph, _, coupling = analyse(build(text))
    twin = derived_twin(graph, coupling)
    assert "fc" not in {layer.weight for layer in find_layers(coupling, graph, twin)}


@pytest.mark.parametrize("count", [10, 40, 120])
def test_few_samples_leave_some_to_judge_on(count: int) -> None:
    from obc_onnx.recover import refit as module

    graph, _, coupling = analyse(model_of("dense"))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, count)
    pair = module._make_pair(Cut(coupling, keep, pruned), samples, 0)
    assert pair.n_held >= 1


def test_a_layer_whose_input_is_the_same_is_not_reported() -> None:
    graph, _, coupling = analyse(model_of("dense"))
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(graph, 200)
    _, fits = refit(Cut(coupling, keep, pruned), samples, 0)
    assert "w1" not in {fit.layer for fit in fits}
    assert "w2" in {fit.layer for fit in fits}


@pytest.mark.parametrize("method", ["refit", "stats"])
def test_a_repair_that_needs_samples_says_so(method: Any) -> None:
    with pytest.raises(RequestError, match="needs samples"):
        compress(model_of("dense"), recover=method)


def test_positions_that_a_node_picks_are_cut_with_their_units() -> None:
    text = (
        f"{IMAGE} <float[8,3,3,3] w1, float[5,8,1,1] w2, float[4,5] fc, float[4] fc_b>"
        f"{{ c1 = Conv(x, w1) p = Gather<axis=1>(c1, places) t = Tanh(p) last = Conv(t, w2) {HEAD} }}"
    )
    model = build(text, {"places": [3, 1, 0, 2, 7, 6, 5, 4]})
    result = compress(model, budget=Budget(0.7))
    assert all(check.passed for check in verify(model, result.model, result.plan))


# Plans that were edited, and drops.


def test_an_edited_plan_is_counted_again() -> None:
    graph = analyse(model_of("dense")).graph
    plan = make_plan(graph, budget=Budget(0.6))
    groups = {name: dict(entry) for name, entry in plan.groups.items()}
    name, entry = next((n, e) for n, e in groups.items() if len(e["kept"]) < e["size"])
    entry["kept"] = list(range(entry["size"]))
    edited = replace(plan, groups=groups, targets={"macs": 1.0}, macs=(7, 3))
    result = apply(graph, edited)
    coupling = analyse(result.model).coupling
    assert result.plan.macs[1] == coupling.macs({})
    assert result.report.macs.after > plan.macs[1]
    assert len(result.plan.groups[name]["kept"]) == groups[name]["size"]


@pytest.mark.parametrize("drop", [float("inf"), float("nan"), -0.1])
def test_a_drop_is_a_number(drop: float) -> None:
    with pytest.raises(RequestError, match="max drop must be"):
        Budget(max_drop=drop)


@pytest.mark.parametrize(
    ("share", "size", "width"), [(0.28, 25, 7), (0.58, 50, 29), (0.07, 100, 7)]
)
def test_a_share_of_a_width_is_not_moved_by_rounding(share: float, size: int, width: int) -> None:
    from obc_onnx.planning import rooms as module

    assert module._width(share, size, np.ceil) == width
    assert module._width(share, size, np.floor) == width
    assert Limits(min=share, max=share).min == share


def test_a_drop_at_the_limit_is_allowed() -> None:
    from obc_onnx.planning.max_drop import find_plan

    plan = make_plan(model_of("dense"), budget=Budget(0.9))
    found = find_plan(lambda _: plan, lambda _: None, lambda _: 0.93 - 0.92, 0.01)  # type: ignore[arg-type,return-value]
    assert found.share == 1 / 64


def test_a_drop_is_one_from_the_original_that_sparse_learning_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from obc_onnx.run import compression
    from obc_onnx.training.options import TrainingOptions

    graph = analyse(model_of("norm")).graph
    samples = draw_samples(graph, 40, labelled=True)
    judged: list[Any] = []
    judge = compression.Judge
    monkeypatch.setattr(
        compression,
        "Judge",
        lambda original, held: judged.append(original) or judge(original, held),
    )
    training = TrainingOptions(epochs=0, sparse_epochs=1, batch_size=8, lr=0.05)
    compress(graph, data=samples, budget=Budget(max_drop=0.9), training=training)
    (original,) = judged
    for name, array in graph.initializers.items():
        np.testing.assert_array_equal(original.graph.initializers[name], array)


def test_samples_that_are_too_few_are_said() -> None:
    graph, _, coupling = analyse(model_of("dense"))
    keep = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    found = recover(Cut(coupling, keep, pruned), draw_samples(graph, 1), "auto", 0)
    assert found.graph is pruned
    assert "too few" in found.notes[0]
