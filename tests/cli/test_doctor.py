"""What the command says of an installation, whole or not."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest
from small import invoke

from obc_onnx import __version__


def test_it_says_what_there_is() -> None:
    found = json.loads(invoke("doctor", "--json").stdout)
    assert found["versions"]["obc-onnx"] == __version__
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["providers"] == onnxruntime.get_available_providers()
    assert found["devices"][0] == "cpu"
    assert (found["missing"], found["faults"]) == ([], [])
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_the_memory_is_what_the_kernel_says() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert json.loads(invoke("doctor", "--json").stdout)["memory_bytes"] == 1024 * total


def test_it_is_readable_and_ends_with_whether_models_can_be_run() -> None:
    done = invoke("doctor")
    assert (done.exit_code, done.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["obc-onnx"] == __version__
    assert rows["providers"].startswith(onnxruntime.get_available_providers()[0])
    assert done.stdout.splitlines()[-1] == "models can be run"


def test_what_can_be_done_without_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "ot"):
        monkeypatch.setitem(sys.modules, name, None)
    done = invoke("doctor")
    assert done.exit_code == 0
    assert "missing: scores with data, repair and training are left out: torch" in done.stdout
    assert "pip install 'obc-onnx[fuse]'" in done.stdout
