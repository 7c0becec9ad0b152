"""Reports for people, as a page of one file: values go into templates, and nothing is measured.

Charts are elements of the page, sized by styles: they are as light as text, follow the reader's
colours, and stay readable where nothing runs scripts. A library of charts would weigh megabytes in
each file, or give pictures of one colour that cannot be searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from obc_onnx.planning.sensitivity import N_SHARES
from obc_onnx.report.curves import curve_of, profile_of, runs_of_epochs
from obc_onnx.report.summary import Change
from obc_onnx.report.sweep_picture import sweep_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.planning.sensitivity import Sensitivity
    from obc_onnx.report.network import Layer
    from obc_onnx.report.summary import Inspection, Outlook, Report
    from obc_onnx.report.sweep import Sweep

_DEAREST = 20
"""Layers whose cost has a bar of its own."""


@dataclass(frozen=True)
class Origin:
    """What made a page.

    Attributes:
        command: The command line; empty where Python asked.
        seed: Of every random choice; None where there was none.
        versions: Of this package and what it computes with, by name.
    """

    command: str
    seed: int | None
    versions: dict[str, str]


def compression_page(report: Report, origin: Origin) -> str:
    """Show what a compression did, and how it was verified."""
    return _rendered("compression.html.j2", report=report, origin=origin)


def outlook_page(outlook: Outlook, origin: Origin) -> str:
    """Show what a plan would leave."""
    macs, params = Change(*outlook.plan.macs), Change(*outlook.plan.params)
    return _rendered("plan.html.j2", report=outlook, origin=origin, macs=macs, params=params)


def inspection_page(inspection: Inspection, origin: Origin) -> str:
    """Show what can be pruned, and what cannot and why."""
    return _rendered("inspection.html.j2", report=inspection, origin=origin)


def sensitivity_page(sensitivity: Sensitivity, origin: Origin) -> str:
    """Show what each share of each group is worth."""
    return _rendered("sensitivity.html.j2", report=sensitivity, origin=origin, shares=N_SHARES)


def sweep_page(sweep: Sweep, origin: Origin) -> str:
    """Show what each target of a sweep leaves."""
    picture = sweep_svg(sweep, inline=True)
    return _rendered("sweep.html.j2", report=sweep, origin=origin, picture=picture)


def _rendered(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """Return what knows the templates; every value that they show is escaped."""
    made = Environment(
        loader=PackageLoader("obc_onnx.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": _number,
        "percent": _percent,
        "part": _part,
        "dearest": _dearest,
        "by_group": lambda found: {one.group: one for one in found},
        "profile": profile_of,
        "curve": curve_of,
        "measured": runs_of_epochs,
    }
    return made


def _number(value: float, digits: int = 0) -> str:
    """Write a number with separators; where no digits are asked for behind the point, exactly."""
    return f"{value:,.{digits}f}"


def _percent(part: float, whole: float = 1.0) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _part(value: float, most: float) -> str:
    """Write the length of a bar as a share of its room, which it never leaves."""
    share = value / most if most else 0.0
    return f"{min(max(share, 0.0), 1.0):.4f}" if math.isfinite(share) else "1"


def _dearest(layers: Sequence[Layer], cost: str) -> list[tuple[str, int, int]]:
    """Pick the layers that cost most.

    Args:
        layers: All of them.
        cost: The attribute of a layer that has its cost.
    Returns:
        What each is called, and its cost before and after; what the others cost together is last.
    """
    costs = [(v.node, getattr(v, cost), getattr(v, f"{cost}_left")) for v in layers]
    order = sorted(range(len(costs)), key=lambda number: -costs[number][1])
    first = [costs[number] for number in order[:_DEAREST] if costs[number][1]]
    rest = [costs[number] for number in order[len(first) :] if costs[number][1]]
    others = (f"{len(rest)} others", sum(c[1] for c in rest), sum(c[2] for c in rest))
    return [*first, others] if rest else first
