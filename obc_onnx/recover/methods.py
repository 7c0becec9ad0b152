"""What repair there is: names that the command line and Python share; loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from obc_onnx.errors import RequestError

Method = Literal["auto", "none", "stats", "refit", "fuse"]
METHODS: tuple[Method, ...] = get_args(Method)
NEED_DATA: tuple[Method, ...] = ("stats", "refit")
"""Those that make no sense without samples; `auto` is none then."""
SOLVE: tuple[Method, ...] = ("auto", "refit")
"""Those that solve for weights where there are samples."""
MINUTES = 3.0
"""Of refinement by gradient, as a rule."""


def minutes_of(given: float | None, *, trains: bool) -> float:
    """Return how many minutes of refinement by gradient there may be.

    Args:
        given: What a user asked for; None leaves it open.
        trains: Whether fine-tuning follows, which does more of the same.
    Raises:
        RequestError: They are negative, or no number.
    """
    if given is None:
        return 0.0 if trains else MINUTES
    if not math.isfinite(given) or given < 0:
        raise RequestError(f"`recover_minutes` must be 0 or more, found {given:g}")
    return given


@dataclass(frozen=True)
class LayerFit:
    """What the refit of one layer gave.

    Attributes:
        layer: Its weight.
        before: Squared error of its outputs on samples that were held out, over their squares.
        after: The same with the new weights.
    """

    layer: str
    before: float
    after: float


@dataclass(frozen=True)
class Recovery:
    """One step of repair.

    Attributes:
        step: Its name.
        before: Error of the outputs on held-out samples, as a share of the original's variance.
        after: The same with the step.
        kept: Whether the step stays.
        layers: What it did to each layer, where it goes layer by layer.
    """

    step: str
    before: float
    after: float
    kept: bool
    layers: list[LayerFit] = field(default_factory=list)
