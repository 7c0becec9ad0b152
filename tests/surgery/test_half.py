"""Networks in half precision: in float16 whole, and in bfloat16 with ports of either type."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import analyse, assert_pruned_equals_masked, make_feed, random_keep
from nets import NETS, draw_samples, model_of
from onnx import TensorProto, helper, numpy_helper

import obc_onnx
from obc_onnx.graph.model import Graph
from obc_onnx.planning.budget import Budget
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.jacobian import Jacobian
from obc_onnx.saliency.options import Scoring
from obc_onnx.verification.checks import check_masked, check_twin

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.parametrize("name", ["dense", "norm", "gemm", "residual"])
@pytest.mark.parametrize("scale", ["1.0", "1e-6"])
def test_what_scores_computes_in_single_precision(name: str, scale: str, tmp_path: Path) -> None:
    """Gradients of a loss as small vanish in float16, and so do squares of those."""
    source = tmp_path / "losses.py"
    source.write_text(
        f"def small(outputs, labels):\n"
        f"    return {scale} * outputs['y'].square().flatten(1).sum(-1)\n"
    )
    rounded = Graph.from_model(in_half(model_of(name)))
    wide = {n: a.astype(np.float32) for n, a in rounded.initializers.items() if a.dtype == "f2"}
    single, half = model_of(name), in_half(model_of(name))
    found = []
    for model in (Graph.from_model(single).edit(wide).written(), half):
        graph, _, coupling = analyse(model)
        feed = draw_samples(graph, 6).feed(slice(None))
        exact = {name: array.astype("f2").astype(array.dtype) for name, array in feed.items()}
        samples = replace(draw_samples(graph, 6), inputs=exact)
        scoring = Scoring(loss=f"{source}:small")
        found.append(Jacobian().score(Scene(coupling, samples, scoring=scoring), {}))
    for group, values in found[0].items():
        np.testing.assert_allclose(found[1][group], values, rtol=1e-3, atol=1e-5 * values.max())
        assert values.max() > 0


def in_brain_floats(model: onnx.ModelProto, *, keep_io_types: bool) -> onnx.ModelProto:
    """Store and compute everything in bfloat16, with ports in float32 where they are kept."""
    brain = onnx.ModelProto()
    brain.CopyFrom(model)
    brain.opset_import[0].version = 22
    for tensor in brain.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if not keep_io_types:
        for port in (*brain.graph.input, *brain.graph.output):
            port.type.tensor_type.elem_type = TensorProto.BFLOAT16
        onnx.checker.check_model(brain, full_check=True)
        return brain
    inner = {port.name: f"{port.name}_brain" for port in (*brain.graph.input, *brain.graph.output)}
    for node in brain.graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    for port in brain.graph.input:
        to = {"to": TensorProto.BFLOAT16}
        brain.graph.node.insert(0, helper.make_node("Cast", [port.name], [inner[port.name]], **to))
    for port in brain.graph.output:
        to = {"to": TensorProto.FLOAT}
        brain.graph.node.append(helper.make_node("Cast", [inner[port.name]], [port.name], **to))
    onnx.checker.check_model(brain, full_check=True)
    return brain


@pytest.mark.parametrize("keep_io_types", [False, True])
@pytest.mark.parametrize("name", ["residual", "norm", "dense"])
def test_a_network_in_bfloat16_prunes_as_its_mask_says(name: str, keep_io_types: bool) -> None:
    rng = np.random.default_rng(0)
    graph, _, coupling = analyse(in_brain_floats(model_of(name), keep_io_types=keep_io_types))
    keep, feed = random_keep(coupling, rng), make_feed(graph, rng, 3)
    assert check_masked(coupling, keep, feed).passed
    assert check_twin(coupling, feed).passed


@pytest.mark.parametrize("keep_io_types", [False, True])
def test_a_network_in_bfloat16_is_compressed_in_it(keep_io_types: bool) -> None:
    model = in_brain_floats(model_of("residual"), keep_io_types=keep_io_types)
    graph = analyse(model).graph
    samples = draw_samples(graph, 40)
    result = obc_onnx.compress(model, data=samples, budget=Budget(0.7), recover_minutes=0)
    found = analyse(result.model).graph
    assert weights_of(found) == weights_of(graph) == {"bfloat16"}
    assert found.inputs == graph.inputs
    assert found.outputs == graph.outputs
    assert any("bfloat16 is computed in float32" in note for note in result.report.notes)
    assert any(step.kept for step in result.report.recovery)


def weights_of(graph: Graph) -> set[str]:
    """List the types of all weights."""
    return {array.dtype.name for array in graph.initializers.values()}


def test_a_network_in_half_precision_is_compressed_in_it() -> None:
    model = in_half(model_of("residual"))
    graph = analyse(model).graph
    result = obc_onnx.compress(model, data=draw_samples(graph, 40), budget=Budget(0.7))
    assert weights_of(analyse(result.model).graph) == weights_of(graph)
