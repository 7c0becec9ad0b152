"""Time two models side by side, in ONNX Runtime or in any other engine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.engines.engine import Loaded, processor
from obc_onnx.graph.runtime import runtime_version
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph

AFFORDABLE_SECONDS = 5.0
"""What timing may take where nobody asked for it."""
_FEWEST_TURNS, _MOST_TURNS = 15, 60
_WARM_UP = 3
_SLOWER = 1.02
"""Ratio of the medians from which on a model counts as slower."""
_CLOSE = 0.005
"""Standard error of a ratio that is close enough."""
_CLOSE_SECONDS = 2.0
"""What getting there may take, beyond the fewest turns."""
_OF_MEDIAN, _OF_QUARTILES = 1.2533, 1.349
"""Standard error of the median of a normal sample by that of its mean; quartiles by deviations."""
_DEVIATIONS = 2.33
"""Of a fair coin: turns are lost more often than that in 1 of 100 races of equals."""


@dataclass(frozen=True)
class Race:
    """Times of two models that took turns, so that a noisy machine is equally noisy to both.

    Attributes:
        before: Seconds of each run of the original, shape [turns].
        after: Seconds of each run of the result, shape [turns].
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def medians_ms(self) -> tuple[float, float]:
        """Median time of a run before and after, in milliseconds."""
        return 1e3 * float(np.median(self.before)), 1e3 * float(np.median(self.after))

    @property
    def ratio(self) -> float:
        """Time after by time before: the median over turns, of which both share the noise."""
        return float(np.median(self.after / self.before))

    @property
    def spread(self) -> float:
        """Standard error of the ratio, as a share of it."""
        low, high = np.percentile(self.after / self.before, [25, 75])
        deviation = float(high - low) / _OF_QUARTILES
        return _OF_MEDIAN * deviation / math.sqrt(len(self.after)) / self.ratio

    @property
    def is_slower(self) -> bool:
        """Whether the result is slower, by more than chance and by more than a trifle."""
        turns = len(self.before)
        lost = int((self.after > self.before).sum())
        before, after = self.medians_ms
        by_chance = turns / 2 + _DEVIATIONS * math.sqrt(turns) / 2
        return lost > by_chance and after > _SLOWER * before


class _Held(Loaded):
    """A graph in a session of this process, and what it is fed."""

    def __init__(self, graph: Graph, feed: Mapping[str, NDArray[Any]]) -> None:
        self.version, self.device = runtime_version(), processor()
        self._session, self._feed = Session(graph), feed

    def turn_seconds(self) -> float:
        """Make one run."""
        return _seconds(self._session, self._feed)


def race(
    before: Graph, after: Graph, feed: Mapping[str, NDArray[Any]], *, asked: bool = True
) -> Race | None:
    """Time two models on one input in ONNX Runtime.

    Args:
        before: The original.
        after: The result.
        feed: An array for each input.
        asked: Whether to time them however long it takes.
    Returns:
        None where nobody asked and it would take longer than `AFFORDABLE_SECONDS`.
    Raises:
        ModelError: ONNX Runtime cannot run one of them.
    """
    pair = [_Held(graph, feed) for graph in (before, after)]
    for _ in range(_WARM_UP):
        turn = sum(model.turn_seconds() for model in pair)
        if not asked and turn * _FEWEST_TURNS > AFFORDABLE_SECONDS:
            return None
    turns = int(np.clip(AFFORDABLE_SECONDS / turn, _FEWEST_TURNS, _MOST_TURNS))
    found = _raced(pair, turns)
    if found.is_slower:  # turns that follow each other share their noise: chance seldom comes twice
        found = _raced(pair, turns)
    return found


def race_closely(before: Loaded, after: Loaded) -> Race:
    """Time two models in turns until their ratio is known to half a percent.

    On a machine with much noise that ends after some seconds, and the race says how close it got.

    Args:
        before: The original, warmed up.
        after: Another one, warmed up.
    Raises:
        EngineError: One of them does not run.
    """
    start = time.perf_counter()
    found = _raced((before, after), before.fewest_turns)
    while found.spread > _CLOSE and time.perf_counter() - start < _CLOSE_SECONDS:
        more = _raced((before, after), before.fewest_turns)
        found = Race(np.append(found.before, more.before), np.append(found.after, more.after))
    return found


def _raced(pair: Sequence[Loaded], turns: int) -> Race:
    times = np.empty((turns, 2))
    for number in range(turns):
        for place in (0, 1) if number % 2 else (1, 0):
            times[number, place] = pair[place].turn_seconds()
    return Race(times[:, 0], times[:, 1])


def _seconds(session: Session, feed: Mapping[str, NDArray[Any]]) -> float:
    start = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - start
