"""What is left of a network: units and branches together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.branches.find import Branch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from obc_onnx.branches.find import StandIns
    from obc_onnx.coupling.model import Group, Keep

    Removal = tuple[Group, NDArray[np.int64]] | Branch


@dataclass(frozen=True)
class Left:
    """What is left of a network on its way to a plan.

    Attributes:
        keep: For each dim that loses units, which units stay.
        stand_ins: For each value that goes with a branch, what is read instead.
    """

    keep: Keep = field(default_factory=dict)
    stand_ins: StandIns = field(default_factory=dict)

    def without(self, removals: Sequence[Removal]) -> Left:
        """Return what is left once more goes."""
        keep = {dim: mask.copy() for dim, mask in self.keep.items()}
        others = dict(self.stand_ins)
        for removal in removals:
            if isinstance(removal, Branch):
                others.setdefault(removal.value, removal.stand_in)
                continue
            group, units = removal
            if group.dim not in keep:
                keep[group.dim] = np.ones(group.size, np.bool_)
            keep[group.dim][units] = False
        return Left(keep, others)

    def with_again(self, removal: Removal) -> Left:
        """Return what would be left without one removal."""
        if isinstance(removal, Branch):
            fewer = {own: u for own, u in self.stand_ins.items() if own != removal.value}
            return Left(self.keep, fewer)
        group, units = removal
        wider = {**self.keep, group.dim: self.keep[group.dim].copy()}
        wider[group.dim][units] = True
        return Left(wider, self.stand_ins)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is gone."""
        return not self.keep and not self.stand_ins
