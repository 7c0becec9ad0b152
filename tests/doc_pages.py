"""Pages of documentation: their blocks of code, and how a block is run.

A comment in front of a block says what is done with it where its language does not:

    <!-- file: limits.toml -->        it is written there, for the blocks behind it
    <!-- not run: needs TensorRT -->  nothing is done, for this reason
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from click.testing import CliRunner
from conftest import ROOT

from obc_onnx.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = ROOT / "docs"
WRITTEN_BY_TOOLS = ("docs/api.md", "docs/commands.md", "docs/operators.md")
"""Pages that other tests hold against what the tools write: what is in them is no example."""
RUN, OUTPUT = ("bash", "python"), "text"
"""Languages of what is run, and that of what a command prints."""
_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n\n?)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of code of a page."""

    place: str
    language: str
    text: str
    note: str

    @property
    def file(self) -> str | None:
        """Where it is written, if anywhere."""
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def is_skipped(self) -> bool:
        """Whether its page says why it is not run."""
        return re.fullmatch(r"not run: \w.+", self.note) is not None


def pages() -> list[str]:
    """List the pages by their paths in the project."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("models/*.md"), *DOCS.rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def read(page: str) -> str:
    """Read a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, text: str | None = None) -> list[Block]:
    """List the blocks of a page, or of a text in place of it."""
    text = read(page) if text is None else text
    return [
        Block(f"{page}:{text[: m.start('text')].count(chr(10))}", m["language"], m["text"], m["note"] or "")
        for m in _BLOCK.finditer(text)
    ]  # fmt: skip


def without_blocks(page: str) -> str:
    """Return the prose of a page, with a line for each of its blocks."""
    return _BLOCK.sub("(block)", read(page))


def options_of() -> set[str]:
    """Name every option of every command."""
    return {
        name
        for command in (cli, *cli.commands.values())
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "--version"}


def options_of_tools() -> set[str]:
    """Name every option that a script of tools/ spells out."""
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tools/*.py"))
    return set(re.findall(r"\"(--[a-z][a-z-]+)\"", sources))


def commands(text: str) -> Iterator[str]:
    """Split a block for a shell into commands."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def run(block: Block) -> None:
    """Run a block, or write it, in the current folder."""
    if block.is_skipped:
        return
    if block.file is not None:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
    elif block.language == "bash":
        for line in commands(block.text):
            run_line(line, block.place)


def run_line(line: str, place: str) -> None:
    """Run a command of ours, or a script that the page has; `> FILE` keeps what it prints."""
    line, _, target = line.partition(" > ")
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        _run_script(arguments)
        return
    assert program == "obc-onnx", f"{place}: '{program}' is not run here; say why in a comment"
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{place}: {line}\n{done.output}"
    if target:
        Path(target.strip()).write_text(done.stdout, encoding="utf-8")


def _run_script(arguments: list[str]) -> None:
    before, sys.argv = sys.argv, arguments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.onnx.export's own
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.argv = before
