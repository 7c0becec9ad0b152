"""Deciding without cutting, and cutting by what was decided: the command line and Python."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from helpers import analyse, build
from nets import model_of
from small import (
    CHAIN,
    NORMED,
    OLD,
    archive,
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

if TYPE_CHECKING:
    from pathlib import Path


def test_plan_and_apply_write_the_bytes_that_compress_writes(tmp_path: Path) -> None:
    model = saved(tmp_path, NORMED)
    data = ("--data", archive(tmp_path, x=images(200), labels=classes(200)))
    whole, plan, small = (tmp_path / name for name in ("whole.onnx", "plan.json", "small.onnx"))
    assert invoke("compress", model, "-o", whole, *data, "--target-macs", "0.6").exit_code == 0
    made = invoke("plan", model, "-o", plan, *data, "--target-macs", "0.6")
    assert (made.exit_code, made.stderr) == (0, "")
    applied = invoke("apply", model, "--plan", plan, "-o", small, *data)
    assert (applied.exit_code, applied.stderr) == (0, "")
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
