"""Losses and gradients that no score can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import build
from nets import case_of, draw_samples
from scoring import score_by

from obc_onnx.errors import DataError, RequestError

if TYPE_CHECKING:
    from pathlib import Path

SQUARE_ROOT = (
    "net (float[N,6] x) => (float[N,3] y) <float[6,5] a, float[5,4] b, float[4,3] c, int64[1] ax = {1}>"
    "{ h = MatMul(x, a) t = Tanh(h) g = MatMul(t, b) u = Tanh(g) s = Mul(u, u)"
    "  n = ReduceSum<keepdims=1>(s, ax) q = Sqrt(n) r = Add(u, q) y = MatMul(r, c) }"
)


@pytest.mark.parametrize("criterion", ["jacobian", "taylor", "fisher", "taylor-group"])
def test_a_gradient_that_is_not_finite_is_an_error_and_no_score(criterion: str) -> None:
    """The root of zero: the loss is finite, its gradient is not."""
    case = case_of(build(SQUARE_ROOT))
    samples = draw_samples(case.graph, 8)
    samples.inputs["x"][3] = 0
    with pytest.raises(DataError, match=r"the score of unit \d of group '\w:1' is nan"):
        score_by(criterion, case, samples)


@pytest.mark.parametrize("criterion", ["jacobian", "taylor", "fisher"])
def test_a_loss_that_is_not_finite_is_an_error(criterion: str, tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text("def loss(outputs, labels):\n    return outputs['y'].sum(1) * float('nan')\n")
    case = case_of("gemm")
    with pytest.raises(DataError, match="not finite"):
        score_by(criterion, case, draw_samples(case.graph, 4), loss=f"{path}:loss")


@pytest.mark.parametrize("how", ["detach()", "round().to(torch.int64).to(torch.float32)"])
@pytest.mark.parametrize("criterion", ["jacobian", "taylor"])
def test_a_loss_without_a_gradient_is_refused(criterion: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text(
        f"import torch\ndef loss(outputs, labels):\n    return outputs['y'].{how}.sum(1)\n"
    )
    case = case_of("gemm")
    with pytest.raises(RequestError, match="cannot be differentiated"):
        score_by(criterion, case, draw_samples(case.graph, 4), loss=f"{path}:loss")


@pytest.mark.parametrize(
    ("shape", "tail"),
    [("float[N,5,4] y", "y = Relu(h)"), ("int64[N,4] y", "y = Cast<to=7>(h)")],
)
def test_answers_of_a_model_need_classes(shape: str, tail: str) -> None:
    text = "net (float[N,5,6] x) => (SHAPE) <float[6,4] a, float[4,4] b> { g = MatMul(x, a) h = MatMul(g, b) TAIL }"
    case = case_of(build(text.replace("SHAPE", shape).replace("TAIL", tail)))
    with pytest.raises(
        RequestError, match=r"shape \[batch, classes\]: use `Scoring\(objective='output'\)`"
    ):
        score_by("jacobian", case, draw_samples(case.graph, 3), objective="pseudo")
