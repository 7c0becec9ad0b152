"""What repair looks at, and what judges it: the same for all cuts of a network."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from obc_onnx.measuring.error import Distance, split

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples


class Bench:
    """Samples for repair, in two parts that have nothing in common.

    The original runs on those that judge once, when a cut is first judged.

    Args:
        coupling: Of the network before it is cut.
        samples: All of them; labels are not used.

    Attributes:
        n_samples: How many there are.
        used: Those that a repair may look at; none where there are too few for both parts.
        held: Those that judge.
    """

    def __init__(self, coupling: Coupling, samples: Samples) -> None:
        self._coupling, self.n_samples = coupling, len(samples)
        self.used, self.held = split(samples, coupling.graph.batch or 1)

    @cached_property
    def distance(self) -> Distance:
        """What judges a cut: how far its outputs are from the original's."""
        return Distance(self._coupling, self.held)
