"""Options that say how quality is measured."""

from __future__ import annotations

import click

from obc_onnx.cli.options import combined

quality_options = combined(
    click.option(
        "--metric",
        metavar="FILE.py:FUNCTION",
        help="Function that says how good a model is, in place of top-1 accuracy: it gets runs "
        "with inputs, outputs and labels, and returns one number.",
    ),
    click.option(
        "--lower-is-better",
        is_flag=True,
        help="The number of --metric is an error.",
    ),
)
