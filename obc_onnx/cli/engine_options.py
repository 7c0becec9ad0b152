"""Options of engines, and what they become."""

from __future__ import annotations

from typing import Any

import click

from obc_onnx.cli.options import combined
from obc_onnx.engines.options import OPTIMIZATIONS, USES, EngineOptions


def parse_pairs(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Read `NAME=VALUE` options."""
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"'{value}' is not of the form NAME=VALUE")
        pairs[name] = text
    return pairs


engine_options = combined(
    click.option(
        "--engine",
        type=click.Choice(list(USES)),
        default="onnxruntime",
        show_default=True,
        help="Runtime that the model is timed in.",
    ),
    click.option(
        "--provider",
        metavar="NAME",
        help="Execution provider of onnxruntime, such as CUDAExecutionProvider. [CPU]",
    ),
    click.option(
        "--provider-option",
        "provider_options",
        metavar="NAME=VALUE",
        multiple=True,
        callback=parse_pairs,
        help="Option of that provider; may be given several times.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="Threads of onnxruntime or openvino. [what the engine takes by itself]",
    ),
    click.option(
        "--graph-optimization",
        type=click.Choice(OPTIMIZATIONS),
        help="Level to which onnxruntime rewrites the graph. [all]",
    ),
    click.option("--engine-device", metavar="NAME", help="Device of openvino, such as GPU. [CPU]"),
    click.option(
        "--engine-command",
        metavar="TEXT",
        help="Program of trtexec, with arguments of its own, or of command, with {model} where the "
        "file is named and {shapes} where shapes are wanted, such as 'bench {model}'. [trtexec]",
    ),
    click.option(
        "--engine-answer",
        metavar="PATH",
        help="Place of the milliseconds in the JSON that the program of command prints, such as "
        "results.0.latency_ms. [the last number that it prints]",
    ),
)


def engine_of(options: dict[str, Any]) -> EngineOptions:
    """Gather what says which engine times models, and how."""
    return EngineOptions(
        engine=options["engine"],
        provider=options["provider"],
        provider_options=options["provider_options"],
        threads=options["threads"],
        optimization=options["graph_optimization"],
        device=options["engine_device"],
        command=options["engine_command"],
        answer=options["engine_answer"],
    )
