"""Deciding without cutting, and cutting by what was decided: the command line and Python."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import analyse, build
from nets import model_of
from small import (
    CHAIN,
    NORMED,
    OLD,
    archive,
    assert_done,
    assert_refused,
    chain,
    classes,
    images,
    invoke,
    saved,
    written_into,
)

import obc_onnx
from obc_onnx.errors import RequestError
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.run.api import apply, make_plan
from obc_onnx.saliency.scores import Scores

if TYPE_CHECKING:
    from pathlib import Path


def test_plan_and_apply_write_the_bytes_that_compress_writes(tmp_path: Path) -> None:
    model = saved(tmp_path, NORMED)
    data = ("--data", archive(tmp_path, x=images(200), labels=classes(200)))
    whole, plan, small = (tmp_path / name for name in ("whole.onnx", "plan.json", "small.onnx"))
    assert invoke("compress", model, "-o", whole, *data, "--target-macs", "0.6").exit_code == 0
    made = invoke("plan", model, "-o", plan, *data, "--target-macs", "0.6")
    assert_done(made)
    applied = invoke("apply", model, "--plan", plan, "-o", small, *data)
    assert_done(applied)
    assert "repair by" in applied.stdout
    assert small.read_bytes() == whole.read_bytes()


def test_plan_writes_a_plan_and_nothing_else_and_shows_what_would_be_left(tmp_path: Path) -> None:
    model, plan = saved(tmp_path), tmp_path / "plan.json"
    result = invoke("plan", model, "-o", plan, "--target-params", "1000", "--ranking", "uniform")
    assert set(written_into(tmp_path)) == {"model.onnx", "plan.json"}
    found = PruningPlan.load(plan)
    assert found.params[1] <= 1000
    for number in (*found.macs, *found.params):
        assert f"{number:,}" in result.stdout
    rows = [line.split("│") for line in result.stdout.splitlines() if ":0 " in line]
    shown = {row[1].strip(): (int(row[2]), int(row[3])) for row in rows}
    assert shown == {n: (g["size"], len(g["kept"])) for n, g in found.groups.items()}
    assert "'l2' and compared by ranking 'uniform'" in result.stdout


def test_plan_prints_what_it_writes_as_json(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    result = invoke("plan", saved(tmp_path), "-o", plan, "--json")
    assert json.loads(result.stdout) == json.loads(plan.read_text())


def test_apply_without_repair_cuts_and_verifies_only(tmp_path: Path) -> None:
    model, plan, small = saved(tmp_path, NORMED), tmp_path / "plan.json", tmp_path / "small.onnx"
    data = ("--data", archive(tmp_path, x=images(200)))
    assert invoke("plan", model, "-o", plan).exit_code == 0
    result = invoke("apply", model, "--plan", plan, "-o", small, *data, "--recover", "none")
    assert result.exit_code == 0, result.output
    assert "repair by" not in result.stdout
    bare = tmp_path / "bare.onnx"
    assert invoke("apply", model, "--plan", plan, "-o", bare, "--recover", "none").exit_code == 0
    assert small.read_bytes() == bare.read_bytes()
    assert invoke("verify", model, bare, "--plan", plan).exit_code == 0


def test_apply_refuses_a_plan_for_another_model_by_its_hash(tmp_path: Path) -> None:
    plan, small = tmp_path / "plan.json", tmp_path / "small.onnx"
    assert invoke("plan", saved(tmp_path, CHAIN), "-o", plan).exit_code == 0
    small.write_bytes(OLD)
    other = saved(tmp_path, NORMED, "other.onnx")
    result = invoke("apply", other, "--plan", plan, "-o", small, "--force")
    assert_refused(result, PruningPlan.load(plan).model_sha256[:12], "other.onnx")
    assert small.read_bytes() == OLD


def test_the_same_from_python() -> None:
    plan = obc_onnx.make_plan(chain(), budget=Budget(target_params=0.5))
    assert plan.targets == {"params": 0.5}
    result = obc_onnx.apply(chain(), plan)
    assert result.plan == plan
    assert result.report.params.after == plan.params[1]
    whole = obc_onnx.compress(chain(), budget=Budget(target_params=0.5))
    assert result.model.SerializeToString() == whole.model.SerializeToString()
    with pytest.raises(RequestError, match="the plan is for a model with"):
        obc_onnx.apply(build(CHAIN, seed=1), plan)


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


def written_plan(folder: Path, **groups: dict[str, Any]) -> Path:
    """Save a model and a plan for it, and edit some of its groups."""
    path = folder / "plan.json"
    fields = json.loads(obc_onnx.make_plan(saved(folder)).to_json())
    path.write_text(json.dumps({**fields, "groups": {**fields["groups"], **groups}}))
    return path


def test_a_plan_file_has_widths_beside_the_units_and_each_list_in_a_line(tmp_path: Path) -> None:
    plan = obc_onnx.make_plan(chain())
    lines = plan.to_json().splitlines()
    start = lines.index('  "a:0": {')
    kept = plan.groups["a:0"]["kept"]
    assert lines[start + 1] == f'   "keep": {len(kept)},'
    assert lines[start + 2] == f'   "kept": {kept},'
    assert json.loads(plan.to_json())["groups"]["a:0"]["keep"] == len(kept)
    assert sum(line.count("[") for line in lines) == sum("[" in line for line in lines)


def test_a_width_alone_keeps_the_units_that_are_worth_most(tmp_path: Path) -> None:
    plan, small, new = (tmp_path / name for name in ("plan.json", "small.onnx", "new.json"))
    model = saved(tmp_path)
    written_plan(tmp_path, **{"a:0": {"keep": 7}})
    done = invoke("apply", model, "--plan", plan, "-o", small, "--plan-out", new)
    assert done.exit_code == 0, done.output
    worth = obc_onnx.score(chain()).groups["a:0"]
    found = PruningPlan.load(new)
    assert found.groups["a:0"] == {"size": 12, "kept": sorted(np.argsort(-worth)[:7].tolist())}
    assert "the plan says of 1 groups how many units stay" in done.stdout
    assert invoke("verify", model, small, "--plan", new).exit_code == 0


def test_scores_say_which_units_a_width_keeps(tmp_path: Path) -> None:
    model, scores, new = saved(tmp_path), tmp_path / "scores.npz", tmp_path / "new.json"
    data = archive(tmp_path, x=images(), labels=classes())
    assert invoke("score", model, "-o", scores, "--data", data).exit_code == 0
    plan = written_plan(tmp_path, **{"b:0": {"keep": 5}})
    command = ("apply", model, "--plan", plan, "-o", tmp_path / "small.onnx", "--plan-out", new)
    done = invoke(*command, "--scores", scores)
    assert done.exit_code == 0, done.output
    worth = Scores.load(scores).groups["b:0"]
    found = PruningPlan.load(new)
    assert found.groups["b:0"]["kept"] == sorted(np.argsort(-worth)[:5].tolist())
    assert found.criterion == "jacobian"


def test_a_plan_that_was_edited_past_its_target_is_applied_and_says_what_it_leaves(
    tmp_path: Path,
) -> None:
    plan = written_plan(tmp_path, **{"b:0": {"keep": 20, "kept": list(range(20))}})
    done = invoke("apply", saved(tmp_path), "--plan", plan, "-o", tmp_path / "s.onnx", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    left = report["macs"]["after"]
    assert (
        left
        == analyse(onnx.load(tmp_path / "s.onnx")).coupling.macs({})
        > 0.5 * report["macs"]["before"]
    )
    (note,) = (note for note in report["notes"] if note.startswith("the plan was edited"))
    assert f"it leaves {left:,} MACs" in note
    assert "its target of 0.5 for MACs, which that misses, no longer counts" in note
    assert report["targets"] == {"macs": left}
    checks = {check["name"] for check in report["verification"]}
    assert "MACs within the target" in checks, "it is held to what it says of itself"


def test_a_plan_that_was_edited_within_its_target_keeps_it(tmp_path: Path) -> None:
    plan = written_plan(tmp_path, **{"b:0": {"keep": 3, "kept": [1, 2, 3]}})
    found = obc_onnx.apply(tmp_path / "model.onnx", PruningPlan.load(plan))
    assert found.report.targets == {"macs": 0.5}
    assert any(note.startswith("the plan was edited") for note in found.report.notes)
    assert "no longer counts" not in " ".join(found.report.notes)


def test_a_plan_as_it_was_made_is_not_said_to_be_edited() -> None:
    plan = obc_onnx.make_plan(chain())
    assert not any("edited" in note for note in obc_onnx.apply(chain(), plan).report.notes)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"keep": 0}, "keeps 0 units of 'a:0', which has 12"),
        ({"keep": 13}, "keeps 13 units of 'a:0', which has 12"),
        ({"keep": 3, "size": 13}, "group 'a:0' is not in this model"),
        ({"keep": 3, "kept": [1, 2]}, "keeps 3 units of 'a:0', but lists 2: leave 'kept' out"),
        ({"keep": "3"}, "has a 'groups' that is not of a plan"),
        ({"size": 12}, "has a 'groups' that is not of a plan"),
    ],
    ids=["none", "too many", "another size", "contradiction", "text", "neither"],
)
def test_a_width_that_does_not_fit_is_refused(
    entry: dict[str, Any], part: str, tmp_path: Path
) -> None:
    plan = written_plan(tmp_path, **{"a:0": entry})
    small = tmp_path / "small.onnx"
    assert_refused(invoke("apply", saved(tmp_path), "--plan", plan, "-o", small), part)
    assert not small.exists()


def test_verify_asks_for_a_plan_that_says_which_units_stay(tmp_path: Path) -> None:
    plan, model = written_plan(tmp_path, **{"a:0": {"keep": 7}}), saved(tmp_path)
    refused = invoke("verify", model, model, "--plan", plan)
    assert_refused(refused, "says how many units of 'a:0' stay and not which")


def test_scores_for_a_plan_that_leaves_nothing_open_are_refused(tmp_path: Path) -> None:
    model, scores = saved(tmp_path), tmp_path / "scores.npz"
    assert invoke("score", model, "-o", scores).exit_code == 0
    command = ("apply", model, "--plan", written_plan(tmp_path), "-o", tmp_path / "small.onnx")
    assert_refused(invoke(*command, "--scores", scores), "leave out --scores")


def test_a_plan_of_the_format_before_is_read(tmp_path: Path) -> None:
    fields = {**json.loads(obc_onnx.make_plan(chain()).to_json()), "format": 2}
    for entry in fields["groups"].values():
        del entry["keep"]
    (tmp_path / "plan.json").write_text(json.dumps(fields))
    assert PruningPlan.load(tmp_path / "plan.json") == obc_onnx.make_plan(chain())
