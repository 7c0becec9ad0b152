"""Many targets from one look at the samples: equal to as many compressions, for less."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from helpers import TO_THE_UNIT
from small import archive, assert_refused, chain, classes, images, invoke, saved, written_into

from obc_onnx.engines.options import EngineOptions
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.graph.session import Session
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.report.sweep_picture import sweep_svg
from obc_onnx.run.api import apply, compress, score
from obc_onnx.run.profiling import profile
from obc_onnx.run.sweep import sweep
from obc_onnx.saliency.jacobian import Jacobian
from obc_onnx.saliency.scores import Scores
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = (0.8, 0.5, 0.3)


def samples() -> Samples:
    return Samples({"x": images(200)}, classes(200), {"x": np.dtype("float32")})


def swept(**options: Any) -> Any:
    given = {"data": samples(), "targets": TARGETS, "latency": False, "pick": "all"}
    return sweep(chain(), **{**given, **options})


@pytest.mark.parametrize("cost", ["macs", "params", "size"])
def test_each_result_is_that_of_a_compression_with_the_same_scores(cost: str) -> None:
    found = swept(cost=cost, budget=Budget(scope=TO_THE_UNIT))
    assert [point.target for point in found.sweep.points] == list(TARGETS)
    for point in found.sweep.points:
        budget = Budget(**{f"target_{cost}": point.target}, scope=TO_THE_UNIT)
        alone = compress(
            chain(),
            data=samples(),
            budget=budget,
            scores=found.scores,
            recover_minutes=0,
            latency=False,
        )
        result = found.results[point.target]
        assert result.model.SerializeToString() == alone.model.SerializeToString()
        assert found.plans[point.target].to_json() == alone.plan.to_json()
        assert (point.macs, point.accuracy) == (alone.report.macs, alone.report.accuracy)
        assert result.report.notes == alone.report.notes
        assert point.cost <= point.target


def test_times_are_swept_by_one_profile() -> None:
    """The clock is `wc -c`: a run takes as many milliseconds as the file has bytes."""
    engine = EngineOptions("command", command="sh -c 'wc -c < {model}'")
    times = profile(chain(), engine=engine, designs=6, round_to=1).profile
    found = swept(cost="latency", costs=times, budget=Budget(scope=TO_THE_UNIT))
    for point in found.sweep.points:
        size = len(found.results[point.target].model.SerializeToString())
        assert point.cost == pytest.approx(size / len(chain().SerializeToString()), rel=0.05)
        assert point.cost <= point.target


def test_a_drop_is_one_of_the_accuracy_where_there_are_labels() -> None:
    for point in swept().sweep.points:
        assert point.drop == pytest.approx(point.accuracy.before - point.accuracy.after)


def test_units_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], Jacobian.score
    monkeypatch.setattr(Jacobian, "score", lambda *args: calls.append(1) or original(*args))
    found = swept(pick="none")
    assert calls == [1]
    assert found.results == {}
    expected = score(chain(), data=samples())
    for name, own in expected.groups.items():
        np.testing.assert_array_equal(found.scores.groups[name], own)


def test_the_original_runs_once_over_the_held_out_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, original = [], Session.run

    def run(session: Session, feed: Any) -> Any:
        runs.append(len(feed["x"]))
        return original(session, feed)

    monkeypatch.setattr(Session, "run", run)
    n_runs = []
    for targets in ((0.5,), (0.5, 0.4), (0.5, 0.4, 0.3)):
        runs.clear()
        swept(targets=targets)
        n_runs.append(len(runs))
    runs.clear()
    compress(chain(), data=samples(), budget=0.5, recover_minutes=0, latency=False)
    assert n_runs[1] - n_runs[0] == n_runs[2] - n_runs[1] < len(runs)


def test_a_target_that_cannot_be_reached_does_not_end_the_sweep() -> None:
    found = swept(targets=(0.5, 0.001))
    assert [point.target for point in found.sweep.points] == [0.5]
    assert "cannot reach 0.001 of the MACs" in found.sweep.unreachable[0.001]
    with pytest.raises(InfeasibleTargetError, match=r"cannot reach 0\.001"):
        swept(targets=(0.001,))


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(RequestError, match=r"`Budget\.target_macs`"):
        swept(budget=Budget(0.5))
    with pytest.raises(RequestError, match=r"`Budget\.max_drop`"):
        swept(budget=Budget(max_drop=0.1))
    with pytest.raises(RequestError, match="`cost` 'time'"):
        swept(cost="time")
    with pytest.raises(RequestError, match=r"`pick` '0\.6' is none of the targets"):
        swept(pick="0.6")
    with pytest.raises(RequestError, match="`targets` is empty"):
        swept(targets=())
    with pytest.raises(RequestError, match="give `data`"):
        sweep(chain(), data=None)  # type: ignore[arg-type]


def folder_of(tmp_path: Path, *options: str | Path) -> Path:
    data = archive(tmp_path, x=images(200), labels=classes(200))
    out = tmp_path / "out"
    args = ("--data", data, "--targets", "0.8,0.5,0.3", "--no-latency", "--round-to", "1")
    result = invoke("sweep", saved(tmp_path), "-o", out, *args, *options)
    assert result.exit_code == 0, result.output
    return out


def test_the_command_writes_plans_of_which_apply_makes_the_results(tmp_path: Path) -> None:
    out = folder_of(tmp_path, "--pick", "all")
    names = {f"model-{target:g}.{end}" for target in TARGETS for end in ("onnx", "plan.json")}
    assert set(written_into(out)) == {*names, "sweep.json", "sweep.svg", "scores.npz"}
    for target in TARGETS:
        plan = PruningPlan.load(out / f"model-{target:g}.plan.json")
        again = apply(tmp_path / "model.onnx", plan, data=tmp_path / "data.npz", recover_minutes=0)
        assert again.model.SerializeToString() == (out / f"model-{target:g}.onnx").read_bytes()
    assert Scores.load(out / "scores.npz").criterion == "jacobian"


def test_the_command_draws_and_lists_every_point(tmp_path: Path) -> None:
    out = folder_of(tmp_path, "--pick", "0.5")
    assert [path.name for path in out.glob("*.onnx")] == ["model-0.5.onnx"]
    table = json.loads((out / "sweep.json").read_text())
    assert table["picked"] == [0.5]
    assert [point["target"] for point in table["points"]] == list(TARGETS)
    picture = ET.fromstring((out / "sweep.svg").read_text())
    titles = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    for point in table["points"]:
        assert any(f"target {point['target']:g}: {point['cost']:.3f}" in title for title in titles)


def test_the_picture_has_round_numbers_at_the_height_of_their_drops() -> None:
    found = swept().sweep
    picture = ET.fromstring(sweep_svg(found))
    space = "{http://www.w3.org/2000/svg}"
    labels = [one for one in picture.iter(f"{space}text") if one.get("text-anchor") == "end"]
    drops = [float(one.text or "") for one in labels]
    heights = [float(one.get("y", "")) - 4 for one in labels]
    assert len(drops) >= 3
    digits = f"{drops[1] - drops[0]:.6e}".partition("e")[0]
    assert digits in {"1.000000", "2.000000", "5.000000"}
    slope = (heights[-1] - heights[0]) / (drops[-1] - drops[0])
    dots = [
        float(one.get("cy", "")) for one in picture.iter(f"{space}circle") if one.get("r") == "4"
    ]
    expected = [heights[0] + slope * (point.drop - drops[0]) for point in found.points]
    np.testing.assert_allclose(dots, expected, atol=1)


def test_the_picture_of_an_unbounded_drop_is_drawn_without_a_scale() -> None:
    found = swept().sweep
    picture = sweep_svg(replace(found, points=[replace(found.points[0], drop=np.inf)]))
    assert 'text-anchor="end"' not in picture


def test_the_command_loses_nothing_that_is_there(tmp_path: Path) -> None:
    out = folder_of(tmp_path)
    before = written_into(tmp_path)
    args = ("sweep", tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "--targets", "0.5")
    assert_refused(invoke(*args, "-o", out), "sweep.json", "--force")
    assert_refused(invoke(*args, "-o", tmp_path / "data.npz"), "cannot make the folder")
    assert_refused(invoke(*args, "-o", tmp_path / "no" / "out"), "cannot make the folder")
    assert_refused(invoke(*args, "-o", tmp_path / "new", "--pick", "knees"), "--pick")
    assert written_into(tmp_path) == before
