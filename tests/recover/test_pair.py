"""Both networks side by side: samples that join, what they see, and how much memory they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, build
from nets import draw_samples

from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import output_error
from obc_onnx.recover.pair import Pair
from obc_onnx.recover.refit import refit
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin import lockstep
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.lockstep import Lockstep, affordable
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from obc_onnx.samples.samples import Samples

NARROWING = (
    "net (float[N,3,16,16] x) => (float[N,9] y) <float[8,3,3,3] w1, float[8] b1,"
    " float[6,8,3,3] w2, float[6] b2, float[9,96] w3, float[9] b3>"
    "{ c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) t1 = Tanh(c1)"
    " c2 = Conv<strides=[4,4],pads=[1,1,1,1]>(t1, w2, b2) t2 = Tanh(c2)"
    " flat = Flatten(t2) y = Gemm<transB=1>(flat, w3, b3) }"
)
LARGEST = 4 * 2 * 8 * 256
"""Bytes of a sample where most is alive: what the first activation is given, and gives."""


def cut_of(n_samples: int) -> tuple[Cut, Samples]:
    graph, _, coupling = analyse(build(NARROWING))
    keep = {
        coupling.by_name["w1:0"].dim: np.arange(8) < 5,
        coupling.by_name["w2:0"].dim: np.arange(6) < 4,
    }
    return Cut(coupling, keep, remove_units(coupling, keep)), draw_samples(graph, n_samples)


def room_for(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """Leave memory for so many samples where most values are alive."""
    monkeypatch.setattr(lockstep, "_BYTES", samples * LARGEST)


def alive(run: Lockstep) -> int:
    """Return the bytes of values that a run holds, weights aside."""
    weights = {id(p) for p in run._twin.parameters()}
    values = {id(v): v for one in run._runs for v in one.env.values()}
    return sum(
        v.nbytes for i, v in values.items() if isinstance(v, torch.Tensor) and i not in weights
    )


def test_where_values_are_smaller_more_samples_fit() -> None:
    graph, _, coupling = analyse(build(NARROWING))
    twin = derived_twin(graph, coupling)
    batch = coupling.shapes["x"][0]
    room = affordable(twin, coupling.shapes, batch)
    run = Lockstep(twin)
    per_sample = {
        place: lockstep._BYTES / room[place]
        for place in map(run.places.get, ("x", "c1", "c2", "y"))
    }
    assert per_sample[run.places["c1"]] == pytest.approx(LARGEST, rel=1e-3)
    assert per_sample[run.places["c2"]] == pytest.approx(4 * (8 * 256 + 6 * 16), rel=1e-3)
    assert per_sample[run.places["y"]] == pytest.approx(4 * (96 + 9), rel=1e-3)
    assert room == sorted(room)


@pytest.mark.parametrize("n_samples", [60, 600])
def test_memory_does_not_grow_with_the_samples(
    n_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 12)
    cut, samples = cut_of(n_samples)
    pair = Pair(cut, samples, 0)
    most, counts = 0, []
    for uses in pair.layers:
        layer, target = uses[0]
        pair.advance(pair.cut.calls[layer.node.key], [target.value])
        counts.append(len(pair.judges))
        most = max(most, alive(pair.dense), alive(pair.cut))
        pair.release([target.value])
    assert counts == sorted(counts)
    assert counts[0] * 2 == 12
    assert counts[-1] * 2 >= min(n_samples, 400)
    assert 0.4 * lockstep._BYTES < most < 1.5 * lockstep._BYTES


def test_samples_that_join_have_seen_what_was_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, 12)
    cut, samples = cut_of(300)
    pair = Pair(cut, samples, 0)
    first, target = pair.layers[0][0]
    pair.advance(pair.cut.calls[first.node.key], [target.value])
    before = len(pair.judges)
    with torch.no_grad():
        pair.twin.get_parameter("w1").mul_(1.5)
    last, target = pair.layers[-1][0]
    pair.advance(pair.cut.calls[last.node.key], [target.value])
    assert len(pair.judges) > 2 * before
    changed = pair.twin.write_to(cut.pruned)
    session = Session(changed, outputs=["flat"]), Session(cut.coupling.graph, outputs=["y"])
    for i, part in enumerate(pair._chunks._parts[: len(pair.judges)]):
        feed = samples.feed(part)
        given = pair.cut.arguments(last.node.key)[i][0]
        np.testing.assert_allclose(given, session[0].run(feed)["flat"], atol=1e-5)
        np.testing.assert_allclose(pair.dense.values("y")[i], session[1].run(feed)["y"], atol=1e-5)


def test_samples_that_join_make_later_layers_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer has 65 inputs: 12 samples do not tell its weights, 600 do."""
    cut, samples = cut_of(600)
    judge = draw_samples(cut.coupling.graph, 300, seed=5)
    room_for(monkeypatch, 12)
    some = output_error(cut.coupling, refit(cut, samples, 0)[0], judge)
    few = output_error(cut.coupling, refit(cut, samples.part(slice(0, 12)), 0)[0], judge)
    assert some < 0.9 * few


def test_of_the_samples_a_fifth_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, 12)
    cut, samples = cut_of(600)
    pair = Pair(cut, samples, 0)
    for name in ("c1", "y"):
        pair.advance(pair.cut.places[name], [name])
        share = sum(pair.judges) / len(pair.judges)
        assert 0.15 < share < 0.25
    drawn = np.concatenate(pair._chunks._parts)
    assert len(set(drawn.tolist())) == len(drawn) == 600


@pytest.mark.parametrize("n_samples", [1, 2, 3, 9])
def test_few_samples_run_from_the_start(n_samples: int) -> None:
    cut, samples = cut_of(n_samples)
    pair = Pair(cut, samples, 0)
    pair.advance(1, ["x"])
    assert len(pair.judges) == n_samples
    assert sum(pair.judges) == {1: 0, 2: 1, 3: 1, 9: 2}[n_samples]
    assert pair.judges == sorted(pair.judges)


def test_a_preview_looks_ahead_and_leaves_all_as_it_was() -> None:
    graph, _, coupling = analyse(build(NARROWING))
    twin = derived_twin(graph, coupling, frozen=True)
    samples = draw_samples(graph, 6)
    feeds = [samples.feed(slice(start, start + 3)) for start in (0, 3)]
    run = Lockstep(twin, [as_inputs(graph.inputs, feed) for feed in feeds])
    run.advance(run.places["c1"])
    names = [set(one.env) for one in run._runs]
    session = Session(graph, outputs=["t2"])
    for feed, value in zip(feeds, run.preview("t2"), strict=True):
        np.testing.assert_allclose(value, session.run(feed)["t2"], atol=1e-5)
    assert names == [set(one.env) for one in run._runs]
    assert run.done == run.places["c1"]


def test_no_sample_joins_between_two_uses_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between both uses of `w` values are wide: in front of them fewer samples fit than behind."""
    text = (
        "net (float[N,4] x) => (float[N,3] z)"
        " <float[4,8] u, float[8,8] w, float[8,40] p, float[40,8] q, float[8,3] v>"
        "{ a = MatMul(x, u) b = Relu(a) c = MatMul(b, w) d = Tanh(c) e = MatMul(d, p) f = Relu(e)"
        " g = MatMul(f, q) h = Relu(g) i = MatMul(h, w) j = Relu(i) z = MatMul(j, v) }"
    )
    graph, _, coupling = analyse(build(text))
    keep = {group.dim: np.arange(group.size) % 3 > 0 for group in coupling.groups}
    cut = Cut(coupling, keep, remove_units(coupling, keep))
    monkeypatch.setattr(lockstep, "_BYTES", 20 * 4 * (40 + 40))
    _, fits = refit(cut, draw_samples(graph, 100), 0)
    assert {"w", "v"} <= {fit.layer for fit in fits}
