"""The stage of repair: one step after the other, each kept only where outputs come nearer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.measuring.error import Distance, split
from obc_onnx.recover.calibration import looks_like_noise
from obc_onnx.recover.fuse import fuse
from obc_onnx.recover.match import match
from obc_onnx.recover.methods import Recovery
from obc_onnx.recover.norms import find_norms, reestimate_norms, why_no_norms
from obc_onnx.recover.refit import refit

if TYPE_CHECKING:
    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.methods import LayerFit, Method
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut

_STEPS: dict[Method, tuple[str, ...]] = {
    "auto": ("refit", "stats"),
    "none": (),
    "stats": ("stats",),
    "refit": ("refit",),
    "fuse": ("fuse", "stats"),
}
_NAMES = {"refit": "least-squares refit", "stats": "statistics", "fuse": "repair without data"}


class Recovered(NamedTuple):
    """What repair gave.

    Attributes:
        steps: What was tried; those without data have no errors, and are in the notes.
        notes: What was left out and why.
    """

    graph: Graph
    steps: list[Recovery]
    notes: list[str]


def recover(
    cut: Cut,
    samples: Samples | None,
    method: Method,
    seed: int,
    device: str = "cpu",
) -> Recovered:
    """Repair a cut graph.

    Args:
        cut: The cut graph.
        samples: To measure and to judge on, labels are not used; None has no data.
        method: Which steps.
        seed: Of every random choice.
        device: Where torch runs.
    """
    if samples is None:
        return _without_data(cut, method)
    used, held = split(samples, cut.pruned.batch or 1)
    notes: list[str] = []
    if not len(used):
        return Recovered(
            cut.pruned, [], [f"nothing was repaired: {len(samples)} samples are too few"]
        )
    noisy = looks_like_noise(cut.coupling.graph, used) if _STEPS[method] else ""
    if noisy:
        notes.append(
            f"input '{noisy}' of the samples looks like noise: repair needs real ones, and does "
            f"more harm than good without"
        )
    steps = list[Recovery]()
    if not _STEPS[method]:
        return Recovered(cut.pruned, steps, notes)
    error_of = Distance(cut.coupling, held)
    before = error_of(cut.pruned)
    for step in _STEPS[method]:
        found, layers, reason = _try(step, cut, used, seed, device)
        if reason:
            notes.append(reason)
            continue
        after = error_of(found)
        steps.append(Recovery(_NAMES[step], before, after, after < before, layers))
        if after < before:
            cut, before = cut.holding(found), after
    return Recovered(cut.pruned, steps, notes)


def _try(
    step: str, cut: Cut, used: Samples, seed: int, device: str
) -> tuple[Graph, list[LayerFit], str]:
    """Take one step; say why where there is nothing to take it on."""
    if step == "refit":
        found, layers = refit(cut, used, seed, device=device)
        return found, layers, "" if layers else "no layer was refit: none has an input that changed"
    if step == "fuse":
        return fuse(cut), [], ""
    return _statistics(cut, used, seed, device)


def _statistics(
    cut: Cut, used: Samples, seed: int, device: str
) -> tuple[Graph, list[LayerFit], str]:
    """Measure norms anew, or where there are none, match the layers' own statistics."""
    reason = why_no_norms(cut, used)
    if not reason:
        return reestimate_norms(cut, used, seed, device), [], ""
    if find_norms(cut):
        return cut.pruned, [], f"norms stay as they are: {reason}"
    found, layers = refit(cut, used, seed, match, device)
    return found, layers, "" if layers else "no layer has statistics to match"


def _without_data(cut: Cut, method: Method) -> Recovered:
    """Take the one step that looks at no data; it cannot be judged, and stays.

    Least squares from the moments of batch norms helps nearly always; fusion does harm about as
    often, and is left to those who ask for it: docs/recovery.md compares both.
    """
    if method == "fuse":
        note = (
            "units were fused by optimal transport, or made up for by what batch norms tell of them"
        )
        return Recovered(fuse(cut), [], [f"{note}: no data judged that"])
    if method == "auto" and find_norms(cut):
        note = "consumers make up for removed units by what batch norms tell of them"
        found = fuse(cut, merges=False)
        return Recovered(
            found, [], [f"{note}: no data judged that; `recover='none'` leaves it out"]
        )
    return Recovered(cut.pruned, [], ["nothing was repaired: give `data`"])
