"""The same network as a module of torch, or as an exported program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from obc_onnx.cli.options import (
    FILE,
    batch_axis_option,
    force_option,
    model_options,
)
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import (
    check_targets,
    reports_errors,
)
from obc_onnx.cli.wording import in_options
from obc_onnx.errors import RequestError
from obc_onnx.installation import require_torch

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write the program, as .pt2.")
@click.option("--print-code", is_flag=True, help="Print the module's Python code.")
@force_option
@model_options
@batch_axis_option
@reports_errors
def twin(
    model: Path,
    output: Path | None,
    *,
    force: bool,
    print_code: bool,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
) -> str:
    """Turn MODEL into a PyTorch module: print its code, or write it as an exported program."""
    if output is None and not print_code:
        raise RequestError("nothing to do: give --output, --print-code, or both")
    if output is not None:
        check_targets([output], model, [], force=force)
    require_torch("the twin")
    from obc_onnx.run.twin_program import TwinProgram

    program = TwinProgram.of(model, input_shape, batch_axes=batch_axes)
    note = "" if output is None else program.save(output)
    for sentence in filter(None, (note, program.doubt)):
        click.echo(in_options(sentence), err=True)
    if print_code:
        click.echo(program.twin.code)
    return f"torch.export.load({str(output)!r})"
