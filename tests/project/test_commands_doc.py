"""docs/commands.md is what its tool writes, and tells every option."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from helpers import load_tool

from obc_onnx.cli.main import cli

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("document_commands")


def test_the_page_is_what_the_tool_writes(tool: ModuleType) -> None:
    written = tool.PAGE.read_text(encoding="utf-8").splitlines()
    assert written == tool.page().splitlines(), "run `python tools/document_commands.py`"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_of_a_command_is_told(name: str, tool: ModuleType) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    (told,) = [part for part in text.split("\n## ") if part.startswith(f"{name}\n")]
    options = [p for p in cli.commands[name].params if isinstance(p, click.Option)]
    for option in options:
        assert any(f"`{opt}" in told or f", {opt}" in told for opt in option.opts), option.name
