"""How many units fill the blocks of channels that runtimes work in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import runs_of

if TYPE_CHECKING:
    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Group
    from obc_onnx.latency.predictor import Predictor


def units_of_block(coupling: Coupling, group: Group, channels: int) -> int:
    """Return how many units fill whole blocks of channels on every weight axis they lie on.

    A head of 64 channels fills eight blocks of 8 alone.
    """
    if channels == 1:  # no axis has to be looked at, of which many groups may lie on the same
        return 1
    axes = {coupling.axes[r.node.inputs[r.slot]][r.axis] for r in group.members}
    runs = {run for axis in axes for run in runs_of(axis, group.dim)}
    return math.lcm(*(channels // math.gcd(channels, run) for run in runs or {1}))


def steps_of(coupling: Coupling, predictor: Predictor) -> dict[Dim, int]:
    """Return of how many channels the widths of each group are a multiple where times step.

    Of the parts that a group runs through the one with the largest block counts: a width between
    two of its steps takes the time of the wider one. No profile tells what happens between its own
    multiples.
    """
    forecast = predictor.on(coupling)
    return {
        group.dim: math.lcm(predictor.round_to, forecast.block(group.dim))
        for group in coupling.groups
    }
