"""Criteria that differentiate a loss: one, or the two of a mixture."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from obc_onnx.saliency.criterion import Criterion
from obc_onnx.saliency.objective import kinds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.saliency.criterion import Saliency, Scene


class LossCriterion(Criterion):
    """A criterion that differentiates a loss; it knows of one loss at a time."""

    averages: ClassVar[bool] = False
    """Whether it takes means over samples, whatever rows are asked for, before it squares."""

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Score by each loss of the scene's objective, and mix what they give."""
        if scene.scoring.loss is not None:
            return self.score_by_loss(scene, keep)
        kinds = kinds_of(scene, averaged=self.averages or scene.scoring.rows == "batch")
        found = [self.score_by_loss(scene.asking(kind), keep) for kind in kinds]
        return found[0] if len(found) == 1 else mixed(scene.coupling, keep, found)

    @abstractmethod
    def score_by_loss(self, scene: Scene, keep: Keep) -> Saliency:
        """Score as `score` does, by the one loss that the scene names."""


def mixed(coupling: Coupling, keep: Keep, found: Sequence[Saliency]) -> Saliency:
    """Add scores of the same groups, each as a share of its own total over the units left.

    S(unit) = sum over losses l of S_l(unit) / sum over units u that are left of S_l(u).

    Losses have no unit in common; so each has one voice, and a unit stays that matters to either.
    Scores that are all 0, as where no loss depends on a unit, add nothing.
    """
    totals = []
    for scores in found:
        left = [
            scores[group.name][keep.get(group.dim, np.ones(group.size, np.bool_))]
            for group in coupling.groups
            if group.name in scores
        ]
        totals.append(float(np.concatenate(left).sum()) if left else 0.0)
    told = [(scores, total) for scores, total in zip(found, totals, strict=True) if total]
    return {
        name: np.sum([scores[name] / total for scores, total in told] or [zeros], axis=0)
        for name, zeros in found[0].items()
    }
