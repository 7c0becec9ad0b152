"""Padding counts nowhere: whatever stands there, scores, repair and errors are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, build

from obc_onnx.measuring.error import Distance
from obc_onnx.measuring.masks import find_padding
from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.measuring.padding import real_of, real_positions
from obc_onnx.planning.budget import Budget
from obc_onnx.recover.norms import reestimate_norms
from obc_onnx.recover.refit import refit
from obc_onnx.run.api import compress, score
from obc_onnx.run.sensitivity import measure_sensitivity
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.padding import Padding
from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.training.loss import TrainingLoss
from obc_onnx.training.options import TrainingOptions
from obc_onnx.training.teacher import Teacher

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling

LENGTH, WIDTH, VOCABULARY = 9, 8, 12
ENCODER = """
net (int64[N,L] ids, {kind}[N,L] mask, int64[N,L] kinds) => (float[N,L,5] y, float[N,3] z)
<float[12,8] words, float[2,8] kind_words, float[8,8] wq, float[8,8] wk, float[8,8] wv,
 float[8,16] up, float[16] up_bias, float[16,8] down, float[8] down_bias, float[8,5] head,
 float[8,3] pool>
{{ w = Gather(words, ids) k = Gather(kind_words, kinds) x = Add(w, k)
  {mask} q = MatMul(x, wq) i = MatMul(x, wk) v = MatMul(x, wv) it = Transpose<perm=[0,2,1]>(i)
  s = MatMul(q, it) h = Unsqueeze(hidden, one) b = Add(s, h) p = Softmax(b) m = MatMul(p, v)
  r = Add(x, m) u = MatMul(r, up) a = Add(u, up_bias) g = Relu(a) d = MatMul(g, down)
  e = Add(d, down_bias) o = Add(r, e) y = MatMul(o, head)
  t = Unsqueeze(real, two) f = Mul(o, t) n = ReduceSum<keepdims=0>(f, one)
  c = ReduceSum<keepdims=1>(real, one) mean = Div(n, c) z = MatMul(mean, pool) }}
"""
MASKS = {
    1: "real = Cast<to=1>(mask) away = Sub(unit, real) hidden = Mul(away, large)",
    0: "away = Cast<to=1>(mask) real = Sub(unit, away) hidden = Mul(away, large)",
}


def encoder(real: int = 1, kind: str = "int64") -> onnx.ModelProto:
    """One block of a transformer on tokens: each of them, and the mean of those that are real."""
    text = ENCODER.format(mask=MASKS[real], kind=kind)
    constants = {"one": [1], "two": [2], "unit": np.float32(1), "large": np.float32(-1e4)}
    return build(text, constants)


def padded(
    coupling: Coupling, n_samples: int, content: int = 0, real: int = 1, least: int = 2
) -> Samples:
    """Draw samples of several lengths; another `content` stands at the padding."""
    rng, other = np.random.default_rng(0), np.random.default_rng(content + 1)
    shape = (n_samples, LENGTH)
    lengths = rng.integers(least, LENGTH + 1, n_samples)
    there = np.arange(LENGTH) < lengths[:, None]
    inputs = {
        name: np.where(there, rng.integers(0, most, shape), other.integers(0, most, shape))
        for name, most in (("ids", VOCABULARY), ("kinds", 2))
    }
    inputs["mask"] = (there == bool(real)).astype(np.int64)
    types = {port.name: port.dtype for port in coupling.graph.inputs}
    inputs = {name: inputs[name].astype(types[name]) for name in types}
    return Samples(inputs, None, types)


def coupling_of(model: onnx.ModelProto) -> Coupling:
    shapes = dict.fromkeys(("ids", "mask", "kinds"), (2, LENGTH))
    return analyse(model, shapes=shapes).coupling


@pytest.mark.parametrize("kind", ["int64", "int32", "bool", "float"])
@pytest.mark.parametrize("real", [1, 0])
def test_a_mask_is_found_by_what_does_not_matter(kind: str, real: int) -> None:
    coupling = coupling_of(encoder(real, kind))
    samples = padded(coupling, 20, real=real)
    assert find_padding(coupling, samples) == Padding("mask", real)


def test_nothing_is_a_mask_that_hides_nothing() -> None:
    coupling = coupling_of(encoder())
    whole = padded(coupling, 20, least=LENGTH)
    assert find_padding(coupling, whole) is None, "no sample is padded"
    text = ENCODER.format(mask=MASKS[1], kind="int64").replace("b = Add(s, h)", "b = Identity(s)")
    blind = build(
        text.replace("h = Unsqueeze(hidden, one)", ""),
        {"one": [1], "two": [2], "unit": np.float32(1), "large": np.float32(-1e4)},
    )
    blind_coupling = coupling_of(blind)
    assert find_padding(blind_coupling, padded(blind_coupling, 20)) is None, "padding is looked at"


def test_positions_are_found_along_axes_and_in_rows_of_tokens() -> None:
    coupling = coupling_of(encoder())
    samples = padded(coupling, 4)
    padding, real = Padding("mask", 1), samples.inputs["mask"] == 1
    assert np.array_equal(real_positions(coupling, padding, "y", real), real[:, :, None])
    assert real_positions(coupling, padding, "z", real) is None
    assert real_positions(coupling, None, "y", real) is None
    text = (
        "net (float[N,L,4] x, float[N,L] mask) => (float[M,6] y)"
        "<float[4,6] w> { r = Reshape(x, rows) y = MatMul(r, w) "
        " m = Unsqueeze(mask, two) k = Mul(x, m) }"
    )
    model = build(text, {"rows": [-1, 4], "two": [2]})
    flat = analyse(model, shapes={"x": (2, 5, 4), "mask": (2, 5)}).coupling
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], np.float32)
    found = real_positions(flat, padding, "y", mask == 1)
    assert np.array_equal(found, mask.reshape(10, 1) == 1)


CRITERIA = ["jacobian", "activation", "variance", "apoz", "group-obs"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_what_stands_at_padding_changes_no_score(criterion: str) -> None:
    model, coupling = encoder(), coupling_of(encoder())
    how = Scoring(objective="output") if criterion == "jacobian" else None
    found = [
        score(model, data=padded(coupling, 40, content), criterion=criterion, scoring=how).groups
        for content in (0, 1)
    ]
    assert found[0].keys() == found[1].keys() != set()
    for name, scores in found[0].items():
        assert found[1][name] == pytest.approx(scores, rel=1e-4), name


def cut_of(coupling: Coupling) -> dict[object, NDArray[np.bool_]]:
    rng = np.random.default_rng(5)
    return {
        group.dim: np.isin(
            np.arange(group.size), rng.permutation(group.size)[: -(-group.size // 2)]
        )
        for group in coupling.groups
    }


def test_what_stands_at_padding_changes_no_repaired_weight_and_no_error() -> None:
    coupling = coupling_of(encoder())
    keep = cut_of(coupling)
    pruned = remove_units(coupling, keep)
    repaired, errors, blind = [], [], []
    for content in (0, 1):
        bare = padded(coupling, 60, content)
        samples = replace(bare, padding=find_padding(coupling, bare))
        graph, layers = refit(Cut(coupling, keep, pruned), samples, 0)
        assert {layer.layer for layer in layers} >= {"down", "wq"}, "scores are repaired too"
        repaired.append(graph.initializers)
        errors.append([o.error for o in Distance(coupling, samples).outputs(graph)])
        blind.append(refit(Cut(coupling, keep, pruned), bare, 0)[0].initializers)
    for name, weight in repaired[0].items():
        assert repaired[1][name] == pytest.approx(weight, abs=1e-3), name
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert any(np.abs(blind[0][n] - blind[1][n]).max() > 1e-2 for n in blind[0]), "so it matters"


def test_commands_find_the_mask_and_the_report_says_so() -> None:
    model, coupling = encoder(), coupling_of(encoder())
    made = [
        compress(model, data=padded(coupling, 50, content), budget=Budget(0.7))
        for content in (0, 1)
    ]
    assert made[0].plan.groups == made[1].plan.groups
    outputs = [[output.error for output in one.report.outputs] for one in made]
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-3)
    (note,) = (note for note in made[0].report.notes if "padding" in note)
    assert "input 'mask' is 0" in note
    found = [
        measure_sensitivity(model, data=padded(coupling, 50, content)).groups for content in (0, 1)
    ]
    for one, other in zip(*found, strict=True):
        pairs = zip(one.points, other.points, strict=True)
        assert all(a.error == pytest.approx(b.error, rel=1e-3) for a, b in pairs)


def test_what_stands_at_padding_changes_nothing_that_is_trained() -> None:
    model, coupling = encoder(), coupling_of(encoder())
    losses = []
    for content in (0, 1):
        training = TrainingOptions(epochs=2, batch_size=10, lr=0.01, validation=0.0)
        samples = padded(coupling, 40, content)
        losses.append(
            [e.loss for e in compress(model, data=samples, training=training).report.epochs]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] > 0


def test_the_loss_of_an_output_is_that_of_its_real_positions() -> None:
    coupling = coupling_of(encoder())
    bare = padded(coupling, 30)
    samples = replace(bare, padding=find_padding(coupling, bare))
    teacher = Teacher(coupling, samples, torch.device("cpu"), varies=False)
    options = TrainingOptions(epochs=1, loss=(("mse", 1.0),))
    loss = TrainingLoss(options, coupling.graph, teacher.scales, labelled=False)
    which = np.arange(30)
    y, z = teacher.outputs(which, samples.feed(which))
    there = samples.inputs["mask"] == 1
    off = torch.where(torch.from_numpy(there)[:, :, None], 0.0, 50.0)
    real = real_of(coupling, samples, which)
    assert loss([y + off, z], [y, z], None, real).item() == 0
    step = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    shares = (step.numpy() ** 2)[there].mean(0) / teacher.scales["y"].variance
    found = loss([y + step + off, z], [y, z], None, real)
    assert found.item() == pytest.approx(np.log1p(shares).mean(), rel=1e-4)


NORMED = (
    "net (float[N,L,3] x, float[N,L] mask) => (float[N,L,4] y) <float[3,6] w, float[6] scale,"
    " float[6] bias, float[6] mean, float[6] var, float[6,4] v>"
    "{ c = MatMul(x, w) t = Transpose<perm=[0,2,1]>(c)"
    "  n = BatchNormalization(t, scale, bias, mean, var) u = Transpose<perm=[0,2,1]>(n)"
    "  r = Relu(u) o = MatMul(r, v) m = Unsqueeze(mask, two) y = Mul(o, m) }"
)


def test_norms_are_measured_at_real_positions() -> None:
    model = build(NORMED, {"two": [2], "var": np.ones(6, np.float32)})
    coupling = analyse(model, shapes={"x": (2, 7, 3), "mask": (2, 7)}).coupling
    rng = np.random.default_rng(0)
    there = np.arange(7) < rng.integers(2, 8, 32)[:, None]
    x = rng.standard_normal((32, 7, 3)).astype(np.float32)
    inputs = {"x": np.where(there[:, :, None], x, 100).astype(np.float32), "mask": there}
    types = {port.name: port.dtype for port in coupling.graph.inputs}
    samples = Samples(inputs, None, types, padding=Padding("mask", 1))
    norms = reestimate_norms(Cut(coupling, {}, coupling.graph), samples, 0).initializers
    w = coupling.graph.initializers["w"].astype(np.float64)
    order = np.random.default_rng(0).permutation(32)
    size = batch_size_of(coupling.graph)
    chosen = [np.sort(order[a : a + size]) for a in range(0, 32, size)]
    batches = [(x[own] @ w)[there[own]] for own in chosen]
    assert norms["mean"] == pytest.approx(np.mean([b.mean(0) for b in batches], 0), abs=1e-4)
    assert norms["var"] == pytest.approx(np.mean([b.var(0, ddof=1) for b in batches], 0), rel=1e-3)


def test_distillation_looks_at_real_positions_alone() -> None:
    text = "net (float[N,L,3] x, float[N,L] mask) => (float[N,L,4] y) <float[3,6] w, float[6,4] v>"
    body = "{ h = MatMul(x, w) t = Tanh(h) o = MatMul(t, v) y = Softmax(o) k = Neg(mask) }"
    coupling = analyse(build(text + body), shapes={"x": (2, 5, 3), "mask": (2, 5)}).coupling
    there = np.arange(5) < np.array([[2], [5], [3]])
    inputs = {"x": np.zeros((3, 5, 3), np.float32), "mask": there.astype(np.float32)}
    types = {port.name: port.dtype for port in coupling.graph.inputs}
    samples = Samples(inputs, None, types, padding=Padding("mask", 1))
    loss = TrainingLoss(
        TrainingOptions(epochs=1, temperature=1.0, loss=(("kd", 1.0),)),
        coupling.graph,
        {},
        labelled=False,
    )
    p, q = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = loss([p], [q], None, real_of(coupling, samples, np.arange(3)))
    rows = (q * (q / p).log()).sum(-1).numpy()[there]
    assert found.item() == pytest.approx(rows.mean(), rel=1e-4)
