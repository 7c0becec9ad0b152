"""Layers, operators and shares of groups, against the graph that surgery cuts, and brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers import analyse, build
from nets import NETS, draw_keep, model_of
from small import CHAIN, UNKNOWN, chain

from obc_onnx.planning.costs import Macs, Params
from obc_onnx.planning.ranking import narrowest, ranked
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import Scope
from obc_onnx.report.network import count_operators, list_layers, shares_of
from obc_onnx.report.summary import summarise_groups, summarise_saliency
from obc_onnx.run.inspection import inspect
from obc_onnx.surgery.cut import remove_units


@pytest.mark.parametrize("name", NETS)
def test_what_layers_are_left_with_is_what_the_cut_graph_has(name: str) -> None:
    coupling = analyse(model_of(name), batch=3).coupling
    keep = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    cut = {layer.node: layer for layer in list_layers(analyse(pruned, batch=3).coupling, {})}
    whole = list_layers(coupling, keep)
    assert {layer.node for layer in whole} == cut.keys()
    for layer in whole:
        found = cut[layer.node]
        assert (layer.macs_left, layer.params_left) == (found.macs, found.params)
        assert layer.kept == found.width
    assert sum(layer.macs for layer in whole) == coupling.macs({})
    assert sum(layer.macs_left for layer in whole) == coupling.macs(keep)
    assert sum(layer.params for layer in whole) == coupling.params({})


@pytest.mark.parametrize("name", NETS)
def test_what_depends_on_a_group_is_what_changes_where_one_unit_goes(name: str) -> None:
    coupling = analyse(model_of(name)).coupling
    shares = shares_of(coupling)
    for group in coupling.groups:
        fewer = np.ones(group.size, np.bool_)
        fewer[0] = False
        for cost, share in ((Macs(coupling), shares[group.dim].macs),):
            changed = sum(
                before
                for (before, _), (after, _) in zip(
                    cost.parts({}), cost.parts({group.dim: fewer}), strict=True
                )
                if before != after
            )
            assert share == changed
        sizes = coupling.graph.initializers
        shrunk = remove_units(coupling, {group.dim: fewer}).initializers
        assert shares[group.dim].params == sum(
            array.size for name, array in sizes.items() if shrunk[name].shape != array.shape
        )
        assert Params(coupling).around(group.dim, {}) == shares[group.dim].params


def test_a_layer_names_its_groups_and_what_is_frozen_and_why() -> None:
    first, second, last = list_layers(analyse(build(CHAIN)).coupling, {})
    assert (first.node, first.op_type, first.width, first.groups) == (
        "p",
        "Conv",
        12,
        ["a:0"],
    )
    assert (second.groups, second.frozen) == (["b:0"], [])
    assert (last.width, last.groups, last.frozen) == (4, [], ["graph output 'y'"])


def test_every_node_counts_for_its_operator() -> None:
    coupling = analyse(build(UNKNOWN)).coupling
    found = count_operators(coupling)
    nodes = build(UNKNOWN).graph.node
    names = [f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes]
    assert {one.op_type: one.count for one in found} == Counter(names)
    assert "com.microsoft.SampleOp" in names
    assert sum(one.macs for one in found) == coupling.macs({})
    assert found[0].op_type == "Conv"


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("round_to", [1, 2])
def test_the_narrowest_widths_are_where_a_ranking_of_all_cuts_ends(
    name: str, round_to: int
) -> None:
    coupling = analyse(model_of(name)).coupling
    rooms = rooms_of(coupling, Scope(round_to=round_to))
    equal = {group.name: np.zeros(group.size) for group in coupling.groups}
    expected = {group.dim: np.ones(group.size, np.bool_) for group in coupling.groups}
    for group, units in ranked(coupling, rooms, equal, {}, "global", [], {})[0]:
        expected[group.dim][units] = False
    found = narrowest(coupling, rooms)
    for group in coupling.groups:
        left = found.get(group.dim, np.ones(group.size, np.bool_))
        np.testing.assert_array_equal(left, expected[group.dim])


def test_an_inspection_says_how_far_the_whole_can_go() -> None:
    found = inspect(chain())
    # an eighth of 12 and of 20 units, upwards: 2 and 3
    assert found.least_macs == 64 * 2 * 27 + 36 * 3 * 2 * 9 + 3 * 4
    assert found.least_macs_inexact == found.least_macs


def test_the_share_of_saliency_that_went_is_of_the_units_that_went() -> None:
    coupling = analyse(build(CHAIN)).coupling
    (group, other) = coupling.groups
    scores = {group.name: np.arange(12.0), other.name: np.zeros(20)}
    keep = {group.dim: np.arange(12) >= 6}
    first, second = summarise_saliency(coupling, scores, keep)
    assert (first.group, first.least, first.median, first.greatest) == ("a:0", 0, 5.5, 11)
    assert first.removed == 15 / 66
    assert second.removed == 0, "where nothing is worth anything"


def test_a_group_goes_by_the_node_that_writes_its_units() -> None:
    first, second = summarise_groups(analyse(build(CHAIN)).coupling, {})
    assert (first.node, second.node) == ("p", "r")
