"""One table of operator forms, four tests for every row."""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import (
    TOLERANCE,
    assert_close,
    assert_layers_are_linear,
    assert_pruned_equals_masked,
    assert_recount_agrees,
    assert_valid,
    random_keep,
    run_onnx,
    run_twin,
)
from ops.cases_frozen import WITHOUT_ROWS
from torch.utils.flop_counter import FlopCounterMode

from obc_onnx.axes.expressions import leaves
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import known_types
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.surgery.cut import remove_units
from obc_onnx.twin.build import build_twin, derived_twin
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from ops.cases import Case

CASES: tuple[Case, ...] = tuple(
    case
    for path in sorted(Path(__file__).parent.glob("cases_*.py"))
    for case in importlib.import_module(f"ops.{path.stem}").CASES
)
BATCH = 3
N_KEEPS = 3
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def generator(case: Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(case.id.encode()))


@each_case
def test_a_pruned_model_equals_the_masked_model(case: Case) -> None:
    rng, (graph, _, coupling) = generator(case), case.analysed
    feed = case.feed(rng, BATCH)
    assert_valid(graph, {name: array.shape for name, array in feed.items()})
    for _ in range(N_KEEPS):
        keep = random_keep(coupling, rng)
        assert_pruned_equals_masked(coupling, keep, feed, case.tolerance)


@each_case
def test_the_operator_lets_units_go_unless_it_is_said_to_freeze(case: Case) -> None:
    graph, _, coupling = case.analysed
    free = {group.dim for group in coupling.groups}
    touched = {
        dim
        for node in graph.nodes
        if (node.domain, node.op_type) == (case.domain, case.op_type)
        for name in (*node.inputs, *node.outputs)
        for axis in coupling.axes.get(name, ())
        for dim in leaves(axis)
    }
    assert bool(touched & free) == case.prunes


@pytest.mark.parametrize("case", [c for c in CASES if c.has_twin], ids=lambda case: case.id)
def test_the_twin_equals_onnx_runtime(case: Case) -> None:
    graph, shapes, _ = case.analysed
    feed = case.feed(generator(case), BATCH)
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed), case.tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if c.has_twin], ids=lambda case: case.id)
def test_every_value_has_its_place_in_the_twin(case: Case) -> None:
    graph, _, coupling = case.analysed
    feed = case.feed(generator(case), BATCH)
    floats = {name for name, dtype in known_types(graph).items() if dtype == np.float32}
    ordered = {k for k, node in graph.producers.items() if node.integer("sorted", 1)}
    names = sorted(ordered & floats)
    values = Session(graph, optimize=False, outputs=names).run(feed)
    twin = derived_twin(graph, coupling, rounds=True)
    run = Lockstep(twin, [as_inputs(graph.inputs, feed)], names)
    run.advance(max(run.places.values()) + 1)
    finite = {name: value for name, value in values.items() if np.isfinite(value).all()}
    found = {name: run.values(name)[0].detach().numpy() for name in finite}
    assert_close(found, finite, case.tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if c.has_twin], ids=lambda case: case.id)
def test_what_repair_takes_for_linear_is_linear(case: Case) -> None:
    graph, _, coupling = case.analysed
    assert_layers_are_linear(graph, coupling, case.feed(generator(case), BATCH))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.counted and c.has_twin], ids=lambda case: case.id
)
def test_macs_are_half_of_what_torch_counts(case: Case) -> None:
    graph, shapes, coupling = case.analysed
    feed = case.feed(generator(case), BATCH)
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    with FlopCounterMode(display=False) as counter:
        twin(*[torch.from_numpy(feed[port.name]) for port in graph.inputs])
    batch = BATCH if coupling.batch is not None else 1
    assert 2 * batch * coupling.macs({}) == counter.get_total_flops()


@each_case
def test_predicted_cost_is_the_cost_of_the_pruned_model(case: Case) -> None:
    rng, coupling = generator(case), case.analysed.coupling
    feed = case.feed(rng, BATCH)
    for _ in range(N_KEEPS):
        keep = random_keep(coupling, rng, inexact=True)
        pruned = remove_units(coupling, keep)
        run_onnx(pruned, feed)
        assert_recount_agrees(coupling, keep, pruned)


def test_every_operator_has_a_case() -> None:
    found = {(case.domain, case.op_type) for case in CASES}
    assert found == set(DEFAULT_RULES.operators) - WITHOUT_ROWS


def test_names_are_unique_and_looser_tolerances_have_a_reason() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    assert all(case.reason for case in CASES if case.tolerance > TOLERANCE)


def test_every_case_contains_its_operator() -> None:
    for case in CASES:
        found = {(node.domain, node.op_type) for node in case.analysed.graph.nodes}
        assert (case.domain, case.op_type) in found, case.id
