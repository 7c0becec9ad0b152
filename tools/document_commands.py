"""Write docs/commands.md: all commands and options, as the command line's own help tells them.

python tools/document_commands.py           write the page
python tools/document_commands.py --check   fail where it is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pages import write_or_check

from obc_onnx.cli.main import cli
from obc_onnx.cli.sections import SECTIONS, section_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

Written by `tools/document_commands.py` from the command line itself: do not edit it by hand.

- `--help` shows the common options of a command, `--help-all` all of them.
- `--json` prints one object instead of tables.
- A message of more than 320 characters is cut in its middle; `-v` shows all of it.
- A file that exists is replaced only with `--force`. One that is read is never replaced: not the
  model, nor what holds its weights, nor the data, by whatever links.
- What contradicts itself is refused, such as scores beside a criterion.
- What is written is whole or not there, whenever the command ends. A target that is a link is
  followed.

[Choose a command](howto/choose_a_command.md) says what each is for.
[Exit codes and shell completion](reference/exit_codes.md) have a page of their own.
"""


def page() -> str:
    """Write the page as it should be."""
    program = click.Context(cli, info_name="obc-onnx")
    lines = [HEAD]
    for name in sorted(cli.commands):
        lines += described(cli.commands[name], program)
    return "\n".join(lines)


def described(command: click.Command, program: click.Context) -> Iterator[str]:
    """Describe one command: how it is called, what it does, its options section by section."""
    context = click.Context(command, info_name=command.name, parent=program)
    yield from (f"## {command.name}", "", "```text")
    yield f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    yield from ("```", "", (command.help or "").replace("\b\n", "").strip(), "")
    for title, options in sections(command, context):
        yield from (f"**{title}**", "", *options, "")


def sections(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give the options of each section that has some, in the order of the help."""
    for title in SECTIONS:
        options = [p for p in command.params if isinstance(p, click.Option)]
        own = [p for p in options if section_of(str(p.name)) == title]
        records = [record for p in own if (record := p.get_help_record(context)) is not None]
        if records:
            yield title, tuple(item(names, text) for names, text in records)


def item(names: str, text: str) -> str:
    """Write one option; `<` would open a tag."""
    return f"- `{names}`: {text.replace('<', '&lt;').replace('*', chr(92) + '*')}".rstrip(": ")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page, __doc__))
