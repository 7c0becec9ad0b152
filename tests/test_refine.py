"""Refinement by gradient: where networks are compared, what is learned, and what becomes of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import analyse, build, run_onnx
from nets import HEAD, IMAGE, NETS, draw_keep, draw_samples, model_of
from test_padding import encoder, padded
from test_padding import coupling_of as encoder_coupling
from token_graphs import build_token_net

from obc_onnx.errors import RequestError
from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import Distance, output_error, split
from obc_onnx.measuring.scales import measure_scales
from obc_onnx.recover import refine as refining
from obc_onnx.recover.borders import find_borders
from obc_onnx.recover.effort import estimate
from obc_onnx.recover.matching import Matching
from obc_onnx.recover.methods import MINUTES, minutes_of
from obc_onnx.recover.refine import Refined, refine
from obc_onnx.recover.stage import recover
from obc_onnx.run.api import compress
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

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


class Cut(NamedTuple):
    """A net that has lost units, and samples."""

    coupling: Coupling
    keep: Keep
    pruned: Graph
    samples: Samples

    def judged(self, minutes: float = 1.0, seed: int = 0) -> tuple[Refined, float, float]:
        """Refine, and return the distances on held-out samples before and after."""
        used, held = split(self.samples, self.pruned.batch or 1)
        error_of = Distance(self.coupling, held)
        own = self.coupling, self.keep, self.pruned
        found = refine(*own, (used, held), error_of, minutes, seed)
        return found, error_of(self.pruned), error_of(found.graph)


def cut_of(model: onnx.ModelProto | str, n_samples: int = 80, seed: int = 0) -> Cut:
    graph, _, coupling = analyse(build(model) if isinstance(model, str) else model)
    keep = draw_keep(coupling, seed)
    samples = draw_samples(graph, n_samples)
    return Cut(coupling, keep, remove_units(coupling, keep), samples)


def borders_of(text: str, **options: int) -> list[str]:
    cut = cut_of(text)
    found = find_borders(cut.coupling, cut.keep, cut.pruned, **options)
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
    found = find_borders(coupling, keep, remove_units(coupling, keep))
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


def shares(found: NDArray, wanted: NDArray) -> NDArray:
    """Mean squared difference of each channel as a share of its variance over samples.

    Channels are on axis 1; the variance of each position is around its own mean.
    """
    others = tuple(i for i in range(wanted.ndim) if i != 1)
    variance = wanted.astype(np.float64).var(0, ddof=1, keepdims=True)
    share = ((found.astype(np.float64) - wanted) ** 2).mean(others)
    return share / variance.mean(others)


@pytest.mark.parametrize("text", [CHAIN, BLOCKS, NETS["norm"], TWO_HEADS])
def test_what_is_learned_is_the_mean_over_borders_plus_that_over_outputs(text: str) -> None:
    cut = cut_of(text, n_samples=24)
    borders = find_borders(cut.coupling, cut.keep, cut.pruned)
    outputs = [port.name for port in cut.pruned.outputs]
    runs = [np.arange(24)]
    found = Matching(cut.coupling, cut.keep, cut.pruned, borders, cut.samples, runs).loss(0)
    names = [*outputs, *(border.name for border in borders)]
    feed = cut.samples.feed(slice(0, 24))
    dense, own = (
        Session(g, optimize=False, outputs=names).run(feed)
        for g in (cut.coupling.graph, cut.pruned)
    )
    distances = {name: 0.0 for name in names}
    for name in names:
        wanted = dense[name]
        for border in borders:
            for axis, kept in border.kept.items() if border.name == name else ():
                wanted = wanted.take(kept, axis)
        distances[name] = float(np.log1p(shares(own[name], wanted)).mean())
    inside = np.mean([distances[border.name] for border in borders])
    outside = np.mean([distances[name] for name in outputs])
    assert float(found.detach()) == pytest.approx(float(inside + outside), rel=1e-4)


def test_the_original_is_run_once_for_each_run() -> None:
    cut = cut_of(CHAIN, n_samples=24)
    matching = Matching(cut.coupling, cut.keep, cut.pruned, [], cut.samples, [np.arange(24)])
    first = float(matching.loss(0).detach())
    for parameter in matching.original.parameters():
        parameter.data.zero_()
    assert float(matching.loss(0).detach()) == first
