"""Show what can be pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    force_option,
    json_option,
    model_options,
)
from obc_onnx.cli.pages import page_option, write_page
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import (
    check_targets,
    is_verbose,
    load_scores,
    reports_errors,
)
from obc_onnx.cli.wording import in_options
from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("model", type=FILE)
@click.option(
    "--explain",
    metavar="NAME",
    help="Follow a tensor, or one axis of it as NAME:1, to all that it is tied to.",
)
@click.option("--scores", type=FILE, help="Show the units with the least and the most saliency.")
@model_options
@batch_axis_option
@force_option
@json_option
@page_option
@reports_errors
def inspect(
    model: Path,
    *,
    explain: str | None,
    scores: Path | None,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    force: bool,
    as_json: bool,
    page: Path | None,
) -> None:
    """Show what can be pruned in MODEL, and what cannot and why."""
    from obc_onnx.report.page import inspection_page
    from obc_onnx.report.terminal import explanation_text, inspection_text
    from obc_onnx.run.inspection import inspect as inspect_model

    if scores is not None and explain is not None:
        raise RequestError("--explain shows no scores: give one of the two")
    if page is not None and explain is not None:
        raise RequestError("--explain goes into no report: give one of the two")
    check_targets([page], model, [] if scores is None else [scores], force=force)
    found = inspect_model(
        model,
        input_shape=input_shape,
        batch_axes=batch_axes,
        explained=explain,
        scores=load_scores(scores),
    )
    inspection = in_options(found)
    write_page(page, inspection_page, found)
    if as_json:
        click.echo(inspection.to_json())
    elif explain is not None:
        click.echo(explanation_text(inspection))
    else:
        click.echo(inspection_text(inspection, whole=is_verbose()))
