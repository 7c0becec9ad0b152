"""The training engine: what a step is, averages, order, starts, and stopping early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import analyse, build
from nets import draw_keep, draw_samples, model_of
from training.test_finetune import Task

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.equivalent.starts import channel_start
from obc_onnx.errors import RequestError
from obc_onnx.measuring.error import output_error
from obc_onnx.saliency.criterion import Scene
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.training.engine import finetune
from obc_onnx.training.optimise import Average, make_optimizer, set_rate
from obc_onnx.training.options import PRESETS, Training, TrainingOptions
from obc_onnx.training.order import Order, rate
from obc_onnx.training.teacher import Teacher


def options(**changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"epochs": 1, "validation": 0.0, **changes})


# The state that is best, and when to stop.


def test_the_best_epoch_on_samples_that_do_not_train_is_the_result() -> None:
    task = Task("norm", 60, labelled=True)
    history = task.train(epochs=5, validation=0.3, lr=0.1, warmup=0.0)
    assert [epoch.number for epoch in history] == list(range(6))
    best = min(history, key=lambda epoch: epoch.validation)
    task.student.eval()
    again = Task("norm", 60, labelled=True)
    again.student.load_state_dict(task.student.state_dict())
    same = again.train(epochs=1, validation=0.3, lr=1e-30, momentum=0.0)
    assert same[0].validation == pytest.approx(best.validation, rel=1e-6)


def test_a_network_that_training_only_harms_stays_as_it_was() -> None:
    task = Task("norm", 60, labelled=True)
    before = task.folded_bytes()
    history = task.train(epochs=2, validation=0.3, lr=5.0, warmup=0.0, optimizer="adamw")
    assert history[0].validation < min(epoch.validation for epoch in history[1:])
    assert task.folded_bytes() == before


def test_training_ends_where_it_brings_nothing() -> None:
    history = Task("norm", 60, labelled=True).train(
        epochs=30, validation=0.3, lr=5.0, warmup=0.0, optimizer="adamw", patience=2
    )
    assert len(history) == 3


# What a step is.


def test_several_passes_make_the_step_of_their_whole_batch() -> None:
    """Without norms, whose statistics are those of a pass."""
    states = []
    for batch_size, accumulate in ((12, 1), (4, 3), (3, 4)):
        task = Task("dense", 24, labelled=True)
        task.train(epochs=2, batch_size=batch_size, accumulate=accumulate)
        states.append(task.student.state_dict())
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_weights_are_made_once_for_all_passes_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    make = EquivalentTwin.effective_weights

    def spy(student: EquivalentTwin) -> dict[str, torch.Tensor]:
        calls[-1] += 1
        return make(student)

    monkeypatch.setattr(EquivalentTwin, "effective_weights", spy)
    for batch_size, accumulate in ((12, 1), (4, 3), (4, 1)):
        calls.append(0)
        task = Task("dense", 32, labelled=True)
        task.train(epochs=1, batch_size=batch_size, accumulate=accumulate, validation=0.25)
    assert calls[0] == calls[1] == calls[2] - 4


def test_a_long_gradient_is_cut_to_length(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def spy(optimizer: torch.optim.SGD) -> None:
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    Task("dense").train(epochs=1, batch_size=24)
    Task("dense").train(epochs=1, batch_size=24, clip=0.01)
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_an_average_follows_the_weights_with_its_decay() -> None:
    network = torch.nn.Linear(2, 1)
    average = Average(network, 0.9)
    expected = network.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            network.weight.add_(1.0)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = expected * decay + network.weight.detach() * (1 - decay)
    torch.testing.assert_close(average.state["weight"], expected)


def test_the_average_is_what_is_judged_and_kept() -> None:
    task = Task("norm", 40, labelled=True)
    task.train(epochs=3, ema=0.999, validation=0.0)
    other = Task("norm", 40, labelled=True)
    other.train(epochs=3, validation=0.0)
    assert task.folded_bytes() != other.folded_bytes()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_have_rates_and_decays_of_their_own(optimizer: str) -> None:
    task = Task("dense")
    made = make_optimizer(
        task.student,
        options(matrix_lr=0.5, matrix_decay=0.25, weight_decay=0.125),
        optimizer,
    )
    set_rate(made, 0.2)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    assert {found[id(m)] for m in task.student.matrices()} == {(0.1, 0.25)}
    assert {found[id(w)] for w in task.student.weights() if w.ndim > 1} == {(0.2, 0.125)}
    assert {found[id(w)] for w in task.student.weights() if w.ndim == 1} <= {(0.2, 0.0)}


def test_rates_fall_as_the_schedule_says() -> None:
    steps = options(schedule="step", warmup=0.0, milestones=(0.5, 0.75))
    assert [rate(i, 8, steps) for i in (1, 3, 4, 5, 6, 7)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )
    assert rate(7, 8, options(schedule="constant")) == 1.0


@pytest.mark.parametrize("net", ["dense", "norm"])
def test_without_compressors_weights_are_sliced_and_learn(net: str) -> None:
    task = Task(net, labelled=True)
    student = EquivalentTwin(
        Cut(task.coupling, draw_keep(task.coupling), task.pruned), recombine=False
    )
    assert not list(student.matrices())
    before = student.fold(task.pruned)
    training = Training(options(lr=0.05, batch_size=8), 0, "cpu")
    finetune(student, task.pruned, task.coupling, task.samples, training)
    after = student.fold(task.pruned)
    assert all(
        not np.array_equal(array, after.initializers[name])
        for name, array in before.initializers.items()
        if array.ndim > 1
    )


# Order.


def test_every_sample_trains_once_in_an_epoch_and_in_another_order_in_the_next() -> None:
    order = Order(23, None, Training(options(batch_size=5), 3, "cpu"), 1)
    first, second = (np.concatenate(order.batches(epoch)) for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(23))
    assert first.tolist() != second.tolist()
    assert [len(batch) for batch in order.batches(1)] == [5, 5, 5, 5, 3]


def test_a_static_batch_is_whole_in_every_process() -> None:
    assert [
        len(b) for b in Order(23, 4, Training(options(batch_size=64), 0, "cpu"), 2).batches(1)
    ] == [8, 8]
    with pytest.raises(RequestError, match="too few for 8 processes"):
        Order(23, 4, Training(options(), 0, "cpu"), 8)


# Starts.


@pytest.mark.parametrize("net", ["dense", "residual", "gemm", "concat", "flatten", "norm"])
def test_least_squares_start_nearer_to_the_original(net: str) -> None:
    graph, _, coupling = analyse(model_of(net))
    samples = draw_samples(graph, 200)
    keep = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    start = channel_start(Scene(coupling, samples), keep)
    assert start.matrices
    student = EquivalentTwin(Cut(coupling, keep, pruned), start=start).eval()
    held = draw_samples(graph, 100, seed=9)
    plain, repaired = (
        output_error(coupling, candidate, held) for candidate in (pruned, student.fold(pruned))
    )
    assert repaired < plain


@pytest.mark.parametrize("which", [0, 1, 2])
def test_some_of_what_a_reader_is_given_may_stay_whole(which: int) -> None:
    """A concatenation of which one part is cut."""
    graph, _, coupling = analyse(model_of("concat"))
    group = coupling.groups[which]
    keep = {group.dim: np.arange(group.size) > 0}
    pruned = remove_units(coupling, keep)
    start = channel_start(Scene(coupling, draw_samples(graph, 100)), keep)
    assert {dim for own in start.matrices.values() for dim in own} == {group.dim}
    folded = EquivalentTwin(Cut(coupling, keep, pruned), start=start).eval().fold(pruned)
    held = draw_samples(graph, 100, seed=9)
    assert output_error(coupling, folded, held) < output_error(coupling, pruned, held)


def test_a_unit_that_repeats_others_is_made_up_for_exactly() -> None:
    """Unit 2 is the sum of units 0 and 1 and a constant, so that its removal costs nothing."""
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal((6, 3)), np.array([0.1, 0.2, 0.0])
    a[:, 2], c[2] = a[:, 0] + a[:, 1], 0.8
    text = (
        "net (float[N,6] x) => (float[N,2] y) <float[6,3] a, float[3] c, float[3,2] b, float[2] d>"
        "{ h = Gemm(x, a, c) y = Gemm(h, b, d) }"
    )
    model = build(text, {"a": a.astype(np.float32), "c": c.astype(np.float32)})
    graph, _, coupling = analyse(model)
    (group,) = coupling.groups
    keep = {group.dim: np.array([True, True, False])}
    pruned = remove_units(coupling, keep)
    samples = draw_samples(graph, 300)
    start = channel_start(Scene(coupling, samples), keep)
    folded = EquivalentTwin(Cut(coupling, keep, pruned), start=start).eval().fold(pruned)
    assert output_error(coupling, folded, samples) < 1e-4 < output_error(coupling, pruned, samples)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_one_of_options(preset: str) -> None:
    assert TrainingOptions(epochs=1, **PRESETS[preset]).recombines


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"loss": (("ce", 2.0),)}, True),
        ({"loss": (("kd", 1.0),)}, False),
        ({"loss": (("ce", 0.5), ("kd", 0.5))}, False),
        ({"start": "channel-ls"}, True),
        ({"matrix_lr": 0.1}, True),
        ({"equivalent": True}, True),
        ({"equivalent": False, "loss": (("ce", 1.0),)}, False),
    ],
)
def test_compressors_learn_where_labels_alone_teach_or_where_asked_for(
    changes: dict[str, Any], expected: bool
) -> None:
    assert TrainingOptions(epochs=1, **changes).recombines == expected


# Arithmetic of half the width.


def test_norms_learn_under_autocast_and_matrices_are_not_rounded() -> None:
    task = Task("norm", 40, labelled=True)
    before = task.folded_bytes()
    history = task.train(epochs=3, precision="bfloat16")
    assert task.folded_bytes() != before
    full = Task("norm", 40, labelled=True).train(epochs=3)
    assert history[-1].loss == pytest.approx(full[-1].loss, rel=0.05)
    exact = task.student.effective_weights()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task.student.effective_weights()
    assert all(torch.equal(value, rounded[key]) for key, value in exact.items())


# What is not needed is not computed.


def test_labels_alone_ask_nothing_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    outputs = Teacher.outputs
    monkeypatch.setattr(
        Teacher, "outputs", lambda self, *args: asked.append(1) or outputs(self, *args)
    )
    Task("norm", 40, labelled=True).train(epochs=1, loss=(("ce", 1.0),), validation=0.3)
    assert not asked
    Task("norm", 40, labelled=True).train(epochs=1, loss=(("kd", 1.0),), validation=0.3)
    assert asked
