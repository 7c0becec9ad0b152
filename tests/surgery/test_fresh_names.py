"""Names that surgery gives to what it makes: none is taken."""

from __future__ import annotations

import numpy as np
import onnx
from helpers import analyse, assert_pruned_equals_masked, assert_survives, build, make_feed
from onnx import helper
from small import PRODUCT

from obc_onnx.graph.model import Graph

KEEP = np.arange(5) < 3


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Give a value a name that ONNX text cannot spell."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    return model


def test_a_masked_weight_gets_a_name_that_is_not_taken() -> None:
    text = (
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z)"
        "<float[5,3,1,1] a, float[4,5,1,1] b, float[4,5,1,1] c>"
        "{ p = Conv(x, a) y = Conv(p, b) taken = Neg(p) z = Conv(taken, c) }"
    )
    coupling = analyse(renamed(build(text), "taken", "b.masked.y.1")).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)


def test_a_masked_product_makes_names_that_are_not_taken() -> None:
    model = build(PRODUCT, {"to": [-1, 5, 8]})
    for place in ("t.Mul.y.0", "t.Mul.y.0.operand", "s.Mul.y.1", "s.Mul.y.1.operand"):
        model.graph.node.append(helper.make_node("Neg", ["x"], [place]))
        model.graph.output.append(helper.make_tensor_value_info(place, 1, ["N", 3, 8, 1]))
    coupling = analyse(model).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)


def test_a_rewired_number_gets_a_name_that_is_not_taken() -> None:
    text = (
        "net (float[N,3,8,1] x) => (float[N,4,8] y, float[N,5,8] z, float[N,5,8,1] n)"
        "<float[5,3,1,1] a, float[5,3,1,1] b, float[4,5] c, int64[3] to = {-1,5,8}>"
        "{ p = Conv(x, a) q = Reshape(p, to) y = MatMul(c, q)"
        "  r = Conv(x, b) z = Reshape(r, to) taken = Neg(r) n = Relu(taken) }"
    )
    coupling = analyse(renamed(build(text), "taken", "to.q")).coupling
    (group,) = coupling.groups
    feed = make_feed(coupling.graph, np.random.default_rng(0))
    pruned = assert_pruned_equals_masked(coupling, {group.dim: KEEP}, feed)
    assert "to.q.1" in pruned.initializers
    assert_survives(pruned)


def test_fresh_names_avoid_every_scope() -> None:
    graph = Graph.from_model(
        build(
            "net (float[2] x, bool c) => (float[2] y) <float[2] w>"
            "{ y = If (c) <then_branch = t () => (float[2] u) { u = Mul(x, w) },"
            " else_branch = f () => (float[2] v) { v = Neg(x) }> }"
        )
    )
    assert graph.fresh_name("new") == "new"
    names = {graph.fresh_name(name) for name in ("x", "y", "w", "u", "v")}
    assert names.isdisjoint({"x", "y", "w", "u", "v"})
    assert graph.fresh_name("new", ["new"]) != "new"
