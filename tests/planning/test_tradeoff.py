"""Which results of several targets are worth having: against the definitions, by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from obc_onnx.errors import RequestError
from obc_onnx.planning.tradeoff import Pick, Tradeoff, front, knee


def drawn(seed: int, n_results: int = 12) -> list[Tradeoff]:
    """Draw results on a coarse grid, so that some cost or lose the same."""
    rng = np.random.default_rng(seed)
    cost, drop = rng.integers(1, 9, n_results) / 8, rng.integers(-1, 6, n_results) / 8
    return [
        Tradeoff(float(i), float(c), float(d))
        for i, (c, d) in enumerate(zip(cost, drop, strict=True))
    ]


def curve(*pairs: tuple[float, float]) -> list[Tradeoff]:
    return [Tradeoff(cost, cost, drop) for cost, drop in pairs]


@pytest.mark.parametrize("seed", range(50))
def test_the_front_is_what_nothing_dominates(seed: int) -> None:
    results = drawn(seed)
    best = {
        (own.cost, own.drop)
        for own in results
        if not any(
            other.cost <= own.cost
            and other.drop <= own.drop
            and (other.cost, other.drop) != (own.cost, own.drop)
            for other in results
        )
    }
    found = front(results)
    assert [(result.cost, result.drop) for result in found] == sorted(best, reverse=True)
    assert set(found) <= set(results)


def test_the_knee_is_the_last_result_before_losses_grow() -> None:
    found = knee(curve((0.9, 0.0), (0.7, 0.01), (0.5, 0.02), (0.3, 0.2), (0.1, 0.5)))
    assert found is not None
    assert found.target == 0.5


def test_the_knee_does_not_depend_on_units() -> None:
    results = drawn(3)
    scaled = [Tradeoff(r.target, 7 * r.cost + 3, 1e3 * r.drop - 5) for r in results]
    found, again = knee(results), knee(scaled)
    assert found is not None
    assert again is not None
    assert found.target == again.target


def test_without_a_bend_there_is_no_knee() -> None:
    assert knee(curve((0.9, 0.0), (0.6, 0.3), (0.3, 0.6))) is None
    assert knee(curve((0.9, 0.0), (0.6, 0.5), (0.3, 0.6))) is None, "it bends the other way"
    assert knee(curve((0.9, 0.0), (0.3, 0.6))) is None
    assert knee([]) is None


RESULTS = curve((0.8, 0.0), (0.6, 0.01), (0.4, 0.02), (0.2, 0.3))


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all", [0.8, 0.6, 0.4, 0.2]),
        ("none", []),
        ("knee", [0.4]),
        ("max-drop=0.015", [0.6]),
        ("max-drop=0", [0.8]),
        ("max-drop=1", [0.2]),
        ("0.4", [0.4]),
        ("0.5", []),
    ],
)
def test_a_rule_picks(text: str, targets: list[float]) -> None:
    rule = Pick.of(text)
    assert [found.target for found in rule.chosen(RESULTS)] == targets


@pytest.mark.parametrize("text", ["all", "none", "knee", "max-drop=0.015", "0.4"])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_picked_in_the_end_was_a_candidate_all_along(text: str, seed: int) -> None:
    rule, results = Pick.of(text), sorted(drawn(seed), key=lambda r: -r.cost)
    chosen = rule.chosen(results)
    for seen in range(1, len(results) + 1):
        candidates = rule.candidates(results[:seen])
        assert all(found in candidates for found in chosen if found in results[:seen])


@pytest.mark.parametrize(
    "text", ["", "knees", "max-drop", "max-drop=", "max-drop=-1", "drop=1", "-1"]
)
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="`pick`"):
        Pick.of(text)
