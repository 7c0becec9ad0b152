"""What the package offers: score, plan, apply, compress, fine-tune, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from obc_onnx.coupling.analysis import Clock, Model, analyse, load_model, model_name, told
from obc_onnx.errors import RequestError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.latency.predictor import fit
from obc_onnx.latency.profile import Profile
from obc_onnx.measuring.masks import with_padding
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.run.compression import Compression
from obc_onnx.run.low_rank import LowRank
from obc_onnx.run.opened import analysed, read
from obc_onnx.run.request import check_device, request_of
from obc_onnx.run.strip import strip_first
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import Scores, score_units
from obc_onnx.samples.options import DataOptions
from obc_onnx.surgery.cut import Cut
from obc_onnx.training.options import FINETUNE_EPOCHS, TrainingOptions, training_options
from obc_onnx.verification.checks import Check, check_file, check_masked, why_no_twin
from obc_onnx.verification.result import Candidate, check_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Method
    from obc_onnx.report.result import Result
    from obc_onnx.report.summary import Outlook
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]


def compress(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples | None = None,
    budget: Budget | float | None = None,
    criterion: str | None = None,
    scoring: Scoring | None = None,
    scores: Scores | None = None,
    training: TrainingOptions | int = 0,
    plan: PruningPlan | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    recover: Method = "auto",
    recover_minutes: float | None = None,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    latency: bool | None = None,
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Result:
    """Make a smaller model with the same inputs and outputs, and prove it.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        data: Samples to score, repair, fine-tune and measure on.
        budget: What to meet; a number is the share of the MACs that may be left, half by default.
        criterion: "jacobian" by default with data, "l2" without.
        scoring: How the criterion looks at the samples.
        scores: What `score` gave, in place of a criterion.
        training: How to fine-tune; a number is the epochs, 0 does not train.
        plan: What to cut, in place of a budget and a criterion.
        run_dir: A folder for the plan, checkpoints and metrics of the run.
        resume: Whether to go on with the run that is there.
        recover: How to repair the cut network without labels: "refit" solves every layer again,
            "stats" measures norms again or matches statistics, "fuse" makes up from norms or
            merges units and needs no data, "auto" is the first two and then refinement by gradient,
            as far as they help on held-out samples, and without data what norms tell, where there
            are norms.
        recover_minutes: What refinement by gradient may take, by an estimate for one core of a CPU
            that looks at no clock; 0 leaves it out. None is 3, and 0 where training follows.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice: equal seeds give equal bytes.
        device: Where torch scores, repairs and trains.
        latency: Whether to time both models; None does where it takes a few seconds at most.
        costs: A profile, or its file: for targets of latency, and to measure with its engine.
        rules: What is known of operators.
    Returns:
        The model, its plan and its report. Nothing is written.
    Raises:
        ObcError: The request cannot be met; the message says why.
        VerificationError: The result failed a check.
    """
    request = request_of(
        model,
        data=data,
        budget=budget,
        criterion=criterion,
        scoring=scoring,
        scores=scores,
        plan=plan,
        training=training_options(training),
        run_dir=None if run_dir is None else Path(run_dir),
        resume=resume,
        recover=recover,
        recover_minutes=recover_minutes,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        device=device,
        latency=latency,
        costs=costs,
        rules=rules,
    )
    return Compression(request).execute(model)


def make_plan(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples | None = None,
    budget: Budget | float | None = None,
    criterion: str | None = None,
    scoring: Scoring | None = None,
    scores: Scores | None = None,
    recover: Method = "auto",
    recover_minutes: float | None = None,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> PruningPlan:
    """Decide which units stay, and cut nothing: the first half of `compress`, see there.

    Args:
        model: A file, a loaded model, or a graph.
        data: Samples to score on, and to measure on where the budget has a `max_drop`.
        budget: What to meet; a number is the share of the MACs that may be left, half by default.
        criterion: "jacobian" by default with data, "l2" without.
        scoring: How the criterion looks at the samples.
        scores: What `score` gave, in place of a criterion.
        recover: How `apply` will repair: with a `max_drop`, candidates are repaired and measured,
            and what repair makes of vectors that layers share counts in the size of the file.
        recover_minutes: What refinement by gradient may take of that; as in `compress`.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice.
        device: Where torch runs.
        costs: A profile, or its file, for targets of latency; the model is timed without.
        rules: What is known of operators.
    Raises:
        ObcError: The request cannot be met; the message says why.
    """
    return foresee(
        model,
        data=data,
        budget=budget,
        criterion=criterion,
        scoring=scoring,
        scores=scores,
        recover=recover,
        recover_minutes=recover_minutes,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        device=device,
        costs=costs,
        rules=rules,
    ).plan


def foresee(model: Model, **asked: Any) -> Outlook:
    """Make a plan, and say what it would leave of each layer.

    Args:
        model: A file, a loaded model, or a graph.
        asked: What `make_plan` takes.
    Raises:
        ObcError: The request cannot be met; the message says why.
    """
    return Compression(request_of(model, **asked)).decide(model)


def apply(
    model: Model,
    plan: PruningPlan,
    *,
    data: DataOptions | str | Path | Samples | None = None,
    recover: Method = "auto",
    recover_minutes: float | None = None,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    latency: bool | None = None,
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Result:
    """Cut by a plan, repair with data, and prove the result: the second half of `compress`.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        plan: What to cut.
        data: Samples to repair and measure on.
        recover: How to repair the cut network without labels; as in `compress`.
        recover_minutes: What refinement by gradient may take of that; as in `compress`.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice.
        device: Where torch repairs.
        latency: Whether to time both models; None does where it takes a few seconds at most.
        costs: A profile, or its file: for targets of latency, and to measure with its engine.
        rules: What is known of operators.
    Raises:
        RequestError: The plan is for another model.
        VerificationError: The result failed a check.
    """
    return compress(
        model,
        plan=plan,
        data=data,
        recover=recover,
        recover_minutes=recover_minutes,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        device=device,
        latency=latency,
        costs=costs,
        rules=rules,
    )


def finetune(
    model: Model,
    plan: PruningPlan,
    *,
    data: DataOptions | str | Path | Samples,
    training: TrainingOptions | int = FINETUNE_EPOCHS,
    run_dir: str | Path | None = None,
    resume: bool = False,
    recover: Method = "auto",
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    latency: bool | None = None,
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Result:
    """Cut by a plan, repair, fine-tune, and prove the result: `compress` with a plan, see there.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        plan: What to cut.
        data: Samples to repair, fine-tune and measure on.
        training: How to fine-tune; a number is the epochs.
        run_dir: A folder for the plan, checkpoints and metrics of the run.
        resume: Whether to go on with the run that is there.
        recover: How to repair the cut network before it is trained.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice: equal seeds give equal bytes.
        device: Where torch repairs and trains.
        latency: Whether to time both models; None does where it takes a few seconds at most.
        costs: A profile, or its file: for targets of latency, and to measure with its engine.
        rules: What is known of operators.
    Returns:
        The model, its plan and its report. Nothing is written.
    Raises:
        ObcError: The request cannot be met; the message says why.
        VerificationError: The result failed a check.
    """
    if training == 0:
        raise RequestError("`training=0` trains nothing: give epochs, or use `apply`")
    return compress(
        model,
        plan=plan,
        data=data,
        training=training,
        run_dir=run_dir,
        resume=resume,
        recover=recover,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        device=device,
        latency=latency,
        costs=costs,
        rules=rules,
    )


def score(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples | None = None,
    criterion: str | None = None,
    scoring: Scoring | None = None,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    device: str = "cpu",
    rules: RuleSet = DEFAULT_RULES,
) -> Scores:
    """Score every unit of every group.

    Args:
        model: A file, a loaded model, or a graph.
        data: Samples; the held-out share of them is not looked at.
        criterion: "jacobian" by default with data, "l2" without.
        scoring: How the criterion looks at the samples.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of every random choice.
        device: Where torch runs.
        rules: What is known of operators.
    Raises:
        ObcError: The request cannot be met; the message says why.
    """
    check_device(device)
    graph, samples, _ = read(model, DataOptions.of(data), input_shape, batch_axes)
    coupling, inputs = analysed(graph, samples, input_shape, batch_axes, rules)
    with told(coupling.graph, inputs):
        if samples is not None:
            (samples,) = with_padding(coupling, samples)
        return score_units(coupling, samples, criterion, scoring or Scoring(), seed, device)


def verify(
    original: Model,
    compressed: Model,
    plan: PruningPlan,
    *,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    costs: Profile | str | Path | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> list[Check]:
    """Check a compressed model against its original and its plan.

    Args:
        original: A file, a loaded model, or a graph.
        compressed: In the same way; a file is run as it lies there, too.
        plan: What was cut.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of the inputs that both are compared on.
        costs: A profile, or its file, that a target of latency is counted with.
        rules: What is known of operators.
    Returns:
        Every check, failed ones included.
    Raises:
        RequestError: The plan is for another model.
    """
    clock = Clock()
    before, after = load_model(original), load_model(compressed)
    plan.check_model(before.sha256, model_name(original))
    coupling, inputs = analyse(before, input_shape, rules, clock, batch_axes)
    if plan.stripped:
        coupling = strip_first(coupling, inputs, plan.seed) or coupling
    if plan.low_rank:
        coupling = LowRank.of(coupling, None, plan).coupling
    before, after = coupling.graph, after.with_batch(coupling.graph.batch_axes)
    keep = plan.keep(coupling)
    feed = random_feed(before, inputs, seed)
    candidate = Candidate(
        cut=Cut.of(coupling, keep, plan.stand_ins(coupling)),
        plan=plan,
        inputs=inputs,
        feed=feed,
        no_twin=why_no_twin(coupling),
        original=coupling,
        predictor=None if costs is None else fit(coupling, Profile.of(costs)),
    )
    checks = [
        check_masked(coupling, keep, feed, plan.stand_ins(coupling)),
        *check_result(candidate, after, clock),
    ]
    if isinstance(compressed, (str, Path)) and all(check.passed for check in checks):
        checks.append(check_file(Path(compressed), after, feed))
    return checks
