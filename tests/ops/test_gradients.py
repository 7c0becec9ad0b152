"""Gradients of every rule that has learnable inputs, against finite differences in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ops.test_conformance import BATCH, CASES, generator
from torch.autograd import gradcheck
from torch.func import functional_call

from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.twin.build import build_twin
from obc_onnx.twin.tensors import to_tensor

if TYPE_CHECKING:
    from ops.cases import Case
    from torch import Tensor

_STEPS = ("Quantize", "QLinear", "Integer", "QAttention")
"""What rounds has steps, through which the twin passes the gradient of a straight line."""
_COARSE = {1, 10, 16}
"""Types with too few digits for finite differences; and a Cast to one hides its input's."""


def smooth(case: Case) -> bool:
    nodes = case.analysed.graph.nodes
    casts = any(n.op_type == "Cast" and n.integer("to", 0) in _COARSE for n in nodes)
    return not casts and not any(part in n.op_type for n in nodes for part in _STEPS)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.has_twin and c.weights], ids=lambda case: case.id
)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    if not smooth(case):
        pytest.skip("it rounds, and has no gradient but the one that the twin makes up")
    graph, shapes, _ = case.analysed
    twin = build_twin(graph, shapes, DEFAULT_RULES).double()
    feed = case.feed(generator(case), BATCH)
    inputs = [to_tensor(feed[port.name]) for port in graph.inputs]
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    names, weights = zip(*twin.named_parameters(), strict=True)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        outputs = functional_call(twin, dict(zip(names, values, strict=True)), tuple(inputs))
        return tuple(y for y in outputs if y.is_floating_point() and y.requires_grad)

    if run(*weights):
        given = [weight.detach().clone().requires_grad_() for weight in weights]
        assert gradcheck(run, given, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)
