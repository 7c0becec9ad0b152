"""An inspection as text: one line a group, in 80 columns, with what it is worth to cut it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
from helpers import build
from nets import NETS, model_of
from small import CHAIN, UNKNOWN

from obc_onnx.report.terminal import inspection_text
from obc_onnx.run.inspection import inspect

if TYPE_CHECKING:
    from obc_onnx.report.summary import Inspection

LONG_NAME = "/features/" + "block/" * 30 + "conv"
NORMED = (
    "net (float[N,5,8] x) => (float[N,5,4] y) <float[8,6] a, float[6] scale, float[6] shift,"
    " float[6,4] b>"
    "{ p = MatMul(x, a) q = LayerNormalization<axis=-1>(p, scale, shift) y = MatMul(q, b) }"
)


@cache
def long_names() -> Inspection:
    """A network with a name that no terminal is wide enough for, twice."""
    model = build(CHAIN)
    model.graph.node[0].name = f"{LONG_NAME}1"
    model.graph.node[2].name = f"{LONG_NAME}2"
    return inspect(model)


@pytest.mark.parametrize("name", NETS)
def test_every_line_fits_a_terminal(name: str) -> None:
    lines = inspection_text(inspect(model_of(name))).splitlines()
    assert max(map(len, lines)) <= 80


def test_long_names_are_told_apart_by_their_ends() -> None:
    lines = inspection_text(long_names()).splitlines()
    rows = [line for line in lines if line.startswith("  ...")]
    assert [row.split()[0][-5:] for row in rows] == ["conv1", "conv2"]
    assert max(map(len, lines)) <= 80
    assert f"  {LONG_NAME}" not in "\n".join(lines)


def test_a_group_has_its_width_and_what_depends_on_it() -> None:
    found = inspect(build(CHAIN))
    lines = inspection_text(found).splitlines()
    (row,) = (line.split() for line in lines if line.startswith("  p "))
    first = 64 * 12 * 27 + 36 * 20 * 12 * 9
    params = 12 * 27 + 12 + 20 * 12 * 9
    expected = f"p 12 {100 * first / found.macs:.1f} % {100 * params / found.params:.1f} %"
    assert row == expected.split()


def test_every_operator_is_counted() -> None:
    text = inspection_text(inspect(build(UNKNOWN)))
    table = text.partition("operators")[2].partition("groups")[0].splitlines()[1:]
    assert table[0].split()[:2] == ["Conv", "4"]
    assert "  2 more, which neither multiply nor hold weights" in table[1]
    assert table[1].split()[-1] == "3"


def test_inexact_groups_are_marked_and_it_is_said_how_far_they_go() -> None:
    text = inspection_text(inspect(build(NORMED)))
    assert "~ p  " in text
    # 1 of 6 units: everything that multiplies runs through the group
    assert "16.7 % where inexact groups, marked by ~, shrink too" in text
    assert "12.5 % of the units of each group need 100.0 % of the MACs" in text
    assert "inexact: mean and variance" in inspection_text(inspect(build(NORMED)), whole=True)


def test_frozen_dims_stand_below_their_reason_once() -> None:
    found = inspect(build(CHAIN))
    many = [{"where": f"w{i}:0", "size": 3, "reason": "the reason " * 20} for i in range(9)]
    text = inspection_text(replace(found, frozen=many))
    assert text.count("the reason") == 20
    assert "      w0:0(3) and 8 more" in text
    assert max(map(len, text.splitlines())) <= 80
    assert inspection_text(replace(found, frozen=many), whole=True).count("the reason") == 180
