"""What is frozen on purpose says so, and the rest of a graph still loses units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import analyse, build
from ops.cases_frozen import CASES

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.frozen import Frozen
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    from ops.cases import Case

    from obc_onnx.graph.node import Node

FROZEN = tuple(c for c in CASES if not c.prunes)
each_frozen = pytest.mark.parametrize("case", FROZEN, ids=lambda case: case.id)


def node_of(case: Case) -> Node:
    nodes = case.analysed.graph.nodes
    return next(n for n in nodes if (n.domain, n.op_type) == (case.domain, case.op_type))


@each_frozen
def test_the_rest_of_the_graph_still_prunes(case: Case) -> None:
    assert case.analysed.coupling.groups


@each_frozen
def test_the_twin_refuses_what_torch_lacks(case: Case) -> None:
    graph, shapes, _ = case.analysed
    if not case.has_twin:
        with pytest.raises(UnsupportedOperatorError):
            build_twin(graph, shapes, DEFAULT_RULES)


@each_frozen
def test_the_reason_is_reported(case: Case) -> None:
    node, coupling = node_of(case), case.analysed.coupling
    rule = DEFAULT_RULES.find(node)
    known = [coupling.axes.get(name) for name in (*node.inputs, *node.outputs) if name]
    if isinstance(rule, Frozen) and any(known):
        assert any(reason.startswith(f"{rule.why} of ") for reason in coupling.reasons.values())


@pytest.mark.parametrize("op_type", ["Bernoulli", "RandomNormalLike", "RandomUniformLike"])
def test_numbers_drawn_for_a_tensor_keep_its_batch(op_type: str) -> None:
    coupling = analyse(
        build(
            f"net (float[N,3] x) => (float[N,4] y) <float[3,4] w> {{"
            f" a = MatMul(x, w) b = Sigmoid(a) y = {op_type}<seed=1.0>(b) }}"
        )
    ).coupling
    assert not coupling.loses_batch
    assert coupling.axes["y"][0] == coupling.batch


def test_an_output_that_is_left_out_has_no_axes() -> None:
    model = build(
        "net (float[2,3] x, int64[2] l) => (float y) <float[3,4] w>"
        "{ a = MatMul(x, w) y, p = SoftmaxCrossEntropyLoss(a, l) }"
    )
    model.graph.node[1].output[1] = ""
    coupling = analyse(model).coupling
    assert {frozen.reason for frozen in coupling.frozen} >= {
        "a training loss of SoftmaxCrossEntropyLoss 'y'"
    }
