"""What the README says is run: its commands, its Python, its check of a plan."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT
from small import CHAIN, N_CLASSES, saved

from obc_onnx.cli.main import cli
from obc_onnx.planning.scope import Limits, load_limits

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.startswith("obc-onnx ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    rng = np.random.default_rng(0)
    saved(tmp_path, CHAIN)
    pixels = rng.standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=pixels, labels=rng.integers(0, N_CLASSES, 40))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> None:
    done = CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_the_readme_shows_every_command() -> None:
    shown = {shlex.split(line)[1] for line in commands()}
    assert shown == set(cli.commands)


def test_the_commands_of_the_readme_run_in_order(folder: Path) -> None:
    for line in commands():
        if "compress" not in line or "--epochs" not in line:  # it does not write its plan
            run(line)
    assert (folder / "tuned.onnx").is_file()


def test_the_training_command_of_the_readme_runs(folder: Path) -> None:
    (line,) = [line for line in commands() if "compress" in line and "--epochs" in line]
    run(line)
    assert (folder / "trained.onnx").is_file()


def test_the_python_of_the_readme_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, _ = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "before=" in capsys.readouterr().out
    assert (folder / "plan.json").is_file()


def check_of_a_plan() -> None:
    _, check = blocks("python")
    exec(compile(check, "README.md", "exec"), {})


def test_numpy_alone_checks_a_cut_as_the_readme_shows(folder: Path) -> None:
    run("obc-onnx compress model.onnx -o small.onnx --plan-out plan.json")
    check_of_a_plan()


def test_the_check_of_the_readme_sees_a_changed_weight(folder: Path) -> None:
    run("obc-onnx compress model.onnx -o small.onnx --plan-out plan.json")
    run("obc-onnx compress model.onnx -o small.onnx --force --data samples.npz --epochs 1")
    with pytest.raises((AssertionError, KeyError, IndexError)):
        check_of_a_plan()


def test_the_limits_of_the_readme_are_understood(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    (tmp_path / "limits.toml").write_text(example)
    limits = load_limits(tmp_path / "limits.toml")
    assert limits["layer1.*"] == Limits(min=0.25, round_to=8)
    assert limits["stem.weight:0"].max == 32
    assert limits["head*"].keep
