"""Properties of surgery that hold for every net."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import BLOCKS, HEADS, build_net, nets
from helpers import (
    analyse,
    assert_close,
    assert_pruned_equals_masked,
    assert_recount_agrees,
    assert_valid,
    make_feed,
    random_keep,
    removes_something,
    run_onnx,
    run_twin,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from token_graphs import TOKEN_BLOCKS, TOKEN_HEADS, build_token_net, token_nets

from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    import onnx

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph

every_net = st.one_of(nets, token_nets)
seeds = st.integers(0, 2**16)
VARIANTS = range(7)


def everything(coupling: Coupling) -> Keep:
    """Keep every unit, but say so for each group."""
    return {group.dim: np.ones(group.size, np.bool_) for group in coupling.groups}


def assert_pruning_is_exact(coupling: Coupling, keep: Keep, rng: np.random.Generator) -> Graph:
    feeds = [make_feed(coupling.graph, rng, batch) for batch in (1, 3)]
    for feed in feeds:
        pruned = assert_pruned_equals_masked(coupling, keep, feed)
    return pruned


def assert_random_plan_is_exact(model: onnx.ModelProto, seed: int) -> None:
    coupling, rng = analyse(model).coupling, np.random.default_rng(seed)
    keep = random_keep(coupling, rng)
    assume(removes_something(keep))
    pruned = assert_pruning_is_exact(coupling, keep, rng)
    assert_recount_agrees(coupling, keep, pruned)


@settings(max_examples=500)
@given(model=nets, seed=seeds)
def test_a_pruned_net_equals_the_masked_net_and_costs_what_was_predicted(
    model: onnx.ModelProto, seed: int
) -> None:
    assert_random_plan_is_exact(model, seed)


@settings(max_examples=500)
@given(model=token_nets, seed=seeds)
def test_a_pruned_token_net_equals_the_masked_one_and_costs_what_was_predicted(
    model: onnx.ModelProto, seed: int
) -> None:
    assert_random_plan_is_exact(model, seed)


@settings(max_examples=200)
@given(model=every_net, seed=seeds)
def test_the_whole_net_with_the_weights_of_a_cut_gives_what_the_cut_gives(
    model: onnx.ModelProto, seed: int
) -> None:
    coupling, rng = analyse(model).coupling, np.random.default_rng(seed)
    keep = coupling.exact(random_keep(coupling, rng))
    assume(removes_something(keep))
    cut = Cut.of(coupling, keep)
    weights = {role.node.inputs[role.slot] for role in coupling.roles}
    arrays = cut.pruned.initializers
    changed = cut.holding(
        cut.pruned.edit(
            {
                name: arrays[name] * rng.uniform(0.5, 1.5, arrays[name].shape).astype(np.float32)
                for name in sorted(weights & arrays.keys())
                if arrays[name].dtype == np.float32
            }
        )
    )
    feed = make_feed(coupling.graph, rng, 3)
    oracle, whole = Oracle(coupling, keep, feed), changed.whole()
    masked = oracle.run_masked(mask_reads(whole, keep))
    assert_close(oracle.run_pruned(changed.pruned), masked)
    assert whole.graph.sha256 == coupling.graph.sha256


@settings(max_examples=100)
@given(model=every_net, seed=seeds)
def test_a_net_runs_and_costs_what_was_predicted_without_inexact_units_too(
    model: onnx.ModelProto, seed: int
) -> None:
    coupling, rng = analyse(model).coupling, np.random.default_rng(seed)
    keep = random_keep(coupling, rng, inexact=True)
    assume(coupling.exact(keep) != keep)
    pruned = remove_units(coupling, keep)
    assert_valid(pruned)
    run_onnx(pruned, make_feed(pruned, rng, 3))
    assert_recount_agrees(coupling, keep, pruned)


@settings(max_examples=60)
@given(model=every_net, seed=seeds)
def test_keeping_everything_changes_nothing(model: onnx.ModelProto, seed: int) -> None:
    graph, _, coupling = analyse(model)
    before = graph.to_model().SerializeToString(deterministic=True)
    feed = make_feed(graph, np.random.default_rng(seed))
    for keep in ({}, everything(coupling)):
        kept = remove_units(coupling, keep)
        assert kept.to_model().SerializeToString(deterministic=True) == before
        assert_close(run_onnx(kept, feed), run_onnx(graph, feed), 0.0)
        assert_close(run_onnx(mask_reads(coupling, keep), feed), run_onnx(graph, feed), 0.0)


@settings(max_examples=30)
@given(model=every_net, seed=seeds)
def test_surgery_leaves_its_input_as_it_is(model: onnx.ModelProto, seed: int) -> None:
    graph, _, coupling = analyse(model)
    before = graph.to_model().SerializeToString(deterministic=True)
    keep = random_keep(coupling, np.random.default_rng(seed))
    remove_units(coupling, keep)
    mask_reads(coupling, keep)
    assert graph.to_model().SerializeToString(deterministic=True) == before


@settings(max_examples=60)
@given(model=every_net, seed=seeds)
def test_the_twin_of_a_pruned_net_equals_onnx_runtime(model: onnx.ModelProto, seed: int) -> None:
    coupling, rng = analyse(model).coupling, np.random.default_rng(seed)
    pruned, shapes, _ = analyse(remove_units(coupling, random_keep(coupling, rng)))
    feed = make_feed(pruned, rng, 3)
    assert_close(run_twin(pruned, shapes, feed), run_onnx(pruned, feed))


def assert_something_goes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Every operator is known; where a norm holds all units, they still go on request."""
    coupling = analyse(model).coupling
    assert not coupling.unknown
    keep = random_keep(coupling, rng, inexact=True)
    assert keep
    assert_pruning_is_exact(coupling, coupling.exact(keep), rng)


@pytest.mark.parametrize("head", range(len(HEADS)), ids=[head.__name__ for head in HEADS])
@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_leaves_something_to_prune(block: str, head: int) -> None:
    rng = np.random.default_rng(0)
    for variant in VARIANTS:
        if block == "second_output" and variant % 2:
            continue  # the only group is an output then
        assert_something_goes(build_net([(block, 0, variant)], head), rng)


@pytest.mark.parametrize("head", range(len(TOKEN_HEADS)))
@pytest.mark.parametrize("block", sorted(TOKEN_BLOCKS))
def test_every_token_block_leaves_something_to_prune(block: str, head: int) -> None:
    rng = np.random.default_rng(0)
    for variant in VARIANTS:
        assert_something_goes(build_token_net([(block, 0, variant)], head), rng)


def test_a_shuffle_that_is_cut_and_shuffled_again_costs_what_was_predicted() -> None:
    """Regression: a unit that occurs in two halves of an axis was counted apart."""
    recipe = [
        ("concat", 0, 0),
        ("shuffle_and_split", 1, 2),
        ("add", 1, 0),
        ("add", 0, 0),
        ("shuffle", 0, 4),
    ]
    coupling = analyse(build_net(recipe)).coupling
    for seed in range(10):
        keep = random_keep(coupling, np.random.default_rng(seed))
        assert_recount_agrees(coupling, keep, remove_units(coupling, keep))
