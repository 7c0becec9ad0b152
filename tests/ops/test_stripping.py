"""Every operator of the table between units that do nothing: it lets what is known pass, or stops.

The oracle is ONNX Runtime, before and after.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import TOLERANCE, assert_close, run_onnx
from ops.test_conformance import BATCH, CASES
from planting import floats, plant

from obc_onnx.errors import ModelError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.stripping.strip import strip_graph

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ops.cases import Case

    from obc_onnx.graph.model import Graph

STOPS = {
    "Add": "masked_windows",
    "AffineGrid": "image",
    "Attention": "packed",
    "Cast": "conv",
    "CenterCropPad": "to_another",
    "Col2Im": "computed_image",
    "Compress": "as_it_runs",
    "Concat": "itself",
    "ConstantOfShape": "shape",
    "Conv": "shared_weight",
    "ConvInteger": "both_zeros",
    "ConvTranspose": "blocks_wide",
    "CumProd": "last",
    "CumSum": "channels",
    "DeformConv": "dense",
    "DequantizeLinear": "conv",
    "Einsum": "reshaped_weights",
    "Expand": "shared_heads",
    "GRU": "plain",
    "Gather": "repeated",
    "GatherElements": "rows",
    "GatherND": "channels_are_batch_axes",
    "Gemm": "bias_one",
    "GridSample": "bilinear_zeros_0_16",
    "Hardmax": "last",
    "Identity": "weight",
    "IsInf": "some_10",
    "IsNaN": "maps",
    "LSTM": "plain",
    "LayerNormalization": "channels_pass",
    "LpNormalization": "channels_1",
    "MatMul": "computed",
    "MatMulInteger": "both_zeros",
    "Mul": "temperature_of_heads",
    "OneHot": "last",
    "Pad": "value",
    "QLinearConv": "tensor",
    "QLinearMatMul": "tensor",
    "QuantizeLinear": "network",
    "RNN": "plain",
    "ReduceL1": "channels",
    "ReduceL2": "channels",
    "ReduceLogSum": "opset12",
    "ReduceLogSumExp": "opset12",
    "ReduceSum": "channels",
    "ReduceSumSquare": "channels",
    "Reshape": "left_over_sizes",
    "Resize": "computed_sizes",
    "ReverseSequence": "samples_first",
    "RoiAlign": "fed",
    "RotaryEmbedding": "of_queries_and_keys",
    "Scatter": "rows",
    "ScatterElements": "rows",
    "ScatterND": "tokens_11",
    "Shape": "computed_targets",
    "Sigmoid": "features",
    "Slice": "reversed_channels",
    "Softmax": "scaled_in_front",
    "Split": "features",
    "TensorScatter": "starts",
    "Tile": "shared_heads",
    "TopK": "rows",
    "Transpose": "grid",
    "Trilu": "as_it_runs",
    "Where": "mask_of_numbers",
    "com.microsoft.Attention": "plain",
    "com.microsoft.CausalConvWithState": "taps",
    "com.microsoft.DynamicQuantizeMatMul": "columns",
    "com.microsoft.EmbedLayerNormalization": "computed_ids_with_places",
    "com.microsoft.FusedConv": "Relu",
    "com.microsoft.FusedGemm": "Relu",
    "com.microsoft.FusedMatMul": "alpha",
    "com.microsoft.LinearAttention": "linear",
    "com.microsoft.MatMulIntegerToFloat": "tensor",
    "com.microsoft.MatMulNBits": "4bits",
    "com.microsoft.MultiHeadAttention": "plain",
    "com.microsoft.NhwcMaxPool": "plain",
    "com.microsoft.QAttention": "plain",
    "com.microsoft.QGemm": "plain",
    "com.microsoft.QLinearAdd": "constant",
    "com.microsoft.QLinearConcat": "channels",
    "com.microsoft.QLinearConv": "runtime",
    "com.microsoft.QLinearMul": "constant",
    "com.microsoft.QLinearSigmoid": "features",
    "com.microsoft.QLinearWhere": "constant",
    "com.microsoft.TransposeMatMul": "plain",
}
"""Families with a form that ends what is known, and one such form.

Those are contractions of two computed values, quantised products, recurrent layers and products with
an activation, positions that are picked one by one or that depend on data, sums over units, groups
that lie on a value twice, and constants that no bias can take over.
"""
REFUSED = {"MaxRoiPool-fed"}
FORMS = 2
KINDS = ("unread", "zero", "same")
LEAST = 4
REORDERED = 5e-6
"""Largest error over RMS of sums in another order."""


def planted_in(case: Case, kinds: Collection[str]) -> tuple[Graph, dict[str, int]]:
    """Plant units that do nothing in every group; say how many of each."""
    graph, _, coupling = case.analysed
    arrays, wanted = floats(graph), dict[str, int]()
    for group in coupling.groups:
        if group.inexact is None and group.size >= LEAST:
            wanted[group.name] = plant(coupling, group, arrays, kinds)
    return graph.edit(arrays), wanted


def family(case: Case) -> str:
    return case.id.removesuffix(f"-{case.name}")


def rows() -> Iterator[Any]:
    """Yield all cases; those beyond the first forms of a family are slow."""
    seen = Counter[str]()
    for case in (case for case in CASES if case.id not in REFUSED):
        seen[family(case)] += 1
        needed = seen[family(case)] <= FORMS or STOPS.get(family(case)) == case.name
        yield pytest.param(case, id=case.id, marks=() if needed else pytest.mark.slow)


def test_what_random_inputs_cannot_run_is_refused() -> None:
    """Regions of an image that is not there."""
    (case,) = (case for case in CASES if case.id in REFUSED)
    with pytest.raises(ModelError, match="cannot run the model"):
        strip_graph(proven(case.analysed.graph), None, DEFAULT_RULES, 0)


def proven(graph: Graph) -> Graph:
    """Take the declared batch for granted, as other tests do."""
    return graph.with_batch(replace(graph.batch_axes, proven=True))


@pytest.mark.parametrize("case", list(rows()))
def test_a_stripped_model_computes_the_same(case: Case) -> None:
    feed = case.feed(np.random.default_rng(zlib.crc32(case.id.encode())), BATCH)
    graph, wanted = planted_in(case, KINDS)
    before = run_onnx(graph, feed)
    if not all(np.isfinite(value).all() for value in before.values()):  # a divisor is zero
        graph, wanted = planted_in(case, ("unread", "same"))
        before = run_onnx(graph, feed)
    shapes = {name: array.shape for name, array in feed.items()}
    stripped = strip_graph(proven(graph), shapes, DEFAULT_RULES, 0)
    tolerance = case.tolerance if case.tolerance > TOLERANCE else REORDERED
    assert_close(run_onnx(stripped.graph, feed), before, tolerance)
    gone = Counter[str]()
    for found in (found for findings in stripped.rounds for found in findings):
        gone[found.group] += len(found.units)
    missed = sum(max(planted - gone[group], 0) for group, planted in wanted.items())
    if family(case) not in STOPS:
        assert missed == 0
    elif STOPS[family(case)] == case.name:
        assert missed > 0
