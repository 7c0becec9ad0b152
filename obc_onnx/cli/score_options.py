"""Options of the command line that say how units are scored, and what they become."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from obc_onnx.cli.options import combined
from obc_onnx.saliency.criteria import CRITERIA
from obc_onnx.saliency.options import (
    NORMALIZERS,
    OBJECTIVES,
    PRESETS,
    REDUCTIONS,
    ROW_SIZE,
    ROWS,
    SCORED_SAMPLES,
    Scoring,
)

_USUAL = Scoring()


def parse_batch_size(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> int | None:
    """Read a number of samples; `auto` is 0, which is not the same as to say nothing."""
    if value is None:
        return None
    if value == "auto":
        return 0
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"'{value}' is neither a number above 0 nor auto")
    return int(value)


_what = combined(
    click.option(
        "--criterion",
        type=click.Choice(CRITERIA),
        help="How to score units; jacobian with data and l2 without, by default.",
    ),
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="Named settings, which the options below may change: paper is that of the paper.",
    ),
    click.option(
        "--objective",
        type=click.Choice(OBJECTIVES),
        help="What is differentiated: labels, the model's own answers (pseudo), random "
        "projections of its outputs, or classes and outputs (mixed), which takes twice as "
        "long; output by default, but for --rows batch and Taylor criteria.",
    ),
    click.option(
        "--score-loss",
        "score_loss",
        metavar="FILE.py:FUNCTION",
        help="Differentiate this: from outputs by name and labels to a loss per sample.",
    ),
    click.option(
        "--rows",
        type=click.Choice(ROWS),
        help=f"What makes a row of gradients. [{_USUAL.rows}]",
    ),
    click.option(
        "--score-samples",
        "score_samples",
        type=click.IntRange(1),
        help=f"Samples that the criterion looks at. [{SCORED_SAMPLES}]",
    ),
    click.option(
        "--batches", type=click.IntRange(1), help="Look at so many batches, in place of that."
    ),
)


_how = combined(
    click.option(
        "--score-batch-size",
        "score_batch_size",
        callback=parse_batch_size,
        metavar="N|auto",
        help=f"Samples per batch; auto is {ROW_SIZE}. Batches that do not fit are cut. [auto]",
    ),
    click.option(
        "--reduction",
        type=click.Choice(REDUCTIONS),
        help=f"How the members of a group come together. [{_USUAL.reduction}]",
    ),
    click.option(
        "--normalizer",
        type=click.Choice(NORMALIZERS),
        help=f"What the scores of a group are divided by. [{_USUAL.normalizer}]",
    ),
    click.option(
        "--depthwise/--no-depthwise",
        default=None,
        help="Whether depthwise weights count. [yes]",
    ),
    click.option(
        "--amp/--no-amp", default=None, help="Compute in bfloat16 where that is safe. [no]"
    ),
)


scoring_options = combined(_what, _how)
"""What says how units are scored."""


def scoring_of(options: dict[str, Any]) -> Scoring | None:
    """Gather what says how units are scored; None where nothing does."""
    given = given_of(options)
    if "samples" in given:
        given.setdefault("batches", None)  # in place of those of a preset
    if "batch_size" in given:
        given["batch_size"] = given["batch_size"] or None
    if not given and not options["preset"]:
        return None
    preset = PRESETS[options["preset"]] if options["preset"] else Scoring()
    return replace(preset, **given)


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Scoring` that were asked for by options of their own."""
    found = {
        field: options[f"score_{field}" if f"score_{field}" in options else field]
        for field in Scoring.__dataclass_fields__
    }
    return {field: value for field, value in found.items() if value is not None}
