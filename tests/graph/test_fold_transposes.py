"""Weights behind a Transpose: stored as it lays them out, where nothing else reads them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import build

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session

HEAD = "net (float[N,5,6] x) => (float[N,5,4] y) <float[4,6] w, float[4] b>"
FOLDED = {
    "of two axes": f"{HEAD} {{ t = Transpose(w) h = MatMul(x, t) y = Add(h, b) }}",
    "with an order": f"{HEAD} {{ t = Transpose<perm=[1,0]>(w) h = MatMul(x, t) y = Add(h, b) }}",
    "that two nodes read": f"{HEAD} {{ t = Transpose(w) g = MatMul(x, t) h = MatMul(x, t)"
    " y = Add(g, h) }",
}
KEPT = {
    "the weight is read elsewhere": f"{HEAD} {{ t = Transpose(w) u = Transpose(w)"
    " g = MatMul(x, t) h = MatMul(x, u) y = Add(g, h) }",
    "the weight is an output": HEAD.replace("y)", "y, float[4,6] w)", 1)
    + " { t = Transpose(w) h = MatMul(x, t) y = Add(h, b) }",
    "what comes of it is an output": HEAD.replace("y)", "y, float[6,4] t)", 1)
    + " { t = Transpose(w) h = MatMul(x, t) y = Add(h, b) }",
}


@pytest.mark.parametrize("name", [*FOLDED, *KEPT])
def test_outputs_stay_and_the_weight_has_its_name(name: str) -> None:
    model = build({**FOLDED, **KEPT}[name])
    graph = Graph.from_model(model)
    nodes = [node.op_type for node in graph.nodes]
    assert ("Transpose" in nodes) == (name in KEPT)
    assert graph.initializers["w"].shape == ((4, 6) if name in KEPT else (6, 4))
    feed = {"x": np.random.default_rng(0).standard_normal((3, 5, 6)).astype(np.float32)}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(["y"], feed)[0]
    np.testing.assert_allclose(Session(graph).run(feed)["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_weight_that_callers_may_set_stays() -> None:
    model = build(FOLDED["of two axes"])
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [4, 6]))
    assert "Transpose" in [node.op_type for node in Graph.from_model(model).nodes]
