"""Files whose nodes lie in an order that runtimes sort."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import analyse, build
from nets import NETS, draw_samples, model_of
from small import invoke

from obc_onnx.errors import ModelError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.ordering import sort_nodes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BRANCHES = (
    "net (float[N,4] x, bool c) => (float[N,4] y) {"
    " a = Relu(x)"
    " y = If (c) <"
    "then_branch = t () => (float[N,4] z) { p = Add(a, a) z = Tanh(p) },"
    "else_branch = e () => (float[N,4] q) { r = Neg(a) q = Tanh(r) }> }"
)


def shuffled(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Put the nodes of a model, and of its subgraphs, in an order of chance."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _shuffle(copy.graph.node, rng)
    return copy


def _shuffle(nodes: object, rng: np.random.Generator) -> None:
    own = list(nodes)
    for node in own:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _shuffle(attribute.g.node, rng)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in own]
    del nodes[:]
    nodes.extend(copies[i] for i in rng.permutation(len(copies)))


def outputs_of(path: Path, feed: dict[str, NDArray]) -> list[NDArray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_file_in_any_order_is_the_same_network(tmp_path: Path, name: str, seed: int) -> None:
    model = model_of(name)
    path, other = tmp_path / "sorted.onnx", tmp_path / "any.onnx"
    onnx.save(model, path)
    onnx.save(shuffled(model, np.random.default_rng(seed)), other)
    graphs = [Graph.load(own) for own in (path, other)]
    feed = draw_samples(graphs[0], 2).feed(slice(0, 2))
    for one, two in zip(outputs_of(path, feed), outputs_of(other, feed), strict=True):
        np.testing.assert_array_equal(one, two)
    macs = [analyse(graph.to_model())[2].macs({}) for graph in graphs]
    assert macs[0] == macs[1] > 0
    names = [{node.key for node in graph.nodes} for graph in graphs]
    assert names[0] == names[1]


def test_a_file_in_another_order_is_compressed_and_verified(tmp_path: Path) -> None:
    path, small, plan = (tmp_path / name for name in ("any.onnx", "small.onnx", "plan.json"))
    onnx.save(shuffled(model_of("dense"), np.random.default_rng(1)), path)
    made = invoke("compress", path, "-o", small, "--plan-out", plan, "--target-macs", "0.7")
    assert made.exit_code == 0, made.output
    assert invoke("verify", path, small, "--plan", plan).exit_code == 0


def test_subgraphs_and_what_they_read_from_outside_are_in_order_too() -> None:
    for seed in range(8):
        model = shuffled(build(BRANCHES), np.random.default_rng(seed))
        sort_nodes(model)
        onnx.checker.check_model(model)


def test_nodes_that_are_in_order_stay_where_they_are() -> None:
    for name in NETS:
        model = model_of(name)
        before = model.SerializeToString()
        assert sort_nodes(model) is False
        assert model.SerializeToString() == before


def test_nodes_in_a_circle_are_refused(tmp_path: Path) -> None:
    model = build("net (float[N,4] x) => (float[N,4] y) { a = Add(x, x) b = Relu(a) y = Relu(b) }")
    model.graph.node[0].input[1] = "b"
    path = tmp_path / "circle.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"fails the ONNX checker: .*topologically sorted"):
        Graph.load(path)
