"""Networks that ONNX Runtime quantised, in each of its forms, through pruning, twin and costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import (
    analyse,
    assert_close,
    assert_recount_agrees,
    make_feed,
    random_keep,
    run_onnx,
    run_twin,
)
from nets import Case, draw_samples, model_of
from onnxruntime.quantization import QuantFormat, QuantType
from ops.exports import (
    ATTENTION,
    CONVOLUTIONS,
    assert_prunes_exactly,
    of_floats,
    quantise,
    quantised,
)
from scoring import score_by

from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from pathlib import Path


each_form = pytest.mark.parametrize("form", list(QuantFormat), ids=str)
each_text = pytest.mark.parametrize(
    "text", [CONVOLUTIONS, ATTENTION], ids=["convolutions", "attention"]
)
per_channel_or_not = pytest.mark.parametrize("per_channel", [False, True])
SYMMETRIC = {
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "extra_options": {"ActivationSymmetric": True},
}


def groups_of(model: object) -> list[str]:
    return [group.name for group in analyse(model).coupling.groups]


@per_channel_or_not
@each_form
def test_convolutions_prune_exactly(tmp_path: Path, form: QuantFormat, per_channel: bool) -> None:
    model = quantised(CONVOLUTIONS, tmp_path, form, per_channel=per_channel)
    assert_prunes_exactly(model)
    assert groups_of(model) == ["w1_quantized:0", "w3_quantized:0"]


@per_channel_or_not
@each_form
def test_attention_prunes_exactly(tmp_path: Path, form: QuantFormat, per_channel: bool) -> None:
    """The width of queries and keys is read by a product of two tensors with zero points."""
    model = quantised(ATTENTION, tmp_path, form, per_channel=per_channel)
    assert_prunes_exactly(model)
    width = ["wq_quantized:1.1"] if form is QuantFormat.QDQ else []
    others = ["e_quantized:1", "wq_quantized:1.0", *width, "wv_quantized:1.1", "w1_quantized:1"]
    assert groups_of(model) == others


def test_attention_without_zero_points_loses_the_width_of_queries_too(tmp_path: Path) -> None:
    model = quantised(ATTENTION, tmp_path, QuantFormat.QOperator, **SYMMETRIC)
    assert_prunes_exactly(model)
    assert "wq_quantized:1.1" in groups_of(model)


@each_form
@each_text
def test_the_twin_rounds_as_onnx_runtime_does(tmp_path: Path, text: str, form: QuantFormat) -> None:
    graph, shapes, _ = analyse(quantised(text, tmp_path, form, per_channel=True))
    feed = make_feed(graph, np.random.default_rng(0), 3)
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


@each_text
def test_both_forms_score_alike(tmp_path: Path, text: str) -> None:
    found = []
    for form in QuantFormat:
        graph, _, coupling = analyse(quantised(text, tmp_path, form, per_channel=True))
        found.append(make_criterion("jacobian").score(Scene(coupling, draw_samples(graph, 8)), {}))
    shared = {name for name, s in found[0].items() if name in found[1] and len(s) > 4}
    assert len(shared) == 2
    for name in shared:
        left, right = (scores[name] for scores in found)
        assert np.corrcoef(left, right)[0, 1] > 0.97  # they round at other places


@per_channel_or_not
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=str)
def test_ranges_that_follow_the_data_make_groups_inexact(
    tmp_path: Path, kind: QuantType, per_channel: bool
) -> None:
    """Whatever the zero points of weights are: no mask stands for removal here."""
    rng = np.random.default_rng(0)
    model = quantised(CONVOLUTIONS, tmp_path, None, per_channel=per_channel, weight_type=kind)
    graph, shapes, coupling = analyse(model)
    assert groups_of(model) == ["w1_quantized:0", "w3_quantized:0"]
    assert all("range" in str(group.inexact) for group in coupling.groups)
    feed = make_feed(graph, rng, 3)
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))
    keep = random_keep(coupling, rng, inexact=True)
    pruned = remove_units(coupling, keep)
    run_onnx(pruned, feed)
    assert_recount_agrees(coupling, keep, pruned)


@each_text
def test_a_quantised_network_costs_what_it_does_in_floats(tmp_path: Path, text: str) -> None:
    expected = analyse(of_floats(text)).coupling.macs({})
    for form in (*QuantFormat, None):
        model = quantised(text, tmp_path, form, per_channel=True)
        assert analyse(model).coupling.macs({}) == expected


@pytest.mark.parametrize("criterion", ["l1", "l2", "whc", "fpgm"])
def test_stored_integers_count_as_what_they_stand_for(criterion: str, tmp_path: Path) -> None:
    """The zero point of eight bits is near 128, which would drown all weights."""
    model = model_of("dense")
    bytes_ = {"weight_type": QuantType.QUInt8, "activation_type": QuantType.QUInt8}
    made = quantise(model, tmp_path, QuantFormat.QOperator, reduce_range=False, **bytes_)
    rows = score_by(criterion, Case(*analyse(made)))
    expected = score_by(criterion, Case(*analyse(model)))
    assert rows.keys() == {"w2_quantized:0"}  # elsewhere stored zeros are no real ones
    values = expected["w2:0"]
    np.testing.assert_allclose(rows["w2_quantized:0"], values, rtol=0.03)
