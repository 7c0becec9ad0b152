"""Where samples come from: what the command line and Python share; loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from obc_onnx.samples.image_options import ImageOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obc_onnx.samples.samples import Samples

    MetricFunction = Callable[[Any], float]

HOLDOUT = 0.2
EVAL_SAMPLES = 10_000
"""Accuracy is then known to half a point."""


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from.

    Attributes:
        source: A file or folder, code as `FILE.py:NAME`, see `samples.read`, or samples; None works
            without data.
        holdout: Share of it, drawn from all classes, that is only measured on.
        evaluation: Samples to measure on instead.
        eval_samples: How many are measured on, at most, drawn by a fixed seed.
        images: How pictures become an input.
        mask_input: The input that says which positions are padding, where it is not found.
        metric: Quality in place of top-1 accuracy: a function, or `FILE.py:FUNCTION`, that gets an
            iterator of `MeasuredRun` and returns one number.
        lower_is_better: Whether the metric is an error.
    """

    source: str | Path | Samples | None = None
    holdout: float = HOLDOUT
    evaluation: str | Path | Samples | None = None
    eval_samples: int = EVAL_SAMPLES
    images: ImageOptions = field(default_factory=ImageOptions)
    mask_input: str | None = None
    metric: str | MetricFunction | None = None
    lower_is_better: bool = False

    @classmethod
    def of(cls, data: DataOptions | str | Path | Samples | None) -> DataOptions:
        """Return options, or those of a source alone."""
        return data if isinstance(data, DataOptions) else cls(data)
