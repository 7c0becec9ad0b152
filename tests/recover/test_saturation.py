"""Layers in front of activations that are flat beyond some bound: outputs need only be beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, build, run_onnx
from nets import draw_samples

from obc_onnx.measuring.error import output_error
from obc_onnx.ops.base.rule import EVERYWHERE
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.recover import refit as refit_module
from obc_onnx.recover.layers import find_layers
from obc_onnx.recover.refit import refit
from obc_onnx.recover.targets import target_of
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from obc_onnx.recover.layers import Layer
    from obc_onnx.recover.targets import Target

BOUNDED = {
    "Relu(x)": (0.0, np.inf),
    "Clip(x, low, high)": (-0.5, 2.0),
    "Clip(x, low)": (-0.5, np.inf),
    "Clip(x, , high)": (-np.inf, 2.0),
    "HardSigmoid<alpha=0.5,beta=0.25>(x)": (-0.5, 1.5),
    "HardSwish(x)": (-3.0, np.inf),
}


def test_a_bound_of_clip_may_be_a_list_of_one_number() -> None:
    graph, _, _ = analyse(
        build("net (float[N,9] x) => (float[N,9] y) <float[1] low = {-0.5}> { y = Clip(x, low) }")
    )
    assert DEFAULT_RULES.changing(graph.nodes[-1], graph.initializers) == (-0.5, np.inf)


@pytest.mark.parametrize("call", BOUNDED)
def test_beyond_its_bounds_an_activation_gives_what_it_gives_there(call: str) -> None:
    graph, _, _ = analyse(
        build(
            f"net (float[N,9] x) => (float[N,9] y) <float low = {{-0.5}}, float high = {{2.0}}>"
            f"{{ y = {call} }}"
        )
    )
    low, high = DEFAULT_RULES.changing(graph.nodes[-1], graph.initializers)
    assert (low, high) == BOUNDED[call]
    x = np.linspace(-6, 6, 9, dtype=np.float32)[None]
    beyond, there = (run_onnx(graph, {"x": value})["y"] for value in (x, np.clip(x, low, high)))
    np.testing.assert_allclose(beyond, there, atol=1e-6)
    assert not np.allclose(there, run_onnx(graph, {"x": np.clip(x, -0.4, 0.4)})["y"])


@pytest.mark.parametrize("call", ["Tanh(x)", "HardSigmoid<alpha=-0.5>(x)", "LeakyRelu(x)"])
def test_other_activations_change_everywhere(call: str) -> None:
    graph, _, _ = analyse(build(f"net (float[N,9] x) => (float[N,9] y) {{ y = {call} }}"))
    assert DEFAULT_RULES.changing(graph.nodes[-1], graph.initializers) == EVERYWHERE


def test_a_bound_that_is_computed_is_none() -> None:
    text = "net (float[N,9] x, float low) => (float[N,9] y) { l = Abs(low) y = Clip(x, l) }"
    graph, _, _ = analyse(build(text))
    assert DEFAULT_RULES.changing(graph.nodes[-1], graph.initializers) == EVERYWHERE


BEHIND = {
    "an activation": ("y = Relu(c)", "c", True),
    "a sum": ("s = Add(c, short) y = Relu(s)", "s", True),
    "a difference": ("s = Sub(short, c) y = Relu(s)", "s", True),
    "a norm": ("n = BatchNormalization(c, scale, shift, mean, var) y = Relu(n)", "n", True),
    "no activation": ("y = Tanh(c)", "c", False),
    "two readers": ("r = Relu(c) y = Add(r, c)", "c", False),
}


@pytest.mark.parametrize("case", BEHIND)
def test_limits_are_the_outputs_that_meet_the_bounds(case: str) -> None:
    """Outputs at the limit, sent through what is behind, are at the bound."""
    behind, value, saturates = BEHIND[case]
    layer, target, run = _target_of(behind)
    assert target.value == value
    assert target.saturates is saturates
    if not saturates:
        return
    wanted = run.values(target.value)[0]
    other = None if target.other is None else run.values(target.other)[0]
    limits = target.limits(layer, wanted, other)
    shape = layer.outputs(wanted).shape
    low, high = (
        torch.full(shape, infinite) if limit is None else limit.expand(shape)
        for limit, infinite in zip(limits, (-np.inf, np.inf), strict=True)
    )
    rises = torch.from_numpy(target.factor > 0)
    bounded, unbounded = torch.where(rises, low, high), torch.where(rises, high, low)
    factor, shift = (torch.from_numpy(v).float() for v in (target.factor, target.shift))
    there = bounded * factor + shift
    if other is not None:
        there = there + target.sign * layer.outputs(other)
    alive = target.factor != 0
    torch.testing.assert_close(there[..., alive], torch.zeros_like(there[..., alive]))
    assert torch.isinf(unbounded).all()
    assert torch.isinf(bounded[..., ~alive]).all()


def test_limits_are_where_the_values_are() -> None:
    for case in ("an activation", "a sum", "a norm"):
        layer, target, run = _target_of(BEHIND[case][0])
        wanted = run.values(target.value)[0].to("meta")
        other = None if target.other is None else run.values(target.other)[0].to("meta")
        limits = [own for own in target.limits(layer, wanted, other) if own is not None]
        assert {own.device.type for own in limits} == {"meta"}


def test_picked_rows_are_those_of_all() -> None:
    for behind, _, saturates in BEHIND.values():
        layer, target, run = _target_of(behind)
        wanted = run.values(target.value)[0]
        other = None if target.other is None else run.values(target.other)[0]
        some = (slice(None), torch.tensor([0, 2, 3]), torch.tensor([4, 1, 1]))
        whole = target.outputs(layer, wanted, other)
        assert target.shape(layer, wanted) == list(whole.shape[:-1])
        assert torch.equal(target.outputs(layer, wanted, other, some), whole[some])
        if saturates:
            pairs = zip(
                target.limits(layer, wanted, other, some),
                target.limits(layer, wanted, other),
                strict=True,
            )
            for picked, limit in pairs:
                assert (picked is None) == (limit is None)
                if picked is not None and limit is not None:
                    assert torch.equal(
                        picked.expand(whole[some].shape), limit.expand(whole.shape)[some]
                    )


def _target_of(behind: str) -> tuple[Layer, Target, Lockstep]:
    graph, _, coupling = analyse(
        build(
            "net (float[N,3,5,5] x, float[N,4,5,5] short) => (float[N,4,5,5] y) <float[4,3,1,1] w,"
            " float[4] scale = {1.0, -2.0, 0.5, 0.0}, float[4] shift, float[4] mean,"
            " float[4] var = {1.0, 2.0, 3.0, 4.0}>"
            f"{{ c = Conv(x, w) {behind} }}"
        )
    )
    twin = derived_twin(coupling.graph, coupling)
    samples = draw_samples(coupling.graph, 2)
    held = [name for name in ("c", "n", "s", "short") if name in coupling.axes]
    run = Lockstep(twin, [as_inputs(graph.inputs, samples.feed(slice(0, 2)))], held)
    layer = next(iter(find_layers(coupling, coupling.graph, twin)))
    target = target_of(layer, Cut(coupling, {}, coupling.graph), run)
    run.advance(run.places["y"])
    return layer, target, run


def test_moving_targets_bring_outputs_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is wanted is below 0, where it hardly matters what it is."""
    graph, _, coupling = analyse(
        build(
            "net (float[N,8] x) => (float[N,16] y) <float[8,24] u, float[24,16] v>"
            "{ a = MatMul(x, u) h = Relu(a) c = MatMul(h, v) y = Relu(c) }"
        )
    )
    keep = {
        group.dim: np.arange(group.size) % 3 > 0 for group in coupling.groups if group.size == 24
    }
    cut = Cut(coupling, keep, remove_units(coupling, keep))
    samples, held = draw_samples(graph, 600), draw_samples(graph, 400, seed=1)
    moved, fits = refit(cut, samples, 0)
    monkeypatch.setattr(refit_module, "_TURNS", 0)
    linear, _ = refit(cut, samples, 0)
    assert output_error(coupling, moved, held) < 0.97 * output_error(coupling, linear, held)
    assert all(fit.after < fit.before for fit in fits)
