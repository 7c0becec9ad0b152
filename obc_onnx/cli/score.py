"""Score units, and write scores as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import (
    FILE,
    data_of,
    data_options,
    run_options,
)
from obc_onnx.cli.score_options import scoring_of, scoring_options
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import (
    check_targets,
    files_read,
    in_shell,
    reports_errors,
    writer,
)

if TYPE_CHECKING:
    from pathlib import Path


@command(
    former={
        "--samples": "--score-samples",
        "--batch-size": "--score-batch-size",
        "--loss": "--score-loss",
    }
)
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write scores, as .npz.")
@data_options
@scoring_options
@run_options
@reports_errors
def score(
    model: Path,
    output: Path,
    *,
    force: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    **options: Any,
) -> str:
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
    return in_shell("compress", model, "--scores", output, "-o", "small.onnx")
