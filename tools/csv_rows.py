"""Rows of measurements in a CSV file that grows: a run goes on where it ends. And their cells."""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_type_hints

from obc_onnx.graph.model import Graph
from obc_onnx.samples.read import load_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from obc_onnx.samples.samples import Samples

    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name

Row = TypeVar("Row")

_DIGITS = 6


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Read rows that were written earlier; none where there is no file."""
    if not path.exists():
        return []
    types = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            kind(**{name: types[name](value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]


def cell(values: Sequence[float], digits: int) -> str:
    """Write the mean of some repeats and their deviation; nothing of one, a dash for none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def begin(
    description: str | None, run: Callable[[argparse.Namespace], None]
) -> tuple[argparse.ArgumentParser, Commands, argparse.ArgumentParser]:
    """Begin the command line of a tool that measures.

    Args:
        description: Of the tool, its first line counts.
        run: What its command `run` calls.
    Returns:
        The parser, its commands, and that one.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else "")
    commands = parser.add_subparsers(required=True)
    return parser, commands, add_run(commands, "run", run)


def add_run(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a command that is given a model, samples to work on and to measure on, and the CSV."""
    command = commands.add_parser(name)
    command.set_defaults(function=run)
    command.add_argument("model", type=Path)
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--eval-data", type=Path, required=True)
    command.add_argument("--csv", type=Path, required=True)
    return command


def opened(options: argparse.Namespace) -> tuple[Graph, Samples, Samples]:
    """Read the model, samples to work on, and the first ones of those to measure on."""
    graph = Graph.load(options.model)
    held = load_samples(options.eval_data, graph).part(slice(0, options.eval_limit))
    return graph, load_samples(options.data, graph), held


def answer(
    parser: argparse.ArgumentParser,
    commands: Commands,
    table: Callable[[argparse.Namespace], None],
) -> None:
    """Add the command that prints the rows of a CSV as tables, and call the one that was asked for.

    Args:
        parser: Of the tool.
        commands: Its commands; each has set what it calls as `function`.
        table: Prints the tables.
    """
    command = commands.add_parser("table")
    command.set_defaults(function=table)
    command.add_argument("csv", type=Path)
    options = parser.parse_args()
    options.function(options)


def append(path: Path, rows: Sequence[Any]) -> None:
    """Add rows, which are instances of one dataclass, below the names of its fields."""
    if not rows:
        return
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(rows[0])]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(
            {k: round(v, _DIGITS) if isinstance(v, float) else v for k, v in asdict(row).items()}
            for row in rows
        )
