"""Operators coupled as others: roles, taps and sizes go back to where the node has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from onnx import TensorProto, helper

from obc_onnx.coupling.inference import find_coupling
from obc_onnx.graph import opaque
from obc_onnx.graph.model import Graph
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.counterpart import couple_as
from obc_onnx.ops.base.rule import RuleSet
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.ops.base.context import CoupleContext

DOMAIN = "test"
SHAPES = {"x": (2, 5, 6, 4), "n": (1,), "y": (2, 5, 6, 4), "s": (1,)}
CHANNELS, ROWS, COLUMNS = 3, 1, 2
"""Axes of [batch, rows, columns, channels]."""


class Plain(Frozen):
    """An operator on [batch, channels, rows, columns] that records something of every kind."""

    op_types = ()

    def couple(self, context: CoupleContext) -> list[Value]:
        """Read channels, write rows, and look at a number."""
        x = context.value(0)
        assert context.shape() == x.shape
        assert context.node.opset == 11
        context.numbers(1)
        context.spell("rows", x.axes[2], scalar=True)
        context.reads(0, 1, tap=Tap("input", 0, 1))
        context.writes(0, 2, tap=Tap("output", 0, 3), bias=1)
        return [Value(x.axes)]


class ChannelsLast(Frozen):
    """The same with channels last, and a number in front of the operands."""

    op_types = ("ChannelsLast",)
    domains = (DOMAIN,)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Couple as the other."""
        found = couple_as(Plain(), context, (1, 2), channels_last=True, opset=11)
        assert context.consulted == {2}
        return found


@pytest.fixture
def coupled(monkeypatch: pytest.MonkeyPatch) -> Coupling:
    """Couple a node as if a library of operators had it: ONNX Runtime alone knows none such."""
    monkeypatch.setattr(opaque, "unknown_nodes", lambda _model: [])
    node = helper.make_node("ChannelsLast", ["s", "x", "n"], ["y"], domain=DOMAIN, rows=5)
    ports = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in SHAPES.items()
    }
    graph = helper.make_graph(
        [node],
        "net",
        [ports["x"], ports["s"]],
        [ports["y"]],
        [helper.make_tensor("n", TensorProto.FLOAT, (1,), [1.0])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    return find_coupling(Graph.from_model(model), SHAPES, RuleSet([ChannelsLast()]))


def test_roles_and_taps_are_those_of_the_node(coupled: Coupling) -> None:
    read, written = coupled.roles
    assert read.node is written.node
    assert read.node.inputs == ("s", "x", "n")
    assert (read.slot, read.axis, read.tap) == (1, CHANNELS, Tap("input", 1, CHANNELS))
    assert (written.slot, written.axis, written.tap) == (1, ROWS, Tap("output", 0, COLUMNS))
    assert written.bias == 2


def test_axes_keep_their_order(coupled: Coupling) -> None:
    assert coupled.axes["y"] == coupled.axes["x"]
