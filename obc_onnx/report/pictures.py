"""Pictures, as SVG that is written by hand."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from obc_onnx.planning.sensitivity import N_SHARES

if TYPE_CHECKING:
    from obc_onnx.planning.sensitivity import Point, Sensitivity

_CELL, _ROW, _MARGIN, _LETTER = 56, 22, 12, 6.7
_DARK = 0.75
"""Share of the darkest colour above which white text is easier to read than black."""


def sensitivity_svg(sensitivity: Sensitivity) -> str:
    """Draw one row for each group and one cell for each share: the darker, the larger the error.

    Each cell has its error, and a title with what it stands for, which browsers show.
    """
    left = _MARGIN + round(_LETTER * max((len(g.name) for g in sensitivity.groups), default=0)) + 8
    top = _MARGIN + 3 * _ROW
    width = left + (N_SHARES - 1) * _CELL + _MARGIN
    height = top + len(sensitivity.groups) * _ROW + _MARGIN
    title = f"Output error of {sensitivity.model} when one group alone loses a share of its units"
    size = f'width="{width}" height="{height}"'
    font = 'font-family="monospace" font-size="11"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>',
        f'<rect {size} fill="white"/>',
        f"<title>{escape(title)}</title>",
        text(_MARGIN, _MARGIN + 11, f"output error, {sensitivity.n_samples} held-out samples"),
        text(_MARGIN, _MARGIN + 11 + _ROW, f"least salient first, by {sensitivity.criterion}"),
    ]
    for column in range(1, N_SHARES):
        x = left + (column - 0.5) * _CELL
        lines.append(text(x, top - 7, f"{column}/{N_SHARES}", anchor="middle"))
    for row, group in enumerate(sensitivity.groups):
        y = top + row * _ROW
        lines.append(text(left - 8, y + 15, group.name, anchor="end"))
        for point in group.points:
            x = left + (round(point.share * N_SHARES) - 1) * _CELL
            lines += _cell(x, y, point, f"{group.name}: {point.removed} of {group.size} units")
    return "\n".join([*lines, "</svg>", ""])


def _cell(x: float, y: float, point: Point, what: str) -> list[str]:
    shade = min(point.error, 1.0) ** 0.5  # small errors matter, and would all be white
    colour = f"rgb({round(255 - 75 * shade)},{round(255 - 220 * shade)},{round(255 - 215 * shade)})"
    reached = "" if point.accuracy is None else f", accuracy {100 * point.accuracy:.2f} %"
    title = f"{what}: error {point.error:.4g}{reached}"
    place = f'x="{x:g}" y="{y:g}" width="{_CELL - 1}" height="{_ROW - 1}"'
    ink = "white" if shade > _DARK else "black"
    return [
        f'<g><title>{escape(title)}</title><rect {place} fill="{colour}"/>',
        text(x + _CELL / 2, y + 15, f"{point.error:.2g}", anchor="middle", fill=ink),
        "</g>",
    ]


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = "black") -> str:
    """Return the element that shows words at a place, in pixels."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'
