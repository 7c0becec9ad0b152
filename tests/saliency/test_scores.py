"""Scores as a file: what `score` writes, and what `compress` and `inspect` make of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from helpers import analyse
from nets import case_of, draw_samples, model_of

import obc_onnx
from obc_onnx.cli.main import cli
from obc_onnx.cli.score_options import scoring_of
from obc_onnx.errors import RequestError
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.saliency.options import PRESETS, Scoring
from obc_onnx.saliency.scores import Scores
from obc_onnx.samples.options import HOLDOUT
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model_of("residual"), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    samples = draw_samples(analyse(model_of("residual")).graph, 40, labelled=True)
    np.savez(path, **samples.inputs, labels=samples.labels)
    return path


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def scored(model: Path, *options: Any) -> Scores:
    target = model.parent / "scores.npz"
    result = invoke("score", model, "-o", target, "--force", *options)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert result.stderr.startswith(f"wrote {target}; next: ")
    return Scores.load(target)


def test_scores_are_those_of_the_criterion_and_name_their_model(model: Path, data: Path) -> None:
    scores = scored(model, "--data", data, "--seed", 3)
    assert (scores.criterion, scores.seed) == ("jacobian", 3)
    graph = analyse(onnx.load(model)).graph
    expected = obc_onnx.score(str(model), data=str(data), seed=3)
    assert scores.model_sha256 == expected.model_sha256
    assert scores.groups.keys() == {g.name for g in analyse(graph.to_model()).coupling.groups}
    for name, values in expected.groups.items():
        np.testing.assert_array_equal(scores.groups[name], values)


def test_equal_seeds_give_equal_bytes(model: Path, data: Path) -> None:
    scored(model, "--data", data)
    first = (model.parent / "scores.npz").read_bytes()
    scored(model, "--data", data)
    assert (model.parent / "scores.npz").read_bytes() == first


def test_held_out_samples_are_not_scored_on(model: Path, data: Path) -> None:
    whole = scored(model, "--data", data, "--objective", "labels")
    arrays = dict(np.load(data))
    labels = arrays["labels"]
    numbered = Samples({"x": np.arange(len(labels))}, labels, {"x": np.dtype(int)})
    _, held = numbered.split(HOLDOUT)
    arrays["x"][held.inputs["x"][:]] = 0
    np.savez(data, **arrays)
    again = scored(model, "--data", data, "--objective", "labels")
    for name, values in whole.groups.items():
        np.testing.assert_array_equal(again.groups[name], values)


def test_compress_takes_scores_in_place_of_a_criterion(model: Path, data: Path) -> None:
    scores = scored(model, "--data", data, "--criterion", "taylor")
    small, plan = model.parent / "small.onnx", model.parent / "plan.json"
    given = model.parent / "scores.npz"
    options = ["--target-macs", 0.6, "--plan-out", plan]
    result = invoke("compress", model, "-o", small, "--scores", given, *options)
    assert result.exit_code == 0, result.output
    decided = PruningPlan.load(plan)
    assert decided.criterion == "taylor"
    for name, entry in decided.groups.items():
        kept = np.isin(np.arange(entry["size"]), entry["kept"])
        if not kept.all():
            assert scores.groups[name][kept].min() >= scores.groups[name][~kept].max()


def test_inspect_shows_the_units_that_matter_least_and_most(model: Path, data: Path) -> None:
    scores = scored(model, "--data", data)
    given = model.parent / "scores.npz"
    text = invoke("inspect", model, "-v", "--scores", given).stdout
    found = json.loads(invoke("inspect", model, "--scores", given, "--json").stdout)["salient"]
    assert {entry["group"] for entry in found} == scores.groups.keys()
    for entry in found:
        values = scores.groups[entry["group"]]
        assert entry["least"][0][0] == values.argmin()
        assert entry["most"][0][0] == values.argmax()
        of_group = text.partition(f"\n      {entry['group']}\n")[2].partition("least: ")[2]
        assert of_group.startswith(f"unit {values.argmin()} ")
    assert "least" not in invoke("inspect", model).stdout


def test_scores_of_another_model_are_refused(model: Path, data: Path) -> None:
    scored(model, "--data", data)
    other = model.parent / "other.onnx"
    onnx.save(model_of("dense"), other)
    for command in (["inspect", other], ["compress", other, "-o", model.parent / "small.onnx"]):
        result = invoke(*command, "--scores", model.parent / "scores.npz")
        assert result.exit_code == 1
        assert "the scores are of a model with sha256" in result.stderr
    assert not (model.parent / "small.onnx").exists()


def test_scores_that_are_not_finite_are_refused(model: Path, data: Path) -> None:
    scores = scored(model, "--data", data)
    next(iter(scores.groups.values()))[0] = np.nan
    with pytest.raises(RequestError, match="not finite"):
        obc_onnx.inspect(str(model), scores=scores)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_holds_no_scores_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.npz"
    if content is None:
        np.savez(path, weights=np.ones(3))
    else:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="no file of scores"):
        Scores.load(path)
    with pytest.raises(RequestError, match="no file of scores"):
        Scores.load(tmp_path / "nowhere.npz")


def test_the_model_and_the_data_are_not_overwritten(model: Path, data: Path) -> None:
    for target in (model, data):
        before = target.read_bytes()
        assert invoke("score", model, "-o", target, "--data", data).exit_code == 1
        assert target.read_bytes() == before


def options(**given: Any) -> dict[str, Any]:
    none = dict.fromkeys(Scoring.__dataclass_fields__)
    named = {f"score_{key}": none.pop(key) for key in ("loss", "samples", "batch_size")}
    return {**none, **named, "preset": None, **given}


def test_a_preset_may_be_changed_option_by_option() -> None:
    assert scoring_of(options()) is None
    assert scoring_of(options(preset="paper")) == PRESETS["paper"]
    changed = scoring_of(options(preset="paper", batches=7, depthwise=True))
    assert (changed.batches, changed.depthwise, changed.rows) == (7, True, "batch")


@pytest.mark.parametrize("value", ["0", "-1", "some"])
def test_a_batch_size_is_a_number_or_auto(model: Path, data: Path, value: str) -> None:
    target = model.parent / "scores.npz"
    result = invoke("score", model, "-o", target, "--data", data, "--batch-size", value)
    assert (result.exit_code, target.exists()) == (2, False)
    scored(model, "--data", data, "--batch-size", "auto")


def test_a_loss_of_the_user_scores_from_the_command_line(model: Path, data: Path) -> None:
    losses = model.parent / "losses.py"
    losses.write_text("def loss(outputs, labels):\n    return outputs['y'].square().sum(1)\n")
    found = scored(model, "--data", data, "--loss", f"{losses}:loss")
    assert all((values >= 0).all() and values.any() for values in found.groups.values())
    small = model.parent / "small.onnx"
    command = ["compress", model, "-o", small, "--data", data, "--score-loss", f"{losses}:loss"]
    assert invoke(*command).exit_code == 0


@pytest.mark.parametrize(
    "arrays",
    [
        {"a:1": np.array(["x"])},
        {"a:1": np.ones((2, 2))},
        {"a:1": np.ones(2, np.complex128)},
        {"a:1": np.ones(2, np.bool_)},
    ],
)
def test_scores_of_another_kind_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    Scores("0" * 64, "l2", 0, {}, arrays).save(path)
    with pytest.raises(RequestError, match="no file of scores"):
        Scores.load(path)


def test_scores_of_other_sizes_are_named() -> None:
    case = case_of("gemm")
    found = Scores(case.graph.sha256, "l2", 0, {}, {"w1:0": np.ones(1)})
    with pytest.raises(RequestError, match="the scores have 1 units for group 'w1:0'"):
        found.check(case.coupling)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--samples", "4", "--batches", "2"], "leave out --score-samples"),
        (["--loss", "x.py:f", "--objective", "output"], "leave out --objective"),
        (["--device", "nonsense"], "cannot use device 'nonsense'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    model: Path, data: Path, given: list[str], words: str
) -> None:
    command = ["score", model, "--data", data, "-o", model.parent / "s.npz", *given]
    result = invoke(*command)
    assert result.exit_code == 1
    assert words in result.output


def test_scores_that_are_there_are_not_scored_again(model: Path, data: Path) -> None:
    scores = model.parent / "scores.npz"
    assert invoke("score", model, "-o", scores).exit_code == 0
    command = ["compress", model, "--scores", scores, "-o", model.parent / "o.onnx"]
    result = invoke(*command, "--rows", "sample")
    assert result.exit_code == 1
    assert "is in --scores already: leave out --rows" in result.output


def test_options_beside_a_preset_change_it(model: Path, data: Path) -> None:
    out = model.parent / "s.npz"
    command = ["score", model, "--data", data, "-o", out, "--preset", "paper"]
    assert invoke(*command, "--samples", "6", "--batch-size", "auto").exit_code == 0
    found = Scores.load(out).scoring
    assert (found["samples"], found["batches"], found["batch_size"]) == (6, None, None)
