"""Reports as a page of one file: the option that asks for one, and what writes it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, TypeVar

import click

from obc_onnx.cli.options import FILE
from obc_onnx.cli.sections import ARGUMENTS
from obc_onnx.cli.wording import in_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obc_onnx.report.page import Origin

Value = TypeVar("Value")

page_option = click.option(
    "--report", "page", type=FILE, help="Where to write a report to look at, as HTML of one file."
)


def write_page(
    path: Path | None,
    render: Callable[[Value, Origin], str],
    value: Value,
    seed: int | None = None,
    run_dir: Path | None = None,
) -> None:
    """Write a report where one was asked for.

    Args:
        path: Where it goes, or None.
        render: Makes the page of what the command found.
        value: What that is, in the words of the library.
        seed: Of every random choice, where there was one.
        run_dir: The folder of the run, which keeps a copy, so that it may be written again.
    Raises:
        ModelError: It cannot be written.
    """
    if path is None:
        return
    from obc_onnx.files import replacing
    from obc_onnx.installation import versions
    from obc_onnx.report.page import Origin
    from obc_onnx.run.folder import PAGE

    page = render(in_options(value), Origin(_command_line(), seed, versions()))
    for target in (path, *([] if run_dir is None else [run_dir / PAGE])):
        with replacing(target) as temporary:
            temporary.write_text(page, encoding="utf-8")


def _command_line() -> str:
    """Return what was asked for, as a shell takes it."""
    context = click.get_current_context()
    return shlex.join(["obc-onnx", str(context.info_name), *context.meta[ARGUMENTS]])
