"""The tools that compare ways of training and of repair, and time a step of training."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from csv_rows import append, read
from helpers import load_tool
from nets import draw_samples, model_of

from obc_onnx.graph.model import Graph
from obc_onnx.ops.norms.batch import batch_norm
from obc_onnx.training.options import TrainingOptions
from obc_onnx.twin.build import derived_twin

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """What both tools are run with."""
    onnx.save(model_of("norm"), tmp_path / "net.onnx")
    graph = Graph.load(tmp_path / "net.onnx")
    for name, seed in (("train", 0), ("test", 1)):
        samples = draw_samples(graph, 60, seed=seed, labelled=True)
        np.savez(tmp_path / f"{name}.npz", **samples.inputs, labels=samples.labels)
    return {
        "model": tmp_path / "net.onnx",
        "data": tmp_path / "train.npz",
        "eval_data": tmp_path / "test.npz",
        "csv": tmp_path / "rows.csv",
        "target": [0.7],
        "threads": 1,
        "repeats": 2,
    }


def test_a_variant_is_a_start_fields_and_a_repair() -> None:
    tool = load_tool("compare_training")
    base = TrainingOptions(epochs=1)
    text = "plain,loss=ce:0.5+kd:0.5,unfold_norms=yes,lr=0.5,recover=stats"
    found, recover = tool.parse_variant(text, base)
    assert recover == "stats"
    assert (found.equivalent, found.unfold_norms, found.lr) == (False, True, 0.5)
    assert dict(found.loss) == {"ce": 0.5, "kd": 0.5}
    assert tool.parse_variant("select", base) == (replace(base, equivalent=True), "auto")


def test_ways_of_training_share_plans_and_are_not_run_twice(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("compare_training")
    more = {"variant": ["plain,loss=ce", "select,loss=ce"], "epochs": 1, "lr": 0.01, "limit": None}
    more |= {"batch_size": 16, "first_repeat": 0, "precision": "float32"}
    options = argparse.Namespace(**asked, **more)
    tool.run(options)
    rows = read(asked["csv"], tool.Row)
    assert len(rows) == 4
    assert {row.repeat for row in rows} == {0, 1}
    assert len({row.macs for row in rows if row.repeat == 0}) == 1
    tool.run(options)
    assert read(asked["csv"], tool.Row) == rows
    tool.table(argparse.Namespace(csv=asked["csv"]))
    assert "| plain,loss=ce | 2 |" in capsys.readouterr().out


def test_losses_are_compared_after_repair(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mixture is the sum of shares that a plus makes, so that both give one plan."""
    tool = load_tool("compare_objectives")
    joined = "jacobian:objective=labels+jacobian:objective=output"
    more = {"variant": ["jacobian:objective=mixed", joined], "steps": 1, "scored": 32}
    more |= {"repaired": 40, "eval_limit": 40}
    options = argparse.Namespace(**asked, **more)
    tool.run(options)
    rows = read(asked["csv"], tool.Row)
    assert [row.repeat for row in rows] == [0, 0, 1, 1]
    mixed, added = ([replace(r, variant="", seconds=0.0) for r in rows[i::2]] for i in (0, 1))
    assert mixed == added
    tool.run(options)
    assert read(asked["csv"], tool.Row) == rows
    tool.table(argparse.Namespace(csv=asked["csv"]))
    assert f"| {joined} | " in capsys.readouterr().out


def test_ways_of_repair_are_compared(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("compare_recovery")
    more = {"criterion": ["l2"], "method": None, "samples": 50, "eval_limit": 40}
    tool.run(argparse.Namespace(**asked, **more))
    rows = read(asked["csv"], tool.Row)
    assert {row.method for row in rows} == set(tool.METHODS)
    assert all(row.macs <= 0.7 and 0 <= row.accuracy <= 1 for row in rows)
    tool.table(argparse.Namespace(csv=asked["csv"]))
    assert "| l2 | refit |" in capsys.readouterr().out


@pytest.mark.parametrize("net", ["resnet20", "vgg11"])
def test_explicit_compressors_train_as_ours_do(net: str) -> None:
    tool = load_tool("time_training")
    coupling = tool.coupling_of(net, 32)
    twin = derived_twin(coupling.graph, coupling)
    assert any(node.target is batch_norm for node in twin.graph.nodes)  # and not one of training
    tool.check_equal(coupling, tool.uniform(coupling, 0.25, 1), 32)


@pytest.mark.parametrize("step", [1, 8])
def test_a_step_at_the_pruned_width_does_less_work_than_explicit_layers(step: int) -> None:
    tool = load_tool("time_training")
    coupling = tool.coupling_of("resnet20", 32)
    keep = tool.uniform(coupling, 0.5, step)
    assert 0.4 < coupling.macs(keep) / coupling.macs({}) <= 0.5
    assert all(int(kept.sum()) % step == 0 for kept in keep.values())
    options = argparse.Namespace(size=32, batch_size=8, accumulate=1)
    work = {way: tool.work_of_step(tool.make(way, coupling, keep), options) for way in tool.WAYS}
    assert work["plain"] < work["ours"] < 1.2 * work["plain"]
    assert work["explicit"] > 1.1 * work["original"] > 2.2 * work["plain"]


def test_rows_survive_a_file(tmp_path: Path) -> None:
    tool = load_tool("compare_recovery")
    row = tool.Row("net", "l2", 0.5, "refit", 1, 0.25, 0.75, 0.5, 1.5)
    append(tmp_path / "rows.csv", [row])
    append(tmp_path / "rows.csv", [row])
    assert read(tmp_path / "rows.csv", tool.Row) == [row, row]


def test_every_step_of_a_compression_is_measured(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("measure_quality")
    more = {"draws": 2, "samples": 50, "eval_limit": 40, "minutes": 0.01}
    options = argparse.Namespace(**asked, **more)
    tool.run(options)
    rows = read(asked["csv"], tool.Row)
    assert [(row.draw, row.step) for row in rows] == [(d, s) for d in (0, 1) for s in tool.STEPS]
    assert all(row.macs <= 0.7 and 0 <= row.accuracy <= 1 for row in rows)
    assert rows[1].error < rows[0].error
    tool.run(options)
    assert read(asked["csv"], tool.Row) == rows
    tool.table(argparse.Namespace(csv=asked["csv"]))
    assert "| net, " in capsys.readouterr().out


def test_a_compression_is_measured_in_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, model = load_tool("measure_cost"), tmp_path / "net.onnx"
    onnx.save(model_of("norm"), model)
    monkeypatch.setattr(tool, "seconds_of_pass", lambda *_: 0.5)
    monkeypatch.setattr("sys.argv", ["measure_cost.py", str(model), "--samples", "20"])
    tool.main()
    *_, row = capsys.readouterr().out.splitlines()
    name, code, seconds, passes, peak, stages = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, code) == ("net", tool.ROOT.name)
    assert float(seconds) == pytest.approx(0.5 * float(passes), abs=0.1)
    assert 50 < int(peak) < 5000
    shares = dict(stage.rsplit(" ", 1) for stage in stages.split(", "))
    assert {"recover", "verify"} <= shares.keys()
    assert 90 < sum(map(int, shares.values())) < 110


def test_a_pass_takes_every_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tool, graph = load_tool("measure_cost"), Graph.from_model(model_of("norm"))
    counts, run = [], tool.Session.run

    def counted(session: Any, feed: dict[str, Any]) -> Any:
        counts.append(len(feed["x"]))
        return run(session, feed)

    monkeypatch.setattr(tool.Session, "run", counted)
    assert tool.seconds_of_pass(graph, tool.draw(graph, 70)) > 0
    assert counts == [32, 32, 6]
