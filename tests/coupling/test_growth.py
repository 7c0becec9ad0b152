"""What an inspection does grows with the model and no faster: calls are counted, not seconds."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graph_families import FAMILIES, PART, dense
from helpers import build, coupling_of
from onnx import numpy_helper

from obc_onnx.axes.expressions import LONG, Joined, describe, join, leaves
from obc_onnx.axes.unification import AxisSystem
from obc_onnx.coupling.analysis import Clock, analyse, load_model
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.report.terminal import inspection_text
from obc_onnx.run.inspection import inspect

if TYPE_CHECKING:
    from types import FrameType

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.report.summary import Inspection

LARGER_THAN_NODES = {"dense", "functions"}
"""What a dense block weighs grows with the square; functions come in steps of 50."""


def calls(model: onnx.ModelProto) -> int:
    """Count calls of functions, Python's and built-in ones, while a model is inspected."""
    count = 0

    def note(_frame: FrameType, event: str, _function: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        found = inspect(model)
        inspection_text(found, whole=True)
        found.to_json()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - LARGER_THAN_NODES))
def test_twice_the_nodes_take_twice_the_calls(family: str) -> None:
    inspect(FAMILIES[family](36))  # imports, and tables that are made once
    few, more, most = (calls(FAMILIES[family](n)) for n in (90, 180, 360))
    assert most - more < 2.4 * (more - few), "n log n is 2.24, and the square is 4"


@pytest.mark.parametrize(
    "family", ["dense", "scattered_slices", "slices", "slices_of_slices", "split", "windows"]
)
def test_twice_the_nodes_write_twice_the_parts(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls do not show how long a tuple is that one of them copies."""
    written = 0
    make = Joined.__init__

    def count(joined: Joined, parts: tuple[Expr, ...], *halves: tuple[Joined, Joined]) -> None:
        nonlocal written
        written += len(parts) + len(halves)
        make(joined, parts, *halves)

    monkeypatch.setattr(Joined, "__init__", count)
    counts = []
    for n in (200, 400, 800):
        written = 0
        inspect(FAMILIES[family](n))
        counts.append(written)
    few, more, most = counts
    assert most - more < 2.6 * (more - few)


def test_what_is_said_of_a_dense_block_grows_as_it_does() -> None:
    found = {n: inspect(dense(n)) for n in (240, 480)}
    sizes = {n: (len(inspection_text(f, whole=True)), len(f.to_json())) for n, f in found.items()}
    assert sizes[480][0] < 2.2 * sizes[240][0]
    assert sizes[480][1] / sizes[240][1] < dense(480).ByteSize() / dense(240).ByteSize()


def long_sum() -> Inspection:
    """Inspect a dense block of more layers than are shown."""
    return inspect(dense(2 * (LONG + 4)))


def test_a_long_sum_is_abbreviated_and_written_out_once() -> None:
    found = long_sum()
    last = next(line for group in found.groups for line in group.members if "more)" in line)
    place, _, expression = last.partition(" reads = ")
    beginning, _, more = expression.partition(" ++ ... (")
    assert found.axes[place.split(": ")[1]].startswith(beginning + " ++ ")
    n_parts = found.axes[place.split(": ")[1]].count(" ++ ") + 1
    assert beginning.count(" ++ ") + 1 + int(more.split()[0]) == n_parts > LONG
    assert json.loads(found.to_json())["axes"] == found.axes


def test_every_role_is_said_or_counted() -> None:
    found, coupling = long_sum(), coupling_of_model(dense(2 * (LONG + 4)))
    assert {g.name: g.n_members for g in found.groups} == {
        g.name: len(g.members) for g in coupling.groups
    }
    said = {line for group in found.groups for line in group.members}
    assert len(said) == sum(
        any(group.dim in leaves(coupling.axes[role.node.inputs[role.slot]][role.axis])
            for group in coupling.groups)
        for role in coupling.roles
    )  # fmt: skip
    text = inspection_text(found, whole=True)
    missing = sum(group.n_members - len(group.members) for group in found.groups)
    assert missing > 0
    counted = [
        int(line.split("(")[1].split()[0]) for line in text.splitlines() if "on axes" in line
    ]
    assert sum(counted) == missing


def coupling_of_model(model: onnx.ModelProto) -> object:
    return analyse(load_model(model), None, DEFAULT_RULES, Clock())[0]


def test_a_short_sum_is_written_out() -> None:
    system = AxisSystem()
    dims = [system.dim(PART) for _ in range(LONG + 1)]
    names = {dim: f"d{i}" for i, dim in enumerate(dims)}
    assert describe(join(dims[:LONG]), names).count(" ++ ") == LONG - 1
    assert describe(join(dims), names) == f"d0(2) ++ d1(2) ++ ... ({LONG - 1} more)"
    assert describe(join(dims), names, whole=True).endswith(f" ++ d{LONG}(2)")


def test_slices_of_slices_end_as_deep_as_they_go() -> None:
    model = FAMILIES["slices_of_slices"](1500)
    assert inspect(model).macs > 0


def test_a_value_that_is_joined_to_itself_again_and_again_is_frozen() -> None:
    steps = " ".join(f"c{i + 1} = Concat<axis=1>(c{i}, c{i})" for i in range(30))
    coupling = coupling_of(
        "net (float[N,3,4,4] x) => (float[N,a,b,c] y) <float[4,3,1,1] w>"
        f"{{ c0 = Conv(x, w) {steps} y = ReduceMax<axes=[1]>(c30) }}"
    )
    (frozen,) = [f for f in coupling.frozen if f.where == "w:0"]
    assert "concatenation" in frozen.reason


def test_nodes_with_one_vector_are_compared_with_few_others() -> None:
    """A matrix is shared as well, so that any two of them may be one layer."""
    model = FAMILIES["shared_vector"](400)
    first, second = (node for node in model.graph.node[:4] if node.op_type == "Conv")
    second.input[1] = first.input[1]
    few = calls(model)
    larger = FAMILIES["shared_vector"](800)
    first, second = (node for node in larger.graph.node[:4] if node.op_type == "Conv")
    second.input[1] = first.input[1]
    assert calls(larger) < 2.3 * few


def test_a_matrix_behind_copies_is_still_shared() -> None:
    array = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    model = build(
        "net (float[N,4] x) => (float[N,4] y) <float[4] b>"
        "{ v = Identity(w) u = Identity(v) p = MatMul(x, u) q = Add(p, b) r = Relu(q)"
        "  s = MatMul(r, w) y = Add(s, b) }",
        {"w": numpy_helper.to_array(array)},
    )
    assert load_model(model).copies == {}
