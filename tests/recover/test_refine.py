"""Refinement by gradient: where networks are compared, what is learned, and what becomes of it."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from helpers import analyse, build
from measuring.test_padding import coupling_of as encoder_coupling
from measuring.test_padding import encoder, padded
from nets import HEAD, IMAGE, NETS, draw_keep, draw_samples, make_static, model_of
from small import archive, assert_refused, images, invoke, saved
from surgery.test_half import in_half
from token_graphs import build_token_net

from obc_onnx.errors import RequestError
from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import Distance, output_error, split
from obc_onnx.measuring.masks import with_padding
from obc_onnx.measuring.scales import inner_port, scales_of
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.recover import refine as refining
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.borders import find_borders
from obc_onnx.recover.calibration import changes_of_pictures
from obc_onnx.recover.effort import estimate
from obc_onnx.recover.matching import Matching
from obc_onnx.recover.methods import MINUTES, minutes_of
from obc_onnx.recover.refine import Refined, refine
from obc_onnx.recover.stage import recover
from obc_onnx.run.api import compress
from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import Cut, remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph

CHAIN = (
    f"{IMAGE} <float[6,3,3,3] a, float[6,6,3,3] b, float[6,6,1,1] c, float[4,6] fc, float[4] fc_b>"
    "{ p = Conv<pads=[1,1,1,1]>(x, a) q = Relu(p) r = Conv(q, b) s = Relu(r) last = Conv(s, c)"
    f" {HEAD} }}"
)
BLOCKS = (
    f"{IMAGE} <float[6,3,3,3] a, float[5,6,3,3] b, float[6,5,1,1] c, float[5,6,3,3] d,"
    " float[6,5,1,1] e, float[4,6] fc, float[4] fc_b>"
    "{ s0 = Conv<pads=[1,1,1,1]>(x, a) i1 = Conv<pads=[1,1,1,1]>(s0, b) j1 = Relu(i1)"
    "  k1 = Conv(j1, c) s1 = Add(s0, k1) r1 = Relu(s1) i2 = Conv<pads=[1,1,1,1]>(r1, d)"
    f"  j2 = Relu(i2) k2 = Conv(j2, e) s2 = Add(k2, r1) last = Relu(s2) {HEAD} }}"
)
TWO_HEADS = (
    "net (float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,2,6,6] z)"
    "<float[6,3,1,1] a, float[6,6,1,1] b, float[4,6,1,1] c, float[5,6,1,1] d, float[2,5,1,1] e>"
    "{ p = Conv(x, a) q = Relu(p) r = Conv(q, b) s = Relu(r) y = Conv(s, c) t = Conv(s, d)"
    "  u = Relu(t) z = Conv(u, e) }"
)


class Case(NamedTuple):
    """A net that has lost units, and samples."""

    coupling: Coupling
    keep: Keep
    pruned: Graph
    samples: Samples

    @property
    def cut(self) -> Cut:
        return Cut(self.coupling, self.keep, self.pruned)

    def judged(self, minutes: float = 1.0, seed: int = 0) -> tuple[Refined, float, float]:
        """Refine, and return the distances on held-out samples before and after."""
        used, held = split(self.samples, self.pruned.batch or 1)
        error_of = Distance(self.coupling, held)
        found = refine(self.cut, (used, held), error_of, minutes, seed)
        return found, error_of(self.pruned), error_of(found.graph)


def cut_of(model: onnx.ModelProto | str, n_samples: int = 80, seed: int = 0) -> Case:
    graph, _, coupling = analyse(build(model) if isinstance(model, str) else model)
    keep = draw_keep(coupling, seed)
    samples = draw_samples(graph, n_samples)
    return Case(coupling, keep, remove_units(coupling, keep), samples)


def borders_of(text: str, **options: int) -> list[str]:
    cut = cut_of(text)
    found = find_borders(cut.cut, **options)
    return [border.name for border in found]


def test_in_a_chain_every_layer_is_a_border() -> None:
    assert borders_of(CHAIN) == ["p", "r", "last"]


def test_borders_of_blocks_are_their_sums_and_nothing_inside() -> None:
    assert borders_of(BLOCKS) == ["s0", "s1", "s2"]


def test_parallel_branches_meet_at_a_border() -> None:
    """Behind the join a convolution gives a value that everything passes through."""
    assert borders_of(NETS["concat"]) == ["j", "last"]


def test_heads_have_borders_of_their_own() -> None:
    assert borders_of(TWO_HEADS) == ["p", "r", "t"]


def test_a_constant_or_a_broadcast_makes_no_sum() -> None:
    text = CHAIN.replace("q = Relu(p)", "o = Add(p, shift) g = GlobalAveragePool(o) q = Add(o, g)")
    found = borders_of(text.replace("float[6,3,3,3] a", "float[6,3,3,3] a, float[1,6,1,1] shift"))
    assert found == ["p", "r", "last"]


def test_sums_are_borders_though_a_mask_reaches_every_block() -> None:
    coupling = encoder_coupling(encoder())
    keep = draw_keep(coupling)
    found = find_borders(Cut.of(coupling, keep))
    assert [border.name for border in found] == ["x", "r", "o", "mean"]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_borders_are_thinned_evenly(most: int) -> None:
    layers = "".join(f"c{i} = Conv(c{i - 1}, w{i}) " for i in range(1, 9))
    weights = ", ".join(f"float[4,4,1,1] w{i}" for i in range(1, 9))
    text = (
        f"{IMAGE} <float[4,3,1,1] w0, {weights}, float[4,4] fc, float[4] fc_b>"
        f"{{ c0 = Conv(x, w0) {layers} last = Relu(c8) {HEAD} }}"
    )
    numbers = [int(name[1:]) for name in borders_of(text, most=most)]
    assert len(numbers) == most
    assert numbers[-1] == 8
    gaps = np.diff([-1, *numbers])
    assert gaps.max() <= 2 * gaps.min() + 1


def by_channel(found: NDArray, wanted: NDArray) -> tuple[NDArray, NDArray]:
    """Mean squared difference of each channel, which are on axis 1, and its variance over samples.

    The variance of each position is around its own mean.
    """
    others = tuple(i for i in range(wanted.ndim) if i != 1)
    wide = wanted.astype(np.float64)
    return ((found - wide) ** 2).mean(others), wide.var(0, ddof=1, keepdims=True).mean(others)


@pytest.mark.parametrize("text", [CHAIN, BLOCKS, NETS["norm"], TWO_HEADS])
def test_what_is_learned_is_the_mean_over_borders_plus_that_over_outputs(text: str) -> None:
    cut = cut_of(text, n_samples=24)
    borders = find_borders(cut.cut)
    outputs = [port.name for port in cut.pruned.outputs]
    runs = [np.arange(24)]
    found = Matching(cut.cut, borders, cut.samples, runs).loss(0)
    names = [*outputs, *(border.name for border in borders)]
    feed = cut.samples.feed(slice(0, 24))
    dense, own = (
        Session(g, optimize=False, outputs=names).run(feed)
        for g in (cut.coupling.graph, cut.pruned)
    )
    distances = dict.fromkeys(names, 0.0)
    for name in names:
        wanted = dense[name]
        for border in borders:
            for axis, kept in border.kept.items() if border.name == name else ():
                wanted = wanted.take(kept, axis)
        errors, variances = by_channel(own[name], wanted)
        each, whole = np.log1p(errors / variances), np.log1p(errors.mean() / variances.mean())
        distances[name] = float(each.mean() if name in outputs else whole)
    inside = np.mean([distances[border.name] for border in borders])
    outside = np.mean([distances[name] for name in outputs])
    assert float(found.detach()) == pytest.approx(float(inside + outside), rel=1e-4)


def test_the_original_is_run_once_for_each_run() -> None:
    cut = cut_of(CHAIN, n_samples=24)
    matching = Matching(cut.cut, [], cut.samples, [np.arange(24)])
    first = float(matching.loss(0).detach())
    for parameter in matching.original.parameters():
        parameter.data.zero_()
    assert float(matching.loss(0).detach()) == first


def test_the_variance_of_a_border_is_that_of_what_stays() -> None:
    """The mean over kept positions of their variance over samples, whatever channels go."""
    graph, _, coupling = analyse(build(CHAIN))
    samples = draw_samples(graph, 40)
    feed = samples.feed(slice(0, 40))
    session = Session(graph, optimize=False, outputs=["p"])
    (scale,) = scales_of(
        coupling, [inner_port(coupling, "p", np.dtype("float32"))], samples, session.run, 8
    )
    kept = np.array([1, 4, 5])
    wanted = session.run(feed)["p"][:, kept].astype(np.float64).var(0, ddof=1).mean()
    assert scale.as_one({1: kept}).variance == pytest.approx([wanted], rel=1e-6)
    assert scale.as_one({}).variance == pytest.approx([scale.variance.mean()], rel=1e-6)


def trained_tokens(seed: int = 3) -> onnx.ModelProto:
    return build_token_net([("separate_attention", 0, 1), ("mlp", 0, 2)], seed=seed)


LEARNING: dict[str, onnx.ModelProto | str] = {
    "chain": CHAIN,
    "blocks": BLOCKS,
    "two heads": TWO_HEADS,
    "norm": NETS["norm"],
    "concat": NETS["concat"],
    "attention": trained_tokens(),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("net", LEARNING)
def test_outputs_come_nearer(net: str, seed: int) -> None:
    found, before, after = cut_of(LEARNING[net], 200, seed).judged(seed=seed)
    assert not found.reason
    assert after < 0.9 * before
    assert "weights were refined by gradient in" in found.notes[0]


def test_weights_of_16_bits_learn_though_steps_are_smaller_than_their_rounding() -> None:
    found, before, after = cut_of(in_half(build(BLOCKS)), 200).judged()
    assert after < 0.9 * before
    types = {array.dtype.name for array in found.graph.initializers.values()}
    assert types == {"float16"}


def test_very_large_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refining, "_MOST_BYTES", 1000)
    found, _, _ = cut_of(BLOCKS).judged()
    assert "several times their memory" in found.reason


@pytest.mark.parametrize("net", NETS)
def test_no_network_gets_worse(net: str) -> None:
    _found, before, after = cut_of(model_of(net)).judged()
    assert after <= before * (1 + 1e-6)


def test_where_no_state_is_better_the_start_stays() -> None:
    """What has lost nothing cannot come nearer."""
    graph, _, coupling = analyse(build(CHAIN))
    keep = {group.dim: np.ones(group.size, np.bool_) for group in coupling.groups}
    found, _, _ = Case(coupling, keep, graph, draw_samples(graph, 40)).judged()
    assert found.graph is graph
    assert "brought nothing" in found.notes[0]


def judged_as(cut: Case, *errors: float) -> tuple[Refined, list[dict[str, bytes]]]:
    """Refine under a judge that has made up its mind; return the weights that it was shown, too."""
    shown: list[dict[str, bytes]] = []

    def error_of(graph: Graph) -> float:
        shown.append(weights(graph))
        return errors[len(shown) - 1]

    own = cut.cut, split(cut.samples, 1)
    return refine(*own, error_of, 1.0, 0), shown


def test_the_best_state_at_the_end_of_a_course_is_the_result_and_where_the_next_begins() -> None:
    cut = cut_of(BLOCKS)
    found, shown = judged_as(cut, 1.0, 0.7, 0.5, 0.6)
    assert len(shown) == 4
    assert shown[0] == weights(cut.pruned)
    assert weights(found.graph) == shown[2] != shown[3]
    _, others = judged_as(cut, 1.0, 2.0, 0.5, 0.6)
    assert others[1] == shown[1]
    assert others[2] != shown[2]


def weights(graph: Graph) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in graph.initializers.items()}


def test_equal_seeds_give_equal_bytes_and_others_other_ones() -> None:
    cut = cut_of(BLOCKS)
    first, again, other = (cut.judged(seed=seed)[0].graph for seed in (0, 0, 1))
    assert weights(first) == weights(again) != weights(other)


def test_norms_keep_what_they_store_and_shapes_stay() -> None:
    cut = cut_of(NETS["norm"], 200)
    found = cut.judged()[0].graph
    for name in ("mean", "var"):
        assert found.initializers[name].tobytes() == cut.pruned.initializers[name].tobytes()
    assert found.initializers["scale"].tobytes() != cut.pruned.initializers["scale"].tobytes()
    assert {n: a.shape for n, a in found.initializers.items()} == {
        n: a.shape for n, a in cut.pruned.initializers.items()
    }


def test_what_stands_at_padding_changes_nothing() -> None:
    coupling = encoder_coupling(encoder())
    keep = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    found = []
    for content in (0, 1):
        samples, held = with_padding(coupling, *split(padded(coupling, 80, content), 1))
        refined = refine(
            Cut(coupling, keep, pruned), (samples, held), Distance(coupling, held), 1.0, 0
        )
        found.append(refined.graph.initializers)
    assert {n for n, a in found[0].items() if not np.array_equal(a, pruned.initializers[n])}
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], rtol=1e-3, atol=1e-4)


def test_a_static_batch_is_run_as_it_is() -> None:
    model = build(CHAIN)
    make_static(model, 4)
    graph, _, coupling = analyse(model)
    keep = draw_keep(coupling)
    samples = draw_samples(graph, 80)
    effort = estimate(coupling, keep, 64, 16, 1.0)
    assert (effort.size, effort.runs) == (4, 8)
    _, before, after = Case(coupling, keep, remove_units(coupling, keep), samples).judged()
    assert after < 0.9 * before


def test_steps_follow_from_the_networks_and_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of(BLOCKS)
    own = cut.coupling, cut.keep, 64, 16
    wanted = estimate(*own, 1.0)
    monkeypatch.setattr("time.monotonic", lambda: pytest.fail("looked at a clock"))
    assert estimate(*own, 1.0) == wanted
    assert wanted.seconds <= 60
    assert estimate(*own, 1e-4).steps < wanted.steps


def test_too_few_minutes_say_how_many_would_do() -> None:
    found, _, _ = cut_of(BLOCKS).judged(minutes=1e-5)
    assert "`recover_minutes=1` is enough" in found.reason


def test_the_clock_stops_what_takes_far_too_long_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(refining.time, "monotonic", lambda: float(next(clock)))
    found, before, after = cut_of(BLOCKS).judged()
    assert after <= before
    assert "stopped by the clock" in found.warnings[0]


def test_refinement_is_the_last_step_of_repair_and_0_minutes_leave_it_out() -> None:
    cut = cut_of(BLOCKS, 200)
    own = cut.cut, Bench(cut.cut.coupling, cut.samples), "auto", 0, "cpu"
    found, without = recover(*own, 1.0), recover(*own, 0.0)
    assert [step.step for step in found.steps][-1] == "refinement by gradient"
    assert "refinement by gradient" not in {step.step for step in without.steps}
    assert not any("gradient" in note for note in without.notes)
    assert found.steps[-1].kept
    assert found.steps[-1].before == without.steps[0].after
    held = split(cut.samples, 1)[1]
    errors = [output_error(cut.coupling, g, held) for g in (without.graph, found.graph)]
    assert errors == pytest.approx([found.steps[-1].before, found.steps[-1].after], rel=1e-4)
    assert errors[1] < errors[0]


def test_the_command_refines_unless_training_follows() -> None:
    samples = draw_samples(analyse(build(BLOCKS)).graph, 60)
    compressed = partial(
        compress, build(BLOCKS), data=samples, budget=Budget(0.6, scope=Scope(round_to=1))
    )
    refined, trained, off = compressed(), compressed(training=1), compressed(recover_minutes=0)
    steps = [{step.step for step in r.report.recovery} for r in (refined, trained, off)]
    assert ["refinement by gradient" in found for found in steps] == [True, False, False]
    assert all(check.passed for check in refined.report.verification)


def test_the_option_says_how_long_and_0_leaves_it_out(tmp_path: Path) -> None:
    model, data = saved(tmp_path), archive(tmp_path, x=images(40))
    command = (
        "compress",
        model,
        "-o",
        tmp_path / "small.onnx",
        "--data",
        data,
        "--force",
        "--json",
    )
    for minutes, wanted in (("0", 0), ("0.5", 1)):
        report = json.loads(invoke(*command, "--recover-minutes", minutes).stdout)
        steps = [step["step"] for step in report["recovery"]]
        assert steps.count("refinement by gradient") == wanted
    assert_refused(invoke(*command, "--recover-minutes", "-1"), "--recover-minutes", code=2)


def test_minutes_are_checked_and_follow_from_what_comes_after() -> None:
    assert minutes_of(None, trains=False) == MINUTES
    assert minutes_of(None, trains=True) == 0
    assert minutes_of(7.5, trains=True) == 7.5
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="`recover_minutes` must be 0 or more"):
            minutes_of(wrong, trains=False)


def pictures(n_samples: int = 64, shape: tuple[int, ...] = (3, 16, 16)) -> NDArray[np.float32]:
    """Random waves, which neighbouring pixels share."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((n_samples, shape[0], 2, 2))
    return coarse.repeat(shape[1] // 2, 2).repeat(shape[2] // 2, 3).astype(np.float32)


SIXTEEN = CHAIN.replace("float[N,3,6,6]", "float[N,3,16,16]")


def kind_of(changed: NDArray, old: NDArray) -> tuple[bool, int, int]:
    """Say how a picture was changed: mirrored or not, and shifted by how much; inside its rim."""
    inner = (slice(None), slice(1, -1), slice(1, -1))
    for mirrored in (False, True):
        source = old[..., ::-1] if mirrored else old
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                if np.array_equal(np.roll(source, (down, right), (1, 2))[inner], changed[inner]):
                    return mirrored, down, right
    raise AssertionError("changed in another way")


def test_pictures_are_mirrored_and_shifted_and_both_networks_see_the_same() -> None:
    graph, _, coupling = analyse(build(SIXTEEN))
    keep = draw_keep(coupling)
    seen: list[NDArray] = []

    class Seen(Samples):
        def laid_out(self, rows: Mapping[str, NDArray]) -> dict[str, NDArray]:
            seen.append(rows["x"])
            return super().laid_out(rows)

    samples = Seen({"x": pictures()}, None, {"x": np.dtype("float32")})
    changes = changes_of_pictures(graph, samples)
    assert changes == Augmentation(crop=1, flip=True)
    own = Cut.of(coupling, keep), [], samples, [np.arange(64)], changes
    first, again, later = (Matching(*own).loss(0, turn).detach() for turn in (0, 0, 1))
    assert first == again != later
    changed, whole = seen[-1], samples.inputs["x"]
    kinds = [kind_of(own, old) for own, old in zip(changed, whole, strict=True)]
    assert {mirrored for mirrored, _, _ in kinds} == {False, True}
    assert {down for _, down, _ in kinds} == {right for _, _, right in kinds} == {-1, 0, 1}
    exact = Matching(Cut(coupling, {}, graph), [], samples, [np.arange(64)], changes)
    assert float(exact.loss(0, 3).detach()) < 1e-9


@pytest.mark.parametrize(
    ("array", "changed"),
    [
        (pictures(), True),
        (pictures().astype(np.uint8), True),
        (np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32), False),
        (pictures()[:, :, :2, :2], False),
        (np.cumsum(np.random.default_rng(0).standard_normal((64, 3, 16, 16)), 2), False),
        (np.cumsum(np.random.default_rng(0).standard_normal((64, 3, 16, 16)), 3), False),
        (pictures()[:, :, :, 0], False),
    ],
    ids=["waves", "bytes", "noise", "tiny", "alike down", "alike across", "lines"],
)
def test_only_what_is_alike_in_both_directions_is_a_picture(array: NDArray, changed: bool) -> None:
    graph = analyse(build(SIXTEEN)).graph
    samples = Samples({"x": array}, None, {"x": array.dtype})
    assert (changes_of_pictures(graph, samples) is not None) == changed


def test_pictures_with_other_inputs_beside_them_stay_as_they_are() -> None:
    graph = analyse(build(SIXTEEN)).graph
    places = np.zeros((64, 2), np.float32)
    types = {"x": np.dtype("float32"), "places": np.dtype("float32")}
    assert (
        changes_of_pictures(graph, Samples({"x": pictures(), "places": places}, None, types))
        is None
    )
