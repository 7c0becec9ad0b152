"""The command that takes out of a model what costs and does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    from obc_onnx.stripping.options import Vocabulary


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
@click.option(
    "--vocabulary",
    type=FILE,
    help="Text file with an id on each line: rows of embeddings for other ids go.",
)
@click.option(
    "--vocabulary-from",
    metavar="DATA",
    type=FILE,
    help="Samples as of --data of compress: the ids in them stay, with those of --vocabulary.",
)
@click.option(
    "--min-count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Occurrences of an id in --vocabulary-from from which on it stays.",
)
@click.option(
    "--ids-input",
    metavar="NAME",
    multiple=True,
    help="Input that holds the ids; found where only one can. May be repeated.",
)
@click.option(
    "--unknown-id",
    type=click.IntRange(0),
    help="Id in place of which those that went are taken. [the model refuses to run on them]",
)
@click.option(
    "--narrow-head",
    is_flag=True,
    help="Leave outputs of embeddings, such as logits, as long as what stays of the vocabulary, "
    "instead of putting the lowest number where ids went.",
)
@click.option(
    "--untied-head",
    is_flag=True,
    help="Cut outputs as long as the vocabulary too that have weights of their own.",
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
    **asked: Any,
) -> str:
    """Write MODEL without what costs and does nothing to OUTPUT; no data is needed.

    Units go that no weight reads, that are zero or the same in every run, and that equal others.
    The result computes what MODEL does.
    """
    from obc_onnx.report.terminal import strip_text
    from obc_onnx.run.strip import strip as strip_model

    sources = [path for path in (asked["vocabulary"], asked["vocabulary_from"]) if path is not None]
    check_targets([output, report_out], model, sources, force=force)
    stripping = strip_model(
        model,
        below=below,
        input_shape=input_shape,
        batch_axes=batch_axes,
        seed=seed,
        vocabulary=vocabulary_of(asked),
    )
    stripping.save(output, report_out)
    report = in_options(stripping.report)
    click.echo(report.to_json() if as_json else strip_text(report))
    return f"use it in place of {model}"


def vocabulary_of(asked: dict[str, Any]) -> Vocabulary | None:
    """Gather what is to stay of a vocabulary; None where nothing says that."""
    from obc_onnx.stripping.options import Vocabulary

    found = Vocabulary(
        ids=asked["vocabulary"],
        data=asked["vocabulary_from"],
        min_count=asked["min_count"],
        inputs=asked["ids_input"],
        unknown=asked["unknown_id"],
        narrow_head=asked["narrow_head"],
        untied_head=asked["untied_head"],
    )
    return None if found == Vocabulary() else found
