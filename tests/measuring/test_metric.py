"""Quality by a function of the user's: what it gets, what is told of it, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from small import archive, assert_refused, classes, images, invoke, saved

from obc_onnx.planning.budget import Budget
from obc_onnx.run.api import compress
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

METRICS = """
import numpy as np

def top1(runs):
    found = [(next(iter(run.outputs.values())).argmax(1), run.labels) for run in runs]
    return np.mean(np.concatenate([given == labels for given, labels in found]))

def misses(runs):
    return 1 - top1(runs)

def size(runs):
    return float(np.mean(np.concatenate([abs(next(iter(r.outputs.values()))).ravel() for r in runs])))

def broken(runs):
    return {}["no such key"]

def listed(runs):
    return [0.5]

def nothing(runs):
    return None

def not_a_number(runs):
    return float("nan")
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    (tmp_path / "metrics.py").write_text(METRICS)
    data = archive(tmp_path, x=images(40), labels=classes(40))
    held = archive(tmp_path, "held.npz", x=images(150, seed=5), labels=classes(150, seed=6))
    return saved(tmp_path), data, held


def arguments(files: tuple[Path, ...], metric: str) -> list[Any]:
    model, data, held = files
    named = f"{model.parent / 'metrics.py'}:{metric}"
    return [model, "--data", data, "--eval-data", held, "--recover", "none", "--metric", named]


def test_it_is_measured_on_both_models(files: tuple[Path, ...], tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    command = ("compress", *arguments(files, "size"), "-o", small, "--target-macs", "0.5")
    report = json.loads(invoke(*command, "--json").stdout)

    def mean_of(path: Path) -> float:
        session = onnxruntime.InferenceSession(str(path))
        (scores,) = session.run(None, {"x": np.load(files[2])["x"]})
        return float(np.abs(scores).mean())

    wanted = {"before": mean_of(files[0]), "after": mean_of(small)}
    assert report["metric"]["name"] == "size"
    assert {key: report["metric"][key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert f"size {wanted['before']:.4g} -> {wanted['after']:.4g}" in report["verdict"]


def test_a_run_has_inputs_outputs_and_labels_of_the_same_samples(files: tuple[Path, ...]) -> None:
    given = np.load(files[2])
    samples = Samples({"x": given["x"]}, given["labels"], {})
    seen: list[Any] = []

    def look(runs: Any) -> float:
        seen.append(list(runs))
        return 0.0

    data = DataOptions(files[1], evaluation=samples, metric=look)
    report = compress(files[0], data=data, budget=Budget(0.5), recover="none").report
    assert report.metric is not None
    assert report.metric.name == "look"
    session = onnxruntime.InferenceSession(str(files[0]))
    (before, after) = seen
    assert len(before) > 1
    assert sum(len(run.labels) for run in before) == len(given["x"])
    for run in before:
        (scores,) = session.run(None, run.inputs)
        np.testing.assert_allclose(next(iter(run.outputs.values())), scores, rtol=1e-5, atol=1e-6)
        for row, label in zip(run.inputs["x"], run.labels, strict=True):
            same = (given["x"] == row).all(axis=(1, 2, 3))
            assert given["labels"][same] == [label]
    assert all((a.inputs["x"] == b.inputs["x"]).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("metric", "more"), [("top1", []), ("misses", ["--lower-is-better"])])
def test_a_drop_by_it_is_that_of_accuracy(
    metric: str, more: list[str], files: tuple[Path, ...], tmp_path: Path
) -> None:
    asked = ("--max-drop", "0.2", "--json")
    own = ("compress", *arguments(files, metric), "-o", tmp_path / "own.onnx", *more, *asked)
    usual = ("compress", *arguments(files, metric)[:-2], "-o", tmp_path / "usual.onnx", *asked)
    reports = [json.loads(invoke(*command).stdout) for command in (own, usual)]
    assert reports[0]["macs"]["after"] < reports[0]["macs"]["before"]
    assert (tmp_path / "own.onnx").read_bytes() == (tmp_path / "usual.onnx").read_bytes()
    assert any(f"metric '{metric}'" in note for note in reports[0]["notes"])


def test_a_sweep_shows_it(files: tuple[Path, ...], tmp_path: Path) -> None:
    command = ("sweep", *arguments(files, "size"), "--lower-is-better", "-o", tmp_path / "swept")
    done = invoke(*command, "--targets", "0.5", "--report", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "size" in done.stdout
    assert '<th scope="col">size</th>' in (tmp_path / "page.html").read_text()
    (point,) = json.loads((tmp_path / "swept" / "sweep.json").read_text())["points"]
    metric = point["metric"]
    assert point["drop"] == pytest.approx(metric["after"] - metric["before"])


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("broken", "metric 'broken' raised KeyError: 'no such key'"),
        ("listed", "metric 'listed' returned list: it has to return one number"),
        ("nothing", "metric 'nothing' returned NoneType"),
        ("not_a_number", "metric 'not_a_number' returned nan: it has to return a finite number"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_what_gives_no_number_is_refused(
    metric: str, said: str, files: tuple[Path, ...], tmp_path: Path
) -> None:
    target = tmp_path / "s.onnx"
    command = ("compress", *arguments(files, metric), "-o", target, "--target-macs", "0.5")
    assert_refused(invoke(*command), said)
    assert not target.exists()


def test_a_users_error_is_shown_in_full_where_that_is_asked_for(
    files: tuple[Path, ...], tmp_path: Path
) -> None:
    command = ("compress", *arguments(files, "broken"), "-o", tmp_path / "s.onnx")
    done = invoke(*command, "--target-macs", "0.5", "-v")
    assert "Traceback" in done.stderr
    assert "metrics.py" in done.stderr


def test_it_needs_samples_and_a_direction_needs_it(files: tuple[Path, ...], tmp_path: Path) -> None:
    target = ("-o", tmp_path / "s.onnx", "--target-macs", "0.5")
    model, _, data, *_, named = arguments(files, "size")
    assert_refused(invoke("compress", model, *target, "--metric", named), "--metric", "give --data")
    command = ("compress", model, *target, "--data", data, "--lower-is-better")
    assert_refused(invoke(*command), "--lower-is-better is of --metric")
