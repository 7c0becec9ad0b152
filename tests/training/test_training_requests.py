"""What training refuses, keeps apart, and says: requests that once went wrong silently."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import build
from nets import NETS, ONE_CONV, draw_samples, model_of
from training.test_finetune import Task

from obc_onnx.cli.main import cli
from obc_onnx.errors import DataError, DivergedError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.planning.budget import Budget
from obc_onnx.run.api import compress, verify
from obc_onnx.samples.read import check_samples
from obc_onnx.training import teacher as module
from obc_onnx.training.options import TrainingOptions, parse_loss
from obc_onnx.training.teacher import Teacher

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model_of("norm"), path)
    samples = draw_samples(Graph.load(path), 40, labelled=True)
    np.savez(tmp_path / "data.npz", **samples.inputs, labels=samples.labels)
    np.savez(tmp_path / "bare.npz", **samples.inputs)
    return path


def ask(model: Path, command: str, *more: object, data: str = "data.npz") -> Any:
    output = ["-o", str(model.with_name("small.onnx")), "--data", str(model.with_name(data))]
    return CliRunner().invoke(cli, [command, str(model), *output, *map(str, more)])


# Results that used to fail.


@pytest.mark.parametrize("net", ["norm", "dense", "grouped", "depthwise", "residual"])
def test_unfolded_norms_may_leave_a_bias_where_there_was_none(net: str) -> None:
    graph = Graph.from_model(model_of(net))
    samples = draw_samples(graph, 40, labelled=True)
    training = TrainingOptions(epochs=1, batch_size=8, unfold_norms=True, equivalent=True)
    result = compress(graph, data=samples, budget=Budget(0.6), training=training)
    assert all(check.passed for check in verify(graph, result.model, result.plan))


def test_a_start_that_is_worse_than_the_sliced_network_is_not_taken() -> None:
    graph = Graph.from_model(model_of("tied"))
    samples = draw_samples(graph, 60, labelled=True)
    first = [
        compress(
            graph,
            data=samples,
            budget=Budget(0.6),
            training=TrainingOptions(
                epochs=1, batch_size=8, equivalent=True, start=start, validation=0.3
            ),
        ).report.epochs[0]
        for start in ("select", "channel-ls")
    ]
    assert first[1].validation <= 1.05 * first[0].validation


@pytest.mark.parametrize("net", ["transposed blocks", "tied", "shared weight", "gemm"])
def test_least_squares_start_wherever_matrices_do(net: str) -> None:
    graph = Graph.from_model(model_of(net))
    samples = draw_samples(graph, 60, labelled=True)
    training = TrainingOptions(epochs=1, batch_size=8, start="channel-ls")
    assert compress(graph, data=samples, budget=Budget(0.6), training=training).report.epochs


def test_inputs_are_not_rounded_by_half_precision() -> None:
    """Places in a table that come as floats: bfloat16 would make others of them."""
    text = "net (float[N] x) => (float[N,4] y) <float[2048,6] table, float[4,6] fc>"
    body = (
        "{ i = Cast<to=7>(x) h = Gather<axis=0>(table, i) t = Tanh(h) y = Gemm<transB=1>(t, fc) }"
    )
    losses = []
    for precision in ("float32", "bfloat16"):
        task = Task(build(text + body), 40)
        places = np.arange(1000, 1040, dtype=np.float32)
        samples = task.samples
        samples.inputs["x"][:] = places
        history = task.train(samples, epochs=1, lr=1e-9, precision=precision, batch_size=40)
        losses.append(history[-1].loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_scales_are_measured_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("norm", 40)
    whole = (
        Teacher(task.coupling, task.samples, torch.device("cpu"), varies=True).scales["y"].variance
    )
    monkeypatch.setattr(module, "batch_size_of", lambda _: 7)
    parts = (
        Teacher(task.coupling, task.samples, torch.device("cpu"), varies=True).scales["y"].variance
    )
    assert parts == pytest.approx(whole, rel=1e-5)


# Losses that do not fit.

PIXELS = "net (float[N,3,4,4] x) => (float[N,4,4,4] y) <float[6,3,3,3] w, float[4,6,1,1] v>"
BODY = "{ c = Conv<pads=[1,1,1,1]>(x, w) t = Tanh(c) l = Conv(t, v)"


def test_classes_of_a_softmax_lie_along_its_axis() -> None:
    """The divergence is a mean over all but the classes: the same when those are last."""
    first = Task(build(f"{PIXELS} {BODY} y = Softmax<axis=1>(l) }}"), 24)
    last = Task(
        build(f"{PIXELS} {BODY} k = Transpose<perm=[0,2,3,1]>(l) y = Softmax<axis=3>(k) }}"), 24
    )
    losses = [task.train(epochs=1, loss=(("kd", 1.0),))[-1].loss for task in (first, last)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_divergence_of_what_may_be_no_classes_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot tell which axis of 'y'"):
        Task(build(f"{PIXELS} {BODY} y = Identity(l) }}")).train(loss=(("kd", 1.0),))


def test_labels_need_one_row_of_classes_for_each() -> None:
    task = Task(build(f"{PIXELS} {BODY} y = Identity(l) }}"), labelled=False)
    labelled = task.samples.part(slice(None))
    object.__setattr__(labelled, "labels", np.zeros(len(labelled), np.int64))
    with pytest.raises(RequestError, match="takes an output \\[samples, classes\\]"):
        task.train(labelled, loss=(("ce", 1.0),))
    assert task.train(labelled)  # by the distance to the original


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_what_cannot_be_blended_keeps_its_label(kind: str) -> None:
    text = "net (int64[N,3] i, float[N,6] x) => (float[N,4] y) <float[9,6] table, float[4,6] fc>"
    body = "{ g = Gather<axis=0>(table, i) s = ReduceSum<keepdims=0>(g, one)"
    model = build(
        f"{text} {body} a = Add(s, x) t = Tanh(a) y = Gemm<transB=1>(t, fc) }}", {"one": [1]}
    )
    with pytest.raises(RequestError, match=f"`TrainingOptions.{kind}` cannot blend input 'i'"):
        Task(model).train(**{kind: 1.0})


def test_cutmix_is_for_pictures() -> None:
    with pytest.raises(RequestError, match=r"`TrainingOptions.cutmix` cannot blend input"):
        Task("gemm").train(cutmix=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2, "validation": 0.0}, "`TrainingOptions.patience` looks at samples"),
        ({"start": "channel-ls", "equivalent": False}, "only where there are any"),
        ({"precision": "float16"}, "for a GPU"),
        ({"label_smoothing": 0.1, "loss": (("kd", 1.0),)}, "is of loss 'ce'"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Task("norm", labelled=True).train(**changes)


def test_a_loss_has_one_weight() -> None:
    with pytest.raises(RequestError, match="named twice"):
        parse_loss("kd:0.5,kd:0.5")


@pytest.mark.parametrize("net", NETS)
def test_a_cosine_takes_any_output(net: str) -> None:
    assert np.isfinite(Task(net).train(epochs=1, loss=(("cosine", 1.0),))[-1].loss)


# The command line, and folders of runs.


def test_options_of_training_need_training(model: Path) -> None:
    found = ask(model, "compress", "--lr", "0.5", "--ema", "0.9")
    assert found.exit_code != 0
    assert "leave out lr, ema, or give --epochs" in found.output


def test_fine_tuning_takes_at_least_one_epoch(model: Path) -> None:
    found = ask(model, "finetune", "--plan", model, "--epochs", "0")
    assert found.exit_code == 2
    assert "0 is not in the range x>=1" in found.output


def test_a_loss_file_is_not_overwritten(model: Path) -> None:
    code = model.with_name("own.py")
    code.write_text("def loss(found, wanted, labels):\n    return found['y'].square()\n")
    arguments = ["--epochs", "1", "--loss", f"{code}:loss", "--plan-out", code]
    found = ask(model, "compress", *arguments)
    assert found.exit_code != 0
    assert "is read, and would be destroyed" in found.output
    assert code.read_text().startswith("def")


@pytest.mark.parametrize("place", ["model.onnx/run", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made_is_said(model: Path, place: str) -> None:
    path = place if place.startswith("/") else model.parent / place
    found = ask(model, "compress", "--epochs", "1", "--run-dir", path)
    assert found.exit_code != 0
    assert "cannot be made" in found.output
    assert isinstance(found.exception, SystemExit)


def test_labels_are_asked_for_before_a_folder_is_made(model: Path) -> None:
    run = model.with_name("run")
    found = ask(model, "compress", "--epochs", 1, "--loss", "ce", "--run-dir", run, data="bare.npz")
    assert "needs data with labels" in found.output
    assert not run.exists()


def test_a_run_is_another_with_other_data_code_or_scores(model: Path) -> None:
    run, code = model.with_name("run"), model.with_name("own.py")
    code.write_text("def loss(found, wanted, labels):\n    return found['y'].square()\n")
    usual = ["--epochs", "1", "--loss", f"{code}:loss", "--run-dir", run, "--force"]
    assert ask(model, "compress", *usual).exit_code == 0
    assert ask(model, "compress", *usual, "--resume").exit_code == 0
    code.write_text("def loss(found, wanted, labels):\n    return found['y'].abs()\n")
    assert "another code" in ask(model, "compress", *usual, "--resume").output
    code.write_text("def loss(found, wanted, labels):\n    return found['y'].square()\n")
    samples = draw_samples(Graph.load(model), 48, labelled=True)
    np.savez(model.with_name("data.npz"), **samples.inputs, labels=samples.labels)
    assert "another data" in ask(model, "compress", *usual, "--resume").output


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", b"[]"), ("checkpoint.pt", None), ("checkpoint.pt", b"x")]
)
def test_a_broken_folder_is_said(model: Path, name: str, content: bytes | None) -> None:
    run = model.with_name("run")
    usual = ["--epochs", "1", "--run-dir", run, "--force"]
    assert ask(model, "compress", *usual).exit_code == 0
    if content is None:
        torch.save({"student": {}}, run / name)
    else:
        (run / name).write_bytes(content)
    found = ask(model, "compress", *usual, "--resume")
    assert isinstance(found.exception, SystemExit)
    assert name in found.output


def test_what_a_killed_process_left_is_swept(model: Path) -> None:
    run = model.with_name("run")
    usual = ["--epochs", "1", "--run-dir", run, "--force"]
    assert ask(model, "compress", *usual).exit_code == 0
    (run / ".checkpoint.pt.obc-onnx-abcd").mkdir()
    (run / ".checkpoint.pt.obc-onnx-abcd" / "checkpoint.pt").write_bytes(b"half")
    assert ask(model, "compress", *usual, "--resume").exit_code == 0
    assert not list(run.glob(".checkpoint*"))


def test_a_run_that_ended_in_its_last_step_keeps_its_rate(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from obc_onnx.training import engine

    run = model.with_name("run")
    usual = ["--epochs", "2", "--batch-size", "8", "--run-dir", run]
    monkeypatch.setattr(engine, "_SAVE_SECONDS", 0.0)
    finish = engine._Training._finish

    def stop(self: Any, number: int, loss: float | None, lr: float) -> None:
        if number == 1 and not run.with_suffix(".seen").exists():
            run.with_suffix(".seen").touch()
            raise KeyboardInterrupt
        finish(self, number, loss, lr)

    monkeypatch.setattr(engine._Training, "_finish", stop)
    assert ask(model, "compress", *usual).exit_code == 130
    assert ask(model, "compress", *usual, "--resume").exit_code == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["lr"] > 0 for line in lines[1:])


def integer_first() -> onnx.ModelProto:
    text = ONE_CONV.replace("float[N,4] y", "int64[N,4] k")
    return build(text.rstrip("} ") + " k = Cast<to=7>(y) }")


def test_labels_need_a_first_output_of_floats() -> None:
    task = Task(integer_first(), 16, labelled=True)
    with pytest.raises(DataError, match=r"'k' is of type int64"):
        check_samples(task.samples, task.original)


def test_a_model_without_float_outputs_is_refused_before_any_step() -> None:
    task = Task(integer_first(), 16)
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    with pytest.raises(RequestError, match=r"no output of the model is a float"):
        task.train(epochs=1)
    after = task.student.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_an_output_that_no_weight_moves_is_refused() -> None:
    text = ONE_CONV.replace("float[N,4] y", "float[N,4] k")
    model = build(text.rstrip("} ") + " i = Cast<to=7>(y) k = Cast<to=1>(i) }")
    with pytest.raises(RequestError, match=r"nothing to train"):
        Task(model).train()


def test_weights_that_the_last_step_breaks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.SGD.step

    def overflow(optimizer: torch.optim.SGD) -> None:
        step(optimizer)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0][0] = float("nan")

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    with pytest.raises(DivergedError, match=r"'\w+' is not finite after the last step"):
        Task(build(ONE_CONV)).train(epochs=1, batch_size=24, lr=0.01)
