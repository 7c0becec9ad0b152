"""A model and samples, as they were read: what the stages of a run begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.measuring.outputs import Outputs
    from obc_onnx.run.timing import Timing
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]


class Opened(NamedTuple):
    """A model and samples, as they were read.

    Attributes:
        coupling: Of the model, or of what sparse learning has made of it.
        inputs: Sizes of its inputs.
        samples: To score, repair and train on.
        held: To measure on.
        original: The model as it came.
        before: What that gives for the samples to measure on.
        timing: What tells milliseconds, where there is a profile.
    """

    coupling: Coupling
    inputs: Mapping[str, Shape]
    samples: Samples | None
    held: Samples | None
    original: Coupling
    before: Outputs | None
    timing: Timing | None = None

    @property
    def predictor(self) -> Predictor | None:
        """What predicts milliseconds, where there is a profile."""
        return None if self.timing is None else self.timing.predictor
