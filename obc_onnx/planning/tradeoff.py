"""Results of several targets side by side: which are worth having, and which one to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL, NONE, KNEE, MAX_DROP = "all", "none", "knee", "max-drop"
_EQUAL = 1e-9
"""Of a difference of two drops: what is below is rounding."""


@dataclass(frozen=True)
class Tradeoff:
    """What one target gives.

    Attributes:
        target: What was asked for.
        cost: What is left, as a share.
        drop: How much worse the result is.
    """

    target: float
    cost: float
    drop: float


def front(tradeoffs: Sequence[Tradeoff]) -> list[Tradeoff]:
    """Return the Pareto set, the largest cost first: nothing else costs less and is as good."""
    best: list[Tradeoff] = []
    for found in sorted(tradeoffs, key=lambda found: (found.cost, found.drop)):
        if not best or found.drop < best[-1].drop - _EQUAL:
            best.append(found)
    return best[::-1]


def knee(tradeoffs: Sequence[Tradeoff]) -> Tradeoff | None:
    """Return the result of the Pareto set from which on a smaller cost loses the most.

    That is the one farthest below the line from the largest to the smallest cost, both axes being
    scaled to the same length. None where no result lies below the line, nor between its ends.

    Source: Satopaa et al., Finding a "Kneedle" in a Haystack, ICDCS workshops 2011.
    """
    curve = front(tradeoffs)
    if len(curve) <= len(("first", "last")):
        return None
    cost = np.array([found.cost for found in curve])
    drop = np.array([found.drop for found in curve])
    saved = (cost[0] - cost) / (cost[0] - cost[-1])
    lost = (drop - drop[0]) / (drop[-1] - drop[0])
    place = int(np.argmax(saved - lost))
    return curve[place] if saved[place] - lost[place] > _EQUAL else None


@dataclass(frozen=True)
class Pick:
    """Which results are written.

    Attributes:
        rule: "all", "none", "knee", "max-drop", or "" for one target.
        value: The drop that is allowed, or the target.
    """

    rule: str
    value: float = 0.0

    @classmethod
    def of(cls, text: str) -> Pick:
        """Read `all`, `none`, `knee`, `max-drop=0.01`, or a target such as `0.5`.

        Raises:
            RequestError: It is none of those.
        """
        name, _, number = text.rpartition("=")
        if text in (ALL, NONE, KNEE):
            return cls(text)
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if name not in ("", MAX_DROP) or not 0 <= value < np.inf:
            raise RequestError(
                f"`pick` '{text}' is none of: {ALL}, {NONE}, {KNEE}, {MAX_DROP}=0.01, or a target"
            )
        return cls(name, value)

    def candidates(self, tradeoffs: Sequence[Tradeoff]) -> list[Tradeoff]:
        """Return those that may be picked once more are known, or that are if there are no more."""
        return list(tradeoffs) if self.rule == KNEE else self.chosen(tradeoffs)

    def chosen(self, tradeoffs: Sequence[Tradeoff]) -> list[Tradeoff]:
        """Return those that are picked; empty where none is what was asked for."""
        if self.rule in (ALL, NONE):
            return list(tradeoffs) if self.rule == ALL else []
        if self.rule == KNEE:
            found = knee(tradeoffs)
            return [] if found is None else [found]
        if self.rule == MAX_DROP:
            good = [found for found in tradeoffs if found.drop <= self.value + _EQUAL]
            return sorted(good, key=lambda found: found.cost)[:1]
        return [found for found in tradeoffs if found.target == self.value]
