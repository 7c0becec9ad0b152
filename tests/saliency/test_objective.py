"""What is differentiated, and passes over samples: sizes, memory, precision, processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import analyse, build
from nets import NETS, Case, case_of, draw_samples, model_of
from scoring import score_by

from obc_onnx.cli.main import cli
from obc_onnx.errors import DataError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.measuring.scales import Scale
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.losses import mixed
from obc_onnx.saliency.objective import Projections, answers
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import Scores
from obc_onnx.saliency.taps import Taps
from obc_onnx.user_code import load_function

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obc_onnx.samples.samples import Samples

EXACT = 1e-10
LOSSES = """
import torch

def entropy(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs["y"], labels, reduction="none")

def total(outputs, labels):
    return outputs["y"].sum()

def blind(outputs, labels):
    assert labels is None
    return outputs["y"].square().sum(1)

number = 3
"""


@pytest.fixture
def losses(tmp_path: Path) -> str:
    path = tmp_path / "losses.py"
    path.write_text(LOSSES)
    return str(path)


def score(case: Case, samples: Samples, seed: int = 0, **scoring: object) -> dict[str, np.ndarray]:
    if "loss" not in scoring:
        usual = "output" if samples.labels is None else "labels"
        scoring = {"objective": usual, **scoring}
    return score_by("jacobian", case, samples, seed, **scoring)


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_allclose(values, right[name], rtol=EXACT)


def test_pseudo_labels_are_the_answers_of_the_model_itself() -> None:
    single = case_of_single("multiplier")
    samples = draw_samples(single.graph, 40)
    own = answers(single.graph, samples)
    assert len(set(own.tolist())) > 1
    labelled = type(samples)(samples.inputs, own, samples.dtypes)
    assert_equal(score(single, samples, objective="pseudo"), score(single, labelled))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("tail", ["Softmax", "Relu"])
def test_outputs_are_projected_where_nothing_is_said(tail: str, *, labelled: bool) -> None:
    """Whatever labels there are, and whether or not the output is known to hold classes."""
    text = "net (float[N,6] x) => (float[N,4] y) <float[6,5] a, float[5,4] b>"
    case = case_of(build(text + f"{{ h = MatMul(x, a) g = MatMul(h, b) y = {tail}(g) }}"))
    samples = draw_samples(case.graph, 9, labelled=labelled)
    usual = make_criterion("jacobian").score(Scene(case.coupling, samples), {})
    asked = score(case, samples, objective="output", rows="sample")
    assert np.array_equal(usual["a:1"], asked["a:1"])
    assert usual["a:1"].all()


@pytest.mark.parametrize(
    ("criterion", "rows"),
    [("jacobian", "batch"), ("fisher", "batch"), ("taylor", "sample"), ("taylor-group", "sample")],
)
def test_classes_are_looked_at_where_projections_would_cancel_out(
    criterion: str, rows: str
) -> None:
    """Labels of the only output, or its own answers where that is a Softmax; outputs else."""
    text = "net (float[N,6] x) => (float[N,4] y{more}) <float[6,5] a, float[5,4] b>"
    text += "{{ h = MatMul(x, a) g = MatMul(h, b) y = {tail}(g) {last} }}"
    one, two = {"more": "", "last": ""}, {"more": ", float[N,4] z", "last": "z = MatMul(h, b)"}
    for tail, ports, labelled, kind in (
        ("Relu", one, True, "labels"),
        ("Relu", two, True, "output"),
        ("Relu", one, False, "output"),
        ("Softmax", one, True, "labels"),
        ("Softmax", one, False, "pseudo"),
    ):
        case = case_of(build(text.format(tail=tail, **ports)))
        samples = draw_samples(case.graph, 9, labelled=labelled)
        usual, asked = (
            make_criterion(criterion).score(
                Scene(case.coupling, samples, scoring=Scoring(objective=o, rows=rows)), {}
            )
            for o in (None, kind)
        )
        assert all(np.array_equal(usual[name], asked[name]) for name in asked)
        assert any(values.any() for values in asked.values())


def test_labels_cannot_be_asked_for_where_there_are_none() -> None:
    case = case_of("dense")
    with pytest.raises(DataError, match="'pseudo' or 'output'"):
        score(case, draw_samples(case.graph, 2), objective="labels")


LINEAR = "net (float[N,6] x) => (float[N,4] y) <float[6,5] a, float[5,4] b>"
LINEAR += "{ h = MatMul(x, a) y = MatMul(h, b) }"


def linear_rows(case: Case, samples: Samples, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate y = x a b by hand, by the cross entropy and by projections.

    Returns:
        For each sample and hidden unit w . dL/dw, of what writes the unit as of what reads it;
        two arrays of shape [samples, units].
    """
    a, b = (case.graph.initializers[name].astype(np.float64) for name in ("a", "b"))
    hidden = samples.inputs["x"].astype(np.float64) @ a
    y = hidden @ b
    powers = np.exp(y)
    slopes = powers / powers.sum(1, keepdims=True) - np.eye(4)[labels]
    drawn = [np.random.default_rng((3, n, 0)).standard_normal(4, np.float32) for n in range(len(y))]
    return hidden * (slopes @ b.T), hidden * (drawn / np.sqrt(4 * y.var(0, ddof=1)) @ b.T)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("rows", ["sample", "batch"])
def test_a_mixture_has_each_loss_as_a_share_of_its_total(rows: str, *, labelled: bool) -> None:
    """Against numpy; classes are those of the labels, or without them of the model itself."""
    case = case_of(build(LINEAR))
    samples = draw_samples(case.graph, 12, labelled=labelled)
    labels = samples.labels if labelled else answers(case.graph, samples)
    expected = np.zeros(5)
    for each in linear_rows(case, samples, labels):
        by_batch = each.reshape(3, 4, 5).mean(1)
        squares = np.square(by_batch if rows == "batch" else each).sum(0)
        expected += squares / squares.sum()
    found = score(case, samples, 3, rows=rows, objective="mixed", batch_size=4)
    assert found["a:1"] == pytest.approx(expected, rel=1e-4)


def test_a_mixture_has_its_totals_over_the_units_that_are_left() -> None:
    """Masked units score 0 for what reads them, but not always for what writes them."""
    case = case_of(build(LINEAR))
    group = case.coupling.groups[0]
    left = np.array([True, False, True, True, False])
    one, other = np.array([[1.0, 50, 2, 1, 50], [3.0, 9, 0, 3, 9]])
    found = mixed(case.coupling, {group.dim: left}, [{group.name: one}, {group.name: other}])
    assert found[group.name][left] == pytest.approx([0.25 + 0.5, 0.5, 0.25 + 0.5])


def test_a_loss_that_depends_on_no_unit_adds_nothing_to_a_mixture() -> None:
    case = case_of(build(LINEAR))
    name = case.coupling.groups[0].name
    nothing, something = {name: np.zeros(5)}, {name: np.arange(5.0)}
    for found in ([nothing, something], [something, nothing]):
        assert mixed(case.coupling, {}, found)[name] == pytest.approx(np.arange(5) / 10)
    assert not mixed(case.coupling, {}, [nothing, nothing])[name].any()


def test_equal_seeds_mix_equal_bytes(tmp_path: Path) -> None:
    model, data = tmp_path / "net.onnx", tmp_path / "data.npz"
    onnx.save(model_of("dense"), model)
    samples = draw_samples(Graph.load(model), 24, labelled=True)
    np.savez(data, **samples.inputs, labels=samples.labels)
    written = []
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.npz"
        asked = ["score", str(model), "-o", str(path), "--data", str(data), "--seed", str(seed)]
        done = CliRunner().invoke(cli, [*asked, "--objective", "mixed"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        written.append(path)
    assert written[0].read_bytes() == written[1].read_bytes()
    one, other = (Scores.load(path).groups for path in written[1:])
    assert not any(np.array_equal(values, other[name]) for name, values in one.items())


@pytest.mark.parametrize("name", ["jacobian", "taylor", "taylor-group", "fisher"])
def test_every_criterion_that_differentiates_mixes(name: str) -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 12, labelled=True)

    def scored(objective: str) -> dict[str, np.ndarray]:
        scene = Scene(case.coupling, samples, scoring=Scoring(objective=objective))
        return make_criterion(name).score(scene, {})

    parts = [scored("labels"), scored("output")]
    totals = [sum(own.sum() for own in part.values()) for part in parts]
    for group, found in scored("mixed").items():
        assert found == pytest.approx(parts[0][group] / totals[0] + parts[1][group] / totals[1])


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_projections_do_not_depend_on_the_size_of_batches(batch_size: int) -> None:
    case = case_of("residual")
    samples = draw_samples(case.graph, 7)
    assert_equal(score(case, samples, batch_size=batch_size), score(case, samples, batch_size=4))


def plain_scale(name: str, size: int) -> Scale:
    """Stands for an output whose numbers are channels that count as they are."""
    channels, ones = np.arange(size), np.ones(size)
    return Scale(name, channels, [], np.zeros(size), ones / size, ones, 0)


def nowhere(_which: slice) -> Callable[[str], None]:
    """Say that no position is padding."""
    return lambda _name: None


def test_projections_are_normal_and_their_own_for_every_output_and_sample() -> None:
    outputs = [torch.ones(3, 4000, requires_grad=True), torch.ones(3, 4000, requires_grad=True)]
    scales = [plain_scale(name, 4000) for name in ("a", "b")]
    Projections(5, scales, nowhere)(outputs, slice(10, 13)).backward()
    drawn = torch.stack([output.grad for output in outputs]).reshape(6, -1)
    assert (drawn.mean(1).abs() < 0.08).all()
    assert ((drawn.std(1) - 1).abs() < 0.05).all()
    correlation = torch.corrcoef(drawn) - torch.eye(6)
    assert correlation.abs().max() < 0.08


def test_projections_are_divided_by_the_scales_and_leave_padding_out() -> None:
    """Against the formula, with what is drawn as it comes without scales."""
    shape, channels = (3, 4, 2), np.broadcast_to([0, 1], (4, 2))
    variance, numbers = np.array([4.0, 1e-6]), np.array([4.0, 3.0])
    real = np.arange(4)[:, None] < np.array([4, 2, 1])[:, None, None]
    gradients = []
    for scale, mask in (
        (Scale("a", channels, [], np.zeros((4, 2)), variance, numbers, 0), real),
        (plain_scale("a", 8), None),
    ):
        output = torch.ones(shape, requires_grad=True)
        seen = output if mask is not None else output.reshape(3, 8)
        Projections(5, [scale], lambda _, mask=mask: lambda _: mask)([seen], slice(0, 3)).backward()
        gradients.append(output.grad.numpy())
    drawn = gradients[1].reshape(3, 8)
    expected = drawn.reshape(shape) / np.sqrt(variance * numbers * 2) * real
    assert gradients[0] == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_the_user_is_differentiated(losses: str) -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 5, labelled=True)
    assert_equal(score(case, samples), score(case, samples, loss=f"{losses}:entropy"))
    bare = type(samples)(samples.inputs, None, samples.dtypes)
    assert all((v > 0).any() for v in score(case, bare, loss=f"{losses}:blind").values())


def test_an_output_of_one_number_without_samples_is_projected() -> None:
    """A second input that is given once, with a batch of its own, makes such outputs."""
    scale = Scale("a", np.array(0), [], np.zeros(()), np.array([4.0]), np.array([1.0]), None)
    gradients = []
    for own in (scale, replace(scale, variance=np.array([1.0]))):
        output = torch.ones((), requires_grad=True)
        Projections(5, [own], nowhere)([output], slice(0, 3)).backward()
        gradients.append(float(output.grad))
    assert gradients[0] == pytest.approx(gradients[1] / 2)


@pytest.mark.parametrize(
    ("function", "words"),
    [("total", "one number per sample"), ("number", "no function"), ("absent", "no function")],
)
def test_a_loss_that_is_none_is_refused(losses: str, function: str, words: str) -> None:
    case = case_of("dense")
    with pytest.raises(RequestError, match=words):
        score(case, draw_samples(case.graph, 2), loss=f"{losses}:{function}")


@pytest.mark.parametrize("source", ["losses.py", ":f", "nowhere.py:f", "a.txt:f"])
def test_a_loss_that_cannot_be_found_is_refused(source: str) -> None:
    with pytest.raises(RequestError, match=r"FILE\.py:FUNCTION|no Python file"):
        load_function(source)


def test_a_loss_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def loss(:\n")
    with pytest.raises(RequestError, match="cannot be run"):
        load_function(f"{path}:loss")


@pytest.mark.parametrize("rows", ["sample", "batch"])
def test_batches_that_do_not_fit_are_halved_and_the_score_stays(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("residual")
    samples = draw_samples(case.graph, 11, labelled=True)
    expected = score(case, samples, rows=rows, batch_size=8)
    whole, sizes = Taps.rows, []

    def cramped(taps: Taps, inputs: list[torch.Tensor], loss: object) -> object:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(taps, inputs, loss)

    monkeypatch.setattr(Taps, "rows", cramped)
    assert_equal(score(case, samples, rows=rows, batch_size=8), expected)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2


def test_a_sample_that_does_not_fit_alone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    case = case_of("dense")
    monkeypatch.setattr(Taps, "rows", never)
    with pytest.raises(torch.OutOfMemoryError):
        score(case, draw_samples(case.graph, 4, labelled=True))


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("a bug")

    case = case_of("dense")
    monkeypatch.setattr(Taps, "rows", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        score(case, draw_samples(case.graph, 4, labelled=True))
    assert len(calls) == 1


def case_of_single(name: str) -> Case:
    return Case(*analyse(model_of(name)))


@pytest.mark.parametrize("name", ["dense", "residual", "gemm"])
def test_scores_under_autocast_are_close_and_summed_in_double(name: str) -> None:
    case = case_of_single(name)
    samples = draw_samples(case.graph, 32, labelled=True)
    plain, narrow = score(case, samples), score(case, samples, amp=True)
    for group, values in plain.items():
        assert not np.array_equal(values, narrow[group])
        assert np.abs(values - narrow[group]).max() < 0.1 * values.max()


def test_the_number_of_batches_decides_how_many_samples_are_looked_at() -> None:
    assert Scoring(batches=3, batch_size=5).n_samples == 15
    assert Scoring(samples=7).n_samples == 7


TWO = """
import json, os, sys
import torch.multiprocessing
from obc_onnx.cli.main import cli
from obc_onnx.twin.processes import joined

def work(rank, port, commands):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with joined("cpu"):
        for command in commands:
            cli(command, standalone_mode=False)

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1], json.loads(sys.argv[2])), nprocs=2)
"""
SPREAD = (
    ["--objective", "output"],
    ["--objective", "mixed"],
    ["--preset", "paper", "--batch-size", "4"],
    ["--reduction", "coupled"],
    ["--criterion", "taylor"],
    ["--criterion", "fisher"],
    ["--criterion", "group-obs"],
    ["--criterion", "variance"],
    ["--criterion", "l2"],
)


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    model, data, script = tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "two.py"
    onnx.save(model_of("residual"), model)
    samples = draw_samples(case_of_single("residual").graph, 23, labelled=True)
    np.savez(data, **samples.inputs, labels=samples.labels)
    script.write_text(TWO)
    commands = [
        ["score", str(model), "--data", str(data), "-o", str(tmp_path / f"{i}.npz"), *options]
        for i, options in enumerate(SPREAD)
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [sys.executable, str(script), port, json.dumps(commands)]
    subprocess.run(start, check=True, timeout=200)
    for i, command in enumerate(commands):
        two = Scores.load(tmp_path / f"{i}.npz").groups
        assert CliRunner().invoke(cli, [*command, "--force"]).exit_code == 0
        one = Scores.load(tmp_path / f"{i}.npz").groups
        assert one.keys() == two.keys() != set()
        for group, values in one.items():
            np.testing.assert_allclose(two[group], values, rtol=1e-5, atol=1e-6 * values.max())


def test_every_net_can_be_scored_without_labels() -> None:
    for name in NETS:
        case = case_of(name)
        assert score(case, draw_samples(case.graph, 2))


def test_labels_alone_decide_only_where_they_say_all() -> None:
    text = (
        "net (float[N,6] x) => (float[N,4] y, float[N,3] box)"
        "<float[6,5] a, float[5,4] b, float[6,7] c, float[7,3] d>"
        "{ h = MatMul(x, a) y = MatMul(h, b) g = MatMul(x, c) box = MatMul(g, d) }"
    )
    case = case_of(build(text))
    samples = draw_samples(case.graph, 8, labelled=True)
    assert not score_by("jacobian", case, samples, objective="labels")["c:1"].any()
    assert (score_by("jacobian", case, samples)["c:1"] > 0).all()


def test_a_loss_in_half_precision_is_summed_in_single() -> None:
    """A sum of 64 x 400 numbers of some hundreds is more than half precision holds."""
    text = (
        "net (float16[N,6] x) => (float16[N,400] y) <float16[6,5] a, float16[5,400] b, float16[1] k>"
        "{ h = MatMul(x, a) t = Tanh(h) g = MatMul(t, b) y = Mul(g, k) }"
    )
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 5), "b": (5, 400)}
    weights = {name: rng.standard_normal(s).astype(np.float16) for name, s in shapes.items()}
    model = build(text, {**weights, "k": np.array([300], np.float16)})
    case = case_of(model)
    samples = draw_samples(case.graph, 64)
    rows = score_by("jacobian", case, samples, batch_size=64)
    assert all(np.isfinite(values).all() for values in rows.values())


@pytest.mark.parametrize("objective", ["output", "pseudo", "labels", "mixed"])
def test_rows_are_those_of_samples_where_nothing_is_said(objective: str) -> None:
    """The mean of random projections is one random projection: fewer rows, and nothing gained."""
    case = Case(*analyse(model_of("dense")))
    samples = draw_samples(case.graph, 9, labelled=True)
    found = score_by("jacobian", case, samples, objective=objective)
    for rows, same in (("sample", True), ("batch", False)):
        asked = score_by("jacobian", case, samples, objective=objective, rows=rows)
        assert all(np.array_equal(found[name], asked[name]) for name in found) == same
