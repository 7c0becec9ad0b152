"""The learning rate that trials find, what epochs are judged by, and what a user is told."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import run_onnx
from nets import draw_samples, model_of
from training.test_finetune import Task

from obc_onnx import compress
from obc_onnx.errors import DivergedError
from obc_onnx.graph.model import Graph
from obc_onnx.measuring.error import split
from obc_onnx.planning.budget import Budget
from obc_onnx.training import engine
from obc_onnx.training.course import Course, Epoch, doubts_on, notes_on
from obc_onnx.training.evaluation import Judge, parts_of
from obc_onnx.training.loss import TrainingLoss
from obc_onnx.training.options import LABELS_AND_TEACHER, NORMS, Training, TrainingOptions
from obc_onnx.training.order import Order
from obc_onnx.training.trial import RATES, Trial, run_trials, taken_of, trial_steps

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.samples.samples import Samples

FIRST = 0.03


# Which rates are tried.


@pytest.mark.parametrize(
    ("errors", "share", "n_tried", "taken"),
    [
        ([0.99, 0.6], 1.0, 3, 0.01),  # as short as the training: the best one
        ([0.9, 0.6, 0.65], 0.5, 3, 0.01),
        ([0.9, 0.6], 0.05, 2, 0.03),  # short: the first that helps
        ([0.999, 0.6, 0.6], 0.05, 3, 0.01),  # that one hardly did
        ([0.99, 0.6, 0.2, 0.1], 0.9, 5, 0.001),
        ([2.0, 0.8, 0.6], 0.05, 3, 0.01),
        ([math.nan, math.inf, 0.9, 0.95], 0.05, 4, 0.003),
        ([5.0, 4.0, 4.5, 3.0, 2.0, 1.5], 0.05, 6, 1e-4),
        ([1.0] * 6, 0.05, 2, 0.03),  # trials do not tell
        ([1.0] * 6, 1.0, 6, 1e-4),
        ([4.4, 1.06, 1.07, 0.5], 1 / 3, 3, 0.01),
        (
            [4.4, 1.06, 1.07, 1.01, 0.995, 0.999],
            1.0,
            6,
            3e-4,
        ),  # as short as the training: the best one
        ([1.06, 0.92, 0.96], 1 / 3, 3, 0.01),
        ([1.09, 1.03, 0.5], 1 / 3, 2, 0.01),
        ([4.4, 1.12, 1.07, 1.03, 1.0], 1 / 3, 4, 0.001),  # 1.12 is more harm than settles
        ([1.2, 1.2, 1.2, 1.2, 1.2, 1.19], 0.05, 6, 1e-4),
        ([math.nan] * 6, 0.05, 6, 1e-4),
    ],
)
def test_rates_fall_until_one_helps_or_two_do_not_tell_and_a_smaller_one_has_to_help_far_more(
    errors: list[float], share: float, n_tried: int, taken: float
) -> None:
    tried: list[float] = []

    def measure(lr: float, mode: str) -> float:
        assert mode == "stored"
        tried.append(lr)
        return [*errors, 0.7, 0.7][len(tried) - 1]

    trials = run_trials(measure, 1.0, RATES["sgd"], ["stored"], share)
    assert (
        [trial.lr for trial in trials] == tried == [0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4][:n_tried]
    )
    assert taken_of(trials).lr == taken
    assert sum(trial.taken for trial in trials) == 1


@pytest.mark.parametrize("better", NORMS)
def test_all_modes_of_norms_are_tried_until_one_helps(better: str) -> None:
    """Where weights alone blow up at a rate, those behind norms of a batch may gain."""
    (worse,) = set(NORMS) - {better}
    errors = {(0.03, "stored"): math.inf, (0.03, "batch"): 1.5}
    errors |= {(0.01, worse): 0.95, (0.01, better): 0.9, (0.003, better): 0.5}
    trials = run_trials(lambda *how: errors[how], 1.0, RATES["sgd"], NORMS, 0.05)
    assert {(trial.lr, trial.norms) for trial in trials} == set(errors)
    assert (taken_of(trials).lr, taken_of(trials).norms) == (0.01, better)


@pytest.mark.parametrize(
    ("per_epoch", "total", "expected"),
    [(6, 18, 6), (57, 855, 57), (113, 339, 64), (113, 2260, 90), (500, 15000, 500)],
)
def test_trials_grow_with_the_training_up_to_a_pass(
    per_epoch: int, total: int, expected: int
) -> None:
    assert trial_steps(per_epoch, total) == expected


# What steps, and over how many samples.


@pytest.mark.parametrize(
    ("distils", "changes", "expected"),
    [
        (True, {}, "adamw"),
        (False, {}, "sgd"),
        (True, {"lr": 0.01}, "sgd"),
        (True, {"optimizer": "sgd"}, "sgd"),
        (False, {"optimizer": "adamw", "lr": 0.01}, "adamw"),
    ],
)
def test_adamw_steps_where_the_original_alone_teaches_at_a_rate_that_is_found(
    *, distils: bool, changes: dict[str, Any], expected: str
) -> None:
    assert TrainingOptions(epochs=1, **changes).optimizer_for(distils=distils) == expected


@pytest.mark.parametrize(("labelled", "expected"), [(True, "sgd"), (False, "adamw")])
def test_trials_are_of_the_rates_of_what_steps(*, labelled: bool, expected: str) -> None:
    course = Task("dense", 60, labelled=labelled).course(lr=None, validation=0.3, epochs=1)
    assert course.optimizer == expected
    assert course.trials[0].lr == RATES[course.optimizer][0]


@pytest.mark.parametrize(
    ("n_samples", "changes", "expected"),
    [
        (10_000, {}, 64),
        (2048, {}, 64),
        (2047, {}, 32),
        (1023, {}, 16),
        (30, {}, 16),
        (30, {"lr": 0.01}, 64),
        (30, {"batch_size": 20}, 20),
        (10_000, {"batch_size": 20, "lr": 0.01}, 20),
    ],
)
def test_few_samples_are_taken_in_small_steps_where_the_rate_is_found_for_them(
    n_samples: int, changes: dict[str, Any], expected: int
) -> None:
    options = TrainingOptions(epochs=1, **changes)
    assert options.samples_per_step(n_samples) == expected
    assert Order(n_samples, None, Training(options, 0, "cpu"), 1).size == expected
    assert Order(60, 3, Training(options, 0, "cpu"), 2).size == 6


@pytest.mark.parametrize(
    ("lr", "accumulate", "expected"), [(None, 1, 16), (None, 2, 32), (0.01, 1, 64)]
)
def test_steps_are_of_as_many_samples_as_the_note_says(
    lr: float | None, accumulate: int, expected: int
) -> None:
    task = Task("norm", 80)
    seen: list[int] = []
    task.student.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    course = task.course(lr=lr, batch_size=None, accumulate=accumulate, epochs=1)
    assert max(seen) * accumulate == course.size == expected
    if lr is None:
        assert f"in steps of {expected} samples" in notes_on(course)[0]


# What trials leave behind.


@pytest.mark.parametrize("validation", [0.0, 0.3])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_training_at_a_rate_that_was_found_is_training_at_that_rate(
    validation: float, ema: float | None
) -> None:
    options: dict[str, Any] = {"validation": validation, "ema": ema, "epochs": 3}
    found = Task("norm", 60, labelled=True)
    course = found.course(lr=None, **options)
    best = taken_of(course.trials)
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
    assert taken_of(course.trials).lr < FIRST
    assert course.kept.number > 0
    assert course.kept.validation < course.epochs[0].validation


def test_a_training_that_is_long_does_not_creep() -> None:
    """At the rate that is found less of the error is left than at a small one."""
    how: dict[str, Any] = {"validation": 0.2, "epochs": 30, "loss": (("mse", 1.0),)}
    found = Task("dense", 100).course(lr=None, **how)
    rates = RATES[found.optimizer]
    slow = Task("dense", 100).course(lr=rates[-1], optimizer=found.optimizer, **how)
    assert taken_of(found.trials).lr in rates[:2]
    assert found.kept.validation is not None
    assert slow.kept.validation is not None
    assert found.kept.validation < 0.9 * slow.kept.validation


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_a_rate_that_was_found_and_diverges_ends_with_what_was_best(
    validation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless nothing is known to be better than what has diverged."""
    trials = [Trial(1e4, "batch", 0.0, taken=True)]
    monkeypatch.setattr(engine, "run_trials", lambda *_: trials)
    task = Task("dense", 60)
    before = task.folded_bytes()
    if not validation:
        with pytest.raises(DivergedError):
            task.course(lr=None, validation=validation)
        return
    course = task.course(lr=None, validation=validation)
    assert course.kept.number == 0
    assert task.folded_bytes() == before
    (doubt,) = doubts_on(course, 60)
    assert "kept epoch 0" in doubt
    assert "try a smaller `TrainingOptions.lr`" in doubt


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


@pytest.mark.parametrize(
    ("loss", "labelled"), [((), False), ((("kd", 1.0),), False), ((("kd", 1.0),), True)]
)
def test_the_distance_to_the_original_chooses_where_its_outputs_alone_teach(
    loss: tuple[tuple[str, float], ...], labelled: bool
) -> None:
    task = Task("dense", 30, labelled=labelled)
    expected, found = outputs(task)
    error, accuracy = judged(task, labelled, loss=loss)
    assert error == pytest.approx(distance(expected, found), rel=1e-4)
    right = None if not labelled else (found.argmax(1) == task.samples.labels).mean()
    assert accuracy == (None if right is None else pytest.approx(right))


@pytest.mark.parametrize("loss", [(), (("ce", 1.0),), (("ce", 0.2), ("kd", 0.7))])
def test_the_loss_chooses_where_labels_teach(loss: tuple[tuple[str, float], ...]) -> None:
    task = Task("dense", 30, labelled=True)
    terms = dict(loss or LABELS_AND_TEACHER)
    wanted, found = outputs(task)
    hard = -log_softmax(found)[np.arange(30), task.samples.labels].mean()
    cold, warm = log_softmax(wanted / 4), log_softmax(found / 4)
    soft = 16 * (np.exp(cold) * (cold - warm)).sum(1).mean()
    expected = terms["ce"] * hard + terms.get("kd", 0.0) * soft
    assert judged(task, True, loss=loss)[0] == pytest.approx(expected, rel=1e-4)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_samples_that_choose_are_among_those_that_repair_has_not_solved_on() -> None:
    samples = draw_samples(Graph.from_model(model_of("dense")), 60)
    _, chosen = parts_of(samples, 0.15, 1)
    solved, _ = split(samples, 1)
    assert chosen is not None
    rows = [{row.tobytes() for row in part.feed(slice(None))["x"]} for part in (chosen, solved)]
    assert len(rows[0]) == 9
    assert not rows[0] & rows[1]


def test_a_loss_of_the_user_chooses_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text("def low(outputs, targets, labels):\n    return outputs['y'].mean()\n")
    task = Task("dense", 30)
    _, found = outputs(task)
    error, _ = judged(task, False, loss=((f"{path}:low", 2.0),))
    assert error == pytest.approx(2 * found.mean(), rel=1e-4)


def test_what_is_judged_is_the_network_that_is_written() -> None:
    """The kept epoch's error is that of the folded graph on the samples that were held out."""
    task = Task("norm", 60)
    course = task.course(lr=0.02, validation=0.3, epochs=4, precision="bfloat16")
    folded = task.student.fold(task.pruned)
    held: Samples | None = parts_of(task.samples, 0.3, 1)[1]
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
    assert "leave `TrainingOptions.lr` out" in warning
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
    (note,) = [text for text in report.notes if text.startswith("learning rate")]
    assert "norms" not in note, "there are none"


def test_the_note_on_trials_tells_each_and_what_sets_another() -> None:
    trials = [Trial(0.03, "stored", math.inf), Trial(0.03, "batch", 0.25, taken=True)]
    epochs = [Epoch(0, None, 0.0, 0.5, kept=True)]
    note = notes_on(Course(epochs, trials, "sgd", 16))[0]
    assert note.startswith(
        "learning rate 0.03, for sgd in steps of 16 samples with batch statistics of norms, was "
    )
    assert "inf at 0.03 (stored), 0.25 at 0.03 (batch); " in note
    assert note.endswith("`TrainingOptions.lr` and `TrainingOptions.norms` set others")
