"""What is left of a network: units and branches together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obc_onnx.branches.find import Branches
    from obc_onnx.coupling.model import Keep


@dataclass(frozen=True)
class Left:
    """What is left of a network on its way to a plan.

    Attributes:
        keep: For each dim that loses units, which units stay.
        branches: For each sum that loses an operand, which.
    """

    keep: Keep = field(default_factory=dict)
    branches: Branches = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is gone."""
        return not self.keep and not self.branches
