"""How much each group can lose alone: cut a share of it, leave the rest, and measure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import count
from obc_onnx.errors import RequestError
from obc_onnx.latency.designs import keep_of
from obc_onnx.measuring.error import Distance
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.progress import Progress
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Group
    from obc_onnx.latency.predictor import Forecast
    from obc_onnx.samples.samples import Samples

N_SHARES = 8
"""Shares are eighths; nothing and everything are left out."""


@dataclass(frozen=True)
class Point:
    """What one share of one group is worth.

    Attributes:
        share: Of the units, as asked.
        removed: Units that went.
        error: Of the outputs, each channel on its own scale, see `measuring.error.Distance`.
        accuracy: Top-1, in [0, 1], where there are labels.
        latency_ms: Of one run, as a profile tells it, where there is one.
    """

    share: float
    removed: int
    error: float
    accuracy: float | None
    latency_ms: float | None = None


@dataclass(frozen=True)
class GroupSensitivity:
    """The points of one group; shares that are less than a unit are left out."""

    name: str
    size: int
    points: list[Point]


@dataclass(frozen=True)
class Sensitivity:
    """What cutting groups one at a time does to a model.

    Attributes:
        criterion: What said which units of a group are the least salient.
        n_samples: Held-out samples that were measured on.
        accuracy: Of the whole model, where there are labels.
        latency_ms: Of one run of it, as a profile tells it, where there is one.
    """

    model: str
    criterion: str
    n_samples: int
    accuracy: float | None
    groups: list[GroupSensitivity]
    latency_ms: float | None = None

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(asdict(self), indent=1)


def measure_groups(
    coupling: Coupling,
    groups: Sequence[Group],
    saliency: Mapping[str, NDArray[np.float64]],
    held: Samples,
    forecast: Forecast | None = None,
) -> list[GroupSensitivity]:
    """Cut each share of each group alone, the least salient units first, and measure.

    Nothing is repaired. What is measured is the cut graph, in ONNX Runtime.

    Args:
        coupling: The groups.
        groups: Those to measure.
        saliency: Of their units.
        held: Samples to measure on.
        forecast: What predicts milliseconds, where there is a profile.
    Raises:
        RequestError: A group has no saliency.
    """
    distance, found = Distance(coupling, held), []
    with Progress("measuring groups", len(groups)) as progress:
        for group in groups:
            if group.name not in saliency:
                raise RequestError(
                    f"the criterion says nothing of group '{group.name}': use another one, or "
                    f"leave the group out with `Scope.exclude`"
                )
            points = _points(coupling, group, saliency[group.name], held, distance)
            if forecast is not None:
                points = [_timed(point, coupling, group, forecast) for point in points]
            found.append(GroupSensitivity(group.name, group.size, points))
            progress.advance(group.name)
    return found


def _timed(point: Point, coupling: Coupling, group: Group, forecast: Forecast) -> Point:
    """Return a point with its time, which does not depend on which units went."""
    keep = keep_of(coupling, {group.name: group.size - point.removed})
    return replace(point, latency_ms=forecast.ms(keep))


def _points(
    coupling: Coupling,
    group: Group,
    saliency: NDArray[np.float64],
    held: Samples,
    distance: Distance,
) -> list[Point]:
    order = np.argsort(saliency, kind="stable")
    measured: dict[int, tuple[float, float | None]] = {}
    points = []
    for eighth in range(1, N_SHARES):
        removed = group.size * eighth // N_SHARES
        kept = np.ones(group.size, np.bool_)
        kept[order[:removed]] = False
        keep = {group.dim: kept}
        if not removed or not all(count(axis, keep) for axis in coupling.tied_axes):
            continue
        if removed not in measured:
            graph = remove_units(coupling, keep)
            measured[removed] = distance(graph), accuracy(graph, held)
        points.append(Point(eighth / N_SHARES, removed, *measured[removed]))
    return points
