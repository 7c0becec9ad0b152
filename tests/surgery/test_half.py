"""Networks in half precision whole: inputs, weights and outputs in float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import analyse, assert_pruned_equals_masked, make_feed, random_keep
from nets import NETS, draw_samples, model_of
from onnx import TensorProto, numpy_helper

import obc_onnx
from obc_onnx.planning.budget import Budget
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.verification.checks import check_masked, check_twin

if TYPE_CHECKING:
    from obc_onnx.graph.model import Graph

N_KEEPS = 3
EVERYWHERE = [name for name in CRITERIA if name != "bn-scale"]
"""Criteria that need no batch norm."""
HALF = 1e-2
"""What float16 allows."""


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store and compute everything in float16."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for port in (*half.graph.input, *half.graph.output):
        port.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(half)
    return half


@pytest.mark.parametrize("name", NETS)
def test_a_network_in_half_precision_prunes_as_its_mask_says(name: str) -> None:
    rng, (graph, _, coupling) = np.random.default_rng(0), analyse(in_half(model_of(name)))
    assert all(port.dtype == np.float16 for port in (*graph.inputs, *graph.outputs))
    for _ in range(N_KEEPS):
        keep, feed = random_keep(coupling, rng), make_feed(graph, rng, 3)
        assert_pruned_equals_masked(coupling, keep, feed, HALF)
        assert check_masked(coupling, keep, feed).passed
        assert check_twin(coupling, feed).passed


@pytest.mark.parametrize("name", ["dense", "norm", "gemm"])
def test_a_network_in_half_precision_scores_as_in_single(name: str) -> None:
    found = []
    for model in (model_of(name), in_half(model_of(name))):
        graph, _, coupling = analyse(model)
        scene = Scene(coupling, draw_samples(graph, 6, labelled=True))
        found.append([make_criterion(criterion).score(scene, {}) for criterion in EVERYWHERE])
    for single, half in zip(*found, strict=True):
        assert single.keys() == half.keys()
        for group, values in single.items():
            assert np.abs(half[group] - values).max() < 0.05 * np.abs(values).max()


def weights_of(graph: Graph) -> set[str]:
    """List the types of all weights."""
    return {array.dtype.name for array in graph.initializers.values()}


def test_a_network_in_half_precision_is_compressed_in_it() -> None:
    model = in_half(model_of("residual"))
    graph = analyse(model).graph
    result = obc_onnx.compress(model, data=draw_samples(graph, 40), budget=Budget(0.7))
    assert weights_of(analyse(result.model).graph) == weights_of(graph)
