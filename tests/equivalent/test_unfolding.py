"""Norms put behind folded convolutions, against ONNX Runtime on the original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from equivalent.unfolding_cases import (
    CHAIN,
    CONVOLUTIONS,
    GATED,
    LEFT_OUT,
    SINGLE,
    assert_cuts_alike,
    assert_same_function,
    disturbed,
    graph_of,
    model_named,
    moments,
    new_names,
    parameters,
    unfolded_of,
)
from helpers import CONTRIB, analyse, assert_close, assert_valid, build, make_feed, random_keep
from nets import (
    draw_samples,
    error_of,
    make_static,
)
from onnx import helper

from obc_onnx.equivalent import norms as unfolding
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.equivalent.norms import EPSILON, fold_norms, unfold_norms
from obc_onnx.errors import DataError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.surgery.cut import Cut


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_value_of_the_original_keeps_its_name_and_its_numbers(name: str) -> None:
    graph = Graph.from_model(model_named(name))
    unfolded = unfolded_of(graph)
    values, feed = [node.key for node in graph.nodes], make_feed(graph, np.random.default_rng(1), 3)
    found, expected = (
        Session(g, optimize=False, outputs=values).run(feed) for g in (unfolded.graph, graph)
    )
    assert_close(found, expected, SINGLE)
    assert unfolded.original is graph
    assert unfolded.norms
    assert len(unfolded.graph.nodes) == len(graph.nodes) + len(unfolded.norms)
    assert unfolded.graph.inputs == graph.inputs
    assert unfolded.graph.outputs == graph.outputs
    assert_valid(unfolded.graph)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_statistics_are_those_of_all_samples_at_the_convolution(name: str) -> None:
    """Fifty samples are a whole run and a part of one."""
    graph = Graph.from_model(model_named(name))
    samples = draw_samples(graph, 50)
    unfolded = unfold_norms(graph, samples, seed=0)
    for norm in unfolded.norms:
        node = unfolded.graph.producers[norm]
        assert node.op_type == "BatchNormalization"
        assert node.number("epsilon", 0.0) == EPSILON == np.float32(1e-5)
        scale, bias, mean, var = parameters(unfolded.graph, norm)
        expected_mean, expected_var = moments(graph, norm, samples)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(var, expected_var, rtol=1e-5)
        np.testing.assert_allclose(scale, np.sqrt(var.astype(np.float64) + EPSILON), rtol=1e-6)
        assert np.array_equal(bias, mean)


def test_a_far_mean_does_not_spoil_the_variance() -> None:
    graph = graph_of(CHAIN).edit({"b1": np.full(6, 1e7, np.float32)})
    samples = draw_samples(graph, 50)
    _, _, mean, var = parameters(unfold_norms(graph, samples, 0).graph, "c1")
    expected_mean, expected_var = moments(graph, "c1", samples)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)


def test_training_sees_what_the_norm_was_measured_on() -> None:
    """In training mode a batch of all samples is normed by the very statistics that are stored."""
    graph = graph_of(CHAIN)
    samples = draw_samples(graph, 40)
    coupling = analyse(unfold_norms(graph, samples, 0).graph).coupling
    twin = EquivalentTwin(Cut(coupling, {}, coupling.graph))
    x = torch.from_numpy(samples.inputs["x"])
    with torch.no_grad():
        expected, found = twin.eval()(x)[0], twin.train()(x)[0]
    assert error_of(found, expected) < SINGLE


def test_runs_in_which_nothing_reaches_the_convolution_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only samples with a large number pass: one in seven, or none."""
    text = CHAIN.replace("(float[N,4] y)", "(float[M,4] y)").replace(
        "c1 = Conv(x, w1, b1)",
        "m = ReduceMax<axes=[1,2,3],keepdims=0>(x) large = Greater(m, limit)"
        " some = Compress<axis=0>(x, large) c1 = Conv(some, w1, b1)",
    )
    monkeypatch.setattr(unfolding, "_ROWS", 2)
    graph = graph_of(text, {"limit": 3.0})
    samples = draw_samples(graph, 50)
    _, _, mean, var = parameters(unfold_norms(graph, samples, 0).graph, "c1")
    expected_mean, expected_var = moments(graph, "c1", samples)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)
    assert unfolded_of(graph_of(text, {"limit": 9.0})).norms == ()


def test_a_convolution_that_is_fused_with_more_stays_without_a_norm() -> None:
    fused = CHAIN.replace("c1 = Conv(x", f'c1 = {CONTRIB}.FusedConv<activation="Tanh">(x')
    for text, is_plain in ((CHAIN, True), (fused, False)):
        graph = graph_of(text)
        filters = unfolding._filters_of(graph, DEFAULT_RULES, graph.producers["c1"])
        assert (filters is not None) == ("c1" in unfolded_of(graph).norms) == is_plain


def test_no_more_samples_are_measured_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolding, "MEASURED", 40)
    graph = graph_of(CHAIN)
    samples = draw_samples(graph, 90)
    chosen = np.random.default_rng(7).permutation(90)[:40]
    _, _, mean, var = parameters(unfold_norms(graph, samples, 7).graph, "c2")
    expected_mean, expected_var = moments(graph, "c2", samples.part(chosen))
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)


def test_the_seed_decides_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolding, "MEASURED", 40)
    graph = graph_of(CHAIN)
    samples = draw_samples(graph, 90)
    first, again, other = (unfold_norms(graph, samples, seed).graph.sha256 for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("n_bytes", "passes"),
    [
        (1, [["c1"], ["c2"], ["last"]]),
        (32 * 4 * (6 + 8) * 4 * 4 + 1, [["c1", "c2"], ["last"]]),
        (2**29, [["c1", "c2", "last"]]),
    ],
)
def test_what_does_not_fit_into_memory_together_is_measured_in_passes(
    monkeypatch: pytest.MonkeyPatch, n_bytes: int, passes: list[list[str]]
) -> None:
    """A run of 32 samples gives 6 x 4 x 4 floats each, 8 x 4 x 4 and 5 x 3 x 3."""
    opened = []

    class Watched(Session):
        def __init__(self, graph: Graph, *, outputs: list[str]) -> None:
            opened.append(outputs)
            super().__init__(graph, outputs=outputs)

    graph = graph_of(CHAIN)
    expected = unfolded_of(graph).graph.sha256
    monkeypatch.setattr(unfolding, "_RUN_BYTES", n_bytes)
    monkeypatch.setattr(unfolding, "Session", Watched)
    assert unfolded_of(graph).graph.sha256 == expected
    assert opened == passes


@pytest.mark.parametrize("case", LEFT_OUT)
def test_only_what_can_be_folded_again_is_unfolded(case: str) -> None:
    text, expected, constants = LEFT_OUT[case]
    graph = graph_of(text, constants)
    unfolded = unfolded_of(graph)
    assert set(unfolded.norms) == expected
    assert_same_function(unfolded.graph, graph)
    if not expected:
        assert unfolded.graph is graph
        assert fold_norms(graph, unfolded) is graph


@pytest.mark.parametrize(("batch", "gets_one"), [(None, True), (1, False), (4, True)])
def test_a_norm_needs_more_than_one_value_per_channel(batch: int | None, gets_one: bool) -> None:
    model = build(GATED)
    if batch is not None:
        make_static(model, batch)
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert unfolded.norms == (("c1", "c2", "last") if gets_one else ("c1", "last"))
    assert_same_function(unfolded.graph, graph)


def test_a_single_sample_gives_no_statistics_behind_pooling() -> None:
    assert unfolded_of(graph_of(GATED), 1).norms == ("c1", "last")


def test_a_static_batch_is_measured_in_whole_batches() -> None:
    model = build(CHAIN)
    make_static(model, 16)
    samples = draw_samples(Graph.from_model(model), 40)
    chosen = np.random.default_rng(0).permutation(40)[:32]
    unfolded = unfold_norms(Graph.from_model(model), samples, 0)
    mean, _ = moments(graph_of(CHAIN), "c1", samples.part(chosen))
    np.testing.assert_allclose(parameters(unfolded.graph, "c1")[2], mean, rtol=1e-4, atol=1e-6)


def test_samples_that_fill_no_batch_are_refused() -> None:
    model = build(CHAIN)
    make_static(model, 16)
    graph = Graph.from_model(model)
    with pytest.raises(DataError, match="15 samples do not fill the model's batch of 16"):
        unfolded_of(graph, 15)


def test_a_value_that_a_subgraph_reads_stays_the_same() -> None:
    graph = graph_of(
        CHAIN.replace("float[6] b1,", "float[6] b1, int64 one = {1},").replace(
            "t2 = Tanh(c2)",
            "flag = Cast<to=9>(one) t2 = If(flag) <"
            " then_branch = yes () => (float[N,8,4,4] z) { z = Tanh(c2) },"
            " else_branch = no () => (float[N,8,4,4] z) { z = Neg(c2) }>",
        )
    )
    unfolded = unfolded_of(graph)
    assert unfolded.norms == ("c1", "c2", "last")
    assert_same_function(unfolded.graph, graph)
    assert_valid(unfolded.graph)
    assert_same_function(fold_norms(unfolded.graph, unfolded), graph)
    coupling = analyse(graph).coupling
    keep = random_keep(coupling, np.random.default_rng(0))
    assert_cuts_alike(coupling, keep, unfolded)


def test_a_channel_that_never_varies_keeps_its_value() -> None:
    graph = graph_of(CHAIN)
    weight, bias = graph.initializers["w1"].copy(), graph.initializers["b1"].copy()
    weight[:2], bias[:2] = 0.0, (0.0, 3.0)
    graph = graph.edit({"w1": weight, "b1": bias})
    unfolded = unfolded_of(graph)
    scale, shift, mean, var = parameters(unfolded.graph, "c1")
    assert var[:2].tolist() == [0.0, 0.0]
    assert mean[:2].tolist() == shift[:2].tolist() == [0.0, 3.0]
    assert scale[0] == np.float32(np.sqrt(EPSILON))
    assert_same_function(unfolded.graph, graph)
    folded = fold_norms(unfolded.graph, unfolded)
    assert_same_function(folded, graph)
    assert folded.initializers["b1"][:2].tolist() == pytest.approx([0.0, 3.0], rel=1e-6)


def test_statistics_that_are_not_finite_are_left_out() -> None:
    graph = graph_of(CHAIN)
    graph = graph.edit({"w1": np.full_like(graph.initializers["w1"], 3e38)})
    assert "c1" not in unfolded_of(graph).norms


def test_names_that_are_taken_are_not_used_again() -> None:
    model = build(CHAIN)
    names = {"b1": "c1.norm.scale", "c2": "c1.unnormed", "w2": "c1.unnormed.bias"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert unfolded.norms == ("c1", "c1.unnormed", "last")
    assert_same_function(unfolded.graph, graph)
    folded = fold_norms(disturbed(unfolded.graph, unfolded.norms), unfolded)
    assert new_names(folded, graph) == ["c1.unnormed.bias.1", "last.bias"]


def test_a_file_that_lists_its_weights_as_inputs_lists_the_new_ones_too() -> None:
    model = build(CHAIN, opset=8)
    model.ir_version = 3
    weights = model.graph.initializer
    model.graph.input.extend(
        helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights
    )
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert unfolded.norms == ("c1", "c2", "last")
    assert [port.name for port in unfolded.graph.inputs] == ["x"]
    assert_same_function(unfolded.graph, graph)
    folded = fold_norms(disturbed(unfolded.graph, unfolded.norms), unfolded)
    for made in (unfolded.graph, folded):
        onnx.checker.check_model(made.to_model())


def test_opsets_whose_norms_take_statistics_of_the_batch_are_left_alone() -> None:
    assert unfolded_of(Graph.from_model(build(CHAIN, opset=6))).norms == ()
