"""Files that are written: whole or absent, whenever the process ends, and told as they are."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import build
from small import OLD, assert_refused, invoke, saved, written_into

import obc_onnx.files as files_module
import obc_onnx.graph.model as graph_module
from obc_onnx.errors import ModelError
from obc_onnx.files import check_writable, recording, replacing, replacing_all, sweep
from obc_onnx.graph.external import files_of
from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from collections.abc import Callable

WIDE = (
    "net (float[N,64] x) => (float[N,64] y) <float[64,64] a, float[64,64] b>"
    "{ p = MatMul(x, a) q = Relu(p) y = MatMul(q, b) }"
)
N_KILLS = 24
WRITE = """
import sys, numpy as np
import obc_onnx.graph.model as m
m.MAX_PROTOBUF_BYTES = 1000
graphs = [m.Graph.load(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    for graph in graphs:
        graph.save(sys.argv[1], *[(m.Path(sys.argv[1] + ".json"), graph.sha256)])
"""
"""Writes models in turns, each as two files and a text, until it is killed."""


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "MAX_PROTOBUF_BYTES", 1000)


def wide(seed: int) -> Graph:
    return Graph.from_model(build(WIDE, seed=seed))


def run(path: Path) -> np.ndarray:
    """Run a file as any program would, by its path."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.ones((1, 64), np.float32)})[0])


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_kill_at_any_moment_leaves_a_model_with_its_own_weights(tmp_path: Path) -> None:
    sources = [tmp_path / f"{seed}.onnx" for seed in (1, 2)]
    for seed, path in enumerate(sources, 1):
        wide(seed).save(path)
    outputs = [run(path) for path in sources]
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "small.onnx"
    rng = np.random.default_rng(0)
    command = [sys.executable, "-c", WRITE, target, *sources]
    seen = set()
    for _ in range(N_KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.01, 0.05))
            process.kill()
        if target.exists():
            found = run(target)
            seen |= {place for place, own in enumerate(outputs) if np.array_equal(own, found)}
            assert any(np.array_equal(own, found) for own in outputs)
    assert seen, "every process was killed before it wrote anything"
    wide(3).save(target, (folder / "small.onnx.json", ""))  # which sweeps what is left
    assert not hidden(folder)
    assert {path.name for path in folder.iterdir()} == {"small.onnx", "small.onnx.json"}


@pytest.mark.usefixtures("apart")
def test_old_weights_stay_until_the_new_model_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small.onnx"
    wide(1).save(target)
    expected, moves = run(target), []

    def observed(self: Path, other: Path) -> Path:
        moves.append(other.name)
        if other == target:
            np.testing.assert_array_equal(run(target), expected)
        return true_replace(self, other)

    true_replace = Path.replace
    monkeypatch.setattr(Path, "replace", observed)
    wide(2).save(target)
    assert moves[-1] == "small.onnx"
    assert len(moves) == len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(run(target), expected)


@pytest.mark.usefixtures("apart")
def test_weights_that_another_model_names_are_not_swept(tmp_path: Path) -> None:
    target, copy = tmp_path / "small.onnx", tmp_path / "best"
    wide(1).save(target)
    copy.write_bytes(target.read_bytes())
    before = Graph.load(copy).initializers
    wide(2).save(target)
    for name, array in Graph.load(copy).initializers.items():
        np.testing.assert_array_equal(array, before[name])
    copy.unlink()
    wide(2).save(target)
    assert set(tmp_path.iterdir()) == set(files_of(target))


@pytest.mark.usefixtures("apart")
def test_a_file_of_ones_own_beside_the_target_is_left_alone(tmp_path: Path) -> None:
    own = [tmp_path / name for name in ("small.onnx.data", "small.data", "small.onnx-1.data")]
    for path in own:
        path.write_bytes(OLD)
    wide(1).save(tmp_path / "small.onnx")
    assert all(path.read_bytes() == OLD for path in own)


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("former", [True, False])
def test_a_rename_that_fails_takes_back_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails_at: int, former: bool
) -> None:
    targets = [tmp_path / name for name in ("model", "plan")]
    for path in targets if former else ():
        path.write_bytes(OLD)
    before, moves = written_into(tmp_path), []

    def failing(self: Path, other: Path) -> Path:
        moves.append(other)
        if len(moves) == fails_at:
            raise OSError(5, "Input/output error")
        return true_replace(self, other)

    true_replace = Path.replace
    monkeypatch.setattr(Path, "replace", failing)

    def write() -> None:
        with replacing_all(targets[0]) as replacement:
            for path in targets:
                replacement.beside(path).write_bytes(b"new")

    with pytest.raises(ModelError, match="Input/output"):
        write()
    assert written_into(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "option"), [("compress", "--plan-out"), ("strip", "--report-out")]
)
def test_signals_wait_until_all_files_are_in_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    command: str,
    option: str,
) -> None:
    def disturbed(self: Path, other: Path) -> Path:
        signal.raise_signal(number)
        return true_replace(self, other)

    true_replace = Path.replace
    monkeypatch.setattr(Path, "replace", disturbed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a shell
    target, other = tmp_path / "small.onnx", tmp_path / "other.json"
    result = invoke(command, saved(tmp_path), "-o", target, option, other)
    assert result.exit_code == 128 + number
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert result.stderr == f"Error: {how}; '{target}' and '{other}' were written\n"
    monkeypatch.undo()
    assert json.loads(other.read_text(encoding="utf-8"))
    if command == "compress":
        assert invoke("verify", saved(tmp_path), target, "--plan", other).exit_code == 0
    assert not hidden(tmp_path)


def test_sigterm_ends_a_command_in_one_sentence(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, onnx\n"
        "from obc_onnx.cli.main import cli\n"
        "onnx.save = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli(sys.argv[1:], prog_name='obc-onnx')\n"
    )
    target = tmp_path / "out.onnx"
    target.write_bytes(OLD)
    before = signal.getsignal(signal.SIGTERM)
    command = [sys.executable, "-c", code, "compress", saved(tmp_path), "-o", target, "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "Error: terminated; no result was written\n")
    assert target.read_bytes() == OLD
    assert not hidden(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_killed_write_is_swept_by_the_next_of_that_name_and_a_running_one_is_not(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom obc_onnx.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    target, other = tmp_path / "a.bin", tmp_path / "b.bin"
    command = [sys.executable, "-c", code, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (left,) = hidden(tmp_path)
        with replacing(target) as temporary:
            temporary.write_bytes(b"mine")
        assert hidden(tmp_path) == [left], "what a running process writes is its own"
        process.kill()
    with replacing(other) as temporary:
        temporary.write_bytes(b"other")
    assert hidden(tmp_path) == [left]
    with replacing(target) as temporary:
        temporary.write_bytes(b"whole")
    assert not hidden(tmp_path)
    assert target.read_bytes() == b"whole"


def test_hidden_folders_of_others_are_not_swept(tmp_path: Path) -> None:
    own = tmp_path / ".model.onnx.backup"
    own.mkdir()
    (own / "weights").write_bytes(OLD)
    with replacing(tmp_path / "model.onnx") as temporary:
        temporary.write_bytes(b"new")
    sweep(tmp_path)
    assert (own / "weights").read_bytes() == OLD


def test_content_is_on_its_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def recorded(name: str, true: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            events.append(name)
            return true(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", recorded("flush", os.fsync))
    monkeypatch.setattr(Path, "replace", recorded("rename", Path.replace))
    with replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
    assert events == ["flush", "rename", "flush"]


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o755])
def test_the_mode_of_a_file_that_is_replaced_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(mode)
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path: Path, *, exists: bool) -> None:
    real, link = tmp_path / "far" / "real.onnx", tmp_path / "link.onnx"
    real.parent.mkdir()
    link.symlink_to(real)
    if exists:
        real.write_bytes(OLD)
    model = saved(tmp_path)
    assert invoke("compress", model, "-o", link, "--force").exit_code == 0
    assert link.is_symlink()
    onnx.checker.check_model(real)
    assert not hidden(tmp_path)
    assert not hidden(real.parent)


@pytest.mark.usefixtures("apart")
def test_weights_lie_beside_what_a_link_points_at(tmp_path: Path) -> None:
    real, link = tmp_path / "far" / "real.onnx", tmp_path / "link.onnx"
    real.parent.mkdir()
    link.symlink_to(real)
    graph = wide(1)
    graph.save(link)
    assert set(real.parent.iterdir()) == set(files_of(real))
    assert Graph.load(real).initializers.keys() == graph.initializers.keys()


@pytest.mark.parametrize("folder", ["far", "."])
@pytest.mark.parametrize("command", ["compress", "strip"])
@pytest.mark.usefixtures("apart")
def test_a_link_under_which_a_result_does_not_open_is_told(
    tmp_path: Path, folder: str, command: str
) -> None:
    real, link = tmp_path / folder / "real.onnx", tmp_path / "link.onnx"
    real.parent.mkdir(exist_ok=True)
    link.symlink_to(real)
    result = invoke(command, saved(tmp_path, WIDE), "-o", link)
    assert result.exit_code == 0, result.output
    assert len(files_of(real)) == 2
    onnx.checker.check_model(real)
    said = f"'{link}' does not open: it is a link into another folder"
    if folder == ".":
        onnx.checker.check_model(link)
        assert "does not open" not in result.output
    else:
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(link)
        assert said in result.output.replace("\n", " ")


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "a.onnx"
    link.symlink_to(link)
    assert_refused(invoke("compress", saved(tmp_path), "-o", link), link, "leads back to itself")


def test_what_was_written_is_recorded_where_asked_alone(tmp_path: Path) -> None:
    with recording() as written, replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
    with replacing(tmp_path / "b") as temporary:
        temporary.write_bytes(b"new")
    assert written == [tmp_path / "a"]


def test_a_file_system_without_links_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_arguments: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_a_rename_that_fails_takes_back_those_before_it(
        tmp_path, monkeypatch, fails_at=2, former=True
    )


def test_check_writable_looks_where_a_link_points(tmp_path: Path) -> None:
    link = tmp_path / "a"
    link.symlink_to(tmp_path / "missing" / "b")
    with pytest.raises(ModelError, match="does not exist"):
        check_writable(link)
    assert files_module.destination(tmp_path / "plain") == tmp_path / "plain"
