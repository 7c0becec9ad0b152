"""Taps against weight gradients, one sample and one unit at a time, in float64."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from gradients import brute_force, products_by_sample, twin_of
from helpers import analyse, build
from nets import (
    NETS,
    ONE_CONV,
    Case,
    case_of,
    draw_inputs,
    draw_samples,
    error_of,
    model_of,
    sine_loss,
)
from onnx import numpy_helper

from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.saliency.taps import Taps
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    from gradients import Loss, Rows
    from torch import Tensor


EXACT = 1e-10
PLAIN = [name for name in NETS if name != "shared bias"]
"""A bias of two weights counts with each use of it, which gradients of the bias cannot tell."""
MEMBERS = {
    "grouped": {("w1", 0), ("w2", 0), ("w2", 1), ("w3", 0), ("w3", 1), ("fc", 1)},
    "multiplier": {("w1", 0), ("w2", 0), ("w3", 0), ("w3", 1), ("fc", 1)},
    "transposed blocks": {("w1", 0), ("w2", 0), ("w2", 1), ("w3", 0), ("w3", 1), ("fc", 1)},
    "matmul right": {("w1", 1), ("b1", 0), ("w2", 0), ("w2", 1), ("b2", 2), ("fc", 0)},
    "matmul left": {("w1", 0), ("b1", 0), ("fc", 1)},
    "norm": {("w1", 0), ("scale", 0), ("slope", 0), ("w2", 0), ("w2", 1), ("fc", 1)},
    "bare": {("w1", 0), ("p", 1), ("q", 1), ("r", 0), ("w2", 0), ("w2", 1), ("fc", 1)},
    "shared weight": {("w0", 0), ("w", 0), ("w", 1), ("fc", 1)},
    "tied": {("w0", 0), ("w", 0), ("w", 1), ("fc", 1)},
}


def tapped(case: Case, inputs: list[Tensor], loss: Loss) -> Rows:
    return Taps(twin_of(case), case.coupling).rows(inputs, loss)


def assert_rows_equal(actual: Rows, expected: Rows) -> None:
    assert actual.keys() == expected.keys()
    for key, row in expected.items():
        assert error_of(actual[key], row) < EXACT, key


@pytest.mark.parametrize("name", PLAIN)
def test_taps_equal_weights_times_their_gradients(name: str) -> None:
    case = case_of(name)
    inputs = draw_inputs(case.graph, 3)
    assert_rows_equal(tapped(case, inputs, sine_loss), brute_force(case, inputs, sine_loss))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_weight_that_meets_a_group_is_scored(name: str) -> None:
    case = case_of(name)
    rows = tapped(case, draw_inputs(case.graph, 1), sine_loss)
    assert {member for member, _ in rows} == MEMBERS[name]


@pytest.mark.parametrize("name", ["multiplier", "norm"])
def test_the_grouped_slices_are_those_of_the_layout(name: str) -> None:
    """Written out by hand for the two layouts in which a unit is easily misplaced."""
    case = case_of(name)
    inputs = draw_inputs(case.graph, 2)
    rows = tapped(case, inputs, sine_loss)
    for i, p in enumerate(products_by_sample(case, inputs, sine_loss)):
        for (member, dim), row in rows.items():
            if name == "multiplier" and member == ("w2", 0):
                both = p["w2"].sum((1, 2, 3)) + p["b2"]
                expected = both.reshape(4, 3).sum(0 if dim.size == 3 else 1)
                assert error_of(row[i], expected) < EXACT
            if name == "norm" and member == ("scale", 0):
                assert error_of(row[i], p["scale"] + p["shift"]) < EXACT


def test_a_shared_bias_counts_with_each_of_its_uses() -> None:
    case, model = case_of("shared bias"), model_of("shared bias")
    copy = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "b"))
    model.graph.initializer.append(numpy_helper.from_array(copy, "b2"))
    next(n for n in model.graph.node if n.output[0] == "c2").input[2] = "b2"
    apart, inputs = case_of(model), draw_inputs(case.graph, 2)
    expected = brute_force(apart, inputs, sine_loss)
    found = tapped(case, inputs, sine_loss)
    sizes = {(m, d.size): row for (m, d), row in expected.items()}
    assert len(sizes) == len(found) > 0
    for (member, dim), row in found.items():
        assert error_of(row, sizes[member, dim.size]) < EXACT


def test_scoring_runs_in_evaluation_mode() -> None:
    case = case_of("norm")
    inputs = draw_inputs(case.graph, 3)
    taps = Taps(twin_of(case).train(), case.coupling)
    assert not taps.twin.training
    assert_rows_equal(taps.rows(inputs, sine_loss), brute_force(case, inputs, sine_loss))
    for name in ("mean", "var"):
        state = taps.twin.get_buffer(name).numpy()
        np.testing.assert_array_equal(state, case.graph.initializers[name])


def test_no_weight_gradient_is_computed() -> None:
    case = case_of("residual")
    taps = Taps(twin_of(case), case.coupling)
    taps.rows(draw_inputs(case.graph, 2), sine_loss)
    weights = list(taps.twin.parameters())
    assert weights
    assert not any(weight.requires_grad for weight in weights)
    assert all(weight.grad is None for weight in weights)


def test_taps_change_no_output() -> None:
    case = case_of("residual")
    inputs = draw_inputs(case.graph, 2)
    expected = twin_of(case)(*inputs)[0]
    assert torch.equal(Taps(twin_of(case), case.coupling).twin(*inputs)[0], expected)


def test_rows_do_not_pile_up_between_runs() -> None:
    case = case_of("shared weight")
    taps, inputs = Taps(twin_of(case), case.coupling), draw_inputs(case.graph, 2)
    assert_rows_equal(taps.rows(inputs, sine_loss), taps.rows(inputs, sine_loss))


def test_all_members_of_all_nets_have_a_tap() -> None:
    for case in map(case_of, NETS):
        roles = [r for r in case.coupling.roles if r.node.inputs[r.slot] in case.graph.initializers]
        assert all(role.tap is not None for role in roles)
        assert set(chain(*(group.members for group in case.coupling.groups))) <= set(
            case.coupling.roles
        )


def test_an_initializer_may_be_called_as_a_tap_was() -> None:
    graph, shapes, coupling = analyse(build(ONE_CONV))
    named, _, other = analyse(build(ONE_CONV.replace("fc_b", "tap_0")))
    x = torch.from_numpy(draw_samples(graph, 2).inputs["x"])
    rows = Taps(build_twin(graph, shapes, DEFAULT_RULES), coupling).rows([x], sine_loss)
    same = Taps(build_twin(named, shapes, DEFAULT_RULES), other).rows([x], sine_loss)
    assert len(rows) == len(same) > 0
    for left, right in zip(rows.values(), same.values(), strict=True):
        torch.testing.assert_close(left, right)
