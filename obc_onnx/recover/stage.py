"""The stage of repair: one step after the other, each kept only where outputs come nearer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.graph.precision import is_quantised
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.calibration import looks_like_noise
from obc_onnx.recover.fuse import fuse
from obc_onnx.recover.match import match
from obc_onnx.recover.methods import Recovery
from obc_onnx.recover.norms import find_norms, reestimate_norms, why_no_norms
from obc_onnx.recover.refine import refine
from obc_onnx.recover.refit import refit
from obc_onnx.recover.rescale import rescale
from obc_onnx.surgery.cut import Cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.branches.left import Left
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.methods import LayerFit, Method
    from obc_onnx.samples.samples import Samples

_STEPS: dict[Method, tuple[str, ...]] = {
    "auto": ("refit", "stats", "rescale", "refine"),
    "none": (),
    "stats": ("stats",),
    "refit": ("refit",),
    "fuse": ("fuse", "stats"),
}
_REHEARSED = 128
"""Samples of a repair that says what to remove next, and is not kept."""
_NAMES = {
    "refit": "least-squares refit",
    "stats": "statistics",
    "rescale": "scales of activations",
    "fuse": "repair without data",
    "refine": "refinement by gradient",
}


class Recovered(NamedTuple):
    """What repair gave.

    Attributes:
        steps: What was tried; those without data have no errors, and are in the notes.
        notes: What was left out and why, and what was decided.
        warnings: What makes the result doubtful.
    """

    graph: Graph
    steps: list[Recovery]
    notes: list[str]
    warnings: list[str]


class _Step(NamedTuple):
    """What one step gave.

    Attributes:
        layers: What it did to each layer, where it goes layer by layer.
        reason: Why there was nothing to take it on; empty where there was.
    """

    graph: Graph
    layers: list[LayerFit]
    reason: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class _Means:
    """What every step works with, besides the cut graph.

    Attributes:
        bench: Samples that it may look at, and those that judge.
        minutes: What refinement may take.
    """

    bench: Bench
    minutes: float
    seed: int
    device: str


def recover(
    cut: Cut,
    bench: Bench | None,
    method: Method,
    seed: int,
    device: str = "cpu",
    minutes: float = 0.0,
) -> Recovered:
    """Repair a cut graph.

    Args:
        cut: The cut graph.
        bench: Of the network before the cut; None has no data.
        method: Which steps.
        seed: Of every random choice.
        device: Where torch runs.
        minutes: What refinement by gradient may take, by estimate; 0 leaves it out.
    """
    if bench is None:
        return _without_data(cut, method)
    notes: list[str] = []
    if not len(bench.used):
        few = f"nothing was repaired: {bench.n_samples} samples are too few"
        return Recovered(cut.pruned, [], [few], [])
    noisy = looks_like_noise(cut.coupling.graph, bench.used) if _STEPS[method] else ""
    if noisy:
        notes.append(
            f"input '{noisy}' of the samples looks like noise: repair needs real ones, and does "
            f"more harm than good without"
        )
    if not _STEPS[method]:
        return Recovered(cut.pruned, [], notes, [])
    means = _Means(bench, minutes, seed, device)
    before = bench.distance(cut.pruned)
    steps, warnings = list[Recovery](), list[str]()
    for name in _STEPS[method]:
        if name == "refine" and not minutes:
            continue
        if name == "rescale" and not is_quantised(cut.pruned):
            continue
        solved = any(step.kept and step.step == _NAMES["refit"] for step in steps)
        step = _try(name, cut, means, solved=solved)
        notes.extend(step.notes)
        warnings.extend(step.warnings)
        if step.reason:
            notes.append(step.reason)
            continue
        after = bench.distance(step.graph)
        steps.append(Recovery(_NAMES[name], before, after, after < before, step.layers))
        if after < before:
            cut, before = cut.holding(step.graph), after
        del step  # what was not kept makes room for the next one
    return Recovered(cut.pruned, steps, notes, warnings)


def rehearse(
    coupling: Coupling, left: Left, samples: Samples, seed: int, device: str = "cpu"
) -> Coupling:
    """Repair on a few samples what units and branches leave, to look at it in the whole network.

    Args:
        coupling: Of the whole network.
        left: What stays.
        samples: To draw some from; labels are not used.
        seed: Of every random choice.
        device: Where torch runs.
    Returns:
        The coupling without those branches, with other weights; with the other units masked, they
        are the repaired network's.
    """
    cut = Cut.of(coupling, left.keep, left.stand_ins)
    few = samples.draw(_REHEARSED, coupling.graph.batch, seed)
    found = recover(cut, Bench(coupling, few), "refit", seed, device).graph
    cut = cut.holding(found)  # the first one makes room
    return cut.whole()


def _try(name: str, cut: Cut, means: _Means, *, solved: bool) -> _Step:
    """Take one step; say why where there is nothing to take it on.

    Args:
        name: Of the step.
        cut: The cut graph.
        means: To take it with.
        solved: Whether weights are what least squares gave.
    """
    bench = means.bench
    if name == "refit":
        found, layers = refit(cut, bench.used, means.seed, device=means.device)
        nothing = "no layer was refit: none has an input that changed"
        return _Step(found, layers, "" if layers else nothing)
    if name == "refine":
        parts = bench.used, bench.held
        refined = refine(cut, parts, bench.distance, means.minutes, means.seed, means.device)
        return _Step(refined.graph, [], refined.reason, refined.notes, refined.warnings)
    if name == "fuse":
        return _Step(fuse(cut), [])
    if name == "rescale":
        return _Step(rescale(cut, bench.used), [])
    return _statistics(cut, means, solved=solved)


def _statistics(cut: Cut, means: _Means, *, solved: bool) -> _Step:
    """Measure norms again, or where there are none, match the layers' own statistics.

    What least squares leave of an output has no part that goes with what is given, so that every
    factor would add to it.
    """
    used = means.bench.used
    reason = why_no_norms(cut, used)
    if not reason:
        return _Step(reestimate_norms(cut, used, means.seed, means.device), [])
    if find_norms(cut):
        return _Step(cut.pruned, [], f"norms stay as they are: {reason}")
    if solved:
        reason = "statistics of layers stay as they are: least squares leave nothing for a factor"
        return _Step(cut.pruned, [], reason)
    found, layers = match(cut, used, means.seed, means.device)
    return _Step(found, layers, "" if layers else "no layer has statistics to match")


def _without_data(cut: Cut, method: Method) -> Recovered:
    """Take the one step that looks at no data; it cannot be judged, and stays.

    Least squares from the moments of batch norms helps nearly always; fusion does harm about as
    often, and is left to those who ask for it: docs/recovery.md compares both.
    """
    if method == "fuse":
        note = (
            "units were fused by optimal transport, or made up for by what batch norms tell of them"
        )
        return Recovered(fuse(cut), [], [f"{note}: no data judged that"], [])
    if method == "auto" and find_norms(cut):
        note = "consumers make up for removed units by what batch norms tell of them"
        found = fuse(cut, merges=False)
        unjudged = f"{note}: no data judged that; `recover='none'` leaves it out"
        return Recovered(found, [], [unjudged], [])
    return Recovered(cut.pruned, [], ["nothing was repaired: give `data`"], [])
