"""Norms that were put behind convolutions, folded again: trained, cut, in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from equivalent.unfolding_cases import (
    APART,
    CHAIN,
    CONVOLUTIONS,
    COPIED,
    HALF,
    JOINED,
    MODELS,
    MORE,
    ORDER,
    SHIPPED,
    SINGLE,
    assert_cuts_alike,
    assert_same_function,
    coupled,
    disturbed,
    graph_of,
    in_half,
    joined,
    model_named,
    new_names,
    parameters,
    structure,
    unfolded_of,
)
from graphs import BLOCKS, build_net
from helpers import analyse, assert_close, assert_valid, build, random_keep, run_onnx
from nets import (
    NETS,
    draw_inputs,
    draw_samples,
    model_of,
    sine_loss,
)
from onnx import helper

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.equivalent.norms import fold_norms, same_units, unfold_norms
from obc_onnx.errors import InvariantError
from obc_onnx.graph.model import Graph
from obc_onnx.samples.read import load_samples
from obc_onnx.surgery.cut import Cut, remove_units

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_what_was_not_trained_folds_to_the_original(name: str) -> None:
    graph = Graph.from_model(model_named(name))
    unfolded = unfolded_of(graph)
    folded = fold_norms(unfolded.graph, unfolded)
    assert structure(folded) == structure(graph)
    for key, array in graph.initializers.items():
        np.testing.assert_allclose(folded.initializers[key], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_norms_that_were_trained_are_folded(name: str) -> None:
    graph = Graph.from_model(model_named(name))
    unfolded = unfolded_of(graph)
    trained = disturbed(unfolded.graph, unfolded.norms)
    folded = fold_norms(trained, unfolded)
    assert_same_function(folded, trained)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_function(folded, graph)
    assert_valid(folded)
    bare = [key for key in unfolded.norms if not graph.producers[key].has_input(2)]
    assert new_names(folded, graph) == sorted(f"{key}.bias" for key in bare)
    assert structure(folded, new_names(folded, graph)) == structure(graph)
    assert {n.op_type for n in folded.nodes} == {n.op_type for n in graph.nodes}


def test_a_bias_is_added_only_where_the_function_needs_it() -> None:
    graph = graph_of(CHAIN)
    unfolded = unfolded_of(graph)
    scale, shift = unfolded.graph.producers["c2"].inputs[1:3]
    arrays = unfolded.graph.initializers
    moved = unfolded.graph.edit({shift: arrays[shift] + np.float32(1e-5)})
    folded = fold_norms(moved, unfolded)
    assert new_names(folded, graph) == ["c2.bias"]
    np.testing.assert_allclose(folded.initializers["c2.bias"], 1e-5, rtol=5e-2)
    grown = unfolded.graph.edit({scale: 2 * arrays[scale], shift: 2 * arrays[shift]})
    folded = fold_norms(grown, unfolded)
    assert new_names(folded, graph) == []
    np.testing.assert_allclose(folded.initializers["w2"], 2 * graph.initializers["w2"], rtol=1e-6)


def test_a_bias_that_there_was_is_written_though_it_vanishes() -> None:
    graph = graph_of(CHAIN)
    unfolded = unfolded_of(graph)
    arrays = unfolded.graph.initializers
    _, shift, mean, _ = unfolded.graph.producers["c1"].inputs[1:]
    moved = unfolded.graph.edit({shift: arrays[mean] - arrays["b1"]})
    folded = fold_norms(moved, unfolded)
    assert np.abs(folded.initializers["b1"]).max() < 1e-6 < np.abs(graph.initializers["b1"]).max()
    assert_same_function(folded, moved)


def test_everything_that_describes_the_model_is_kept() -> None:
    model = build(CHAIN)
    model.producer_name, model.doc_string = "someone", "a chain"
    helper.set_model_props(model, {"classes": "4"})
    for number, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"node {number}", f"this is {node.op_type}"
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert structure(fold_norms(unfolded.graph, unfolded)) == structure(graph)
    assert unfolded.graph.producers["c1"].name == "c1.norm"
    assert unfolded.graph.to_model().metadata_props == model.metadata_props


def test_a_graph_without_the_norms_is_refused() -> None:
    graph = graph_of(CHAIN)
    with pytest.raises(InvariantError, match="norm 'c1'"):
        fold_norms(graph, unfolded_of(graph))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_half_precision_stays_what_it_is(name: str) -> None:
    graph = in_half(model_of(name) if name in NETS else build(MORE[name]))
    unfolded = unfolded_of(graph)
    assert {p.dtype for norm in unfolded.norms for p in parameters(unfolded.graph, norm)} == {
        np.dtype(np.float16)
    }
    assert_same_function(unfolded.graph, graph, HALF)
    trained = disturbed(unfolded.graph, unfolded.norms)
    folded = fold_norms(trained, unfolded)
    assert_same_function(folded, trained, HALF)
    assert {array.dtype.name for array in folded.initializers.values()} <= {"float16", "int64"}


def test_statistics_that_half_precision_cannot_hold_are_left_out() -> None:
    """Of 6e4 times a normal number, which float16 holds, the variance is 3e9, which it does not."""
    graph = in_half(build(CHAIN))
    graph = graph.edit({"w1": (graph.initializers["w1"] * np.float16(1e3))})
    assert unfolded_of(graph).norms == ("c2", "last")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_net_folds_to_the_cut_of_the_original(name: str, seed: int) -> None:
    graph, _, coupling = analyse(model_of(name))
    keep = random_keep(coupling, np.random.default_rng(seed), inexact=True)
    assert_cuts_alike(coupling, keep, unfolded_of(graph))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("head", range(3))
def test_blocks_of_all_kinds_are_cut_alike(block: str, head: int) -> None:
    recipe = [(block, 0, 1), ("conv", 0, 0), (block, 0, 2)]
    graph, _, coupling = analyse(build_net(recipe, head, seed=1))
    unfolded = unfolded_of(graph, 20)
    for seed in (1, 2):
        keep = random_keep(coupling, np.random.default_rng(seed), inexact=True)
        assert_cuts_alike(coupling, keep, unfolded)


@pytest.mark.parametrize(
    "sizes",
    [
        "to = Concat<axis=0>(n, k)",
        "t = Concat<axis=0>(n, k) to = Identity(t)",
        "t = Concat<axis=0>(n, k) u = Identity(t) to = Identity(u)",
    ],
)
def test_nodes_that_surgery_copies_stand_where_they_would(sizes: str) -> None:
    graph, _, coupling = analyse(build(COPIED.replace("SIZES", sizes)))
    unfolded = unfolded_of(graph)
    for seed in range(4):
        keep = random_keep(coupling, np.random.default_rng(seed))
        cut = remove_units(coupling, keep)
        assert_cuts_alike(coupling, keep, unfolded)
    assert len(cut.nodes) > len(graph.nodes)


def test_nodes_that_surgery_drops_are_gone() -> None:
    recipe = [("half_of_shape", 0, 1), ("conv", 0, 0), ("half_of_shape", 0, 2)]
    graph, _, coupling = analyse(build_net(recipe, seed=1))
    keep = random_keep(coupling, np.random.default_rng(2), inexact=True)
    assert len(remove_units(coupling, keep).nodes) < len(graph.nodes)
    assert_cuts_alike(coupling, keep, unfolded_of(graph))


def test_attributes_that_surgery_drops_are_gone() -> None:
    text = JOINED.replace(
        "BODY",
        "p, q = Split<axis=1,num_outputs=2>(c1) t = Tanh(q) j = Concat<axis=1>(p, t, c2)",
    )
    graph, _, coupling = analyse(build(text, opset=18))
    first = next(group for group in coupling.groups if group.name.startswith("w1:0"))
    keep = {first.dim: np.arange(first.size) > 0}
    cut = remove_units(coupling, keep)
    assert "num_outputs" not in cut.producers["p"].attributes
    assert_cuts_alike(coupling, keep, unfolded_of(graph))


def test_training_at_the_cut_width_folds_back() -> None:
    graph, _, coupling = analyse(model_of("transposed blocks"))
    unfolded = unfolded_of(graph)
    with_norms = coupled(unfolded.graph)
    keep = random_keep(coupling, np.random.default_rng(0))
    normed_keep = same_units(coupling, keep, with_norms)
    normed = remove_units(with_norms, normed_keep)
    twin = EquivalentTwin(Cut(with_norms, normed_keep, normed)).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        sine_loss(twin(*draw_inputs(graph, 8))).backward()
        optimizer.step()
    trained = twin.eval().fold(normed)
    folded = fold_norms(trained, unfolded)
    assert_same_function(folded, trained)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_function(folded, remove_units(coupling, keep))


@pytest.mark.parametrize(
    ("plain", "other", "message"),
    [
        (APART, "j = Concat<axis=1>(c2, c1)", "group 'w[12]:0' differs at 'w3'"),
        ("s = Add(c1, c2) j = Concat<axis=1>(s, s)", APART, "group 'w1:0' differs at"),
        (APART, "s = Add(c1, c2) j = Concat<axis=1>(s, s)", "joined, frozen or gone"),
        (APART, "z = Neg(c1) j = Concat<axis=1>(c1, c2)", "joined, frozen or gone"),
        (APART, "g = Gather<axis=1>(c1, order) j = Concat<axis=1>(g, c2)", "positions of .*'w3'"),
    ],
)
def test_groups_that_do_not_correspond_are_refused(plain: str, other: str, message: str) -> None:
    coupling = joined(plain)
    text = JOINED.replace("BODY", other)
    if "z = " in other:
        text = text.replace("(float[N,4] y)", "(float[N,4] y, float[N,6,4,4] z)")
    unfolded = coupled(graph_of(text, ORDER if "order" in other else None))
    keep = {group.dim: np.arange(group.size) > 0 for group in coupling.groups}
    with pytest.raises(InvariantError, match=message):
        same_units(coupling, keep, unfolded)


def test_a_dim_of_another_graph_is_refused() -> None:
    coupling, other = joined(APART), joined(APART)
    keep = {group.dim: np.arange(group.size) > 0 for group in other.groups}
    with pytest.raises(InvariantError, match="gone"):
        same_units(coupling, keep, coupling)
    assert same_units(other, keep, coupling).keys() == {group.dim for group in coupling.groups}


@pytest.mark.parametrize("path", SHIPPED)
def test_a_trained_model_is_unfolded_cut_and_folded(path: Path) -> None:
    graph, _, coupling = analyse(Graph.load(path))
    sample = MODELS / "fashion-train.npz"
    fashion = path.parent == MODELS and sample.is_file()
    samples = load_samples(sample, graph) if fashion else draw_samples(graph, 64)
    unfolded = unfold_norms(graph, samples.part(slice(0, 64)), 0)
    convs = [node.key for node in graph.nodes if node.op_type == "Conv"]
    assert unfolded.norms == tuple(convs)
    feed = samples.feed(slice(0, 16))
    assert_close(run_onnx(unfolded.graph, feed), run_onnx(graph, feed), 10 * SINGLE)
    keep = random_keep(coupling, np.random.default_rng(0))
    assert_cuts_alike(coupling, keep, unfolded, 10 * SINGLE)
