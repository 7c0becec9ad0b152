"""The learning rate that trials find, what epochs are judged by, and what a user is told."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import run_onnx
from nets import draw_samples, model_of
from test_finetune import Task

from obc_onnx import compress
from obc_onnx.errors import DivergedError
from obc_onnx.graph.model import Graph
from obc_onnx.planning.budget import Budget
from obc_onnx.training.evaluation import Judge, parts_of
from obc_onnx.training.loss import TrainingLoss
from obc_onnx.training.options import NORMS, TrainingOptions
from obc_onnx.training.trial import RATES, best_of_trials, run_trials, trial_steps

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.samples.samples import Samples

FIRST = 0.03


# Which rates are tried.


@pytest.mark.parametrize(
    ("errors", "n_tried", "best"),
    [
        ([0.5, 0.6], 2, 0.03),
        ([2.0, 0.8, 0.6, 0.7], 4, 0.003),
        ([math.nan, math.inf, 0.9, 0.95], 4, 0.003),
        ([5.0, 4.0, 4.5, 3.0, 2.0, 1.5], 6, 1e-4),
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 6, 1e-4),
        ([math.nan] * 6, 6, 1e-4),
    ],
)
def test_rates_fall_until_one_that_helps_is_followed_by_a_worse_one(
    errors: list[float], n_tried: int, best: float
) -> None:
    tried: list[float] = []

    def measure(lr: float, mode: str) -> float:
        assert mode == "stored"
        tried.append(lr)
        return errors[len(tried) - 1]

    trials = run_trials(measure, 1.0, RATES["sgd"], ["stored"])
    assert (
        [trial.lr for trial in trials] == tried == [0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4][:n_tried]
    )
    assert best_of_trials(trials).lr == best


def test_other_modes_of_norms_are_tried_at_the_rate_that_was_found() -> None:
    errors = {(0.03, "stored"): 0.9, (0.01, "stored"): 0.5, (0.003, "stored"): 0.6}
    for error, best in ((0.4, "batch"), (0.7, "stored")):
        own = {**errors, (0.01, "batch"): error}
        trials = run_trials(lambda *how: own[how], 1.0, RATES["sgd"], NORMS)  # noqa: B023
        assert [(trial.lr, trial.norms) for trial in trials] == list(own)
        assert (best_of_trials(trials).lr, best_of_trials(trials).norms) == (0.01, best)


def test_all_trials_together_are_bounded() -> None:
    assert trial_steps(6, 18) == 6
    assert trial_steps(14, 168) == 14
    assert trial_steps(500, 6000) == 100
    assert trial_steps(500, 1500) == 75


# What trials leave behind.


@pytest.mark.parametrize("validation", [0.0, 0.3])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_training_at_a_rate_that_was_found_is_training_at_that_rate(
    validation: float, ema: float | None
) -> None:
    options: dict[str, Any] = {"validation": validation, "ema": ema, "epochs": 3}
    found = Task("norm", 60, labelled=True)
    course = found.course(lr=None, **options)
    best = best_of_trials(course.trials)
    given = Task("norm", 60, labelled=True)
    assert given.course(lr=best.lr, norms=best.norms, **options).epochs == course.epochs
    assert given.folded_bytes() == found.folded_bytes()


def test_a_training_that_usual_rates_throw_off_takes_a_smaller_one(tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text(
        "def squares(outputs, targets, labels):\n"
        "    return (outputs['y'] - targets['y']).square().mean() / targets['y'].var()\n"
    )
    how: dict[str, Any] = {"loss": ((f"{path}:squares", 1000.0),), "validation": 0.3, "epochs": 4}
    with pytest.raises(DivergedError):
        Task("dense", 80).train(lr=FIRST, **how)
    course = Task("dense", 80).course(lr=None, **how)
    assert course.trials[0].error == math.inf
    assert best_of_trials(course.trials).lr < FIRST
    assert course.kept.number > 0
    assert course.kept.validation < course.epochs[0].validation


@pytest.mark.parametrize("mode", NORMS)
def test_stored_statistics_stay_and_those_of_a_batch_move(mode: str) -> None:
    task = Task("norm", 60)
    task.train(norms=mode, lr=0.02)
    folded = task.student.fold(task.pruned)
    for name, moves in (("mean", mode == "batch"), ("var", mode == "batch"), ("w1", True)):
        same = np.array_equal(task.pruned.initializers[name], folded.initializers[name])
        assert same != moves


def test_with_stored_statistics_what_trains_is_what_is_written() -> None:
    """At no learning rate the loss of a step is the error of the network as it is."""
    task = Task("norm", 24)
    expected, found = outputs(task)
    (epoch,) = task.train(norms="stored", lr=1e-30, epochs=1, batch_size=24)
    shares = ((found - expected) ** 2).mean(0) / expected.var(0, ddof=1)
    assert epoch.loss == pytest.approx(np.log1p(shares).mean(), rel=1e-4)


# What epochs are judged by.


def judged(task: Task, labelled: bool, **changes: Any) -> tuple[float, float | None]:
    options = TrainingOptions(epochs=1, **changes)
    loss = TrainingLoss(options, task.original, task.teacher().scales, labelled=labelled)
    return Judge(task.coupling, task.samples, loss)(task.pruned)


def distance(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """The geometric mean of one plus what the squares are of the variance of each channel."""
    axes = (0, *range(2, expected.ndim))
    variance = expected.var(0, ddof=1).mean(axes[1:] and tuple(a - 1 for a in axes[1:]))
    return float(np.expm1(np.log1p(((found - expected) ** 2).mean(axes) / variance).mean()))


def outputs(task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    feed = task.samples.feed(slice(None))
    return tuple(run_onnx(g, feed)["y"].astype(np.float64) for g in (task.original, task.pruned))


@pytest.mark.parametrize("labelled", [False, True])
def test_the_distance_to_the_original_chooses_where_its_outputs_teach(labelled: bool) -> None:
    task = Task("dense", 30, labelled=labelled)
    expected, found = outputs(task)
    error, accuracy = judged(task, labelled)
    assert error == pytest.approx(distance(expected, found), rel=1e-4)
    right = None if not labelled else (found.argmax(1) == task.samples.labels).mean()
    assert accuracy == (None if right is None else pytest.approx(right))


def test_labels_choose_where_they_alone_teach() -> None:
    task = Task("dense", 30, labelled=True)
    _, found = outputs(task)
    logs = found - np.log(np.exp(found).sum(1, keepdims=True))
    expected = -logs[np.arange(30), task.samples.labels].mean()
    assert judged(task, True, loss=(("ce", 1.0),))[0] == pytest.approx(expected, rel=1e-4)


def test_a_loss_of_the_user_chooses_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text("def low(outputs, targets, labels):\n    return outputs['y'].mean()\n")
    task = Task("dense", 30)
    _, found = outputs(task)
    error, _ = judged(task, False, loss=((f"{path}:low", 2.0),))
    assert error == pytest.approx(2 * found.mean(), rel=1e-4)


def test_what_is_judged_is_the_network_that_is_written() -> None:
    """The kept epoch's error is that of the folded graph on the samples that were held out."""
    task = Task("norm", 60, labelled=True)
    course = task.course(lr=0.02, validation=0.3, epochs=4, precision="bfloat16")
    folded = task.student.fold(task.pruned)
    held: Samples | None = parts_of(task.samples, 0.3, 0, 1)[1]
    assert held is not None
    feed = held.feed(slice(None))
    expected, found = (run_onnx(g, feed)["y"].astype(float) for g in (task.original, folded))
    assert course.kept.validation == pytest.approx(distance(expected, found), rel=1e-4)


# What a user is told.


def report_of(lr: float | None, **options: Any) -> Any:
    graph = Graph.from_model(model_of("dense"))
    training = TrainingOptions(epochs=2, batch_size=8, lr=lr, validation=0.3, **options)
    samples = draw_samples(graph, 60, labelled=True)
    how = {"training": training, "recover": "none"}
    return compress(graph, data=samples, budget=Budget(0.6), **how).report


def test_training_that_only_harms_is_a_warning_with_its_likely_reason() -> None:
    report = report_of(5.0, optimizer="adamw")
    (warning,) = [text for text in report.warnings if "no epoch was better" in text]
    assert "leave --lr out" in warning
    assert [epoch["kept"] for epoch in json.loads(report.to_json())["epochs"]] == [
        True,
        False,
        False,
    ]


def test_training_that_helps_is_a_note_with_its_epoch_and_rate() -> None:
    report = report_of(None, loss=(("mse", 1.0),))
    (kept,) = [epoch.number for epoch in report.epochs if epoch.kept]
    assert not [text for text in report.warnings if "no epoch" in text]
    assert any(f"kept epoch {kept} of 2" in text for text in report.notes)
    assert any(text.startswith("learning rate") for text in report.notes)
