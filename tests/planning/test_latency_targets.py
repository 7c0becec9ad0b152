"""Targets of time: plans against files that are cut, measured plans, and what each command says.

The clock of these tests is `wc -c`: a run of a file takes as many milliseconds as it has bytes. So
predictions, plans and measurements have an oracle that no machine disturbs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import TO_THE_UNIT, analyse, build
from small import CHAIN, archive, assert_refused, classes, images, invoke, saved

from obc_onnx.branches.left import Left
from obc_onnx.cli.plan_options import parse_target_time
from obc_onnx.engines import engine
from obc_onnx.engines.engine import Layer
from obc_onnx.engines.options import EngineOptions
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.latency.designs import draw_designs
from obc_onnx.latency.features import prunable_axes
from obc_onnx.latency.predictor import Predictor, Term, fit
from obc_onnx.latency.profile import Profile, Timing
from obc_onnx.measuring import latency
from obc_onnx.planning.blocks import steps_of
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.costs import Latency
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.search import search_plan
from obc_onnx.run import timing
from obc_onnx.run.api import compress, make_plan
from obc_onnx.run.decision import remembering
from obc_onnx.run.profiling import profile
from obc_onnx.run.timing import MOST_PLANS, doubts_of_time, excess
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.coupling.model import Coupling

WIDE = CHAIN.replace("12", "64").replace("20", "96")
"""Groups `a:0` of 64 units and `b:0` of 96."""
BYTES = "sh -c 'wc -c < {model}'"
CONSTANT = "sh -c 'echo 50000 {model} >&2; echo 50000'"
CHEAP = "sh -c 'n=$(wc -c < {model}); test $n -lt 200000 && n=$((n * 3 / 4)); echo $n'"
DEAR = "sh -c 'n=$(wc -c < {model}); test $n -lt 200000 && n=$((n * 13 / 10)); echo $n'"
"""Milliseconds that are a third more than the bytes, but for the whole model."""


@cache
def coupling() -> Coupling:
    return analyse(build(WIDE)).coupling


@cache
def times() -> Profile:
    return profile(build(WIDE), engine=EngineOptions("command", command=BYTES), designs=6).profile


def file_bytes(of: Coupling, plan: PruningPlan, folder: Path) -> tuple[int, int]:
    """Write the model and what a plan leaves of it, and return their sizes."""
    for name, keep in (("whole", {}), ("cut", plan.keep(of))):
        remove_units(of, keep).save(folder / f"{name}.onnx")
    return tuple((folder / f"{name}.onnx").stat().st_size for name in ("whole", "cut"))  # type: ignore[return-value]


def costs_of(folder: Path, name: str = "costs.json", **changed: Any) -> Path:
    """Write the model and its profile, with some fields changed; return the profile's path."""
    sha256 = Graph.load(saved(folder, WIDE)).sha256  # which is that of the bytes of a file
    replace(times(), **{"model_sha256": sha256, **changed}).save(folder / name)
    return folder / name


def planned(folder: Path, *options: str) -> Any:
    command = ("plan", folder / "model.onnx", "-o", folder / "plan.json", "--force")
    return invoke(*command, "--costs", costs_of(folder), *options)


@pytest.mark.parametrize("ranking", ["per-cost", "global", "uniform"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_a_plan_takes_the_time_that_was_asked_for(
    share: float, ranking: str, tmp_path: Path
) -> None:
    result = planned(tmp_path, "--target-latency", str(share), "--ranking", ranking)
    assert result.exit_code == 0, result.output
    plan = PruningPlan.load(tmp_path / "plan.json")
    before, after = file_bytes(analyse(build(WIDE)).coupling, plan, tmp_path)
    assert share - 0.15 < after / before < share + 0.01
    assert plan.latency is not None
    assert plan.latency[1] / 1e6 == pytest.approx(after, rel=0.01)
    assert plan.profile_sha256 == Profile.load(tmp_path / "costs.json").sha256
    assert all(len(entry["kept"]) % 8 == 0 for entry in plan.groups.values())
    assert f"{before:,}"[:3] in result.stdout


def test_planning_from_a_file_gives_equal_bytes(tmp_path: Path) -> None:
    planned(tmp_path, "--target-latency", "0.5")
    first = (tmp_path / "plan.json").read_bytes()
    planned(tmp_path, "--target-latency", "0.5")
    assert (tmp_path / "plan.json").read_bytes() == first


def test_a_time_may_be_given_in_units_and_beside_other_targets(tmp_path: Path) -> None:
    """The whole takes 240 s on this clock."""
    result = planned(tmp_path, "--target-latency", "150s", "--target-macs", "0.4")
    assert result.exit_code == 0, result.output
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert plan.targets == {"macs": 0.4, "latency": 150e9}
    assert plan.macs[1] <= 0.4 * plan.macs[0]
    assert file_bytes(coupling(), plan, tmp_path)[1] < 151_000


@pytest.mark.parametrize(
    ("text", "number"), [("0.6", 0.6), ("1", 1.0), ("2.5ms", 2.5e6), ("800us", 8e5), ("1S", 1e9)]
)
def test_times_are_shares_or_have_a_unit(text: str, number: float) -> None:
    assert parse_target_time(None, None, text) == number  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["2.5", "60", "5KB", "ms", "2.5 m", "0.0001us", "fast"])
def test_what_is_no_time_is_a_usage_error(text: str, tmp_path: Path) -> None:
    command = ("plan", saved(tmp_path), "-o", tmp_path / "p.json", "--target-latency", text)
    assert_refused(invoke(*command), f"'{text}'", code=2)


def test_a_time_out_of_reach_says_how_far_it_goes_and_what_holds_it(tmp_path: Path) -> None:
    result = planned(tmp_path, "--target-latency", "0.01")
    least = min(timing.ms for timing in times().timings)
    assert_refused(result, "are left (0 more groups", "What holds it: ", " ms")
    assert str(int(least))[:3] in result.stderr
    result = planned(tmp_path, "--target-latency", "100us")
    assert_refused(result, "cannot reach 0.1 ms: ")


# --- what one unit saves ---


def staircase(block: int) -> Profile:
    """Milliseconds of a runtime that pads to a block, written down."""
    of = coupling()
    allowed = {room.group.name: room.widths for room in rooms_of(of, Scope(round_to=8))}
    timings = []
    for widths in [{}, *draw_designs(of, allowed, 12, 0)]:
        a, b = (-(-widths.get(n, full) // block) * block for n, full in (("a:0", 64), ("b:0", 96)))
        ms = 0.01 + 1e-6 * (3 * a * 9 * 64 + a * b * 9 * 36)
        timings.append(Timing(widths, ms, 1.0, 0.0, 15, list[Layer]()))
    whole = timings[0].ms
    timings = [replace(one, ratio=one.ms / whole) for one in timings]
    shapes = {"x": [1, 3, 8, 8]}
    return Profile(of.graph.sha256, EngineOptions(), "1", "none", shapes, 8, 0, timings)


@pytest.mark.parametrize("width", [96, 95, 81])
def test_on_a_staircase_a_unit_saves_its_part_of_a_block(width: int) -> None:
    of = coupling()
    cost = Latency(of, predictor=fit(of, staircase(32)))
    (group,) = (group for group in of.groups if group.name == "b:0")
    keep = {group.dim: np.arange(96) < width}
    saved = cost.marginal(group, keep)
    assert (saved[width:] == 0).all()
    step = 64 * 32 * 9 * 36  # of 32 channels, in nanoseconds
    np.testing.assert_allclose(saved[:width], step / 32, rtol=0.01)


def test_parts_add_up_to_the_time_and_the_last_unit_saves_nothing() -> None:
    of = coupling()
    cost = Latency(of, predictor=fit(of, staircase(8)))
    assert sum(ns for ns, _ in cost.parts({})) == cost.full
    assert cost.full == pytest.approx(1e6 * staircase(8).whole_ms, rel=0.01)
    group = of.groups[0]
    only = {group.dim: np.arange(group.size) == 3}
    assert not cost.marginal(group, only).any()


def test_units_that_save_no_time_stay() -> None:
    """Of 64 units of `a:0` none is worth anything: on steps of 32 all but 32 or 64 would be lost."""
    of = coupling()
    scores = {"a:0": np.full(64, 1e-9), "b:0": np.full(96, 1.0)}
    predictor = fit(of, staircase(32))
    budget = Budget(target_latency=0.9, ranking="global", steps=1)
    plan = search_plan(of, lambda _: scores, budget, "given", 0, predictor=predictor)
    assert {name: len(entry["kept"]) for name, entry in plan.groups.items()} == {
        "a:0": 32,
        "b:0": 96,
    }


@pytest.mark.parametrize("block", [8, 32])
@pytest.mark.parametrize("targets", [{"target_latency": 0.6}, {"target_macs": 0.6}])
def test_automatic_widths_are_those_at_which_times_step(
    block: int, targets: dict[str, float]
) -> None:
    of, rng = coupling(), np.random.default_rng(0)
    scores = {group.name: rng.uniform(size=group.size) for group in of.groups}
    budget = Budget(**targets, scope=Scope(round_to="auto"))
    predictor = fit(of, staircase(block))
    plan = search_plan(of, lambda _: scores, budget, "given", 0, predictor=predictor)
    kept = [len(entry["kept"]) for entry in plan.groups.values()]
    assert all(width % block == 0 for width in kept)
    assert kept != [64, 96]


def test_each_group_has_the_steps_of_what_it_runs_through() -> None:
    """`a:0` runs through the nodes p and r, `b:0` through r and s."""
    of, ones = coupling(), np.ones(5)
    terms = tuple(Term((key,), key, ones, block) for key, block in (("p", 16), ("s", 32)))
    predictor = Predictor(0.0, terms, prunable_axes(of), 8, "")
    found = steps_of(of, predictor)
    assert {group.name: found[group.dim] for group in of.groups} == {"a:0": 16, "b:0": 32}
    assert steps_of(of, replace(predictor, round_to=12))[of.by_name["a:0"].dim] == 48


def test_automatic_widths_need_a_profile(tmp_path: Path) -> None:
    command = ("plan", saved(tmp_path), "-o", tmp_path / "p.json", "--round-to")
    assert_refused(invoke(*command, "auto"), "--round-to auto takes the widths", "give --costs")
    assert_refused(invoke(*command, "0"), "--round-to", code=2)
    result = planned(tmp_path, "--target-latency", "0.5", "--round-to", "auto")
    assert result.exit_code == 0, result.output
    assert "multiples of what the profile's times step by: " in result.stdout


# --- profiles and what they are for ---


def test_a_profile_tells_nothing_between_its_multiples(tmp_path: Path) -> None:
    result = planned(tmp_path, "--target-latency", "0.5", "--round-to", "4")
    assert_refused(result, "multiples of 8 channels", "--round-to asks for 4")
    result = planned(tmp_path, "--target-latency", "0.5", "--round-to", "16")
    assert result.exit_code == 0
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert all(len(entry["kept"]) % 16 == 0 for entry in plan.groups.values())


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    times().save(tmp_path / "costs.json")
    command = ("plan", saved(tmp_path), "-o", tmp_path / "p.json", "--target-latency", "0.5")
    assert_refused(invoke(*command, "--costs", tmp_path / "costs.json"), "profile", "sha256")


def test_sensitivity_tells_the_time_of_each_cut(tmp_path: Path) -> None:
    path = costs_of(tmp_path)
    data = archive(tmp_path, x=images(), labels=classes())
    command = ("sensitivity", tmp_path / "model.onnx", "--data", data, "--criterion", "l2")
    costs = ("--costs", path)
    found = json.loads(invoke(*command, *costs, "--json").stdout)
    of = coupling()
    for group in found["groups"]:
        for point in group["points"]:
            keep = {of.by_name[group["name"]].dim: np.arange(group["size"]) >= point["removed"]}
            remove_units(of, keep).save(tmp_path / "cut.onnx")
            size = (tmp_path / "cut.onnx").stat().st_size
            assert point["latency_ms"] == pytest.approx(size, rel=0.01)
    assert "latency as predicted, ms" in invoke(*command, *costs).stdout
    assert "latency" not in invoke(*command).stdout


def test_without_a_profile_the_model_is_timed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_CLOSE_SECONDS", 0.0)
    monkeypatch.setattr(engine, "WARM_UP_SECONDS", 0.0)
    plan = make_plan(build(WIDE), budget=Budget(target_latency=0.9))
    assert plan.profile_sha256 is not None
    assert plan.latency is not None
    assert plan.latency[1] <= 0.9 * plan.latency[0]


def test_a_run_that_may_go_on_needs_its_times(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="give `costs`, which `profile` measures"):
        compress(build(WIDE), budget=Budget(target_latency=0.5), run_dir=tmp_path)


# --- plans that are measured ---


def compressed(folder: Path, command: str = BYTES, *options: str, **changed: Any) -> Any:
    """Compress with a profile that was measured by bytes, and an engine that measures otherwise."""
    path = costs_of(folder, engine=EngineOptions("command", command=command), **changed)
    files = (folder / "model.onnx", "-o", folder / "small.onnx", "--plan-out", folder / "plan.json")
    costs = ("--costs", path, "--force", "--recover", "none", "--json")
    return invoke("compress", *files, *costs, *(options or ("--target-latency", "0.5")))


def test_a_result_is_measured_in_the_engine_of_the_profile(tmp_path: Path) -> None:
    result = compressed(tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    before = times().whole_ms
    small = (tmp_path / "small.onnx").stat().st_size
    assert report["latency_ms"]["after"] == pytest.approx(small, rel=0.01)
    assert small <= 0.5 * before
    (note,) = (note for note in report["notes"] if "measured in command" in note)
    assert note.endswith("and aims at --target-latency 0.5")
    names = [check["name"] for check in report["verification"] if check["passed"]]
    assert "latency within the target" in names


def test_a_plan_that_misses_the_time_is_made_again(tmp_path: Path) -> None:
    """On the clock of the engine all cut networks take a third more than the profile says."""
    result = compressed(tmp_path, DEAR)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["latency_ms"]["after"] <= 0.5 * report["latency_ms"]["before"]
    (note,) = (note for note in report["notes"] if "measured in command" in note)
    assert "the best of " in note
    aim = PruningPlan.load(tmp_path / "plan.json").targets["latency"]
    assert 0.5 / 1.3 - 0.02 < aim < 0.45, "by as much as the first one missed it"


def test_a_plan_that_is_faster_than_it_has_to_be_is_made_again(tmp_path: Path) -> None:
    """On the clock of the engine all cut networks take three quarters of what the profile says."""
    result = compressed(tmp_path, CHEAP)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["latency_ms"]
    assert 0.8 < found["after"] / (0.5 * found["before"]) <= 1, "but for one block"
    aim = PruningPlan.load(tmp_path / "plan.json").targets["latency"]
    assert aim == pytest.approx(0.5 / 0.75, rel=0.1)


def test_a_plan_from_a_file_does_not_wait_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To load a model may take minutes, and a profile alone tells the times of a plan."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("the engine was loaded")

    monkeypatch.setattr(timing, "loaded", refuse)
    assert planned(tmp_path, "--target-latency", "0.5").exit_code == 0


def test_units_of_the_whole_network_are_scored_once() -> None:
    asked: list[bool] = []

    def score(left: Left) -> dict[str, Any]:
        asked.append(not left.is_whole)
        return {"a:0": np.ones(64)}

    again = remembering(score, first := {})
    (group, *_) = coupling().groups
    for keep in ({}, {group.dim: np.ones(group.size, np.bool_)}, {}, {}):
        again(Left(keep))
    assert asked == [False, True]
    assert first.keys() == {"a:0"}


def test_a_time_that_no_plan_meets_says_how_fast_the_fastest_is(tmp_path: Path) -> None:
    """The least that the profile knows of is a tenth of the time: two plans, and that is out."""
    result = compressed(tmp_path, CONSTANT)
    assert_refused(result, "cannot reach 0.5 of the original's time as measured: the fastest plan")
    assert "5e+04 ms, 1.000 of it; cannot reach" in result.stderr
    assert not (tmp_path / "small.onnx").exists()


def test_plans_end_after_six(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each plan takes a hair more than what it was to."""
    aims: list[float] = []
    whole = times().whole_ms

    def race_closely(_before: object, _after: object) -> latency.Race:
        return latency.Race(np.full(3, whole), np.full(3, 0.5001 * whole))

    def spied(*args: Any, **kwargs: Any) -> PruningPlan:
        aims.append(args[2].target_latency)
        return search_plan(*args, **kwargs)

    monkeypatch.setattr("obc_onnx.run.timing.race_closely", race_closely)
    monkeypatch.setattr("obc_onnx.run.compression.search_plan", spied)
    said = (
        r"0\.500 of it; 6 plans were measured\. What holds it, as predicted: Conv 'r' [\d.e+]+ ms; "
    )
    with pytest.raises(InfeasibleTargetError, match=said):
        compress(build(WIDE), budget=Budget(target_latency=0.5), costs=times(), recover="none")
    assert len(aims) == MOST_PLANS
    assert all(later < earlier for earlier, later in pairwise(aims))


def test_where_the_engine_is_not_here_the_time_is_predicted_and_doubtful(tmp_path: Path) -> None:
    result = compressed(tmp_path, BYTES, device="another board")
    report = json.loads(result.stdout)
    (warning,) = (one for one in report["warnings"] if one.startswith("the time is predicted"))
    assert "the profile is of another board, and this machine has" in warning
    assert (tmp_path / "small.onnx").stat().st_size < 0.51 * times().whole_ms


def test_what_is_measured_counts_with_its_error() -> None:
    noisy = latency.Race(np.ones(16), np.tile([0.4, 0.6], 8))
    exact = latency.Race(np.ones(16), np.full(16, 0.5))
    assert excess(0.5, exact) == 1.0
    assert excess(0.5e9, exact) == 1.0, "nanoseconds of the result itself"
    assert excess(0.5, noisy) > 1.1


def test_several_processes_do_not_measure_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obc_onnx.run.timing.world_size", lambda: 2)
    budget = Budget(target_latency=0.5)
    for costs in (None, times()):
        with pytest.raises(RequestError, match="measured in one process"):
            compress(build(WIDE), budget=budget, costs=costs)
    assert make_plan(build(WIDE), budget=budget, costs=times()).latency is not None


@pytest.mark.parametrize(("ratio", "warns"), [(0.49, False), (0.505, False), (0.53, True)])
def test_a_result_that_turns_out_slower_than_its_plan_is_doubtful(
    ratio: float, *, warns: bool
) -> None:
    """Standard errors are 1 %: what lies within two of them may be chance."""
    after = ratio * np.tile([0.98, 1.02], 14)
    found = latency.Race(np.ones(28), after)
    assert 0.006 < found.spread < 0.012
    doubts = doubts_of_time(0.5, found)
    assert bool(doubts) is warns
    assert all(one.startswith(f"slower than asked for: {ratio:.3f} of") for one in doubts)


# --- what was planned, later ---


def test_a_plan_is_verified_with_its_profile_and_says_so_without(tmp_path: Path) -> None:
    assert compressed(tmp_path).exit_code == 0
    files = (tmp_path / "model.onnx", tmp_path / "small.onnx", "--plan", tmp_path / "plan.json")
    with_costs = invoke("verify", *files, "--costs", tmp_path / "costs.json", "--json")
    without = invoke("verify", *files, "--json")
    checks = [
        next(c for c in json.loads(run.stdout)["verification"] if c["name"].startswith("latency"))
        for run in (with_costs, without)
    ]
    assert [check["passed"] for check in checks] == [True, True]
    assert [bool(check["doubt"]) for check in checks] == [False, True]
    assert 0 < checks[0]["error"] <= 0.5 == checks[0]["tolerance"]
    assert "as --costs" in checks[1]["doubt"]


def test_a_plan_that_was_edited_to_take_longer_fails(tmp_path: Path) -> None:
    assert compressed(tmp_path).exit_code == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["targets"]["latency"] = 0.2
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    files = (tmp_path / "model.onnx", tmp_path / "small.onnx", "--plan", tmp_path / "plan.json")
    result = invoke("verify", *files, "--costs", tmp_path / "costs.json")
    assert result.exit_code == 3
    assert "of the latency, allowed 0.2" in result.output


def test_a_plan_of_another_profile_is_refused(tmp_path: Path) -> None:
    assert compressed(tmp_path).exit_code == 0
    other = costs_of(tmp_path, "other.json", device="another")
    command = ("apply", tmp_path / "model.onnx", "--plan", tmp_path / "plan.json", "-o")
    more = (tmp_path / "again.onnx", "--costs", other)
    assert_refused(invoke(*command, *more), "was made from a profile with sha256", "--costs has")


def test_apply_measures_in_the_engine_of_the_profile(tmp_path: Path) -> None:
    assert compressed(tmp_path).exit_code == 0
    command = ("apply", tmp_path / "model.onnx", "--plan", tmp_path / "plan.json", "-o")
    more = (tmp_path / "again.onnx", "--costs", tmp_path / "costs.json", "--json")
    report = json.loads(invoke(*command, *more).stdout)
    assert report["latency_ms"]["before"] == pytest.approx(times().whole_ms, rel=0.001)


def test_any_width_needs_a_profile_of_any_width() -> None:
    with pytest.raises(RequestError, match="profile the model with `round_to=1`"):
        make_plan(build(WIDE), budget=Budget(target_latency=0.5, scope=TO_THE_UNIT), costs=times())
