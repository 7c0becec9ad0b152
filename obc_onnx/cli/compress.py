"""Commands that write a compressed model: from a budget, or from a plan that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import (
    FILE,
    costs_option,
    data_options,
    eval_samples_option,
    json_option,
    latency_option,
    recover_option,
    run_options,
)
from obc_onnx.cli.pages import page_option
from obc_onnx.cli.plan_options import plan_options
from obc_onnx.cli.quality_options import quality_options
from obc_onnx.cli.score_options import scoring_options
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import (
    Files,
    check_targets,
    compress_and_write,
    decided_by,
    files_read,
    load_scores,
    reports_errors,
    resumed_run,
)
from obc_onnx.cli.train_options import training_of, training_options
from obc_onnx.training.options import FINETUNE_EPOCHS

if TYPE_CHECKING:
    from pathlib import Path


_scores_for_plan_option = click.option(
    "--scores",
    type=FILE,
    help="What `score` wrote, where the plan says how many units of a group stay and not which.",
)


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan, as JSON.")
@latency_option
@costs_option
@click.option("--scores", type=FILE, help="What `score` wrote, in place of a criterion.")
@data_options
@eval_samples_option()
@quality_options
@scoring_options
@plan_options
@recover_option
@training_options(epochs=0)
@run_options
@json_option
@page_option
@reports_errors
def compress(
    model: Path,
    output: Path,
    plan_out: Path | None,
    *,
    page: Path | None,
    latency: bool | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> str:
    """Write a smaller MODEL with the same inputs and outputs to OUTPUT.

    Without --epochs it scores, cuts and verifies. Without --data units are scored by their weights.
    """
    run, read = resumed_run(options), files_read(options)
    check_targets([output, plan_out, page], model, read, force=force, resumed=run)
    return compress_and_write(
        Files(model, output, plan_out, page),
        options,
        as_json=as_json,
        **decided_by(options),
        training=training_of(options),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )


@command()
@click.argument("model", type=FILE)
@click.option("--plan", type=FILE, required=True, help="What to cut, as `plan` wrote it.")
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan with the repaired digest.")
@latency_option
@costs_option
@_scores_for_plan_option
@data_options
@eval_samples_option()
@quality_options
@recover_option
@run_options
@json_option
@page_option
@reports_errors
def apply(
    model: Path,
    plan: Path,
    output: Path,
    plan_out: Path | None,
    *,
    page: Path | None,
    latency: bool | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> str:
    """Cut MODEL by a plan, repair it where there is data, verify it, and write it to OUTPUT."""
    from obc_onnx.planning.plan import PruningPlan

    read = files_read(options)
    check_targets([output, page], model, [*read, plan], force=force)
    # the plan may go where the old one is
    check_targets([output, page, plan_out], model, read, force=force)
    return compress_and_write(
        Files(model, output, plan_out, page),
        options,
        as_json=as_json,
        plan=PruningPlan.load(plan),
        scores=load_scores(options["scores"]),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )


@command()
@click.argument("model", type=FILE)
@click.option("--plan", type=FILE, required=True, help="What to cut, as `compress` wrote it.")
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan with the trained digest.")
@latency_option
@costs_option
@_scores_for_plan_option
@data_options
@eval_samples_option()
@quality_options
@recover_option
@training_options(epochs=FINETUNE_EPOCHS)
@run_options
@json_option
@page_option
@reports_errors
def finetune(
    model: Path,
    plan: Path,
    output: Path,
    plan_out: Path | None,
    *,
    page: Path | None,
    latency: bool | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> str:
    """Cut MODEL by a plan that is there already, and fine-tune what is left.

    Under torchrun several processes train together, and the first one writes.
    """
    from obc_onnx.planning.plan import PruningPlan

    run, read = resumed_run(options), files_read(options)
    check_targets([output, page], model, [*read, plan], force=force, resumed=run)
    # the plan may go where the old one is
    check_targets([output, page, plan_out], model, read, force=force, resumed=run)
    return compress_and_write(
        Files(model, output, plan_out, page),
        options,
        as_json=as_json,
        plan=PruningPlan.load(plan),
        scores=load_scores(options["scores"]),
        training=training_of(options),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )
