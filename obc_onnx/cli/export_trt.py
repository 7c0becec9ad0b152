"""The command that writes what a TensorRT pipeline needs."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    data_of,
    data_options,
    force_option,
    json_option,
    model_options,
)
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import reports_errors

if TYPE_CHECKING:
    from pathlib import Path


def _batches(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[int, int, int]:
    """Read `1,8,16`."""
    parts = value.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):  # noqa: PLR2004 - a triple
        raise click.BadParameter(f"'{value}' is not of the form MIN,OPT,MAX")
    least, usual, most = map(int, parts)
    return least, usual, most


@command("export-trt")
@click.argument("original", type=FILE)
@click.argument("result", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Folder to write to.")
@click.option(
    "--batches",
    metavar="MIN,OPT,MAX",
    default="1,8,16",
    show_default=True,
    callback=_batches,
    help="Fewest samples of a run, those of most runs, and the most, where the model leaves them "
    "open.",
)
@click.option(
    "--samples",
    "n_samples",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Samples to calibrate and compare on, at most.",
)
@data_options
@force_option
@model_options
@batch_axis_option
@json_option
@reports_errors
def export_trt(
    original: Path,
    result: Path,
    output: Path,
    *,
    batches: tuple[int, int, int],
    n_samples: int,
    force: bool,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    as_json: bool,
    **options: Any,
) -> str:
    """Write what TensorRT needs to build, quantise and check RESULT, which was made of ORIGINAL.

    Scripts for trtexec of versions 10 and 11, for ModelOpt and for Polygraphy, with raw inputs,
    references and calibration data, go to the folder OUTPUT.
    """
    from obc_onnx.run.export_trt import export_trt as export
    from obc_onnx.tensorrt.bundle import build_script

    files = export(
        original,
        result,
        output,
        data=data_of(options),
        batches=batches,
        n_samples=n_samples,
        input_shape=input_shape,
        batch_axes=batch_axes,
        force=force,
    )
    names = [str(path) for path in files]
    click.echo(json.dumps({"files": names}, indent=1) if as_json else "\n".join(names))
    return shlex.join(["sh", str(output / build_script())])
