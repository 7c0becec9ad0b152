"""What does nothing goes before a model is compressed, and costs none of its budget."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build, run_onnx
from nets import draw_samples
from small import assert_done, invoke

from obc_onnx import Budget, apply, compress, make_plan, score, strip, sweep, verify
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.scope import Scope
from obc_onnx.run import compression
from obc_onnx.stripping.hints import may_strip
from obc_onnx.stripping.strip import strip_graph

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray

NET = """
    net (float[N,3,8,8] x) => (float[N,4] y)
    <float[12,3,3,3] a, float[12] ab, float[16,12,3,3] b, float[16] bb, float[4,16] c, float[4] cb>
    {
        A = Conv(x, a, ab) R = Relu(A)
        B = Conv(R, b, bb) S = Relu(B)
        P = GlobalAveragePool(S) F = Flatten(P) y = Gemm<transB=1>(F, c, cb)
    }
"""
EXACT = Scope(round_to=1, min_channels=1)


def dense() -> Graph:
    return Graph.from_model(build(NET))


def planted(graph: Graph, *, zeros: int = 3, constants: int = 2, equal: int = 1) -> Graph:
    """Give units of the first convolution nothing to do."""
    arrays = {name: array.copy() for name, array in graph.initializers.items()}
    weight, bias = arrays["a"], arrays["ab"]
    weight[: zeros + constants] = 0
    bias[:zeros] = -1.0  # behind a Relu
    bias[zeros : zeros + constants] = 0.5
    for place in range(zeros + constants, zeros + constants + equal):
        weight[place], bias[place] = weight[-1], bias[-1]
    return graph.edit(arrays)


@pytest.fixture
def model() -> Graph:
    return planted(dense())


def test_a_budget_that_what_does_nothing_meets_leaves_outputs_as_they_are(model: Graph) -> None:
    least = strip(model).report.macs
    share = (least.after or 0) / (least.before or 1)
    result = compress(model, budget=Budget(share + 1e-6, scope=EXACT), recover="none")
    assert result.plan.stripped
    assert result.report.macs.after == least.after
    assert result.report.macs.before == least.before
    feed = draw_samples(model, 8).feed(slice(0, 8))
    before, after = (run_onnx(graph, feed) for graph in (model, result.graph))
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=1e-5 * np.sqrt(np.mean(array**2)))


def test_targets_are_shares_of_the_model_as_it_came(model: Graph) -> None:
    result = compress(model, budget=Budget(0.4, target_params=0.9, scope=EXACT), recover="none")
    report = result.report
    assert report.targets == {"macs": 0.4, "params": 0.9}
    assert 0.3 < (report.macs.after or 0) / (report.macs.before or 1) <= 0.4
    assert report.params.before == model.params
    assert any("did nothing and went first" in note for note in report.notes)


def test_the_plan_is_applied_and_verified_on_the_model_as_it_came(
    model: Graph, tmp_path: Path
) -> None:
    samples = draw_samples(model, 40)
    budget = Budget(0.4, scope=EXACT)
    result = compress(model, data=samples, budget=budget, recover="refit", seed=3)
    path, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    result.save(path, plan=plan)
    checks = verify(model, path, type(result.plan).load(plan))
    assert all(check.passed for check in checks), checks
    made = make_plan(model, data=samples, budget=budget, recover="refit", seed=3)
    again = apply(model, made, data=samples, recover="refit", seed=3)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_without_it_units_are_left_to_the_plan(model: Graph) -> None:
    result = compress(model, budget=Budget(0.4, scope=EXACT, strip=False), recover="none")
    assert not result.plan.stripped


def test_scores_are_of_the_model_as_it_is(model: Graph) -> None:
    scores = score(model, criterion="l2")
    result = compress(model, scores=scores, budget=Budget(0.4, scope=EXACT), recover="none")
    assert not result.plan.stripped


def test_a_sweep_measures_cost_against_the_model_as_it_came(model: Graph) -> None:
    samples = draw_samples(model, 60, labelled=True)
    budget = Budget(scope=EXACT)
    swept = sweep(model, data=samples, targets=[0.4], budget=budget, recover="none")
    (point,) = swept.sweep.points
    assert 0.3 < point.cost <= 0.4


def test_a_model_without_such_units_is_not_run_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("obc_onnx.run.strip.strip_graph", fails)
    result = compress(dense(), budget=0.5, recover="none")
    assert not result.plan.stripped


def test_where_stripping_cannot_be_proven_the_model_is_compressed_as_it_is(
    model: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise compression.VerificationError("check failed")

    monkeypatch.setattr(compression, "strip_first", fails)
    result = compress(model, budget=0.5, recover="none")
    assert not result.plan.stripped
    assert any("not taken out first: check failed" in note for note in result.report.notes)


@pytest.mark.parametrize("kind", ["zeros", "constants", "equal"])
def test_weights_hint_at_each_kind(kind: str) -> None:
    nothing = {"zeros": 0, "constants": 0, "equal": 0}
    graph = planted(dense(), **{**nothing, kind: 1})
    found = strip_graph(graph, None, DEFAULT_RULES, 0)
    assert found.rounds
    assert may_strip(found.scenes.coupling)


def test_the_command_has_an_option(tmp_path: Path) -> None:
    path = tmp_path / "planted.onnx"
    onnx.save(planted(dense()).to_model(), path)
    plan = tmp_path / "plan.json"
    for options, expected in (((), True), (("--no-strip",), False)):
        assert_done(invoke("plan", path, "-o", plan, "--force", "--target-macs", "0.5", *options))
        assert json.loads(plan.read_text(encoding="utf-8"))["stripped"] is expected
