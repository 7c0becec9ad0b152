"""Runs that are broken off and gone on with, and runs of several processes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from nets import draw_samples, model_of

from obc_onnx.cli.main import cli
from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(model_of("norm"), model)
    samples = draw_samples(Graph.load(model), 60, labelled=True)
    np.savez(data, **samples.inputs, labels=samples.labels)
    return model, data


def command(files: tuple[Path, Path], output: Path, *more: object) -> list[str]:
    model, data = files
    usual = ["--target-macs", "0.7", "--epochs", "6", "--batch-size", "8", "--validation", "0.2"]
    given = ["--data", str(data), "-o", str(output), "--equivalent", *usual]
    return ["compress", str(model), *given, *map(str, more)]


def invoke(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(int(sys.argv[3]))  # as many as the other runs have: sums depend on it
from obc_onnx.cli.main import cli
from obc_onnx.training import keeper
save, calls = keeper.Keeper.save, []

def kill(self, state):
    save(self, state)
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

keeper.Keeper.save = kill
from obc_onnx.training import engine
engine._SAVE_SECONDS = float(sys.argv[2])
cli(sys.argv[4:])
"""


@pytest.mark.parametrize(("saves", "seconds"), [(1, 300.0), (4, 300.0), (9, 0.0)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    files: tuple[Path, Path], tmp_path: Path, saves: int, seconds: float
) -> None:
    more = ("--ema", "0.9", "--mixup", "0.2", "--optimizer", "adamw")
    whole, parts = tmp_path / "whole.onnx", tmp_path / "parts.onnx"
    invoke(command(files, whole, *more))
    arguments = command(files, parts, *more, "--run-dir", tmp_path / "run")
    threads = str(torch.get_num_threads())
    start = [sys.executable, "-c", KILLED, str(saves), str(seconds), threads, *arguments]
    killed = subprocess.run(start, check=False, timeout=200, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not parts.exists()
    invoke([*arguments, "--resume"])
    assert parts.read_bytes() == whole.read_bytes()
    assert (tmp_path / "run" / "result.onnx").read_bytes() == whole.read_bytes()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(7))


@pytest.mark.parametrize("saves", [2, 4])
def test_a_run_killed_in_sparse_learning_goes_on_to_the_same_bytes(
    files: tuple[Path, Path], tmp_path: Path, saves: int
) -> None:
    more = ("--sparse-epochs", "3", "--sparse-by", "jacobian", "--sparse-reg", "0.01")
    whole, parts = tmp_path / "whole.onnx", tmp_path / "parts.onnx"
    invoke(command(files, whole, *more))
    arguments = command(files, parts, *more, "--run-dir", tmp_path / "run")
    start = [sys.executable, "-c", KILLED, str(saves), "300.0", str(torch.get_num_threads())]
    killed = subprocess.run([*start, *arguments], check=False, timeout=200, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    invoke([*arguments, "--resume"])
    assert parts.read_bytes() == whole.read_bytes()
    lines = (tmp_path / "run" / "sparse-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]


def test_a_run_is_gone_on_with_only_if_it_is_the_same(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = command(files, tmp_path / "small.onnx", "--run-dir", folder)
    invoke(arguments)
    arguments.append("--force")
    again = CliRunner().invoke(cli, arguments)
    assert "holds a run: go on with it by --resume" in again.output
    other = CliRunner().invoke(cli, [*arguments, "--resume", "--lr", "0.5"])
    assert "was asked for another training" in other.output
    alone = CliRunner().invoke(cli, command(files, tmp_path / "alone.onnx", "--resume"))
    assert "give its --run-dir" in alone.output


def test_a_run_that_has_ended_is_gone_on_with_to_the_same_files(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    arguments = command(files, small, "--run-dir", tmp_path / "run", "--plan-out", plan)
    invoke(arguments)
    before = small.read_bytes(), plan.read_bytes()
    again = CliRunner().invoke(cli, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert "had ended: its result is the same again" in again.output
    assert (small.read_bytes(), plan.read_bytes()) == before
    plan.write_text("mine")
    other = CliRunner().invoke(cli, [*arguments, "--resume"])
    assert other.exit_code == 1
    assert f"'{plan}' exists: name another file, or replace it by --force" in other.output
    assert plan.read_text() == "mine"


TWO = """
import sys
from torch import multiprocessing

def work(rank, port, arguments):
    import os
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                   "TORCHELASTIC_RUN_ID": "one"}
    import torch
    torch.set_num_threads(1)
    from obc_onnx.cli.main import cli
    cli(arguments, standalone_mode=False)

if __name__ == "__main__":
    multiprocessing.spawn(work, (sys.argv[1], sys.argv[2:]), nprocs=2)
"""


@pytest.mark.parametrize("more", [(), ("--accumulate", "2", "--ema", "0.9")])
def test_two_processes_train_as_one(
    files: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    one, two, script = tmp_path / "one", tmp_path / "two", tmp_path / "two.py"
    usual = ("--lr", "0.02", *more)
    invoke(command(files, tmp_path / "one.onnx", "--run-dir", one, *usual))
    script.write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = command(files, tmp_path / "two.onnx", "--run-dir", two, *usual)
    subprocess.run([sys.executable, str(script), port, *arguments], check=True, timeout=300)
    curves = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert len(curves[0]) == len(curves[1]) == 7
    for left, right in zip(*curves, strict=True):
        for key in ("loss", "validation"):
            if left[key] is not None:
                assert right[key] == pytest.approx(left[key], rel=2e-3)
    graphs = [Graph.load(tmp_path / f"{name}.onnx") for name in ("one", "two")]
    for name, array in graphs[0].initializers.items():
        np.testing.assert_allclose(graphs[1].initializers[name], array, rtol=2e-2, atol=2e-3)
