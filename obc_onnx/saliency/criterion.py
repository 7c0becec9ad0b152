"""What a criterion is, and what it is given.

The command line names criteria in its help, so nothing heavy is imported before they are used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from obc_onnx.branches.find import still_there
from obc_onnx.errors import DataError
from obc_onnx.saliency.options import Scoring

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.branches.find import Branch, StandIns
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.measuring.padding import RealOf
    from obc_onnx.measuring.scales import Scale
    from obc_onnx.saliency.options import ObjectiveName
    from obc_onnx.samples.samples import Samples

    Saliency = dict[str, NDArray[np.float64]]

OF_SAMPLES = frozenset({"samples", "batches", "batch_size", "amp"})
OF_MEMBERS = frozenset({"reduction", "normalizer", "depthwise"})
OF_LOSS = frozenset({"objective", "loss"})
COUPLED = "coupled"
"""Stands for that reduction, which only a criterion with rows has."""


@dataclass(frozen=True)
class Scene:
    """What a criterion may look at.

    Attributes:
        coupling: The groups to score.
        samples: Data to score on; None for a criterion that needs none.
        seed: Of every random choice.
        device: Where torch runs.
        scoring: How.
        first: The scene before anything was removed, where units were.
        branches: Those to score besides units.
    """

    coupling: Coupling
    samples: Samples | None = None
    seed: int = 0
    device: str = "cpu"
    scoring: Scoring = field(default_factory=Scoring)
    first: Scene | None = None
    branches: tuple[Branch, ...] = ()

    def holding(self, coupling: Coupling) -> Scene:
        """Return the same scene with other weights; outputs are seen on the same scales."""
        return replace(self, coupling=coupling, first=self.first or self)

    def data(self) -> Samples:
        """Return the samples.

        Raises:
            DataError: There are none.
        """
        if self.samples is None:
            raise DataError("the criterion needs samples: give `data`, or use `criterion='l2'`")
        return self.samples

    @cached_property
    def scales(self) -> list[Scale]:
        """The scales of the model's float outputs on the samples; whole, whatever is masked."""
        if self.first is not None:
            return self.first.scales
        from obc_onnx.measuring.outputs import batch_size_of
        from obc_onnx.measuring.scales import measure_scales
        from obc_onnx.twin.build import derived_twin
        from obc_onnx.twin.tensors import as_inputs, to_array

        graph = self.coupling.graph
        twin = derived_twin(graph, self.coupling, frozen=True).to(self.device)

        def run(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            outputs = twin(*as_inputs(graph.inputs, feed, self.device))
            ports = zip(graph.outputs, outputs, strict=True)
            return {port.name: to_array(output, port.dtype) for port, output in ports}

        size = batch_size_of(graph, self.scoring.row_size)
        return measure_scales(self.coupling, self.data(), run, size)

    def without_branches(self, gone: StandIns) -> Scene:
        """Return the scene with those branches to score that its network still has, on one scale.

        Args:
            gone: For each value that went, what is read in its place.
        """
        left = still_there(self.coupling.graph, self.branches, gone)
        if left == self.branches:
            return self
        return replace(self, branches=left, first=self.first or self)

    def asking(self, objective: ObjectiveName) -> Scene:
        """Return the same scene with another objective, once and for all."""
        if objective not in self._asked:
            scoring = replace(self.scoring, objective=objective)
            self._asked[objective] = replace(self, scoring=scoring)
        return self._asked[objective]

    @cached_property
    def _asked(self) -> dict[ObjectiveName, Scene]:
        return {}

    def real_positions(self, which: slice) -> RealOf:
        """Return what says which positions of a value are no padding, see `real_of`."""
        from obc_onnx.measuring.padding import real_of

        return real_of(self.coupling, self.data(), which)


class Criterion(ABC):
    """A function that gives every unit of every group a saliency; higher is worth more."""

    name: ClassVar[str]
    needs_data: ClassVar[bool]
    uses: ClassVar[frozenset[str]] = OF_MEMBERS
    """The fields of `Scoring` that it looks at."""
    scores_branches: ClassVar[bool] = False
    """Whether it has a word on branches, on the scale of units."""

    @abstractmethod
    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Score the units that are still there.

        Args:
            scene: The groups, and data to score on.
            keep: The units that are left of dims that already lost some; what was removed counts as
                masked.
        Returns:
            For each group that it has a word on, by name, shape [n_units], float64; the values of
            removed units have no meaning. For each branch of the scene by name, shape [1].
        """
