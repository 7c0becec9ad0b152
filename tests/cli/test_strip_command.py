"""The command that strips: what it writes, prints, and refuses to write over."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
from helpers import assert_close, make_feed, run_onnx
from small import assert_refused, invoke, saved, written_into
from stripping.test_strip import REORDERED, constant, in_front, planted

from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path) -> Path:
    path = folder / "model.onnx"
    planted(in_front("y = Conv(r, v)"), constant).save(path)
    return path


def test_the_command_writes_the_model_and_says_what_went(tmp_path: Path) -> None:
    model, small, report = written(tmp_path), tmp_path / "small.onnx", tmp_path / "report.json"
    result = invoke("strip", model, "-o", small, "--report-out", report)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"wrote {small} and {report}; next: ")
    assert set(written_into(tmp_path)) == {"model.onnx", "small.onnx", "report.json"}
    for part in ("w:0", "constant", "same outputs", "3 of 3"):
        assert part in result.stdout
    found = json.loads(report.read_text())
    assert found["rounds"] == [[{"group": "w:0", "reason": "constant", "units": [1], "equals": []}]]
    assert found["initializers"]["w"] == {"0": [0, 2, 3]}
    before, after = (onnx.load(path) for path in (model, small))
    feed = make_feed(Graph.load(model), np.random.default_rng(1))
    assert before.graph.output == after.graph.output
    assert_close(run_onnx(Graph.load(small), feed), run_onnx(Graph.load(model), feed), REORDERED)


def test_the_command_prints_one_object_as_json(tmp_path: Path) -> None:
    result = invoke("strip", written(tmp_path), "-o", tmp_path / "small.onnx", "--json")
    found = json.loads(result.stdout)
    assert found["params"]["after"] < found["params"]["before"]
    assert all(check["passed"] for check in found["verification"])


def test_the_command_speaks_of_its_options(tmp_path: Path) -> None:
    model = written(tmp_path)
    result = invoke("strip", model, "-o", tmp_path / "small.onnx", "--below", "1e-6")
    assert "note: --below 1e-06 made zeros of weights" in result.stdout


def test_the_command_never_writes_over_what_it_reads(tmp_path: Path) -> None:
    model = written(tmp_path)
    assert_refused(invoke("strip", model, "-o", model, "--force"), model, "is read")
    existing = saved(tmp_path, name="other.onnx")
    assert_refused(invoke("strip", model, "-o", existing), existing, "--force")
    assert_refused(invoke("strip", model, "-o", tmp_path / "s.onnx", "--below", "-1"), code=2)
