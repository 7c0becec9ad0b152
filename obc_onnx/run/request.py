"""What a compression was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.errors import RequestError
from obc_onnx.recover.methods import minutes_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Method
    from obc_onnx.saliency.options import Scoring
    from obc_onnx.saliency.scores import Scores
    from obc_onnx.samples.options import DataOptions
    from obc_onnx.training.options import TrainingOptions

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What `compress` or `make_plan` was asked for.

    Raises:
        RequestError: It contradicts itself.
    """

    name: str
    data: DataOptions
    budget: Budget
    criterion: str | None
    scoring: Scoring
    scores: Scores | None
    recover: Method
    recover_minutes: float | None
    input_shape: Mapping[str, Shape]
    batch_axes: Axes
    seed: int
    device: str
    rules: RuleSet
    plan: PruningPlan | None = None
    training: TrainingOptions | None = None
    run_dir: Path | None = None
    resume: bool = False
    latency: bool | None = None

    def __post_init__(self) -> None:
        """Check what concerns several fields."""
        if self.resume and self.run_dir is None:
            raise RequestError("--resume goes on with a run: give its --run-dir")
        _ = self.refining_minutes

    @property
    def refining_minutes(self) -> float:
        """How long repair may refine by gradient, see `minutes_of`."""
        trains = self.training is not None and self.training.epochs > 0
        return minutes_of(self.recover_minutes, trains=trains)

    @property
    def code(self) -> list[str | None]:
        """What a user may have written, as `FILE.py:FUNCTION`, and other names of losses."""
        training = self.training
        losses = [] if training is None else [name for name, _ in training.loss]
        augmentation = None if training is None else training.augmentation
        transform = None if augmentation is None else augmentation.transform
        return [self.scoring.loss, transform, *losses]
