"""Compress to several targets, and show what each leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import (
    FILE,
    costs_option,
    data_options,
    eval_samples_option,
    json_option,
    latency_option,
    method_option,
    parse_numbers,
    run_options,
)
from obc_onnx.cli.pages import page_option, write_page
from obc_onnx.cli.plan_options import width_options
from obc_onnx.cli.quality_options import quality_options
from obc_onnx.cli.score_options import scoring_options
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
from obc_onnx.planning.budget import SWEPT, Budget

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.run.sweep import Swept

_TABLE, _PICTURE, _SCORES = "sweep.json", "sweep.svg", "scores.npz"
"""Files in the folder, besides those of the targets."""


@command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Folder to write to.")
@click.option(
    "--targets",
    metavar="A,B,C",
    callback=parse_numbers,
    default=",".join(map(str, SWEPT)),
    show_default=True,
    help="Targets, as --target-macs takes them.",
)
@click.option(
    "--cost",
    type=click.Choice(Budget.costs()),
    default=Budget.costs()[0],
    show_default=True,
    help="Cost that the targets limit.",
)
@click.option(
    "--pick",
    metavar="all|none|knee|max-drop=DROP|TARGET",
    default="none",
    show_default=True,
    help="Results to write as models: that at the knee, the smallest that is worse by no more than "
    "a drop, or that of a target.",
)
@costs_option
@latency_option
@click.option("--scores", type=FILE, help="What `score` wrote, in place of a criterion.")
@data_options
@eval_samples_option()
@quality_options
@scoring_options
@width_options
@method_option
@click.option(
    "--recover-minutes",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Minutes that auto may refine each result by gradient, by an estimate for one core.",
)
@run_options
@json_option
@page_option
@reports_errors
def sweep(
    model: Path,
    output: Path,
    targets: tuple[float, ...],
    *,
    page: Path | None,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> str:
    """Compress MODEL to several targets, and show what each costs in quality.

    Units are scored once. The folder gets a table, a picture, the scores, and a plan for each
    target, of which `apply` makes the result.
    """
    from obc_onnx.report.page import sweep_page
    from obc_onnx.report.sweep import sweep_text
    from obc_onnx.run.sweep import sweep as sweep_model

    files = _files_in(output, model, targets)
    check_targets([page, *files], model, files_read(options), force=force)
    with writer(options["device"]) as (device, writes):
        found = sweep_model(
            model,
            targets=targets,
            cost=options["cost"],
            pick=options["pick"],
            **worked_with(options),
            **decided_by(options),
            input_shape=input_shape,
            seed=seed,
            device=device,
            latency=options["latency"],
        )
        if writes:
            _write(found, output, model)
            write_page(page, sweep_page, found.sweep, seed)
            click.echo(found.sweep.to_json() if as_json else sweep_text(found.sweep))
    _, plan = _files_of(output, model, found.sweep.knee or found.sweep.front[0])
    return in_shell("apply", model, "--plan", plan, "--data", options["data"], "-o", "small.onnx")


def _files_of(folder: Path, model: Path, target: float) -> tuple[Path, Path]:
    """Return where the result of a target goes, and its plan."""
    name = f"{model.stem}-{target:g}"
    return folder / f"{name}.onnx", folder / f"{name}.plan.json"


def _files_in(folder: Path, model: Path, targets: tuple[float, ...]) -> list[Path]:
    """Make the folder, where it is not there, and list what may be written into it."""
    from obc_onnx.errors import ModelError

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot make the folder '{folder}': {error.strerror}") from error
    results = [path for target in sorted(set(targets)) for path in _files_of(folder, model, target)]
    return [*(folder / name for name in (_TABLE, _PICTURE, _SCORES)), *results]


def _write(found: Swept, folder: Path, model: Path) -> None:
    """Write the picked models first, and last the table, which names what there is."""
    from obc_onnx.files import replacing
    from obc_onnx.report.sweep_picture import sweep_svg

    for target, plan in found.plans.items():
        path, plan_path = _files_of(folder, model, target)
        if target in found.results:
            found.results[target].save(path, plan_path)
        else:
            with replacing(plan_path) as temporary:
                temporary.write_text(plan.to_json(), encoding="utf-8")
    found.scores.save(folder / _SCORES)
    texts = {_PICTURE: sweep_svg(found.sweep), _TABLE: found.sweep.to_json()}
    for name, content in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
