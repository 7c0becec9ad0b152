"""Classifiers that end in a Softmax are scored and trained as those that do not."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import CONTRIB, build
from small import CHAIN

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.model import Graph
from obc_onnx.measuring.classes import class_axis, ends_in_softmax
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.elementwise import Same
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.samples import Samples
from obc_onnx.twin.logits import logits_of

SOFTMAX = CHAIN.replace("y = Gemm", "z = Gemm").replace(" }", " y = Softmax<axis=-1>(z) }")
BEHIND_LAYOUT = SOFTMAX.replace("y = Softmax", "v = Softmax").replace(" }", " y = Identity(v) }")
SPELLED = SOFTMAX.replace(
    "y = Softmax<axis=-1>(z)",
    "most = ReduceMax<axes=[1]>(z) less = Sub(z, most) e = Exp(less) size = Shape(e)"
    " sum = ReduceSum<keepdims=0>(e, last) own = Unsqueeze(sum, last) all = Expand(own, size)"
    " y = Div(e, all)",
).replace("float[4] fc_bias>", "float[4] fc_bias, int64[1] last = {1}>")
"""A Softmax as JAX writes it."""
OVER_SAMPLES = SPELLED.replace("last = {1}", "last = {0}")
OF_OTHERS = SPELLED.replace("ReduceSum<keepdims=0>(e,", "ReduceSum<keepdims=0>(less,")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHAIN, False),
        (SOFTMAX, True),
        (BEHIND_LAYOUT, True),
        (SPELLED, True),
        (OVER_SAMPLES, False),
        (OF_OTHERS, False),
        (SPELLED.replace("Exp(", "Sigmoid("), False),
        (
            SPELLED.replace("ReduceSum<keepdims=0>(e, last)", "ReduceMax<axes=[1],keepdims=0>(e)"),
            False,
        ),
    ],
)
def test_a_softmax_at_the_end_is_seen(text: str, expected: bool) -> None:
    assert ends_in_softmax(Graph.from_model(build(text)), DEFAULT_RULES) is expected


def test_a_rule_of_ones_own_says_that_a_softmax_is_passed_on() -> None:
    class Copy(Same):
        op_types = ("SampleOp",)
        domains = (CONTRIB,)
        effects: ClassVar = {"SampleOp": Effect.IN_ORDER}

    text = BEHIND_LAYOUT.replace("Identity", f"{CONTRIB}.SampleOp")
    graph = Graph.from_model(build(text))
    assert not ends_in_softmax(graph, DEFAULT_RULES)
    assert ends_in_softmax(graph, DEFAULT_RULES.extended([Copy()]))


@pytest.mark.parametrize(
    ("opset", "axis", "expected"), [(11, 1, None), (11, 2, 2), (11, -1, -1), (13, 1, 1), (13, 2, 2)]
)
def test_a_softmax_over_several_axes_has_no_axis_of_classes(
    opset: int, axis: int, expected: int | None
) -> None:
    text = f"net (float[N,4,5] x) => (float[N,4,5] y) {{ y = Softmax<axis={axis}>(x) }}"
    assert class_axis(Graph.from_model(build(text, opset=opset)), DEFAULT_RULES) == expected


def test_another_shape_hides_the_axis_of_classes() -> None:
    text = "net (float[N,4,5] x) => (float[N,5,4] y) { p = Softmax(x) y = Reshape(p, to) }"
    graph = Graph.from_model(build(text, {"to": [0, 5, 4]}))
    assert class_axis(graph, DEFAULT_RULES) is None


def test_logits_of_probabilities_give_the_probabilities_back() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = logits_of(logits.softmax(-1), probabilities=True)
    torch.testing.assert_close(found.softmax(-1), logits.softmax(-1))


def test_scores_by_labels_do_not_depend_on_a_softmax_at_the_end(rng: np.random.Generator) -> None:
    pixels = {"x": rng.standard_normal((16, 3, 8, 8)).astype(np.float32)}
    samples = Samples(pixels, rng.integers(0, 4, 16), {"x": np.dtype(np.float32)})
    found = []
    for text in (CHAIN, SOFTMAX, SPELLED):
        coupling, _ = analyse(Graph.from_model(build(text)), None, DEFAULT_RULES, Clock())
        found.append(
            make_criterion("jacobian").score(
                Scene(coupling, samples, scoring=Scoring(objective="labels")), {}
            )
        )
    for name, scores in found[0].items():
        np.testing.assert_allclose(found[1][name], scores, rtol=1e-3)
        np.testing.assert_allclose(found[2][name], scores, rtol=1e-3)
