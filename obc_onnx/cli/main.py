"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    input_shape_option,
    json_option,
    latency_option,
    plan_options,
    recover_option,
    seed_option,
)
from obc_onnx.cli.plan_commands import PLAN_COMMANDS
from obc_onnx.cli.score_options import scoring_of, scoring_options
from obc_onnx.cli.shared import (
    check_model_targets,
    check_targets,
    compress_and_write,
    files_read,
    load_scores,
    reports_errors,
    writer,
)
from obc_onnx.cli.strip_command import strip_command
from obc_onnx.cli.train_options import training_of, training_options
from obc_onnx.cli.wording import in_options
from obc_onnx.errors import RequestError
from obc_onnx.installation import require_torch
from obc_onnx.training.options import FINETUNE_EPOCHS
from obc_onnx.version import __version__

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
@click.version_option(__version__, prog_name="obc-onnx")
def cli() -> None:
    """Make a deployed ONNX model smaller and faster, and prove the result."""


@cli.command()
@click.argument("model", type=FILE)
@click.option(
    "--explain",
    metavar="NAME",
    help="Follow a tensor, or one axis of it as NAME:1, to all that it is tied to.",
)
@click.option("--scores", type=FILE, help="Show the units with the least and the most saliency.")
@input_shape_option
@batch_axis_option
@json_option
@reports_errors
def inspect(
    model: Path,
    *,
    explain: str | None,
    scores: Path | None,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    as_json: bool,
) -> None:
    """Show what can be pruned in MODEL, and what cannot and why."""
    from obc_onnx.report.terminal import explanation_text, inspection_text
    from obc_onnx.run.api import inspect as inspect_model

    if scores is not None and explain is not None:
        raise RequestError("--explain shows no scores: give one of the two")
    found = inspect_model(
        model,
        input_shape=input_shape,
        batch_axes=batch_axes,
        explained=explain,
        scores=load_scores(scores),
    )
    inspection = in_options(found)
    text = inspection_text if explain is None else explanation_text
    click.echo(inspection.to_json() if as_json else text(inspection))


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan, as JSON.")
@latency_option
@click.option("--scores", type=FILE, help="What `score` wrote, in place of a criterion.")
@data_options
@scoring_options(alone=False)
@plan_options
@recover_option
@training_options(epochs=0)
@force_option
@device_option
@input_shape_option
@batch_axis_option
@seed_option
@json_option
@reports_errors
def compress(
    model: Path,
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
    """Write a smaller MODEL with the same inputs and outputs to OUTPUT.

    Without --epochs it scores, cuts and verifies. Without --data units are scored by their weights.
    """
    check_model_targets(model, output, plan_out, files_read(options), force=force)
    compress_and_write(
        (model, output, plan_out),
        options,
        as_json=as_json,
        budget=budget_of(options),
        criterion=options["criterion"],
        scoring=scoring_of(options),
        scores=load_scores(options["scores"]),
        training=training_of(options),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )


@cli.command()
@click.argument("model", type=FILE)
@click.option("--plan", type=FILE, required=True, help="What to cut, as `compress` wrote it.")
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan with the trained digest.")
@latency_option
@data_options
@recover_option
@training_options(epochs=FINETUNE_EPOCHS)
@force_option
@device_option
@input_shape_option
@batch_axis_option
@seed_option
@json_option
@reports_errors
def finetune(
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
    """Cut MODEL by a plan that is there already, and fine-tune what is left.

    Under torchrun several processes train together, and the first one writes.
    """
    from obc_onnx.planning.plan import PruningPlan

    read = files_read(options)
    check_model_targets(model, output, None, [*read, plan], force=force)
    check_model_targets(model, output, plan_out, read, force=force)  # which may be the old plan
    compress_and_write(
        (model, output, plan_out),
        options,
        as_json=as_json,
        plan=PruningPlan.load(plan),
        training=training_of(options),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write scores, as .npz.")
@data_options
@scoring_options(alone=True)
@force_option
@device_option
@input_shape_option
@batch_axis_option
@seed_option
@reports_errors
def score(
    model: Path,
    output: Path,
    *,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    **options: Any,
) -> None:
    """Score the units of MODEL, for `compress --scores` and `inspect --scores`.

    Under torchrun each process takes a share of the samples, and the first one writes.
    """
    from obc_onnx.run.api import score as score_model

    check_targets([output], model, files_read(options), force=force)
    with writer(options["device"]) as (device, writes):
        scores = score_model(
            model,
            data=data_of(options),
            criterion=options["criterion"],
            scoring=scoring_of(options),
            input_shape=input_shape,
            batch_axes=options["batch_axes"],
            seed=seed,
            device=device,
        )
        if writes:
            scores.save(output)


@cli.command()
@click.argument("original", type=FILE)
@click.argument("compressed", type=FILE)
@click.option("--plan", type=FILE, required=True, help="The plan that `compress` wrote.")
@input_shape_option
@batch_axis_option
@seed_option
@json_option
@reports_errors
def verify(
    original: Path,
    compressed: Path,
    plan: Path,
    *,
    input_shape: dict[str, tuple[int, ...]],
    batch_axes: dict[str, int | None],
    seed: int,
    as_json: bool,
) -> None:
    """Check that COMPRESSED is ORIGINAL without the units that the plan removes."""
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
    )
    shown = in_options(checks)
    if as_json:
        click.echo(json.dumps({"verification": [asdict(check) for check in shown]}, indent=1))
    else:
        click.echo(checks_text(shown))
    require(checks)


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write the program, as .pt2.")
@click.option("--print-code", is_flag=True, help="Print the module's Python code.")
@force_option
@input_shape_option
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
) -> None:
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


for command in (*PLAN_COMMANDS, strip_command):
    cli.add_command(command)
