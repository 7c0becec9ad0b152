"""Norms that ONNX Runtime's optimizer writes into the standard domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build

from obc_onnx import compress, inspect
from obc_onnx.errors import ModelError
from obc_onnx.graph.foreign import without_foreign

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "net (float[N,5,8] x) => (float[N,5,6] y) <float[8,8] a, float[8] s, float[8,32] b, float[32,6] c>"
    "{ h = MatMul(x, a) n = NORM(h, s) u = MatMul(n, b) r = Relu(u) y = MatMul(r, c) }"
)


@pytest.mark.parametrize(
    ("norm", "opset"), [("SimplifiedLayerNormalization", 18), ("LayerNormalization", 12)]
)
def test_a_file_that_only_onnx_runtime_takes_is_compressed(
    norm: str, opset: int, tmp_path: Path
) -> None:
    model = build(TEXT.replace("NORM", norm), opset=opset)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    result = compress(tmp_path / "model.onnx", budget=0.7)
    assert [node.op_type for node in result.model.graph.node][1] == norm
    assert result.model.graph.node[1].domain == ""
    assert result.model.opset_import == model.opset_import


def test_a_fault_beside_it_is_still_found(tmp_path: Path) -> None:
    model = build(TEXT.replace("NORM", "SimplifiedLayerNormalization"), opset=18)
    model.graph.node[3].op_type = "Erf"
    model.graph.node[3].input.append("c")
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="Erf"):
        inspect(tmp_path / "model.onnx")


def test_a_model_that_onnx_knows_is_not_copied() -> None:
    model = build(TEXT.replace("NORM", "LayerNormalization"), opset=17)
    assert without_foreign(model) is model


def test_norms_inside_of_subgraphs_are_moved_too() -> None:
    body = "(float[N,5,8] z) { z = SimplifiedLayerNormalization(x, s) }"
    model = build(
        "net (float[N,5,8] x, bool c) => (float[N,5,8] y) <float[8] s>"
        f"{{ y = If(c) <then_branch = yes () => {body}, else_branch = no () => {body}> }}",
        {"k": np.zeros(1, np.float32)},
    )
    (node,) = without_foreign(model).graph.node
    domains = {inner.domain for attribute in node.attribute for inner in attribute.g.node}
    assert domains == {"ai.onnxruntime"}
