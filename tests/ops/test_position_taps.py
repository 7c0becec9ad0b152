"""Weights of operators that pick or move positions are scored, and as their gradients say."""

from __future__ import annotations

import pytest
from gradients import brute_force, twin_of
from nets import case_of, draw_inputs, error_of, sine_loss
from ops import cases_gather, cases_spatial

from obc_onnx.saliency.taps import Taps

EXACT = 1e-10
ROWS = {case.id: case for case in (*cases_gather.CASES, *cases_spatial.CASES)}
SCORED = {
    "DeformConv-dense": {("W", 0), ("W", 1)},
    "DeformConv-bias_mask": {("W", 0), ("W", 1)},
    "DeformConv-blocks": {("W", 0), ("W", 1)},
    "DeformConv-sharing": {("W", 0), ("W", 1)},
    "GatherElements-table": {("W", 1)},
    "GatherND-computed_table": {("W", 1)},
}


@pytest.mark.parametrize("row", SCORED)
def test_taps_equal_weights_times_their_gradients(row: str) -> None:
    case = case_of(ROWS[row].model)
    inputs = draw_inputs(case.graph, 3)
    expected = brute_force(case, inputs, sine_loss)
    found = Taps(twin_of(case), case.coupling).rows(inputs, sine_loss)
    assert {member for member, _ in found if member[0] == "W"} == SCORED[row]
    assert found.keys() == expected.keys()
    for key, scores in expected.items():
        assert error_of(found[key], scores) < EXACT, key
