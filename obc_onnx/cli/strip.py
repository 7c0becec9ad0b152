"""The command that takes out of a model what costs and does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    force_option,
    json_option,
    model_options,
    seed_option,
)
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import check_targets, reports_errors
from obc_onnx.cli.wording import in_options

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option(
    "--below",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    help="Size up to which weights count as zeros; above 0 the result is not exact.",
)
@click.option("--report-out", type=FILE, help="Where to write what went and why, as JSON.")
@force_option
@model_options
@batch_axis_option
@seed_option
@json_option
@reports_errors
def strip(
    model: Path,
    output: Path,
    *,
    below: float,
    report_out: Path | None,
    force: bool,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    seed: int,
    as_json: bool,
) -> str:
    """Write MODEL without what costs and does nothing to OUTPUT; no data is needed.

    Units go that no weight reads, that are zero or the same in every run, and that equal others.
    The result computes what MODEL does.
    """
    from obc_onnx.report.terminal import strip_text
    from obc_onnx.run.strip import strip as strip_model

    check_targets([output, report_out], model, [], force=force)
    stripping = strip_model(
        model, below=below, input_shape=input_shape, batch_axes=batch_axes, seed=seed
    )
    stripping.save(output, report_out)
    report = in_options(stripping.report)
    click.echo(report.to_json() if as_json else strip_text(report))
    return f"use it in place of {model}"
