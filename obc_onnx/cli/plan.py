"""Decide without cutting, and measure what each group can lose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import (
    FILE,
    costs_option,
    data_of,
    data_options,
    eval_samples_option,
    json_option,
    recover_option,
    run_options,
)
from obc_onnx.cli.pages import page_option, write_page
from obc_onnx.cli.plan_options import plan_options, scope_of, scope_options
from obc_onnx.cli.quality_options import quality_options
from obc_onnx.cli.score_options import scoring_of, scoring_options
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import (
    check_targets,
    decided_by,
    files_read,
    in_shell,
    reports_errors,
    worked_with,
    writer,
)
from obc_onnx.cli.wording import in_options
from obc_onnx.planning.budget import MEASURED_SAMPLES

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the plan, as JSON.")
@click.option("--scores", type=FILE, help="What `score` wrote, in place of a criterion.")
@data_options
@eval_samples_option()
@quality_options
@scoring_options
@plan_options
@costs_option
@recover_option
@run_options
@json_option
@page_option
@reports_errors
def plan(
    model: Path,
    output: Path,
    *,
    page: Path | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> str:
    """Decide which units of MODEL stay, for `apply` and `finetune`; cut nothing.

    The plan is a file to read and to edit. It is for this model alone.
    """
    from obc_onnx.files import replacing
    from obc_onnx.report.page import outlook_page
    from obc_onnx.report.terminal import plan_text
    from obc_onnx.run.api import foresee

    check_targets([output, page], model, files_read(options), force=force)
    with writer(options["device"]) as (device, writes):
        outlook = foresee(
            model,
            **worked_with(options),
            **decided_by(options),
            input_shape=input_shape,
            seed=seed,
            device=device,
        )
        if writes:
            with replacing(output) as temporary:
                temporary.write_text(outlook.plan.to_json(), encoding="utf-8")
            write_page(page, outlook_page, outlook, seed)
            click.echo(
                outlook.plan.to_json().rstrip() if as_json else plan_text(in_options(outlook))
            )
    return in_shell("apply", model, "--plan", output, "-o", "small.onnx")


@command()
@click.argument("model", type=FILE)
@click.option("--plot", type=FILE, help="Where to draw the errors, as SVG.")
@data_options
@eval_samples_option(MEASURED_SAMPLES)
@scoring_options
@scope_options
@costs_option
@run_options
@json_option
@page_option
@reports_errors
def sensitivity(
    model: Path,
    plot: Path | None,
    *,
    page: Path | None,
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
    from obc_onnx.report.page import sensitivity_page
    from obc_onnx.report.pictures import sensitivity_svg
    from obc_onnx.report.terminal import sensitivity_text
    from obc_onnx.run.sensitivity import measure_sensitivity

    check_targets([plot, page], model, files_read(options), force=force)
    sensitivity = measure_sensitivity(
        model,
        data=data_of(options),
        criterion=options["criterion"],
        scoring=scoring_of(options),
        scope=scope_of(options),
        n_samples=options["eval_samples"],
        input_shape=input_shape,
        batch_axes=options["batch_axes"],
        seed=seed,
        device=options["device"],
        costs=options["costs"],
    )
    if plot is not None:
        with replacing(plot) as temporary:
            temporary.write_text(sensitivity_svg(sensitivity), encoding="utf-8")
    write_page(page, sensitivity_page, sensitivity, seed)
    click.echo(sensitivity.to_json() if as_json else sensitivity_text(sensitivity))
