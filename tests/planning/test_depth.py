"""Branches in plans: they compete with units, are edited, and are scored like them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import TO_THE_UNIT, build, coupling_of, run_onnx
from nets import draw_samples
from small import assert_done, assert_refused, invoke

from obc_onnx.branches.find import find_branches
from obc_onnx.branches.left import Left
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.node_lists import NewNode
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.depth import Depth
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.search import search_plan
from obc_onnx.run.api import apply, compress, make_plan, verify
from obc_onnx.run.sweep import sweep
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.jacobian import Jacobian
from obc_onnx.saliency.options import Scoring
from obc_onnx.surgery.bypass import bypassed
from obc_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.branches.find import Branch

NET = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,8] x) => (float[N,4] y)
<float[8,16] a, float[16,24] b, float[24,16] c, float[16,40] d, float[40,16] e, float[16,4] f> {
  u = MatMul (x, a)
  b1 = MatMul (u, b)
  b2 = Relu (b1)
  w = MatMul (b2, c)
  v = Add (u, w)
  d1 = MatMul (v, d)
  d2 = Relu (d1)
  z = MatMul (d2, e)
  t = Add (z, v)
  y = MatMul (t, f)
}
"""
"""A stream of 16 with branches of 2 * 16 * 24 = 768 and 2 * 16 * 40 = 1280 MACs, and 192 more."""
SPANS = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,8] x) => (float[N,4] y)
<float[8,16] a, float[16,16] b, float[16] c, float[16,16] d, float[16,16] e, float[16,4] f> {
  u = MatMul (x, a)
  g0 = MatMul (u, b)
  g1 = Add (g0, c)
  g2 = Sigmoid (g1)
  g = Mul (u, g2)
  v0 = MatMul (g, d)
  v = Relu (v0)
  t = MatMul (v, e)
  s = Mul (t, u)
  r = Mul (s, v)
  q = Mul (r, g)
  y = MatMul (q, f)
}
"""
"""A stream of 16 without a residual sum: a gate, a layer with its activation, and one more."""
CROSSED = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,8] i) => (float[N,4] q)
<float[8,6] s, float[6,9] a, float[9,6] b, float[6,4] c> {
  x = MatMul (i, s)
  y = MatMul (x, a)
  z = MatMul (y, b)
  w = MatMul (z, a)
  o = MatMul (w, b)
  q = MatMul (o, c)
}
"""
"""Two layers that are run twice: `z` is of the axes of `x`, and `w` of those of `y`."""
FULL = 8 * 16 + 768 + 1280 + 16 * 4


def scores(first: float, second: float) -> dict[str, np.ndarray]:
    """Give both branches scores, and units ones that are worth keeping."""
    found = {group.name: np.full(group.size, 50.0) for group in coupling_of(NET).groups}
    names = [branch.name for branch in find_branches(coupling_of(NET))]
    return found | dict(zip(names, np.array([[first], [second]]), strict=True))


def planned(first: float, second: float, target: float, **asked: object) -> PruningPlan:
    """Plan with scores of both branches."""
    budget = Budget(target, depth=True, scope=TO_THE_UNIT, steps=1, **asked)  # type: ignore[arg-type]
    of = scores(first, second)
    return search_plan(coupling_of(NET), lambda _: of, budget, "given", 0)


def test_the_branch_that_is_worth_least_goes_with_its_units() -> None:
    plan = planned(1.0, 40.0, (FULL - 768) / FULL)
    assert plan.branches == {"v": "w"}
    assert plan.macs == (FULL, FULL - 768)
    assert plan.groups.keys() == {"a:1", "d:1"}
    assert not plan.initializers


def test_units_go_where_they_are_worth_less() -> None:
    plan = planned(1e3, 1e3, (FULL - 768) / FULL)
    assert not plan.branches
    assert plan.initializers


def test_what_a_branch_saves_counts_per_cost() -> None:
    """Of two branches of equal worth the larger one goes, and by worth alone the first."""
    target = (FULL - 100) / FULL
    assert planned(1.0, 1.0, target, ranking="per-cost").branches == {"t": "z"}
    assert planned(1.0, 1.1, target, ranking="global").branches == {"v": "w"}


def test_a_branch_that_the_target_holds_without_comes_back() -> None:
    """The first is worth less, and the second alone is enough."""
    assert planned(1.0, 2.0, (FULL - 1280) / FULL, ranking="global").branches == {"t": "z"}


def test_later_steps_score_what_is_left() -> None:
    seen: list[dict[str, str]] = []

    def score(left: Left) -> dict[str, np.ndarray]:
        seen.append(dict(left.stand_ins))
        return scores(1.0, 2.0)

    budget = Budget(0.1, depth=True, ranking="global", steps=2, scope=TO_THE_UNIT)
    plan = search_plan(coupling_of(NET), score, budget, "given", 0)
    assert seen[0] == {}
    assert seen[1]
    assert plan.branches == {"v": "w", "t": "z"}
    assert plan.groups.keys() == {"a:1"}


def test_the_score_of_a_gate_is_its_derivative_by_differences(tmp_path: Path) -> None:
    """Scale what a branch adds by 1 + h: the loss of each sample changes by h times its row."""
    coupling, step = coupling_of(NET), 1e-3
    samples, branches = draw_samples(coupling.graph, 6), find_branches(coupling)
    source = tmp_path / "losses.py"
    source.write_text("def total(outputs, labels):\n    return outputs['y'].square().sum(-1)\n")
    scoring = Scoring(loss=f"{source}:total", reduction="mean")
    found = Jacobian().score(Scene(coupling, samples, scoring=scoring, branches=branches), {})
    feed = samples.feed(slice(0, 6))
    for branch, weight in zip(branches, ("c", "e"), strict=True):
        values = coupling.graph.initializers[weight].astype(np.float64)
        losses = []
        for factor in (1 + step, 1 - step):
            changed = coupling.graph.edit({weight: (factor * values).astype(np.float32)})
            losses.append(np.square(run_onnx(changed, feed)["y"].astype(np.float64)).sum(-1))
        rows = (losses[0] - losses[1]) / (2 * step)
        assert found[branch.name][0] == pytest.approx(np.square(rows).sum(), rel=1e-2)


def test_the_score_of_a_span_is_its_derivative_by_differences(tmp_path: Path) -> None:
    """Write U + (1 + h) * (V - U) behind V, in double: the losses change by h times the rows."""
    coupling, step = coupling_of(SPANS), 1e-2
    samples, branches = draw_samples(coupling.graph, 6), find_branches(coupling)
    assert [branch.name for branch in branches] == ["g as u", "v as g", "r as v"]
    source = tmp_path / "losses.py"
    source.write_text("def total(outputs, labels):\n    return outputs['y'].square().sum(-1)\n")
    scoring = Scoring(loss=f"{source}:total", reduction="mean")
    found = Jacobian().score(Scene(coupling, samples, scoring=scoring, branches=branches), {})
    feed = samples.feed(slice(0, 6))
    for branch in branches:
        losses = [
            np.square(run_onnx(mixed(coupling.graph, branch, factor), feed)["y"]).sum(-1)
            for factor in (1 + step, 1 - step)
        ]
        rows = (losses[0] - losses[1]) / (2 * step)
        assert found[branch.name][0] == pytest.approx(np.square(rows).sum(), rel=1e-2)


def mixed(graph: Graph, branch: Branch, factor: float) -> Graph:
    """Return a graph in which what a branch adds to its stand-in counts `factor` times."""
    full, added, scaled = (f"{branch.value}.{part}" for part in ("full", "added", "scaled"))
    single = np.dtype(np.float32)
    nodes = [
        NewNode("Sub", (full, branch.stand_in), added, single),
        NewNode("Mul", (added, "factor"), scaled, single),
        NewNode("Add", (branch.stand_in, scaled), branch.value, single),
    ]
    return graph.redefine({branch.value: (full, nodes)}, {"factor": np.array(factor, single)})


def test_a_plan_with_a_span_is_written_read_edited_applied_and_verified(tmp_path: Path) -> None:
    model, samples = tmp_path / "model.onnx", tmp_path / "samples.npz"
    onnx.save(build(SPANS), model)
    np.savez(samples, **draw_samples(Graph.load(model), 300).inputs)
    plan, new, small = (tmp_path / name for name in ("plan.json", "new.json", "small.onnx"))
    only = ("--target-macs", "0.75", "--depth", "--min-channels", "1.0")
    assert_done(invoke("plan", model, "-o", plan, "--data", samples, *only))
    fields = json.loads(plan.read_text())
    assert fields["spans"]
    assert fields["spans"].items() < {"g": "u", "v": "g", "r": "v"}.items()
    assert fields["branches"] == {}
    fields["spans"] = {"v": "g"}
    plan.write_text(json.dumps(fields))
    done = invoke("apply", model, "--plan", plan, "-o", small, "--data", samples, "--plan-out", new)
    assert_done(done)
    assert "a span is gone: Relu 'v' as 'g': 2 nodes, 'v0' to 'v'" in done.stdout
    assert json.loads(new.read_text())["spans"] == {"v": "g"}
    assert_done(invoke("verify", model, small, "--plan", new))
    assert Graph.load(small).initializers.keys() == set("abcef")
    fields["spans"] = {"v": "u"}
    plan.write_text(json.dumps(fields))
    refused = invoke("apply", model, "--plan", plan, "-o", small, "--force")
    assert_refused(refused, "'u' cannot stand in for 'v', for which 'g' alone could")
    plan.write_text(json.dumps({**fields, "spans": ["v"]}))
    refused = invoke("apply", model, "--plan", plan, "-o", small, "--force")
    assert_refused(refused, "has a 'spans' that is not of a plan")


@pytest.mark.parametrize("equivalent", [None, False, True])
def test_a_network_without_spans_is_repaired_trained_and_verified(
    tmp_path: Path, *, equivalent: bool | None
) -> None:
    model = build(SPANS)
    samples = draw_samples(Graph.from_model(model), 300)
    budget = Budget(0.5, depth=True, scope=Scope(min_channels=1.0))
    tuned = equivalent is not None
    training = TrainingOptions(epochs=1, batch_size=16, lr=1e-3, equivalent=bool(equivalent))
    result = compress(model, data=samples, budget=budget, training=training if tuned else 0)
    assert len(result.plan.spans) == 2
    assert bool(result.report.epochs) == tuned
    assert tuned or any(step.kept and step.after < step.before for step in result.report.recovery)
    result.save(tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    checks = verify(model, tmp_path / "small.onnx", PruningPlan.load(tmp_path / "plan.json"))
    assert all(check.passed for check in checks), checks


def test_inspect_lists_spans(tmp_path: Path) -> None:
    onnx.save(build(SPANS), tmp_path / "model.onnx")
    told = invoke("inspect", tmp_path / "model.onnx").stdout
    assert "3 branches that could go whole" in told
    assert "Mul 'r' as 'v': 3 nodes, 't' to 'r'" in told


def test_of_spans_that_share_nodes_what_is_left_may_go() -> None:
    """What stands in for `w` goes with what `x` stands in for; both at once save no more."""
    coupling = coupling_of(CROSSED)
    depth = Depth.of(coupling, asked=True, ranking="per-cost")
    assert [branch.name for branch in depth.branches] == ["z as x", "w as y", "o as z"]
    assert [branch.name for branch in depth.standing(Left({}, {"z": "x"}))] == ["o as z"]
    assert [branch.name for branch in depth.needed({"z": "x", "w": "y"})] == ["w as y"]
    assert [branch.name for branch in depth.needed({"z": "x", "o": "z"})] == ["z as x", "o as z"]
    assert depth.shallowest(Left()).stand_ins == {"z": "x", "o": "z"}


def test_a_gate_counts_as_often_as_a_unit_meets_weights() -> None:
    coupling = coupling_of(NET)
    samples, branches = draw_samples(coupling.graph, 6), find_branches(coupling)
    found = [
        Jacobian().score(Scene(coupling, samples, scoring=own, branches=branches), {})
        for own in (Scoring(reduction="mean"), Scoring(reduction="sum"))
    ]
    name = branches[0].name
    assert found[1][name] == pytest.approx(2 * found[0][name])


@pytest.mark.parametrize("target", [0.6, 0.3])
def test_a_network_without_branches_is_repaired_and_verified(tmp_path: Path, target: float) -> None:
    model = build(NET)
    samples = draw_samples(Graph.from_model(model), 400)
    budget = Budget(target, depth=True, scope=Scope(min_channels=1.0))
    result, again = (compress(model, data=samples, budget=budget) for _ in range(2))
    assert result.plan.branches
    assert result.plan.to_json() == again.plan.to_json()
    assert result.graph.to_model() == again.graph.to_model()
    assert any(step.kept and step.after < step.before for step in result.report.recovery)
    gone = [note for note in result.report.notes if note.startswith("a branch is gone: Add '")]
    assert len(gone) == len(result.plan.branches)
    result.save(tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    read = PruningPlan.load(tmp_path / "plan.json")
    assert read == result.plan
    checks = verify(model, tmp_path / "small.onnx", read)
    assert all(check.passed for check in checks)


def test_an_edited_plan_is_applied(tmp_path: Path) -> None:
    """A person puts a branch in, with groups in the plan that are gone then, and takes it out."""
    model = build(NET)
    whole = make_plan(model, budget=Budget(1.0), criterion="l2")
    without = replace(whole, branches={"v": "w"})
    result = apply(model, without)
    assert result.plan.macs == (FULL, FULL - 768)
    assert "b:1" in whole.groups
    assert "b:1" not in result.plan.groups
    back = apply(model, replace(result.plan, branches={}))
    assert back.plan.macs == (FULL, FULL)
    assert back.graph.initializers.keys() == set("abcdef")


def test_a_result_with_its_branch_still_in_fails_its_checks() -> None:
    model = build(NET)
    plan = apply(model, replace(make_plan(model, budget=Budget(1.0)), branches={"v": "w"})).plan
    failed = [check.name for check in verify(model, model, plan) if not check.passed]
    assert failed == ["graph as planned"]
    other = bypassed(coupling_of(NET), {"t": "v"}).graph
    assert not all(check.passed for check in verify(model, other, plan))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ranking": "uniform"}, "takes shares of groups, and a branch has none"),
        ({"ranking": "isomorphic"}, "takes shares of groups, and a branch has none"),
    ],
)
def test_rankings_by_shares_are_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        planned(1.0, 1.0, 0.5, **asked)


def test_what_has_no_word_on_branches_is_refused() -> None:
    model = build(NET)
    with pytest.raises(RequestError, match="criterion 'l2' says nothing of branches"):
        make_plan(model, budget=Budget(0.5, depth=True))
    only_units = {group.name: np.ones(group.size) for group in coupling_of(NET).groups}
    budget = Budget(0.5, depth=True)
    with pytest.raises(RequestError, match="says nothing of branch 'v without w'"):
        search_plan(coupling_of(NET), lambda _: only_units, budget, "given", 0)
    samples = draw_samples(Graph.from_model(model), 20)
    scoring = Scoring(normalizer="mean")
    with pytest.raises(RequestError, match="scales the scores of each group"):
        make_plan(model, data=samples, budget=Budget(0.5, depth=True), scoring=scoring)


def test_a_network_in_which_nothing_could_stand_in_has_no_depth() -> None:
    text = NET.replace("v = Add (u, w)", "v = Relu (w)").replace("t = Add (z, v)", "t = Relu (z)")
    with pytest.raises(RequestError, match="finds no branch"):
        search_plan(coupling_of(text), lambda _: {}, Budget(0.5, depth=True), "given", 0)


def test_more_than_all_branches_is_out_of_reach() -> None:
    with pytest.raises(InfeasibleTargetError, match=r"cannot reach 0\.001 of the MACs"):
        planned(1.0, 1.0, 0.001)


@pytest.mark.parametrize("equivalent", [False, True])
def test_a_network_without_branches_is_trained_and_verified(
    tmp_path: Path, *, equivalent: bool
) -> None:
    model = build(NET)
    samples = draw_samples(Graph.from_model(model), 200)
    budget = Budget(0.4, depth=True, scope=Scope(min_channels=1.0))
    training = TrainingOptions(epochs=1, batch_size=16, lr=1e-3, equivalent=equivalent)
    result = compress(model, data=samples, budget=budget, training=training)
    assert result.plan.branches
    assert result.report.epochs
    result.save(tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    checks = verify(model, tmp_path / "small.onnx", PruningPlan.load(tmp_path / "plan.json"))
    assert all(check.passed for check in checks), checks


def test_a_sweep_with_depth_reaches_its_targets() -> None:
    model = build(NET)
    samples = draw_samples(Graph.from_model(model), 200)
    budget = Budget(depth=True, scope=Scope(min_channels=1.0))
    swept = sweep(model, data=samples, targets=[0.7, 0.3], budget=budget, recover_minutes=0)
    assert [bool(plan.branches) for plan in swept.plans.values()] == [True, True]
    assert all(
        point.cost <= target for point, target in zip(swept.sweep.points, (0.7, 0.3), strict=True)
    )
