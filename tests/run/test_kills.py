"""Processes that end at any moment: files are whole or absent, and what is said agrees with them.

Children are forked off this process, which has loaded everything already, so that moments lie in
the work and not in what comes before it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build
from nets import draw_samples, model_of
from small import invoke, saved, written_into

import obc_onnx.graph.model as graph_module
from obc_onnx.cli.main import cli
from obc_onnx.files import file_sha256
from obc_onnx.graph.external import files_of
from obc_onnx.graph.model import Graph
from obc_onnx.training import engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork"),
]
MOMENTS, RUN_MOMENTS = 300, 60
"""How often a write or a command is ended; a run, each of which takes seconds."""
MIB = 2**20
WRITES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
"""What Python tells of each call that changes a file system, besides writes into open files."""


def forked(work: Callable[[], object]) -> int:
    """Do something in a child, which ends with 0 where nothing comes up."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a shell
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; its signal is below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seconds_of(work: Callable[[], object]) -> float:
    start = time.monotonic()
    assert ended(forked(work)) == 0
    return time.monotonic() - start


def killed_at(work: Callable[[], object], seconds: float, number: int = signal.SIGKILL) -> int:
    """Send a signal to a child after some time, and return how it ended."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, number)
    return ended(child)


def quietly(arguments: Sequence[object]) -> None:
    """Run the command line without its report."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    cli([str(part) for part in arguments], prog_name="obc-onnx")


def killed_at_call(work: Callable[[], object], call: int) -> int:
    """Kill a child at one of its calls that change a file system, and return how it ended."""
    counted = 0

    def watch(event: str, _arguments: object) -> None:
        nonlocal counted
        counted += event in WRITES
        if counted > call:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        sys.addaudithook(watch)
        work()

    return ended(forked(watched))


def weights(n_bytes: int, seed: int) -> Graph:
    """Make a model of some size."""
    width = n_bytes // 32
    text = (
        f"net (float[N,4] x) => (float[N,4] y) <float[4,{width}] w, float[{width},4] v>"
        "{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    )
    return Graph.from_model(build(text, seed=seed))


def contents(path: Path) -> tuple[str, ...]:
    """Hash the files that a model is made of; raises where one is missing."""
    return tuple(file_sha256(file) for file in files_of(path))


@pytest.mark.parametrize(
    ("n_bytes", "limit"), [(150 * MIB, None), (8 * MIB, MIB)], ids=["150 MB", "above the limit"]
)
def test_a_write_that_is_killed_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int, limit: int | None
) -> None:
    if limit is not None:
        monkeypatch.setattr(graph_module, "MAX_PROTOBUF_BYTES", limit)
    graphs = [weights(n_bytes, seed) for seed in (1, 2)]
    target = tmp_path / "model.onnx"
    whole = []
    for graph in graphs:
        graph.save(target)
        whole.append(contents(target))
    length = max(seconds_of(partial(graph.save, target)) for graph in graphs)
    rng, is_there = np.random.default_rng(0), whole.index(contents(target))
    found = {"old": 0, "new": 0, "finished": 0}
    for _ in range(MOMENTS):
        other = 1 - is_there
        code = killed_at(partial(graphs[other].save, target), rng.uniform(0, 1.1 * length))
        now = whole.index(contents(target))
        found["finished" if code == 0 else "new" if now == other else "old"] += 1
        is_there = now
    sys.stdout.write(f"{n_bytes} bytes: {found}\n")
    assert found["old"] > MOMENTS / 4
    graphs[0].save(target)
    assert set(tmp_path.iterdir()) == set(files_of(target))


@pytest.mark.parametrize("limit", [None, 1000], ids=["one file", "above the limit"])
@pytest.mark.parametrize("first", [True, False], ids=["new", "in place"])
def test_a_write_that_is_killed_at_any_call_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, *, first: bool
) -> None:
    if limit is not None:
        monkeypatch.setattr(graph_module, "MAX_PROTOBUF_BYTES", limit)
    graphs = [weights(4096, seed) for seed in (1, 2)]
    target, plan = tmp_path / "model.onnx", tmp_path / "plan.json"
    whole = []
    for graph in graphs:
        graph.save(target)
        whole.append(contents(target))

    seen, call = set(), 0
    while True:
        for path in tmp_path.iterdir():
            if path.is_file():
                path.unlink()
        if not first:
            graphs[0].save(target, (plan, graphs[0].sha256))
        code = killed_at_call(lambda: graphs[1].save(target, (plan, graphs[1].sha256)), call)
        seen.add(contents(target) if target.exists() else ())
        assert plan.exists() or not target.exists() or first
        if code == 0:
            break
        call += 1
    sys.stdout.write(f"{call} calls\n")
    assert call > 10
    assert seen == {whole[1], () if first else whole[0]}
    graphs[0].save(target, (plan, graphs[0].sha256))
    assert set(tmp_path.iterdir()) == {*files_of(target), plan}


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_SAVE_SECONDS", 0.0)
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(model_of("norm"), model)
    samples = draw_samples(Graph.load(model), 60, labelled=True)
    np.savez(data, **samples.inputs, labels=samples.labels)

    def command(folder: Path, *more: str) -> list[str]:
        usual = ["--target-macs", "0.7", "--epochs", "6", "--batch-size", "8", "--lr", "0.02"]
        paths = ["-o", folder / "small.onnx", "--run-dir", folder / "run", "--data", data]
        return [str(part) for part in ("compress", model, *paths, *usual, *more)]

    def work(*arguments: str) -> Callable[[], object]:
        return lambda: quietly(arguments)

    whole = tmp_path / "whole"
    whole.mkdir()
    length = seconds_of(work(*command(whole)))
    expected = (whole / "small.onnx").read_bytes()
    rng = np.random.default_rng(0)
    kills, ends = 0, 0
    while kills < RUN_MOMENTS:
        folder = tmp_path / f"part{ends}"
        folder.mkdir()
        code = killed_at(work(*command(folder)), rng.uniform(0, length))
        while code < 0:
            kills += 1
            assert not (folder / "small.onnx").exists() or (
                (folder / "small.onnx").read_bytes() == expected
            )
            code = killed_at(work(*command(folder, "--resume")), rng.uniform(0, 1.2 * length))
        assert code == 0
        ends += 1
        assert (folder / "small.onnx").read_bytes() == expected
        assert (folder / "run" / "result.onnx").read_bytes() == expected
        assert written_into(folder).keys() == written_into(whole).keys()
    sys.stdout.write(f"{kills} kills in {ends} runs\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_said_of_an_ended_command_agrees_with_the_disk(
    tmp_path: Path, number: signal.Signals
) -> None:
    model, said = saved(tmp_path), tmp_path / "said"
    target, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    arguments = ["compress", model, "-o", target, "--plan-out", plan, "--force"]

    def work() -> None:
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        quietly(arguments)

    length = max(seconds_of(work) for _ in range(2))
    rng = np.random.default_rng(0)
    counts = {"written": 0, "not written": 0, "finished": 0, "before": 0}
    for _ in range(MOMENTS):
        for path in (target, plan):
            path.write_text("old")
        code = killed_at(work, rng.uniform(0, 1.1 * length), number)
        new = [path.read_text(errors="replace") != "old" for path in (target, plan)]
        text = said.read_text()
        assert len(set(new)) == 1, "one of two is new"
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        if code == 128 + number:
            how = "interrupted" if number == signal.SIGINT else "terminated"
            both = f"'{target}' and '{plan}' were written"
            assert text == f"Error: {how}; {both if new[0] else 'no result was written'}\n"
            counts["written" if new[0] else "not written"] += 1
        elif code == 0:
            assert new[0]
            counts["finished"] += 1
        else:  # the command had not begun, or had ended
            counts["before"] += 1
    sys.stdout.write(f"{number.name}: {counts}\n")
    assert counts["not written"] > MOMENTS / 4
    assert invoke("verify", model, target, "--plan", plan).exit_code == 0 or not new[0]
