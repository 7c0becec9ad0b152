"""A sweep as a picture: quality against cost."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.report.pictures import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.report.sweep import Point, Sweep

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 50, 50
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
_LINES = 5
"""Steps of the grid across, and the most of them downwards."""
_ROOM = 1.08
"""Times the largest drop that the axis goes to."""


def sweep_svg(sweep: Sweep, *, inline: bool = False) -> str:
    """Draw a dot for each target, the cost that is left to the right and the drop downwards.

    Dots of the Pareto set are full and joined, the knee has a ring. Each has a title with what it
    stands for, which browsers show.

    Args:
        sweep: What was found.
        inline: Whether it becomes an element of a page, which knows what SVG is.
    """
    points, curve = sweep.points, sweep.front
    drops = [0.0, *(point.drop for point in points)]
    least, most = min(drops), max(drops) * _ROOM or 1.0
    place = _place(least, most)
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    font = 'font-family="sans-serif" font-size="11"'
    joined = " ".join("{:.1f},{:.1f}".format(*place(p)) for p in points if p.target in curve)
    lines = [
        f"<svg{'' if inline else _NAMESPACE} {size} {font}>",
        f'<rect {size} fill="white"/>',
        f"<title>{escape(f'{sweep.model}: what each target leaves')}</title>",
        text(_LEFT, 20, f"{sweep.model}: drop of the {sweep.what}, {sweep.n_samples:,} samples"),
        *_grid(least, most),
        text(_WIDTH / 2, _HEIGHT - 12, f"share of {sweep.cost} that is left", anchor="middle"),
        f'<polyline points="{joined}" fill="none" stroke="#1f6fb4" stroke-width="1.5"/>',
    ]
    for point in points:
        lines += _dot(
            point, place(point), full=point.target in curve, ring=point.target == sweep.knee
        )
    return "\n".join([*lines, "</svg>", ""])


def _place(least: float, most: float) -> Callable[[Point], tuple[float, float]]:
    """Return what says where a result goes."""

    def place(point: Point) -> tuple[float, float]:
        across = min(point.cost, 1.0) * (_WIDTH - _LEFT - _RIGHT)
        down = (point.drop - least) / (most - least) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _TOP + down

    return place


def _grid(least: float, most: float) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    lines = []
    for share in np.linspace(0, 1, _LINES + 1):
        x = _LEFT + share * (right - _LEFT)
        lines += [
            f'<line x1="{x:g}" x2="{x:g}" y1="{_TOP}" y2="{bottom}" stroke="#ddd"/>',
            text(x, bottom + 16, f"{share:.1f}", anchor="middle"),
        ]
    for drop in _round_numbers(least, most):
        y = _TOP + (drop - least) / (most - least) * (bottom - _TOP)
        lines += [
            f'<line y1="{y:.1f}" y2="{y:.1f}" x1="{_LEFT}" x2="{right}" stroke="#ddd"/>',
            text(_LEFT - 8, y + 4, f"{drop:.4g}", anchor="end"),
        ]
    return lines


def _round_numbers(least: float, most: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten from one to the other, a few."""
    step = (most - least) / _LINES
    if not math.isfinite(step):
        return []  # an unbounded drop leaves no scale
    power = 10.0 ** math.floor(math.log10(step))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= step)
    return [n * step for n in range(math.ceil(least / step), math.floor(most / step) + 1)]


def _dot(point: Point, place: tuple[float, float], *, full: bool, ring: bool) -> list[str]:
    x, y = place
    title = f"target {point.target:g}: {point.cost:.3f} is left, drop {point.drop:.4g}"
    fill = "#1f6fb4" if full else "white"
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="#1f6fb4"/>']
    if ring:
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="#c2410c"/>')
    label = text(x + 10, y - 6, f"{point.target:g}")
    return ["<g>", f"<title>{escape(title)}</title>", *dots, label, "</g>"]
