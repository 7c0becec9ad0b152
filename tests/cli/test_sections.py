"""Help in sections: nothing is lost, and what most people need comes first."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click
import pytest
from small import invoke

from obc_onnx.cli.main import cli
from obc_onnx.cli.sections import COMMON, SECTIONS, section_of

LONG = sorted(name for name, own in cli.commands.items() if len(own.params) > 20)
LINES = 85


def options_of(name: str) -> list[click.Option]:
    return [own for own in cli.commands[name].params if isinstance(own, click.Option)]


def test_commands_that_train_or_plan_are_long() -> None:
    assert {"compress", "plan", "finetune"} <= set(LONG)


@pytest.mark.parametrize("name", LONG)
def test_all_options_are_in_the_long_help_and_each_in_its_section(name: str) -> None:
    text = invoke(name, "--help-all").stdout
    section = ""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.rstrip(":") in SECTIONS:
            section = line.rstrip(":")
        elif line.startswith("  -"):
            flags = line.split("  ")[1].replace(",", " ").replace("/", " ").split()
            found |= {flag: section for flag in flags if flag.startswith("--")}
    for option in options_of(name):
        assert found[option.opts[-1]] == section_of(str(option.name))


@pytest.mark.parametrize("name", LONG)
def test_plain_help_is_short_and_says_how_to_see_more(name: str) -> None:
    text = invoke(name, "-h").stdout
    assert text == invoke(name, "--help").stdout
    assert (
        len(text.splitlines()) <= LINES < len(invoke("compress", "--help-all").stdout.splitlines())
    )
    assert "--help-all" in text
    required = [own.opts[-1] for own in options_of(name) if own.required]
    assert all(flag in text for flag in required)


def test_a_short_command_lists_all_it_has() -> None:
    text = invoke("verify", "--help").stdout
    assert "--help-all" not in text
    assert all(option.opts[-1] in text for option in options_of("verify"))


def test_every_pattern_is_of_some_option() -> None:
    names = {str(option.name) for name in cli.commands for option in options_of(name)}
    patterns = {pattern for own in SECTIONS.values() for pattern in own} | set(COMMON)
    unused = {p for p in patterns if not any(fnmatchcase(name, p) for name in names)}
    assert unused == {"augmentation", "milestones"}, (
        "fields of training that presets set, or several"
    )
