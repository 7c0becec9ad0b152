"""Commands around plans: decide without cutting, cut by what was decided, measure groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    budget_of,
    data_of,
    data_options,
    device_option,
    force_option,
    group_options,
    groups_of,
    input_shape_option,
    json_option,
    latency_option,
    plan_options,
    recover_option,
    seed_option,
)
from obc_onnx.cli.score_options import scoring_of, scoring_options
from obc_onnx.cli.shared import (
    check_model_targets,
    check_targets,
    compress_and_write,
    files_read,
    load_scores,
    reports_errors,
    scores_read,
    writer,
)
from obc_onnx.planning.budget import MEASURED_SAMPLES

if TYPE_CHECKING:
    from pathlib import Path


@click.command("plan")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the plan, as JSON.")
@click.option("--scores", type=FILE, help="What `score` wrote, in place of a criterion.")
@data_options
@scoring_options(alone=False)
@plan_options
@recover_option
@force_option
@device_option
@input_shape_option
@batch_axis_option
@seed_option
@json_option
@reports_errors
def plan_command(
    model: Path,
    output: Path,
    *,
    scores: Path | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> None:
    """Decide which units of MODEL stay, for `apply` and `finetune`; cut nothing.

    The plan is a file to read and to edit. It is for this model alone.
    """
    from obc_onnx.files import replacing
    from obc_onnx.report.terminal import plan_text
    from obc_onnx.run.api import make_plan

    read = [*files_read(options), *scores_read(scores, options)]
    check_targets([output], model, read, force=force)
    with writer(options["device"]) as (device, writes):
        plan = make_plan(
            model,
            data=data_of(options),
            budget=budget_of(options),
            criterion=options["criterion"],
            scoring=scoring_of(options),
            scores=load_scores(scores),
            recover=options["recover"],
            recover_minutes=options["recover_minutes"],
            input_shape=input_shape,
            batch_axes=options["batch_axes"],
            seed=seed,
            device=device,
        )
        if writes:
            with replacing(output) as temporary:
                temporary.write_text(plan.to_json(), encoding="utf-8")
            click.echo(plan.to_json().rstrip() if as_json else plan_text(plan, str(model)))


@click.command("apply")
@click.argument("model", type=FILE)
@click.option("--plan", type=FILE, required=True, help="What to cut, as `plan` wrote it.")
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan with the repaired digest.")
@latency_option
@data_options
@recover_option
@force_option
@device_option
@input_shape_option
@batch_axis_option
@seed_option
@json_option
@reports_errors
def apply_command(
    model: Path,
    plan: Path,
    output: Path,
    plan_out: Path | None,
    *,
    latency: bool | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> None:
    """Cut MODEL by a plan, repair it where there is data, verify it, and write it to OUTPUT."""
    from obc_onnx.planning.plan import PruningPlan

    read = files_read(options)
    check_model_targets(model, output, None, [*read, plan], force=force)
    check_model_targets(model, output, plan_out, read, force=force)  # which may be the old plan
    compress_and_write(
        (model, output, plan_out),
        options,
        as_json=as_json,
        plan=PruningPlan.load(plan),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )


@click.command("sensitivity")
@click.argument("model", type=FILE)
@click.option("--plot", type=FILE, help="Where to draw the errors, as SVG.")
@click.option(
    "--samples",
    "n_samples",
    type=click.IntRange(1),
    default=MEASURED_SAMPLES,
    show_default=True,
    help="Held-out samples to measure on, at most.",
)
@data_options
@scoring_options(alone=False)
@group_options
@force_option
@device_option
@input_shape_option
@batch_axis_option
@seed_option
@json_option
@reports_errors
def sensitivity_command(
    model: Path,
    plot: Path | None,
    *,
    n_samples: int,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> None:
    """Cut eighths of each group of MODEL alone, and measure what that does to the outputs.

    Nothing is repaired, and no model is written.
    """
    from obc_onnx.files import replacing
    from obc_onnx.report.pictures import sensitivity_svg
    from obc_onnx.report.terminal import sensitivity_text
    from obc_onnx.run.api import measure_sensitivity

    if plot is not None:
        check_targets([plot], model, files_read(options), force=force)
    sensitivity = measure_sensitivity(
        model,
        data=data_of(options),
        criterion=options["criterion"],
        scoring=scoring_of(options),
        budget=groups_of(options),
        n_samples=n_samples,
        input_shape=input_shape,
        batch_axes=options["batch_axes"],
        seed=seed,
        device=options["device"],
    )
    if plot is not None:
        with replacing(plot) as temporary:
            temporary.write_text(sensitivity_svg(sensitivity), encoding="utf-8")
    click.echo(sensitivity.to_json() if as_json else sensitivity_text(sensitivity))


PLAN_COMMANDS = (plan_command, apply_command, sensitivity_command)
