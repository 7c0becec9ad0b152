"""Branches drawn and left out, and the comparison with the graph in which they are scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers import TOLERANCE, assert_close, assert_valid, make_feed
from hypothesis import assume

from obc_onnx.branches.find import find_branches
from obc_onnx.surgery.cut import Cut
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    import numpy as np

    from obc_onnx.branches.find import StandIns
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph


def drawn(coupling: Coupling, rng: np.random.Generator) -> StandIns:
    """Draw branches to leave out, one at least."""
    found = find_branches(coupling)
    assume(found)
    some = [found[i] for i in rng.permutation(len(found))[: rng.integers(1, len(found) + 1)]]
    return {branch.value: branch.stand_in for branch in some}


def assert_left_out(
    coupling: Coupling, keep: Keep, stand_ins: StandIns, rng: np.random.Generator
) -> Graph:
    """Raise where removing is not the same as scaling to zero; return the graph without."""
    pruned = Cut.of(coupling, keep, stand_ins).pruned
    assert_valid(pruned)
    for batch in (1, 3):
        oracle = Oracle(coupling, keep, make_feed(coupling.graph, rng, batch), stand_ins)
        assert_close(oracle.run_pruned(pruned), oracle.run_masked(oracle.masked(keep)), TOLERANCE)
    return pruned
