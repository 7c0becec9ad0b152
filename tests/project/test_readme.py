"""The README is a first screen, and shows what the program has; `test_docs` runs its blocks."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from doc_files import write_files
from doc_pages import blocks, commands, read, run, run_line

from obc_onnx.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

README = read("README.md")


def test_it_is_a_first_screen() -> None:
    assert len(README.splitlines()) <= 100


def commands_of(page: str) -> set[str]:
    lines = [line for b in blocks(page) if b.language == "bash" for line in commands(b.text)]
    return {shlex.split(line)[1] for line in lines if line.startswith("obc-onnx ")}


def test_every_command_is_shown_where_one_chooses() -> None:
    assert commands_of("docs/howto/choose_a_command.md") == set(cli.commands)
    assert commands_of("README.md") <= set(cli.commands)


def test_the_steps_of_its_tour_are_its_commands_in_order() -> None:
    (tour,) = [b for b in blocks("README.md") if b.text.startswith("obc-onnx inspect")]
    told = re.findall(r"^\d\. `(\w+)`", README, re.MULTILINE)
    assert told == [shlex.split(line)[1] for line in commands(tour.text)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_check_of_a_plan_by_numpy_sees_a_changed_weight(folder: Path) -> None:
    page = "docs/reference/files.md"
    (check,) = [block for block in blocks(page) if block.language == "python"]
    run_line("obc-onnx compress model.onnx -o small.onnx --plan-out plan.json", page)
    run(check)
    line = "obc-onnx compress model.onnx -o small.onnx --force --data samples.npz --epochs 1"
    run_line(line, page)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        run(check)
