"""Predicted milliseconds against laws that are known, and features against what is really cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, build, random_keep
from nets import NETS, model_of
from small import CHAIN

from obc_onnx.engines.engine import Layer
from obc_onnx.engines.options import EngineOptions
from obc_onnx.errors import RequestError
from obc_onnx.latency.designs import draw_designs, keep_of
from obc_onnx.latency.features import Features, prunable_axes
from obc_onnx.latency.predictor import fit
from obc_onnx.latency.profile import Profile, Timing
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import Scope
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.coupling.model import Coupling, Keep

    Law = Callable[[dict[str, int]], float]

WIDE = CHAIN.replace("12", "64").replace("20", "96").replace("8,8", "16,16")
"""Groups `a:0` of 64 units and `b:0` of 96; convolutions give `p` and `r`."""


def coupling() -> Coupling:
    return analyse(build(WIDE)).coupling


def allowed(of: Coupling) -> dict[str, list[int]]:
    return {room.group.name: room.widths for room in rooms_of(of, Scope(round_to=8))}


def profile_of(of: Coupling, designs: list[dict[str, int]], law: Law, **layers: Law) -> Profile:
    """Write down times that follow a law of widths; `layers` are those of nodes."""
    sizes = {group.name: group.size for group in of.groups}
    timings = []
    for widths in [{}, *designs]:
        full = {**sizes, **widths}
        own = [Layer((node,), one(full)) for node, one in layers.items()]
        ms = law(full)
        timings.append(Timing(widths, ms, ms / law(sizes), 0.0, 15, own))
    engine = EngineOptions()
    return Profile(of.graph.sha256, engine, "1", "none", {"x": [1, 3, 16, 16]}, 8, 0, timings)


def error_of(of: Coupling, profile: Profile, law: Law, seed: int = 5) -> float:
    """Return the largest error on designs that the profile has not seen."""
    forecast = fit(of, profile).on(of)
    sizes = {group.name: group.size for group in of.groups}
    return max(
        abs(forecast.ms(keep_of(of, widths)) / law({**sizes, **widths}) - 1)
        for widths in draw_designs(of, allowed(of), 20, seed)
    )


def padded(width: int, block: int) -> int:
    return math.ceil(width / block) * block


def law_of(block: int) -> Law:
    """Milliseconds of a runtime that pads to a block: MACs of both convolutions, and a start."""

    def law(widths: dict[str, int]) -> float:
        a, b = (padded(widths[name], block) for name in ("a:0", "b:0"))
        return 0.05 + 1e-6 * (3 * a * 9 * 256 + a * b * 9 * 196)

    return law


@pytest.mark.parametrize("block", [8, 16, 32])
def test_a_staircase_is_found_from_whole_runs_alone(block: int) -> None:
    of, law = coupling(), law_of(block)
    profile = profile_of(of, draw_designs(of, allowed(of), 12, 0), law)
    assert error_of(of, profile, law) < 0.01
    assert max(fit(of, profile).errors) < 0.05


def test_layers_of_one_operator_may_be_fast_and_slow() -> None:
    """The second convolution takes 50 times as long per MAC: whole runs alone hardly tell that."""
    of = coupling()

    def first(widths: dict[str, int]) -> float:
        return 1e-6 * 3 * widths["a:0"] * 9 * 256

    def second(widths: dict[str, int]) -> float:
        return 2e-8 * padded(widths["a:0"], 16) * padded(widths["b:0"], 16) * 9 * 196

    def law(widths: dict[str, int]) -> float:
        return 0.02 + 1.1 * (first(widths) + second(widths))

    designs = draw_designs(of, allowed(of), 12, 0)
    profile = profile_of(of, designs, law, p=first, r=second)
    predictor = fit(of, profile)
    assert error_of(of, profile, law) < 0.01
    assert {term.label: term.block for term in predictor.terms}["Conv 'r'"] == 16
    parts = {label: ms for ms, label in predictor.on(of).parts({})}
    assert parts["Conv 'r'"] == pytest.approx(1.1 * second({"a:0": 64, "b:0": 96}), rel=0.02)
    assert parts["the runtime itself"] == pytest.approx(0.02, rel=0.05)


def test_layers_that_take_no_time_are_no_part_of_a_run() -> None:
    """An engine may tell of what it has fused away, or of what one of the designs alone has."""
    of = coupling()

    def second(widths: dict[str, int]) -> float:
        return 2e-8 * widths["a:0"] * widths["b:0"] * 9 * 196

    def once(widths: dict[str, int]) -> float:
        return 1e-3 if widths == designs[4] else 0.0

    designs = draw_designs(of, allowed(of), 12, 0)
    profile = profile_of(of, designs, second, q=lambda _: 0.0, r=second, s=once)
    assert "Relu 'q'" not in {term.label for term in fit(of, profile).terms}
    assert error_of(of, profile, second) < 0.02


def test_times_that_are_known_less_well_count_less() -> None:
    of, law = coupling(), law_of(8)
    profile = profile_of(of, draw_designs(of, allowed(of), 12, 0), law)
    odd = profile.timings[3]
    sure, unsure = (
        Timing(odd.widths, odd.ms, 3 * odd.ratio, spread, 15, []) for spread in (0.0, 1.0)
    )
    wrong = [
        error_of(of, Profile(**{**vars(profile), "timings": [*profile.timings[:3], one, *profile.timings[4:]]}), law)
        for one in (sure, unsure)
    ]  # fmt: skip
    assert wrong[1] < 0.02 < wrong[0]


def test_predictions_never_rise_as_units_go() -> None:
    of = coupling()
    rng = np.random.default_rng(3)
    designs = draw_designs(of, allowed(of), 12, 0)
    noisy = profile_of(of, designs, lambda w: law_of(16)(w) * rng.uniform(0.7, 1.4))
    forecast = fit(of, noisy).on(of)
    for group in of.groups:
        times = [forecast.ms(keep_of(of, {group.name: n})) for n in range(1, group.size)]
        assert times == sorted(times)


def test_what_lies_around_a_dim_is_all_that_changes_with_it() -> None:
    of = coupling()
    profile = profile_of(of, draw_designs(of, allowed(of), 12, 0), law_of(8))
    forecast = fit(of, profile).on(of)
    for group in of.groups:
        keep = keep_of(of, {group.name: group.size // 2})
        around = forecast.around(group.dim, {}) - forecast.around(group.dim, keep)
        assert around == pytest.approx(forecast.ms({}) - forecast.ms(keep))
        assert around > 0


def counts(of: Coupling, keep: Keep) -> tuple[int, int]:
    """Count MACs and elements of weights of a network that was really cut."""
    again = analyse(remove_units(of, keep)).coupling
    held = again.graph.initializers
    used = [name for node in again.graph.nodes for name in node.inputs if name in held]
    return again.macs({}), sum(held[name].size for name in used)


@pytest.mark.parametrize("net", NETS)
def test_features_without_padding_are_those_of_the_cut_network(net: str) -> None:
    of = analyse(model_of(net), batch=1).coupling
    keep = random_keep(of, np.random.default_rng(1), 0.5)
    found = Features(of, prunable_axes(of), 1)
    everything = [node.key for node in of.graph.nodes]
    again = analyse(remove_units(of, keep), batch=1).coupling
    recounted = Features(again, prunable_axes(again), 1).of([n.key for n in again.graph.nodes], {})
    np.testing.assert_allclose(found.of(everything, keep)[:2], recounted[:2])
    macs, weights = counts(of, keep)
    assert found.of(everything, keep)[1] == macs
    assert abs(found.of(everything, keep)[4] - weights) <= 16, "but for numbers of shapes"


def test_padding_counts_widths_as_the_next_multiple() -> None:
    of = coupling()
    narrow = keep_of(of, {"a:0": 9, "b:0": 17})
    wide = keep_of(of, {"a:0": 16, "b:0": 32})
    padding, plain = (Features(of, prunable_axes(of), block) for block in (16, 1))
    keys = [node.key for node in of.graph.nodes]
    np.testing.assert_array_equal(padding.of(keys, narrow), plain.of(keys, wide))


def test_designs_are_allowed_drawn_again_and_reach_from_least_to_most() -> None:
    of = coupling()
    widths = allowed(of)
    designs = draw_designs(of, widths, 12, 0)
    assert designs == draw_designs(of, widths, 12, 0)
    assert designs != draw_designs(of, widths, 12, 1)
    assert all(width in widths[name] for design in designs for name, width in design.items())
    assert designs[0] == {name: min(own) for name, own in widths.items()}
    left = [of.macs(keep_of(of, design)) / of.macs({}) for design in designs]
    assert min(left) < 0.1
    assert max(left) > 0.7


def test_no_design_empties_an_axis_that_takes_positions() -> None:
    """`g` takes the last two of eight units: with any fewer left, others would be read."""
    text = (
        "net (float[N,6] x) => (float[N,4] y) <float[8,6] w1, float[4,2] fc>"
        "{ a = Gemm<transB=1>(x, w1) g = Gather<axis=1>(a, picked) y = Gemm<transB=1>(g, fc) }"
    )
    of = analyse(build(text, {"picked": [6, 7]})).coupling
    for design in draw_designs(of, {"w1:0": list(range(8, 0, -1))}, 12, 0):
        cut = remove_units(of, keep_of(of, design))
        assert all(array.size for array in cut.initializers.values()), design


def test_a_model_that_nothing_can_be_cut_from_has_no_designs() -> None:
    with pytest.raises(RequestError, match="no group may shrink"):
        draw_designs(coupling(), {"a:0": [64]}, 4, 0)
