"""What a compression was asked for, and what contradicts itself in that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obc_onnx.coupling.analysis import model_name
from obc_onnx.errors import RequestError
from obc_onnx.installation import require_torch
from obc_onnx.latency.profile import Profile
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.recover.methods import NEED_DATA, minutes_of
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.options import DataOptions
from obc_onnx.training.options import Training

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from obc_onnx.coupling.analysis import Model
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Method
    from obc_onnx.saliency.scores import Scores
    from obc_onnx.samples.samples import Samples
    from obc_onnx.training.options import TrainingOptions

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What `compress` or `make_plan` was asked for; None is what nothing was said of.

    Raises:
        RequestError: Two things contradict each other, or one would change nothing.
    """

    name: str
    data: DataOptions
    input_shape: Mapping[str, Shape]
    batch_axes: Axes
    device: str
    recover: Method = "auto"
    recover_minutes: float | None = None
    seed: int = 0
    rules: RuleSet = DEFAULT_RULES
    budget: Budget | None = None
    criterion: str | None = None
    scoring: Scoring | None = None
    scores: Scores | None = None
    plan: PruningPlan | None = None
    training: TrainingOptions | None = None
    run_dir: Path | None = None
    resume: bool = False
    latency: bool | None = None
    costs: Profile | None = None

    def __post_init__(self) -> None:
        if self.plan is not None:
            decided = () if self.plan.open_groups else ("criterion", "scoring", "scores")
            self._leave_out("what goes is in `plan`", "budget", *decided)
        if self.scores is not None:
            self._leave_out("what units are worth is in `scores`", "criterion", "scoring")
        if self.resume and self.run_dir is None:
            raise RequestError("`resume` goes on with a run: give its `run_dir`")
        if self.run_dir is not None and self.is_timed and self.costs is None:
            raise RequestError(
                "a run with a target of latency goes on with the times that it began with: give "
                "`costs`, which `profile` measures"
            )
        minutes_of(self.recover_minutes, trains=False)  # checks the number
        if self.data.source is None:
            self._check_without_data()
        if self.goal.low_rank and self.scores is not None:
            raise RequestError(
                "`scores` say nothing of the directions of `Budget.low_rank`: let units be scored "
                "with them, or leave it out"
            )
        if self.goal.low_rank and self.training is not None and self.training.sparse_epochs:
            raise RequestError(
                "`Budget.low_rank` splits weights, which `TrainingOptions.sparse_epochs` changes: "
                "leave one of both out"
            )
        scored = self.plan is not None or self.scores is not None
        if scored and self.training is not None and self.training.sparse_epochs:
            raise RequestError(
                "sparse learning comes before units are scored: leave "
                "`TrainingOptions.sparse_epochs` out, or let them be scored again"
            )

    def _check_without_data(self) -> None:
        """Check that nothing is asked for that needs samples."""
        if self.training is not None:
            raise RequestError("fine-tuning needs samples: give `data`")
        if self.recover in NEED_DATA:
            raise RequestError(
                f"`recover='{self.recover}'` needs samples: give `data`, or use `recover='fuse'`"
            )
        if self.goal.max_drop is not None:
            raise RequestError("`Budget.max_drop` is measured on samples: give `data`")
        if self.data.metric is not None:
            raise RequestError("`DataOptions.metric` is measured on samples: give `data`")

    def _leave_out(self, why: str, *arguments: str) -> None:
        """Check that no argument is given that would be ignored."""
        given = [f"`{name}`" for name in arguments if getattr(self, name) is not None]
        if given:
            raise RequestError(f"{why} already: leave out {', '.join(given)}")

    @property
    def goal(self) -> Budget:
        """What the plan has to meet."""
        return self.budget or Budget()

    @property
    def is_timed(self) -> bool:
        """Whether a plan is made that has to meet a target of time."""
        return self.plan is None and self.goal.target_latency is not None

    @property
    def look(self) -> Scoring:
        """How the criterion looks at the samples."""
        return self.scoring or Scoring()

    @property
    def run(self) -> Training | None:
        """The training, where there is one."""
        training = self.training
        return None if training is None else Training(training, self.seed, self.device)

    @property
    def refining_minutes(self) -> float:
        """How long repair may refine by gradient, see `minutes_of`."""
        return minutes_of(self.recover_minutes, trains=self.trains)

    @property
    def trains(self) -> bool:
        """Whether fine-tuning follows."""
        return self.training is not None and self.training.epochs > 0

    @property
    def code(self) -> list[str | None]:
        """What a user may have written, as `FILE.py:FUNCTION`, and other names of losses."""
        training = self.training
        losses = [] if training is None else [name for name, _ in training.loss]
        augmentation = None if training is None else training.augmentation
        transform = None if augmentation is None else augmentation.transform
        metric = self.data.metric if isinstance(self.data.metric, str) else None
        return [self.look.loss, transform, metric, *losses]


def request_of(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples | None = None,
    budget: Budget | float | None = None,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    device: str = "cpu",
    costs: Profile | str | Path | None = None,
    **asked: Any,
) -> Request:
    """Bring what `compress` or `make_plan` was asked for into one form, and check its device."""
    request = Request(
        name=model_name(model),
        data=DataOptions.of(data),
        budget=Budget(budget) if isinstance(budget, (int, float)) else budget,
        input_shape=input_shape or {},
        batch_axes=batch_axes or {},
        device=device,
        costs=None if costs is None else Profile.of(costs),
        **asked,
    )
    check_device(device)
    return request


def check_device(device: str) -> None:
    """Check a device before long work; the CPU is always there.

    Raises:
        InstallationError: torch is missing.
        RequestError: torch knows no such device, or it is not there.
    """
    if device != "cpu":
        require_torch(f"device '{device}'")
        from obc_onnx.twin.build import check_device as check_that_torch_has

        check_that_torch_has(device)
