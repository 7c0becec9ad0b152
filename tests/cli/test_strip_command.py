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


EMBEDDING = (
    "net (int64[2,6] ids) => (float[2,6,4] y) <float[10,4] t> { h = Gather(t, ids) y = Relu(h) }"
)


def embedding(folder: Path, ids: str) -> tuple[Path, Path]:
    (folder / "kept.txt").write_text(ids)
    return saved(folder, EMBEDDING), folder / "kept.txt"


def test_the_command_cuts_a_vocabulary_and_says_what_that_saves(tmp_path: Path) -> None:
    model, kept = embedding(tmp_path, "# special\n0 # padding\n\n1\n7\n")
    small, samples = tmp_path / "small.onnx", tmp_path / "ids.npz"
    np.savez(samples, ids=np.array([[3, 3, 3, 5, 7, 1]] * 4))
    options = ("--vocabulary-from", samples, "--min-count", 5, "--unknown-id", 1)
    result = invoke("strip", model, "-o", small, "--vocabulary", kept, *options)
    assert result.exit_code == 0, result.output
    assert "of 4 ids of the samples 3 stay, which are 20 of 24 occurrences" in result.stdout
    assert "other ids are taken as 1" in result.stdout
    shown = next(line for line in result.stdout.splitlines() if "Gather 'h'" in line)
    assert [part.strip() for part in shown.split("│")[1:-1]] == ["t", "Gather 'h'", "10", "4"]
    graph = Graph.load(small)
    table = Graph.load(model).initializers["t"]
    feed = {"ids": np.array([[0, 1, 2, 3, 7, 9]] * 2)}
    expected = np.maximum(table[[[0, 1, 1, 3, 7, 1]] * 2], 0)
    np.testing.assert_array_equal(run_onnx(graph, feed)["y"], expected)


def test_the_command_tells_a_vocabulary_as_json(tmp_path: Path) -> None:
    model, kept = embedding(tmp_path, "1\n3")
    done = invoke("strip", model, "-o", tmp_path / "s.onnx", "--vocabulary", kept, "--json")
    found = json.loads(done.stdout)["vocabulary"]
    assert found["ids"] == [1, 3]
    assert found["tables"] == [{"name": "t", "node": "Gather 'h'", "before": 10, "after": 2}]
    assert found["seen"] is None
    assert found["bytes_saved"] == 8 * 4 * 4 - 10 * 8


def test_the_command_says_which_line_holds_no_id(tmp_path: Path) -> None:
    out = tmp_path / "s.onnx"
    for text, said in (
        ("1\nthe", f"line 2 of '{tmp_path / 'kept.txt'}' is no id: 'the'"),
        ("-1", "line 1"),
        ("1\n10", "no embedding has a row for id 10"),
        ("", "no id is to stay"),
    ):
        model, kept = embedding(tmp_path, text)
        assert_refused(invoke("strip", model, "-o", out, "--vocabulary", kept), said)
    lacking = invoke("strip", model, "-o", out, "--vocabulary", tmp_path / "none.txt")
    assert_refused(lacking, "cannot read the ids")
    alone = invoke("strip", model, "-o", out, "--unknown-id", "1")
    assert_refused(alone, "give --vocabulary or --vocabulary-from")
    kept.write_text("1")
    unknown = invoke("strip", model, "-o", out, "--vocabulary", kept, "--unknown-id", "2")
    assert_refused(unknown, "--unknown-id 2 is not one of the ids that stay")
    assert not out.exists()
