"""Widths of a whole network to be timed: drawn at random, from those that groups may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import count
from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep

    Widths = Mapping[str, int]

_APART = 0.6
"""How far the share of a group may be from that of its network, up or down."""


def draw_designs(
    coupling: Coupling, allowed: Mapping[str, Sequence[int]], n_designs: int, seed: int
) -> list[dict[str, int]]:
    """Draw widths for every group that may shrink.

    The first one has the least of each, so that no later plan lies beyond all designs. Others
    differ in how much is left of the network, evenly from least to most, and within each in how
    that is shared out: so the times of single layers can be told apart.

    Args:
        coupling: The groups.
        allowed: For each group that may shrink, the widths that it may have.
        n_designs: How many designs to draw.
        seed: Equal seeds draw equal designs.
    Returns:
        For each design, the width of each group that shrinks.
    Raises:
        RequestError: No group may shrink.
    """
    if not any(len(widths) > 1 for widths in allowed.values()):
        raise RequestError("no group may shrink: there are no widths to time; see `inspect`")
    rng = np.random.default_rng(seed)
    designs = []
    for place in range(n_designs):
        share = place / n_designs
        drawn: dict[str, int] = {}
        for name, widths in allowed.items():
            level = np.clip(share + rng.uniform(-_APART, _APART), 0, 1) if place else 0.0
            width = sorted(widths)[round(float(level) * (len(widths) - 1))]
            trial = {**drawn, name: width}
            if width < coupling.by_name[name].size and _is_whole(coupling, trial):
                drawn = trial
        designs.append(drawn)
    return designs


def keep_of(coupling: Coupling, widths: Widths) -> Keep:
    """Return units for widths: spread evenly, so that no part of an axis loses all of them."""
    keep: dict[Dim, NDArray[np.bool_]] = {}
    for name, width in widths.items():
        group = coupling.by_name[name]
        kept = np.zeros(group.size, np.bool_)
        kept[np.arange(width) * group.size // width] = True
        keep[group.dim] = kept
    return keep


def _is_whole(coupling: Coupling, widths: Widths) -> bool:
    """Say whether every axis that takes positions of others has some left."""
    keep = keep_of(coupling, widths)
    return all(count(axis, keep) for axis in coupling.tied_axes)
