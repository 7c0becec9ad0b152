"""Fine-tuning: its loss by formula, its determinism, and what it does to a network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, build, one_channel
from nets import NETS, draw_keep, draw_samples, make_static, model_of
from torch.nn.functional import softmax

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.errors import DivergedError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.training import teacher as module
from obc_onnx.training.engine import finetune
from obc_onnx.training.loss import Labels, TrainingLoss
from obc_onnx.training.optimise import make_optimizer, set_rate
from obc_onnx.training.options import Training, TrainingOptions
from obc_onnx.training.teacher import Teacher

if TYPE_CHECKING:
    from typing import Any

    import onnx

    from obc_onnx.samples.samples import Samples
    from obc_onnx.training.course import Course, Epoch

TWO_OUTPUTS = (
    "net (float[N,3,6,6] x, float[N,5] z) => (float[N,4] y, float[N,6,4,4] m, int64[N,4] k)"
    "<float[6,3,3,3] w1, float[4,6] fc, float[4,5] v>"
    "{ m = Conv(x, w1) g = GlobalAveragePool(m) f = Flatten(g) a = Gemm<transB=1>(f, fc)"
    "  b = Gemm<transB=1>(z, v) y = Add(a, b) k = Cast<to=7>(y) }"
)
THREE_OUTPUTS = (
    "net (float[N,4] x) => (float[N,4] y, int64[N] k, float[N,3,2] z)"
    "{ y = Relu(x) k = Relu(x) z = Relu(x) }"
)


def model_graph(name: str) -> Graph:
    return Graph.from_model(model_of(name))


class Task:
    """A pruned net and samples to train it on."""

    def __init__(
        self, net: str | onnx.ModelProto = "norm", n_samples: int = 24, *, labelled: bool = False
    ) -> None:
        model = model_of(net) if isinstance(net, str) else net
        self.original, _, self.coupling = analyse(model)
        self.samples = draw_samples(self.original, n_samples, labelled=labelled)
        keep = draw_keep(self.coupling)
        self.pruned = remove_units(self.coupling, keep)
        self.student = EquivalentTwin(Cut(self.coupling, keep, self.pruned))

    def teacher(self) -> Teacher:
        return Teacher(self.coupling, self.samples, torch.device("cpu"), varies=False)

    def course(self, samples: Samples | None = None, seed: int = 0, **options: Any) -> Course:
        usual = {"epochs": 2, "batch_size": 8, "lr": 0.05, "validation": 0.0}
        settings = Training(TrainingOptions(**{**usual, **options}), seed, "cpu")
        given = samples or self.samples
        return finetune(self.student, self.pruned, self.coupling, given, settings)

    def train(self, samples: Samples | None = None, **options: Any) -> list[Epoch]:
        return self.course(samples, **options).epochs

    def folded_bytes(self) -> bytes:
        return self.student.fold(self.pruned).to_model().SerializeToString(deterministic=True)


def static(batch: int, net: str = "norm") -> onnx.ModelProto:
    model = model_of(net)
    make_static(model, batch)
    return model


def batch_sizes(task: Task, **options: Any) -> list[int]:
    """Record how many samples each step takes."""
    sizes: list[int] = []
    task.student.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    task.train(**options)
    return sizes


@pytest.mark.parametrize("recombine", [False, True])
def test_convolutions_train_channels_last(*, recombine: bool) -> None:
    task = Task("norm")
    if not recombine:
        keep = draw_keep(task.coupling)
        task.student = EquivalentTwin(Cut(task.coupling, keep, task.pruned), recombine=False)
    layouts: list[bool] = []
    for net in (task.student, task.student.twin):
        net.register_forward_pre_hook(
            lambda net, _: layouts.extend(
                weight.is_contiguous(memory_format=torch.channels_last)
                for weight in net.parameters()
                if weight.ndim == 4
            )
        )
    task.train(epochs=1)
    assert layouts
    assert all(layouts)


def test_the_loss_of_class_logits_mixes_labels_and_distillation() -> None:
    rng = np.random.default_rng(0)
    y, t = rng.standard_normal((2, 6, 4))
    labels = rng.integers(0, 4, 6)
    p = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    hard = -np.log(p[np.arange(6), labels]).mean()
    warm = [softmax(torch.from_numpy(v / 3.0), -1).numpy() for v in (t, y)]
    soft = 9.0 * (warm[0] * np.log(warm[0] / warm[1])).sum(1).mean()
    options = TrainingOptions(epochs=1, temperature=3.0, loss=(("ce", 0.3), ("kd", 0.7)))
    outputs, targets, classes = ([torch.from_numpy(v)] for v in (y, t, labels))
    measure = TrainingLoss(options, model_graph("dense"), {}, labelled=True)
    found = measure(outputs, targets, Labels(*classes))
    assert found.item() == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-12)


def test_other_outputs_add_their_error_over_their_variance() -> None:
    rng = np.random.default_rng(0)
    y, t = rng.standard_normal((2, 6, 4))
    z, s = rng.standard_normal((2, 6, 3, 2))
    outputs = (torch.from_numpy(y), torch.arange(6), torch.from_numpy(z))
    targets = [torch.from_numpy(t), torch.arange(6), torch.from_numpy(s)]
    graph = Graph.from_model(build(THREE_OUTPUTS))
    scales = {**one_channel("y", (4,), 2.0), **one_channel("z", (3, 2), 0.5)}
    free, bound = (
        TrainingLoss(TrainingOptions(epochs=1), graph, scales, labelled=labelled)
        for labelled in (False, True)
    )
    found = free(outputs, targets, None)
    first_alone, last = (
        np.log1p(((a - b) ** 2).mean() / var) for a, b, var in ((y, t, 2.0), (z, s, 0.5))
    )
    assert found.item() == pytest.approx(first_alone + last, rel=1e-12)
    labels = Labels(torch.zeros(6, dtype=torch.int64))
    both = bound(outputs, targets, labels)
    first = bound(outputs[:1], targets[:1], labels)
    assert (both - first).item() == pytest.approx(last, rel=1e-12)


def test_the_first_loss_is_that_of_the_pruned_network_towards_the_original() -> None:
    task = Task("dense")
    feed = task.samples.feed(slice(0, None))
    found, target = (Session(g).run(feed)["y"] for g in (task.pruned, task.original))
    (epoch,) = task.train(epochs=1, batch_size=24)
    shares = ((found - target) ** 2).mean(0) / target.var(0, ddof=1)
    assert epoch.loss == pytest.approx(np.log1p(shares).mean(), rel=1e-4)


@pytest.mark.parametrize("labelled", [False, True])
def test_the_loss_falls(labelled: bool) -> None:
    task = Task("norm", labelled=labelled)
    history = task.train(epochs=12)
    assert [epoch.number for epoch in history] == list(range(1, 13))
    assert history[-1].loss < 0.8 * history[0].loss


def test_the_seed_decides_every_byte() -> None:
    made = []
    for seed in (0, 0, 1):
        task = Task("norm", labelled=True)
        task.train(seed=seed)
        made.append(task.folded_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_dropout_draws_from_the_seed_and_leaves_the_generator_of_torch_alone() -> None:
    text = NETS["gemm"].replace("t2 = Tanh(c2)", "d2 = Tanh(c2) t2 = Dropout(d2)")
    made = []
    for _ in range(2):
        state = torch.random.get_rng_state()
        task = Task(build(text))
        task.train()
        made.append(task.folded_bytes())
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(1)
    assert made[0] == made[1]


def test_several_inputs_and_outputs_are_matched_by_name() -> None:
    task = Task(build(TWO_OUTPUTS))
    swapped = dict(reversed(task.samples.inputs.items()))
    other = Task(build(TWO_OUTPUTS))
    object.__setattr__(other.samples, "inputs", swapped)
    assert list(swapped) == ["z", "x"]
    assert other.train(epochs=1) == task.train(epochs=1)


def test_a_loss_that_is_not_finite_names_the_step_and_the_learning_rate() -> None:
    task = Task("dense")
    with pytest.raises(DivergedError, match=r"epoch 1, step 2, at learning rate 1e\+30, after \d"):
        task.train(lr=1e30, warmup=0.0)


def test_a_run_that_is_broken_off_stays_broken_off() -> None:
    task = Task("norm")
    calls: list[int] = []

    def break_off(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    task.student.register_forward_pre_hook(break_off)
    with pytest.raises(KeyboardInterrupt):
        task.train()
    assert len(calls) == 3


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_cached_targets_are_those_of_the_original(
    batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("dense" if batch is None else static(batch, "dense"), 12)
    which = np.array([7, 0, 3, 9])[: batch or 4]
    feed = task.samples.feed(which)
    cached = task.teacher().outputs(which, feed)
    monkeypatch.setattr(module, "_CACHE_BYTES", 0)
    fresh = task.teacher()
    assert not fresh._keeps
    direct = Session(task.original).run(feed)
    for values in (cached, fresh.outputs(which, feed)):
        np.testing.assert_allclose(values[0], direct["y"], rtol=1e-5, atol=1e-6)


def test_training_does_not_depend_on_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [Task("dense").train(batch_size=24)[-1].loss]
    monkeypatch.setattr(module, "_CACHE_BYTES", 0)
    losses.append(Task("dense").train(batch_size=24)[-1].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("n_samples", "sizes"), [(16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (1, [1])]
)
def test_a_last_batch_of_one_joins_the_one_before(n_samples: int, sizes: list[int]) -> None:
    task = Task("dense", n_samples)
    assert batch_sizes(task, epochs=2) == sizes * 2


def test_the_learning_rate_rises_and_falls_over_the_steps_that_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(optimizer: torch.optim.SGD) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    history = Task("dense", 17).train(epochs=4, lr=0.1, warmup=0.25)
    falls = [0.05 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert rates == pytest.approx([0.05, 0.1, *falls])
    assert history[-1].lr == pytest.approx(rates[-1])


def test_matrices_learn_at_their_own_rate_without_decay() -> None:
    task = Task("dense")
    options = TrainingOptions(epochs=1, matrix_lr=0.25, weight_decay=0.01)
    optimizer = make_optimizer(task.student, options, "sgd")
    set_rate(optimizer, 0.1)
    groups = optimizer.param_groups
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert all(rates[id(m)] == (0.025, 0) for m in task.student.matrices())
    for weight in task.student.weights():
        assert rates[id(weight)] == (0.1, 0.01 if weight.ndim > 1 else 0)


def test_statistics_of_norms_move_and_the_student_ends_in_evaluation_mode() -> None:
    task = Task("norm")
    before = {name: task.pruned.initializers[name] for name in ("mean", "var")}
    task.train()
    assert not any(part.training for part in task.student.modules())
    folded = task.student.fold(task.pruned)
    for name, array in before.items():
        assert not np.isclose(folded.initializers[name], array).any()


@pytest.mark.parametrize("batch", [1, 4])
def test_models_of_static_batch_train(batch: int) -> None:
    task = Task(static(batch), 12)
    assert set(batch_sizes(task)) == {batch}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_static_reshape_survives_training(batch: int) -> None:
    text = NETS["flatten"].replace("Flatten(t1)", "Reshape(t1, sizes)")
    model = build(text.replace("[N,", f"[{batch},"), {"sizes": [batch, 80]})
    task = Task(model, 9)
    assert set(batch_sizes(task)) == {batch}


def test_an_output_of_one_number_has_the_variance_of_all_samples() -> None:
    text = "net (float[1,6] x) => (float[1,1] y) <float[5,6] w, float[1,5] v>"
    model = build(text + "{ h = Gemm<transB=1>(x, w) y = Gemm<transB=1>(h, v) }")
    task = Task(model, 20)
    session = Session(task.original)
    values = [session.run(task.samples.feed(slice(i, i + 1)))["y"] for i in range(20)]
    assert task.teacher().scales["y"].variance == pytest.approx(np.var(values, ddof=1), rel=1e-5)
    history = task.train(epochs=5, lr=0.002)
    assert history[-1].loss < history[0].loss < 100


def test_an_output_that_never_changes_has_its_square_for_a_variance() -> None:
    text = "net (float[N,6] x) => (float[N,4] y, float[N,2] c) <float[5,6] w, float[4,5] v, float[1,2] p>"
    model = build(
        text + "{ h = Gemm<transB=1>(x, w) y = Gemm<transB=1>(h, v) r = ReduceMean<axes=[1]>(x)"
        "  s = Sub(r, r) c = Add(s, p) }"
    )
    task = Task(model)
    p = task.original.initializers["p"]
    variance = task.teacher().scales["c"].variance
    assert variance == pytest.approx([np.square(p).mean()] * len(variance), rel=1e-5)
    assert math.isfinite(task.train()[-1].loss)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": -1.0}])
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RequestError):
        Task("dense").train(**options)


def test_the_original_is_left_alone() -> None:
    task = Task("norm")
    before = Graph.from_model(task.original.to_model()).to_model().SerializeToString()
    task.train()
    assert Graph.from_model(task.original.to_model()).to_model().SerializeToString() == before
