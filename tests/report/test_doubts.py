"""Defaults that keep results fast and alive, and the last line of a report that has doubts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, build, run_onnx
from small import archive, images, invoke, saved

from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.measuring import latency
from obc_onnx.measuring.error import OutputError
from obc_onnx.measuring.latency import Race, race
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.report.doubts import doubts_of_drop, doubts_of_speed, doubts_of_widths
from obc_onnx.report.summary import Change
from obc_onnx.run.api import compress, make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.planning.plan import PruningPlan

WIDE = (
    "net (float[N,3,8,8] x) => (float[N,4] y)"
    "<float[64,3,3,3] a, float[96,64,3,3] b, float[4,96] fc, float[4] fc_bias>"
    "{ p = Conv(x, a) q = Relu(p) r = Conv(q, b) s = Relu(r) t = GlobalAveragePool(s)"
    "  u = Flatten(t) y = Gemm<transB=1>(u, fc, fc_bias) }"
)
HEADS = (
    "net (float[N,5,48] x) => (float[N,5,48] y)"
    "<float[48,96] wq, float[48,96] wk, float[48,96] wv, float[96,48] wo>"
    "{ shape = Constant<value_ints=[0, 5, 6, 16]>() back = Constant<value_ints=[0, 5, 96]>()"
    "  q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
    "  q4 = Reshape(q, shape) k4 = Reshape(k, shape) v4 = Reshape(v, shape)"
    "  qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4)"
    "  vt = Transpose<perm=[0,2,1,3]>(v4) s = MatMul(qt, kt) p = Softmax<axis=-1>(s)"
    "  o = MatMul(p, vt) ot = Transpose<perm=[0,2,1,3]>(o) o3 = Reshape(ot, back)"
    "  y = MatMul(o3, wo) }"
)
"""Six heads of 16 channels."""


def widths(plan: PruningPlan) -> dict[str, int]:
    return {name: len(entry["kept"]) for name, entry in plan.groups.items()}


def last_line(text: str) -> str:
    return text.splitlines()[-1]


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
def test_widths_are_multiples_of_eight_where_nothing_else_is_asked(target: float) -> None:
    plan = make_plan(build(WIDE), budget=target)
    assert plan.round_to == 8
    assert all(width % 8 == 0 for width in widths(plan).values())
    assert plan.macs[1] < plan.macs[0]


def test_a_head_of_sixteen_channels_goes_alone_and_channels_of_heads_by_eight() -> None:
    sizes = {group.size: group.name for group in analyse(build(HEADS)).coupling.groups}
    heads = make_plan(build(HEADS), budget=Budget(0.8, scope=Scope(only=(sizes[6],))))
    channels = make_plan(build(HEADS), budget=Budget(0.8, scope=Scope(only=(sizes[16],))))
    assert (heads.round_to, widths(heads)[sizes[6]]) == (8, 4)
    assert (channels.round_to, widths(channels)[sizes[16]]) == (8, 8)


def test_widths_are_rounded_less_where_the_target_cannot_be_met_else() -> None:
    text = WIDE.replace("64", "12").replace("96", "12")
    plan = make_plan(build(text), budget=0.25)
    assert plan.round_to == 4
    result = compress(build(text), budget=0.25, latency=False)
    (note,) = (note for note in result.report.notes if "multiples" in note)
    assert "multiples of 4 channels" in note
    assert "with more the budget cannot be met" in note


def test_a_width_that_parts_of_several_groups_share_is_named() -> None:
    """Of 20 and 12 channels side by side, 8 and 12 stay."""
    text = (
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y)"
        "<float[20,3,1,1] a, float[12,3,1,1] b, float[4,32,1,1] c>"
        "{ p = Conv(x, a) q = Conv(x, b) r = Concat<axis=1>(p, q) s = Relu(r) y = Conv(s, c) }"
    )
    alone = Budget(0.8, scope=Scope(only=("a",)))
    report = compress(build(text), budget=alone, criterion="l2", latency=False).report
    (note,) = (note for note in report.notes if "multiples" in note)
    assert "; but 20 along axis 1 of 'c'" in note
    both = compress(build(text), budget=0.5, criterion="l2", latency=False).report
    (note,) = (note for note in both.notes if "multiples" in note)
    assert "; but" not in note


def test_a_group_keeps_an_eighth_and_less_where_that_is_asked(tmp_path: Path) -> None:
    model = build(WIDE)
    of = analyse(model).coupling
    scores = {g.name: np.full(g.size, 1e-9 if g.size == 64 else 1.0) for g in of.groups}
    plans = {
        least: make_plan_with(
            model, scores, Budget(0.09, scope=Scope(round_to=1, min_channels=least))
        )
        for least in (None, 1, 0.25)
    }
    found = {least: min(w for w in widths(plan).values()) for least, plan in plans.items()}
    assert found[None] == 8
    assert found[0.25] == 16
    assert found[1] < 6
    keep = plans[1].keep(of)
    (doubt,) = doubts_of_widths(of, keep)
    assert f"64 -> {found[1]}" in doubt
    assert doubts_of_widths(of, plans[None].keep(of)) == []


def make_plan_with(model: object, scores: dict[str, np.ndarray], budget: Budget) -> PruningPlan:
    from obc_onnx.planning.search import search_plan as planned

    of = analyse(model).coupling
    return planned(of, lambda _: scores, budget, "given", 0)


def test_without_data_the_last_line_says_that_quality_was_not_measured(tmp_path: Path) -> None:
    command = ("compress", saved(tmp_path), "--no-latency")
    result = invoke(*command, "-o", tmp_path / "a.onnx")
    assert result.exit_code == 0, result.output
    assert last_line(result.stdout).startswith("doubtful: quality was not measured")
    report = json.loads(invoke(*command, "-o", tmp_path / "b.onnx", "--json").stdout)
    assert report["verdict"] == last_line(result.stdout)
    assert any(warning.startswith("quality was not measured: ") for warning in report["warnings"])
    data = archive(tmp_path, x=images(600))
    good = invoke(*command, "-o", tmp_path / "c.onnx", "--data", data)
    assert last_line(good.stdout).startswith("good: 2."), good.stdout


def test_outputs_that_cannot_be_compared_are_not_called_good(tmp_path: Path) -> None:
    text = WIDE.replace("float[N,4] y", "int64[N,1] y")
    text = text.replace(
        "y = Gemm<transB=1>(u, fc, fc_bias)",
        "scores = Gemm<transB=1>(u, fc, fc_bias) y = ArgMax<axis=1>(scores)",
    )
    data = archive(tmp_path, x=images(600))
    report = compress(build(text), data=data, criterion="l2", latency=False).report
    assert report.verdict.startswith("doubtful: quality was not measured (")
    assert any("no output is a float" in warning for warning in report.warnings)


def off(error: float, *, n_lost: int = 0, name: str = "y") -> OutputError:
    return OutputError(name, error, 4, n_lost, [], 1.0, 1.0)


@pytest.mark.parametrize(
    ("accuracy", "outputs", "expected"),
    [
        ((0.9, 0.458), [off(0.9)], ["accuracy fell by 44.2 points"]),
        ((0.9, 0.86), [off(0.9)], []),
        ((0.1, 0.9), [], []),
        ((0.9, 0.0), [], ["accuracy fell by 90.0 points"]),
        ((None, None), [off(0.19)], []),
        ((None, None), [off(0.21)], ["output 'y' is off by 0.21 of its variance"]),
        ((None, None), [off(float("nan"))], ["output 'y' is off by nan of its variance"]),
        ((None, None), [off(0.9, n_lost=1)], []),
        ((0.9, 0.9), [off(9), off(0.5, name="z")], ["output 'z' is off by 0.50 of its variance"]),
    ],
)
def test_a_result_that_is_much_worse_is_said_to_be(
    accuracy: tuple[float | None, float | None], outputs: list[OutputError], expected: list[str]
) -> None:
    found = doubts_of_drop(Change(*accuracy), outputs, "y", trained=False)
    assert [doubt.partition(": ")[0] for doubt in found] == expected
    assert all("`training`" in doubt and "`Budget.max_drop`" in doubt for doubt in found)


def test_a_cut_that_costs_accuracy_is_not_called_good(tmp_path: Path) -> None:
    graph, feed = Graph.from_model(build(WIDE)), {"x": images(600)}
    scores = run_onnx(graph, feed)["y"]
    usual = scores.mean(axis=0)
    model = graph.edit({"fc_bias": graph.initializers["fc_bias"] - usual})
    data = archive(tmp_path, **feed, labels=(scores - usual).argmax(axis=1))
    asked = {"data": data, "criterion": "random", "recover": "none", "latency": False}
    report = compress(model, budget=0.2, **asked).report
    assert report.accuracy.before == 1.0
    fall = 100 * (report.accuracy.before - report.accuracy.after)
    assert fall > 20
    assert f"accuracy fell by {fall:.1f} points" in report.verdict
    assert report.verdict.startswith("doubtful: ")


def test_a_model_that_is_slower_is_said_to_be() -> None:
    fast, slow = np.full(30, 1e-3), np.full(30, 2e-3)
    assert Race(fast, slow).is_slower
    assert not Race(slow, fast).is_slower
    assert not Race(fast, fast * 1.01).is_slower, "a trifle"
    noisy = np.where(np.arange(30) % 2, 1e-3, 2e-3)
    assert not Race(noisy, noisy[::-1]).is_slower, "each wins as often"
    (doubt,) = doubts_of_speed(Race(fast, slow))
    assert doubt.startswith("slower than before, 0.50x as fast")
    assert doubts_of_speed(Race(slow, fast)) == doubts_of_speed(None) == []


@pytest.mark.parametrize("lost", [1, 2])
def test_only_a_model_that_loses_twice_is_slower(
    lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other work may hold up one of two equal models for a while."""
    graph = analyse(build(WIDE)).graph
    made: list[object] = []
    warm_up, turns = 3, 60
    runs = 0

    def seconds(session: object, _feed: object) -> float:
        nonlocal runs
        made.extend([session] if session not in made else [])
        runs += 1
        held_up = made.index(session) == 1 and runs <= 2 * (warm_up + lost * turns)
        return 2e-3 if held_up else 1e-3

    monkeypatch.setattr(latency, "_seconds", seconds)
    times = race(graph, graph, random_feed(graph, {"x": (1, 3, 8, 8)}, 0))
    assert times is not None
    assert times.is_slower == (lost == 2)
    assert runs == 2 * (warm_up + 2 * turns)


def test_a_race_is_won_by_the_smaller_network() -> None:
    wide = analyse(build(WIDE.replace("8,8", "64,64")))
    narrow = compress(wide.graph, budget=0.1, latency=False).graph
    feed = random_feed(wide.graph, {"x": (1, 3, 64, 64)}, 0)
    forward, back = race(wide.graph, narrow, feed), race(narrow, wide.graph, feed)
    assert forward is not None
    assert back is not None
    assert not forward.is_slower
    assert back.is_slower


def test_speed_is_measured_where_that_costs_little_or_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(WIDE)
    times = compress(model, budget=0.8).report.latency_ms
    assert times.before is not None
    assert compress(model, budget=0.8, latency=False).report.latency_ms.before is None
    monkeypatch.setattr(latency, "AFFORDABLE_SECONDS", 0.0)
    unasked = compress(model, budget=0.8).report
    assert unasked.latency_ms.before is None
    assert any("speed was not measured" in note for note in unasked.notes)
    assert compress(model, budget=0.8, latency=True).report.latency_ms.before is not None
