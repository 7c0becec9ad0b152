"""The command that times a model at a few widths, and writes that as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.engine_options import engine_of, engine_options
from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    force_option,
    json_option,
    model_options,
    seed_option,
)
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import check_targets, in_shell, reports_errors
from obc_onnx.planning.budget import DESIGNS
from obc_onnx.planning.scope import BLOCKS

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write times, as JSON.")
@engine_options
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples of a run."
)
@click.option(
    "--designs",
    type=click.IntRange(3),
    default=DESIGNS,
    show_default=True,
    help="Networks that are timed besides the model.",
)
@click.option(
    "--round-to",
    type=click.IntRange(1),
    default=BLOCKS[0],
    show_default=True,
    help="Multiple of channels for their widths.",
)
@force_option
@model_options
@batch_axis_option
@seed_option
@json_option
@reports_errors
def profile(
    model: Path,
    output: Path,
    *,
    batch: int,
    designs: int,
    round_to: int,
    force: bool,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    seed: int,
    as_json: bool,
    **options: Any,
) -> str:
    """Time MODEL at a few widths on this machine, for --target-latency of `plan` and `compress`."""
    from obc_onnx.report.profiling import profiling_text
    from obc_onnx.run.profiling import profile as profile_model

    engine = engine_of(options)
    check_targets([output], model, [], force=force)
    found = profile_model(
        model,
        engine=engine,
        batch=batch,
        designs=designs,
        round_to=round_to,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
    )
    found.save(output)
    click.echo(found.profile.to_json().rstrip() if as_json else profiling_text(found))
    return in_shell("plan", model, "--costs", output, "--target-latency", "0.7", "-o", "plan.json")
