"""Costs: totals and what single units save are those of recounts on graphs that were really cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, coupling_of, random_keep
from nets import NETS, model_of

from obc_onnx.planning.costs import COSTS, FileSize, Macs, Params
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.coupling.model import Coupling, Group, Keep

UNEVEN = (
    "net (float[N,6] x) => (float[N,4] y) <float[8,6] w1, float[5,8] w2, float[5,3] w3,"
    " float[4,5] fc>"
    "{ a = Gemm<transB=1>(x, w1) t = Tanh(a) b = Gemm<transB=1>(t, w2)"
    "  g = Gather<axis=1>(t, picked) c = Gemm<transB=1>(g, w3) s = Add(b, c) u = Tanh(s)"
    "  y = Gemm<transB=1>(u, fc) }"
)
"""Three of the eight units of `w1:0` are read twice: they cost more than the others."""


def coupling(net: str) -> Coupling:
    if net == "uneven":
        return coupling_of(UNEVEN, {"picked": [1, 4, 6]})
    return analyse(model_of(net)).coupling


def without(group: Group, keep: Keep, unit: int) -> Keep:
    left = keep.get(group.dim, np.ones(group.size, np.bool_)).copy()
    left[unit] = False
    return {**keep, group.dim: left}


def recounts(of: Coupling, keep: Keep) -> tuple[int, int]:
    """Cut, analyse what is left as if it were a new model, and count."""
    again = analyse(remove_units(of, keep)).coupling
    return again.macs({}), again.graph.params


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("net", [*NETS, "uneven"])
def test_what_every_unit_saves_is_the_difference_of_two_recounts(net: str, *, cut: bool) -> None:
    of = coupling(net)
    keep = random_keep(of, np.random.default_rng(1), 0.5) if cut else {}
    before = recounts(of, keep)
    assert before == (Macs(of).total(keep), Params(of).total(keep))
    for group in of.groups:
        saved = [cost(of).marginal(group, keep) for cost in (Macs, Params)]
        left = keep.get(group.dim, np.ones(group.size, np.bool_))
        assert all((found[~left] == 0).all() for found in saved), "what is gone saves nothing"
        if left.sum() == 1:
            continue  # nothing could be analysed without it
        for unit in np.flatnonzero(left):
            fewer = without(group, keep, int(unit))
            after = recounts(of, fewer)
            assert [found[unit] for found in saved] == [
                b - a for b, a in zip(before, after, strict=True)
            ]


def test_units_that_are_read_twice_cost_more() -> None:
    of = coupling("uneven")
    (group,) = [group for group in of.groups if group.name == "w1:0"]
    picked = np.isin(np.arange(8), [1, 4, 6])
    np.testing.assert_array_equal(Macs(of).marginal(group, {}), 6 + 5 + 5 * picked)
    np.testing.assert_array_equal(Params(of).marginal(group, {}), 6 + 5 + 5 * picked)


@pytest.mark.parametrize("net", [*NETS, "uneven"])
def test_the_size_is_that_of_the_written_file(net: str, tmp_path: Path) -> None:
    of = coupling(net)
    for seed in range(3):
        keep = random_keep(of, np.random.default_rng(seed))
        path = tmp_path / f"{seed}.onnx"
        remove_units(of, keep).save(path)
        assert FileSize(of).total(keep) == path.stat().st_size


def test_what_a_unit_saves_of_the_file_is_predicted_by_its_weights() -> None:
    of = coupling("residual")
    for group in of.groups:
        (unit,) = np.flatnonzero(np.arange(group.size) == 2)
        saved = FileSize(of).full - FileSize(of).total(without(group, {}, int(unit)))
        assert abs(FileSize(of).marginal(group, {})[unit] - saved) <= 8, (
            "lengths are written as well"
        )
        np.testing.assert_array_equal(
            FileSize(of).marginal(group, {}), 4 * Params(of).marginal(group, {})
        )


@pytest.mark.parametrize("name", [name for name, cost in COSTS.items() if not cost.is_timed])
def test_the_parts_of_a_cost_add_up(name: str) -> None:
    of = coupling("residual")
    cost = COSTS[name](of)
    labels = [label for _, label in cost.parts({})]
    assert sum(part for part, _ in cost.parts({})) <= cost.full
    assert ("Conv 'c1'" if name == "macs" else "'w1'") in labels
