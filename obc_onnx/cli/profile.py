"""The command that times a model at a few widths, and writes that as a file."""

from __future__ import annotations

import json
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
from obc_onnx.cli.wording import is_given, long_name
from obc_onnx.errors import RequestError
from obc_onnx.planning.budget import DESIGNS
from obc_onnx.planning.scope import BLOCKS

if TYPE_CHECKING:
    from pathlib import Path


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write times, as JSON.")
@click.option(
    "--kit",
    type=FILE,
    metavar="DIR",
    help="In place of timing: folder to write networks and scripts to, which time them on another "
    "machine.",
)
@click.option(
    "--from",
    "brought",
    type=FILE,
    metavar="DIR",
    help="In place of timing: folder of a kit, with the times of the script for --engine.",
)
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
    output: Path | None,
    *,
    kit: Path | None,
    brought: Path | None,
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
    from obc_onnx.run import profiling

    _check_used(kit, brought)
    about: dict[str, Any] = {"input_shape": input_shape, "batch_axes": batch_axes}
    drawn: dict[str, Any] = {"batch": batch, "designs": designs, "round_to": round_to, "seed": seed}
    if kit is not None:
        scripts = profiling.write_kit(model, kit, **drawn, **about)
        names = [str(script) for script in scripts]
        click.echo(json.dumps({"scripts": names}, indent=1) if as_json else "\n".join(names))
        return in_shell("profile", model, "--from", kit, "-o", "costs.json")
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    engine = engine_of(options)
    check_targets([output], model, [] if brought is None else [brought], force=force)
    if brought is None:
        found = profiling.profile(model, engine=engine, **drawn, **about)
    else:
        found = profiling.read_kit(model, brought, engine=engine.engine, **about)
    found.save(output)
    click.echo(found.profile.to_json().rstrip() if as_json else profiling_text(found))
    return in_shell("plan", model, "--costs", output, "--target-latency", "0.7", "-o", "plan.json")


def _check_used(kit: Path | None, brought: Path | None) -> None:
    """Check that all that was said is looked at.

    Raises:
        RequestError: Something would be ignored.
    """
    if kit is not None and brought is not None:
        raise RequestError("--kit writes a folder and --from reads one: give one of them")
    if kit is not None:
        _refuse(("output", "force", *_OF_ENGINES), "a kit is timed by its scripts, which take that")
    if brought is not None:
        _refuse((*_OF_ENGINES[1:], *_OF_DESIGNS), "what came back from another machine says that")


_OF_DESIGNS = ("batch", "designs", "round_to", "seed")
_OF_ENGINES = (
    *("engine", "provider", "provider_options", "threads", "graph_optimization"),
    *("engine_device", "engine_command", "engine_answer"),
)
"""Options, the choice of the engine first."""


def _refuse(names: tuple[str, ...], why: str) -> None:
    """Refuse options that were given."""
    params = click.get_current_context().command.params
    said = [long_name(own) for own in params if own.name in names and is_given(own)]
    if said:
        raise RequestError(f"{why}: leave {', '.join(said)} out")
