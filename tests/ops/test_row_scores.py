"""Taps on every kind of member against brute force: a row for each operator form with weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from gradients import brute_force, twin_of
from nets import sine_loss
from ops.test_conformance import BATCH, CASES, generator
from ops.test_gradients import smooth

from obc_onnx.saliency.taps import Taps
from obc_onnx.twin.tensors import to_tensor

if TYPE_CHECKING:
    from ops.cases import Case
    from torch import Tensor

EXACT = 1e-9
FLOOR = 1e-12
"""What would be zero but for rounding."""


def doubled(case: Case, batch: int) -> list[Tensor]:
    feed = case.feed(generator(case), batch)
    tensors = [to_tensor(feed[port.name]) for port in case.analysed.graph.inputs]
    return [x.double() if x.is_floating_point() else x for x in tensors]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.has_twin and c.prunes], ids=lambda case: case.id
)
def test_taps_equal_weights_times_their_gradients(case: Case) -> None:
    graph, _, coupling = case.analysed
    if not coupling.groups:
        pytest.skip("the weights in front of it and behind it have nothing to prune either")
    if not smooth(case):
        pytest.skip("it rounds, so that double has other steps than single")
    if case.name == "output_weights":
        pytest.skip("its weights are an output too, which no tap sees")
    if {node.op_type for node in graph.nodes} & {"BitCast", "CastLike"}:
        pytest.skip("it computes in single whatever its inputs are")
    batch = case.batch or BATCH
    inputs = doubled(case, batch)
    taps = Taps(twin_of(case.analysed).double(), coupling)
    found = taps.rows(inputs, sine_loss)
    expected = whole_rows(case, inputs)
    scored = {(name, dim) for (name, _), dim in found}
    biases = {role.node.inputs[role.bias] for role in coupling.roles if role.bias is not None}
    reached = {
        (name, dim)
        for ((name, _), dim), row in expected.items()
        if name in graph.initializers and name not in biases and row.any()
    }
    assert reached <= scored
    largest = max((float(row.abs().max()) for row in expected.values()), default=0.0)
    for key, row in found.items():
        if key in expected:
            error = (row.sum(0) - expected[key]).abs().max()
            assert error <= EXACT * max(float(expected[key].abs().max()), 1e-3 * largest) + FLOOR, (
                key
            )


def whole_rows(case: Case, inputs: list[Tensor]) -> dict[object, Tensor]:
    """Brute force on all samples at once."""
    rows = brute_force(case.analysed, inputs, sine_loss, whole=True)
    return {key: row.sum(0) for key, row in rows.items()}


def test_double_inputs_are_double() -> None:
    case = next(c for c in CASES if c.id == "Conv-plain" or c.op_type == "Conv")
    assert all(x.dtype == torch.float64 for x in doubled(case, 2))
    assert np.isfinite(doubled(case, 2)[0].numpy()).all()
