"""Time two models side by side in ONNX Runtime."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
    def is_slower(self) -> bool:
        """Whether the result is slower, by more than chance and by more than a trifle."""
        turns = len(self.before)
        lost = int((self.after > self.before).sum())
        before, after = self.medians_ms
        by_chance = turns / 2 + _DEVIATIONS * math.sqrt(turns) / 2
        return lost > by_chance and after > _SLOWER * before


def race(
    before: Graph, after: Graph, feed: Mapping[str, NDArray[Any]], *, asked: bool = True
) -> Race | None:
    """Time two models on one input.

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
    sessions = [Session(graph) for graph in (before, after)]
    for _ in range(_WARM_UP):
        turn = sum(_seconds(session, feed) for session in sessions)
        if not asked and turn * _FEWEST_TURNS > AFFORDABLE_SECONDS:
            return None
    turns = int(np.clip(AFFORDABLE_SECONDS / turn, _FEWEST_TURNS, _MOST_TURNS))
    found = _raced(sessions, feed, turns)
    if found.is_slower:  # turns that follow each other share their noise: chance seldom comes twice
        found = _raced(sessions, feed, turns)
    return found


def _raced(sessions: Sequence[Session], feed: Mapping[str, NDArray[Any]], turns: int) -> Race:
    times = np.empty((turns, 2))
    for number in range(turns):
        for place in (0, 1) if number % 2 else (1, 0):
            times[number, place] = _seconds(sessions[place], feed)
    return Race(times[:, 0], times[:, 1])


def _seconds(session: Session, feed: Mapping[str, NDArray[Any]]) -> float:
    start = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - start
