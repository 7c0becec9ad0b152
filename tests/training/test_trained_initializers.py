"""Which initializers training changes: weights, and not constants or what is used otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, build, run_onnx
from nets import HEAD, IMAGE, draw_samples
from training.test_finetune import Task

from obc_onnx.training.optimise import make_optimizer
from obc_onnx.training.options import TrainingOptions
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.tensors import initializer_name

if TYPE_CHECKING:
    import onnx

    from obc_onnx.equivalent.network import EquivalentTwin
    from obc_onnx.graph.model import Graph

TAIL = f"last = Tanh(n) {HEAD} }}"
WEIGHTS = "float[6,3,3,3] w, float[4,6] fc, float[4] fc_b"
CONSTANTS = (
    "net (float[N,3,6,6] x) => (float[N,4] y, float[N,6,4,4] grid)"
    f"<{WEIGHTS}, float[1,3,1,1] average, float[1,3,1,1] deviation, float[1,1,4,4] anchors,"
    " float[6] scale, float[6] shift, float[6] mean, float[6] var, float[1,6,1,1] gain,"
    " float[6,1,1] slope>"
    "{ s = Sub(x, average) d = Div(s, deviation) c = Conv(d, w) m = Mul(c, gain)"
    "  b = BatchNormalization(m, scale, shift, mean, var) n = PRelu(b, slope)"
    f"  grid = Add(n, anchors) {TAIL}"
)
SHARED_NORM = (
    f"{IMAGE} <{WEIGHTS}, float[6] SCALE, float[6] SHIFT, float[6] MEAN, float[6] var>"
    f"{{ c = Conv(x, w) n = BatchNormalization(c, SCALE, SHIFT, MEAN, var) {TAIL}"
)
RETURNED = (
    "net (float[N,3,6,6] x) => (float[N,4] y, float[4,5] p) <float[6,3,3,3] w, float[4,6] fc,"
    " float[4] fc_b, float[4,5] p, float[5,4] q>"
    f"{{ c = Conv(x, w) last = Tanh(c) {HEAD.replace('y = ', 'z = ')}"
    "  h = MatMul(z, p) y = MatMul(h, q) }"
)


def trained(model: onnx.ModelProto) -> tuple[EquivalentTwin, Graph, Graph]:
    """Return the trained student, the pruned graph and the folded one."""
    task = Task(model)
    task.train(epochs=3, lr=0.02)
    return task.student, task.pruned, task.student.fold(task.pruned)


def moved(before: Graph, after: Graph) -> set[str]:
    return {
        name
        for name, array in before.initializers.items()
        if not np.array_equal(array, after.initializers[name])
    }


def assert_same_function(student: EquivalentTwin, folded: Graph) -> None:
    x = draw_samples(folded, 4, seed=3).inputs["x"]
    with torch.no_grad():
        outputs = student(torch.from_numpy(x))
    expected = run_onnx(folded, {"x": x})
    for port, found in zip(folded.outputs, outputs, strict=True):
        np.testing.assert_allclose(found.numpy(), expected[port.name], rtol=1e-4, atol=1e-5)


def test_constants_that_are_no_weights_stay() -> None:
    _, pruned, folded = trained(build(CONSTANTS))
    stay = {"average", "deviation", "anchors"}
    assert moved(pruned, folded) == set(pruned.initializers) - stay


def test_weights_that_are_computed_from_initializers_learn() -> None:
    text = (
        "net (float[N,7] x) => (float[N,4] y) <float[6,7] w, float[6,4] fc>"
        "{ t = Transpose(w) h = MatMul(x, t) r = Relu(h) y = MatMul(r, fc) }"
    )
    _, pruned, folded = trained(build(text))
    assert moved(pruned, folded) == {"w", "fc"}


def test_only_operands_of_contractions_decay() -> None:
    student = Task(build(CONSTANTS)).student
    names = {id(p): initializer_name(key) for key, p in student.twin.named_parameters()}
    names |= {id(student.full[i]): initializer_name(t) for t, i, _ in student._targets}
    groups = make_optimizer(student, TrainingOptions(epochs=1), "sgd").param_groups
    decayed = {names[id(p)] for g in groups for p in g["params"] if g["weight_decay"]}
    assert decayed == {"w", "fc"}
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize(("slot", "other"), [("SCALE", "var"), ("SHIFT", "MEAN")])
def test_statistics_that_serve_otherwise_too_stay(slot: str, other: str) -> None:
    text = SHARED_NORM.replace(f"float[6] {slot}, ", "").replace(slot, other)
    student, pruned, folded = trained(build(text))
    assert not np.array_equal(pruned.initializers["w"], folded.initializers["w"])
    assert other not in moved(pruned, folded)
    assert len(moved(pruned, folded) & {"SCALE", "SHIFT", "MEAN", "var"}) == 2
    assert_same_function(student, folded)


def test_a_weight_that_is_an_output_stays_and_can_be_read() -> None:
    student, pruned, folded = trained(build(RETURNED))
    assert moved(pruned, folded) == set(pruned.initializers) - {"p"}
    assert_same_function(student, folded)
    twin = derived_twin(pruned, analyse(pruned).coupling)
    x = draw_samples(pruned, 2).inputs["x"]
    with torch.no_grad():
        found = twin(torch.from_numpy(x))[1]
    np.testing.assert_array_equal(found.numpy(), pruned.initializers["p"])
