"""Training of what is no ordinary weight: constants, shared and returned initializers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers import analyse, build, run_onnx
from nets import HEAD, IMAGE, draw_keep, draw_samples, sine_loss

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.errors import DataError, DivergedError, RequestError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.saliency.taps import Taps
from obc_onnx.samples.read import check_samples
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.training.engine import finetune
from obc_onnx.training.optimise import make_optimizer
from obc_onnx.training.options import Training, TrainingOptions
from obc_onnx.twin.build import build_twin, check_device, derived_twin
from obc_onnx.twin.tensors import initializer_name

if TYPE_CHECKING:
    import onnx

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

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


def student_of(model: onnx.ModelProto) -> tuple[EquivalentTwin, Coupling, Graph]:
    _, _, coupling = analyse(model)
    keep = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    return EquivalentTwin(Cut(coupling, keep, pruned)), coupling, pruned


def trained(model: onnx.ModelProto, **options: Any) -> tuple[EquivalentTwin, Graph, Graph]:
    """Return the trained student, the pruned graph and the folded one."""
    student, coupling, pruned = student_of(model)
    usual = {"epochs": 3, "batch_size": 8, "lr": 0.02, "validation": 0.0}
    settings = Training(TrainingOptions(**{**usual, **options}), 0, "cpu")
    finetune(student, pruned, coupling, draw_samples(coupling.graph, 24), settings)
    return student, pruned, student.fold(pruned)


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
    student, _, _ = student_of(build(CONSTANTS))
    names = {id(p): initializer_name(key) for key, p in student.twin.named_parameters()}
    names |= {id(student.full[i]): initializer_name(t) for t, i, _ in student._targets}
    groups = make_optimizer(student, TrainingOptions(epochs=1)).param_groups
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


def test_an_initializer_may_be_called_as_a_tap_was() -> None:
    graph, shapes, coupling = analyse(build(f"{IMAGE} <{WEIGHTS}> {{ n = Conv(x, w) {TAIL}"))
    text = f"{IMAGE} <{WEIGHTS}> {{ n = Conv(x, w) {TAIL}".replace("fc_b", "tap_0")
    named, _, other = analyse(build(text))
    x = torch.from_numpy(draw_samples(graph, 2).inputs["x"])
    rows = Taps(build_twin(graph, shapes, DEFAULT_RULES), coupling).rows([x], sine_loss)
    same = Taps(build_twin(named, shapes, DEFAULT_RULES), other).rows([x], sine_loss)
    assert len(rows) == len(same) > 0
    for left, right in zip(rows.values(), same.values(), strict=True):
        torch.testing.assert_close(left, right)


def test_a_weight_that_is_an_output_stays_and_can_be_read() -> None:
    student, pruned, folded = trained(build(RETURNED))
    assert moved(pruned, folded) == set(pruned.initializers) - {"p"}
    assert_same_function(student, folded)
    twin = derived_twin(pruned, analyse(pruned).coupling)
    x = draw_samples(pruned, 2).inputs["x"]
    with torch.no_grad():
        found = twin(torch.from_numpy(x))[1]
    np.testing.assert_array_equal(found.numpy(), pruned.initializers["p"])


def integer_first() -> onnx.ModelProto:
    text = f"{IMAGE} <{WEIGHTS}> {{ n = Conv(x, w) {TAIL}".replace("float[N,4] y", "int64[N,4] k")
    return build(text.rstrip("} ") + " k = Cast<to=7>(y) }")


def labelled(graph: Graph) -> Samples:
    return draw_samples(graph, 16, labelled=True)


def test_labels_need_a_first_output_of_floats() -> None:
    _, coupling, _ = student_of(integer_first())
    graph = coupling.graph
    with pytest.raises(DataError, match=r"'k' is of type int64"):
        check_samples(labelled(graph), graph)


def test_a_model_without_float_outputs_is_refused_before_any_step() -> None:
    student, coupling, pruned = student_of(integer_first())
    samples = draw_samples(coupling.graph, 16)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(RequestError, match=r"no output of the model is a float"):
        finetune(student, pruned, coupling, samples, Training(TrainingOptions(epochs=1), 0, "cpu"))
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_an_output_that_no_weight_moves_is_refused() -> None:
    text = f"{IMAGE} <{WEIGHTS}> {{ n = Conv(x, w) {TAIL}".replace("float[N,4] y", "float[N,4] k")
    model = build(text.rstrip("} ") + " i = Cast<to=7>(y) k = Cast<to=1>(i) }")
    with pytest.raises(RequestError, match=r"nothing to train"):
        trained(model)


def test_weights_that_the_last_step_breaks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.SGD.step

    def overflow(optimizer: torch.optim.SGD) -> None:
        step(optimizer)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0][0] = float("nan")

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    text = f"{IMAGE} <{WEIGHTS}> {{ n = Conv(x, w) {TAIL}"
    with pytest.raises(DivergedError, match=r"'\w+' is not finite after the last step"):
        trained(build(text), epochs=1, batch_size=24, lr=0.01)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense", "xpu:7", "vulkan", "hpu", ""])
def test_devices_that_cannot_compute_are_refused(device: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"cannot use device '{device}'")):
        check_device(device)


def test_the_type_that_numpy_draws_comes_with_what_to_do() -> None:
    _, coupling, _ = student_of(build(f"{IMAGE} <{WEIGHTS}> {{ n = Conv(x, w) {TAIL}"))
    graph = coupling.graph
    samples = draw_samples(graph, 4)
    object.__setattr__(samples, "inputs", {"x": samples.inputs["x"].astype(np.float64)})
    with pytest.raises(DataError, match=r"\.astype\(np\.float32\)"):
        check_samples(samples, graph)
