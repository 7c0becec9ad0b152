"""Lines of charts, as points of SVG in a box of a fixed size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.report.network import Layer
    from obc_onnx.training.course import Epoch

WIDTH, HEIGHT = 1000, 200
"""Of the box, in its own units; a page stretches it."""


@dataclass(frozen=True)
class Line:
    """One measure of a training.

    Attributes:
        name: What was measured.
        numbers: Of which epochs there is a value.
        values: What that was.
    """

    name: str
    numbers: list[int]
    values: list[float]


def profile_of(layers: Sequence[Layer], attribute: str) -> str:
    """Draw the widths of layers in the order of the graph, as the outline of an area.

    Args:
        layers: Those that have no width are left out.
        attribute: `width` or `kept`.
    Returns:
        The path; the widest layer before anything was removed fills the height.
    """
    widths = [(v.width, getattr(v, attribute)) for v in layers if v.width is not None]
    if not widths:
        return ""
    most = max(width for width, _ in widths) or 1  # all may be empty
    step = WIDTH / len(widths)
    steps = (
        f"V{HEIGHT * (1 - value / most):.1f}H{step * (number + 1):.1f}"
        for number, (_, value) in enumerate(widths)
    )
    return f"M0,{HEIGHT}{''.join(steps)}V{HEIGHT}Z"


def runs_of_epochs(epochs: Sequence[Epoch]) -> list[Line]:
    """List what was measured in a training, without what was not."""
    measures = {
        "loss of training samples": [epoch.loss for epoch in epochs],
        "error of held-out samples": [epoch.validation for epoch in epochs],
        "accuracy on held-out samples": [epoch.accuracy for epoch in epochs],
    }
    lines = []
    for name, values in measures.items():
        known = {
            epoch.number: value
            for epoch, value in zip(epochs, values, strict=True)
            if value is not None and math.isfinite(value)
        }
        if known:
            lines.append(Line(name, list(known), list(known.values())))
    return lines


def curve_of(line: Line, last: int) -> str:
    """Draw a line through its values, the largest one at the top and the least at the bottom.

    Args:
        line: What was measured.
        last: The epoch at the right end.
    """
    low, high = min(line.values), max(line.values)
    spread = (high - low) or 1.0
    points = (
        f"{WIDTH * number / max(last, 1):.1f},{HEIGHT * (1 - (value - low) / spread):.1f}"
        for number, value in zip(line.numbers, line.values, strict=True)
    )
    return " ".join(points)
