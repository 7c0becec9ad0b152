"""What rules say that operators do to single numbers, against ONNX Runtime and numpy."""

from __future__ import annotations

import zlib
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build, run_onnx
from onnx import helper
from ops.test_conformance import BATCH, CASES

from obc_onnx.graph import operators
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.catalogue import DEFAULT_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from ops.cases import Case

    from obc_onnx.graph.node import Node

    Array = NDArray[Any]

BY_OPERATOR = {
    key: rule for rule in DEFAULT_RULES.rules for key in product(rule.domains, rule.op_types)
}
CLAIMED = {key: rule.effects[key[1]] for key, rule in BY_OPERATOR.items() if key[1] in rule.effects}
BINARY = {
    Effect.ADDS: np.add,
    Effect.SUBTRACTS: np.subtract,
    Effect.MULTIPLIES: np.multiply,
    Effect.MULTIPLIES_MATRICES: np.matmul,
}


def claims(case: Case) -> bool:
    return (case.domain, case.op_type) in CLAIMED


def computed(case: Case) -> Iterator[tuple[Node, list[Array], list[Array]]]:
    """Yield the nodes of a row that the row is about, and what ONNX Runtime gives them and makes."""
    graph = case.analysed.graph
    nodes = [n for n in graph.nodes if (n.domain, n.op_type) == (case.domain, case.op_type)]
    feed = case.feed(np.random.default_rng(zlib.crc32(case.id.encode())), BATCH)
    own = feed | dict(graph.initializers)
    names = {name for node in nodes for name in (*node.inputs, *node.outputs) if name}
    own |= Session(graph, optimize=False, outputs=sorted(names - own.keys())).run(feed)
    for node in nodes:
        yield (
            node,
            *([own[name] for name in names if name] for names in (node.inputs, node.outputs)),
        )


@pytest.mark.parametrize("case", [case for case in CASES if claims(case)], ids=lambda case: case.id)
def test_operators_do_what_their_rules_say(case: Case) -> None:
    for node, inputs, outputs in computed(case):
        effect = DEFAULT_RULES.effect(node)
        for output in outputs:
            assert_moved(effect, inputs, output)
        assert_combined(effect, node, inputs, outputs[0])
        assert_summarised(effect, node, inputs[0], outputs[0])


def assert_moved(effect: Effect, inputs: list[Array], output: Array) -> None:
    first = inputs[0]
    if Effect.MOVES in effect:
        assert np.isin(output, first).all()
    if Effect.IN_ORDER in effect:
        np.testing.assert_array_equal(output.ravel(), first.ravel().astype(output.dtype))
    if Effect.IN_PLACE in effect:
        assert output.shape == first.shape
    if Effect.BROADCASTS in effect:
        np.testing.assert_array_equal(output, np.broadcast_to(first, output.shape))
    if Effect.MEASURES in effect:
        whole = output.ndim == 0
        assert output.item() == first.size if whole else set(output) <= set(first.shape)


def assert_combined(effect: Effect, node: Node, inputs: list[Array], output: Array) -> None:
    for single, function in BINARY.items():
        if single in effect:
            np.testing.assert_allclose(output, function(*inputs), 1e-4, 1e-5)
    if Effect.DIVIDES in effect:
        quotient = np.trunc(np.divide(*inputs)) if output.dtype.kind == "i" else np.divide(*inputs)
        np.testing.assert_allclose(output, quotient, 1e-5)
    if Effect.EXPONENTIATES in effect:
        np.testing.assert_allclose(output, np.exp(inputs[0]), 1e-4)
    if Effect.JOINS in effect:
        joined = np.concatenate(inputs, node.integer("axis", 1))
        np.testing.assert_array_equal(output, joined)
    if Effect.CHOOSES in effect:
        np.testing.assert_array_equal(output, np.where(*inputs))


def assert_summarised(effect: Effect, node: Node, x: Array, output: Array) -> None:
    if Effect.SUMS in effect:
        np.testing.assert_allclose(output.sum(), x.sum(), 1e-3, 1e-4)
    if Effect.AVERAGES in effect:
        assert min(x.min(), 0) <= output.min() <= output.max() <= max(x.max(), 0)
        assert output.size == x.size or output.max() < x.max()
    if Effect.SHARES in effect:
        rule = DEFAULT_RULES.find(node)
        assert rule is not None
        axis = rule.normalised_axis(node, x.ndim)
        flat = tuple(range(node.integer("axis", 1), x.ndim))
        assert (output >= 0).all()
        np.testing.assert_allclose(output.sum(flat if axis is None else axis), 1.0, 1e-5)


def test_every_effect_is_tried() -> None:
    assert CLAIMED.keys() <= {(case.domain, case.op_type) for case in CASES}
    tried = Effect(0)
    for effect in CLAIMED.values():
        tried |= effect
    assert tried == ~Effect(0)


def test_only_cast_says_that_it_converts() -> None:
    text = "net (float16[2] x) => (float[2] y) { y = Cast<to=1>(x) }"
    (node,) = Graph.from_model(build(text)).nodes
    rule = DEFAULT_RULES.find(node)
    assert rule is not None
    assert rule.converts_to(node) == helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_filters_are_numbered_by_the_channel_that_they_make(op_type: str, blocks: int) -> None:
    sizes = (6, 4 // blocks) if op_type == "Conv" else (4, 6 // blocks)
    text = (
        f"net (float[2,4,5,5] x) => (float[N,6,H,W] y) <float[{sizes[0]},{sizes[1]},3,3] w>"
        f"{{ y = {op_type}<group={blocks}>(x, w) }}"
    )
    graph = Graph.from_model(build(text))
    (node,) = graph.nodes
    rule, weight = DEFAULT_RULES.find(node), graph.initializers["w"]
    assert rule is not None
    numbers = rule.filters_of(node, weight.shape)
    factors = np.arange(2.0, 8.0, dtype=np.float32)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)}
    scaled = run_onnx(graph.edit({"w": weight * factors[numbers]}), feed)["y"]
    expected = run_onnx(graph, feed)["y"] * factors.reshape(-1, 1, 1)
    np.testing.assert_allclose(scaled, expected, 1e-4, 1e-4)


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "Gemm"])
def test_a_bias_goes_where_the_rule_says(op_type: str) -> None:
    size = "3,3" if op_type == "Gemm" else "3,3,1,1"
    shape = (2, 3) if op_type == "Gemm" else (2, 3, 4, 4)
    ports = ",".join(map(str, shape))
    found = []
    for inputs in ("x, w", "x, w, b"):
        text = (
            f"net (float[{ports}] x) => (float[{ports}] y) <float[{size}] w, float[3] b>"
            f"{{ y = {op_type}({inputs}) }}"
        )
        graph = Graph.from_model(build(text, {"b": np.arange(1.0, 4.0, dtype=np.float32)}))
        found.append(run_onnx(graph, {"x": np.ones(shape, np.float32)})["y"])
    (node,) = graph.nodes
    rule = DEFAULT_RULES.find(node)
    assert rule is not None
    assert rule.bias_slot == node.inputs.index("b")
    added = np.moveaxis(found[1] - found[0], 1, -1)
    np.testing.assert_allclose(added, np.broadcast_to([1.0, 2.0, 3.0], added.shape), 1e-5)


def standard(names: Any) -> set[tuple[str, str]]:
    return {("", name) for name in names}


def test_the_graph_knows_of_operators_what_rules_know() -> None:
    in_order = {key for key, effect in CLAIMED.items() if Effect.IN_ORDER in effect}
    moves = {key for key, effect in CLAIMED.items() if Effect.MOVES in effect}
    assert standard(operators.REARRANGING) <= in_order | moves
    own = {name: rule for (domain, name), rule in BY_OPERATOR.items() if not domain}
    random = {name for name, rule in own.items() if not rule.repeats}
    assert random == operators.RANDOM
    named = (
        *operators.ACROSS_POSITIONS, *operators.INITIAL_STATES, *operators.QUANTISING,
        *operators.SHAPED_BY_INPUT, *operators.SHAPE_ARITHMETIC, operators.DEQUANTISING,
    )  # fmt: skip
    assert set(named) <= own.keys()
    alone = standard(operators.ACROSS_POSITIONS) & (in_order | moves)
    assert not alone
