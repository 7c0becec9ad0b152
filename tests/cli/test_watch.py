"""A death that Python cannot catch is told in one sentence, by a process that waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import onnx
import pytest
from helpers import build
from small import saved

from obc_onnx.cli.watch import sentence

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
KEPT = "what was to be written is whole or not there\n"
START = "import sys\nfrom obc_onnx.cli.main import main\n{}\nmain()\n"
SHOWN = "import obc_onnx.graph.shapes as s\ns.inferable = lambda model: model"
"""Shows onnx what ends the process."""
HURT = "import os, onnx\nonnx.checker.check_model = lambda *_, **__: os.kill(os.getpid(), {})"


def run(change: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START.format(change), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONFAULTHANDLER"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_library_that_ends_the_process_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = "net (float[2,4] x) => (float[a,b] y) {{ r = {} y = EyeLike<dtype=1>(r) }}"
    onnx.save(build(text.format("com.microsoft.Gelu(x)")), path)
    done = run(SHOWN, "inspect", path)
    assert done.returncode == -signal.SIGSEGV
    assert done.stderr == (
        "Error: a library that infer_shapes in onnx/shape_inference.py has called ended the process"
        " (Segmentation fault): the model may be malformed, or the library has a fault; " + KEPT
    )
    assert not done.stdout


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    done = run(HURT.format("9"), "inspect", saved(tmp_path))
    assert done.returncode == -signal.SIGKILL
    said = "Error: the process was killed, by hand or since memory ran out; "
    assert done.stderr == said + KEPT


@pytest.mark.parametrize(("number", "said"), [("2", "interrupted"), ("15", "terminated")])
def test_ends_that_python_sees_are_told_once(tmp_path: Path, number: str, said: str) -> None:
    usual = "import signal\nsignal.signal(2, signal.default_int_handler)\n"  # ignored in jobs
    done = run(usual + HURT.format(number), "inspect", saved(tmp_path))
    assert done.returncode == 128 + int(number)
    assert done.stderr == f"Error: {said}; no result was written\n"


@pytest.mark.parametrize("command", ["inspect", "--help", "no-such-command"])
def test_nothing_is_told_of_a_process_that_ends_by_itself(tmp_path: Path, command: str) -> None:
    arguments = [command, saved(tmp_path)] if command == "inspect" else [command]
    done = run("", *arguments)
    assert "process" not in done.stderr
    assert done.returncode == (2 if command == "no-such-command" else 0)


def test_a_bug_still_gives_its_traceback(tmp_path: Path) -> None:
    change = "import obc_onnx.run.inspection as module\nmodule.inspect = lambda *_, **__: {}['bug']"
    done = run(change, "inspect", saved(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 'bug'\n")


def test_the_innermost_function_is_named() -> None:
    stack = (
        "Fatal Python error: Aborted\n\nCurrent thread 0x0 (most recent call first):\n"
        '  File "/opt/site-packages/onnxruntime/capi/inference.py", line 1 in run\n'
        '  File "/opt/site-packages/obc_onnx/graph/session.py", line 2 in run\n'
    )
    assert "run in onnxruntime/capi/inference.py has called" in sentence(stack)
    assert "(Aborted)" in sentence(stack)


def test_the_thread_that_died_is_named_and_not_one_that_waits() -> None:
    stack = (
        "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n"
        '  File "/usr/lib/python3.11/threading.py", line 324 in wait\n\n'
        "Current thread 0x2 (most recent call first):\n"
        '  File "/env/site-packages/onnx/checker.py", line 9 in check_model\n'
    )
    assert "that check_model in onnx/checker.py has called" in sentence(stack)
