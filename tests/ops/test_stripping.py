"""Every operator of the table between units that do nothing: it lets what is known pass, or stops.

The oracle is ONNX Runtime, before and after.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import TOLERANCE, assert_close, run_onnx
from ops.test_conformance import BATCH, CASES
from planting import floats, plant, reading

from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.stripping.strip import strip_graph

if TYPE_CHECKING:
    from collections.abc import Collection

    from ops.cases import Case

    from obc_onnx.graph.model import Graph

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_stripped_model_computes_the_same(case: Case) -> None:
    feed = case.feed(np.random.default_rng(zlib.crc32(case.id.encode())), BATCH)
    graph, wanted = planted_in(case, KINDS)
    before = run_onnx(graph, feed)
    if not all(np.isfinite(value).all() for value in before.values()):  # a divisor is zero
        graph, wanted = planted_in(case, ("unread", "same"))
        before = run_onnx(graph, feed)
    proven = graph.with_batch(replace(graph.batch_axes, proven=True))
    shapes = {name: array.shape for name, array in feed.items()}
    stripped = strip_graph(proven, shapes, DEFAULT_RULES, 0)
    tolerance = case.tolerance if case.tolerance > TOLERANCE else REORDERED
    assert_close(run_onnx(stripped.graph, feed), before, tolerance)
    gone = Counter[str]()
    for found in (found for findings in stripped.rounds for found in findings):
        gone[found.group] += len(found.units)
    if os.environ.get("STRIP_LOG"):
        with open("/tmp/strip_log", "a") as f:
            f.write(
                json.dumps(
                    [
                        case.id,
                        wanted,
                        gone,
                        sorted(
                            g.name
                            for g in case.analysed.coupling.groups
                            if g.name in wanted
                            and all(n in floats(graph) for n in reading(case.analysed.coupling, g))
                            and not any(
                                f.group == g.name and 0 in f.units
                                for r in stripped.rounds
                                for f in r
                            )
                        ),
                    ]
                )
                + "\n"
            )
