"""Check a result that is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    costs_option,
    json_option,
    model_options,
    seed_option,
)
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import (
    reports_errors,
)
from obc_onnx.cli.wording import in_options

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("original", type=FILE)
@click.argument("compressed", type=FILE)
@click.option("--plan", type=FILE, required=True, help="The plan that `compress` wrote.")
@costs_option
@model_options
@batch_axis_option
@seed_option
@json_option
@reports_errors
def verify(
    original: Path,
    compressed: Path,
    plan: Path,
    *,
    costs: Path | None,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    seed: int,
    as_json: bool,
) -> None:
    """Check that COMPRESSED is ORIGINAL without the units that the plan removes."""
    import json

    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.report.terminal import checks_text
    from obc_onnx.run.api import verify as verify_model
    from obc_onnx.verification.checks import require

    checks = verify_model(
        original,
        compressed,
        PruningPlan.load(plan),
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        costs=costs,
    )
    shown = in_options(checks)
    if as_json:
        click.echo(json.dumps({"verification": [asdict(check) for check in shown]}, indent=1))
    else:
        click.echo(checks_text(shown))
    require(checks)
