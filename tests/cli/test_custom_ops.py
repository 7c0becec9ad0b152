"""Operators that a library brings to ONNX Runtime: in processes of their own, which keep it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "net (float[4,6] x) => (float[4,5] y) <float[6,16] a, float[16,4] b, float[4,16] c, float[16,5] d>"
    "{ h = MatMul(x, a) r = Relu(h) s = MatMul(r, b) i = ai.onnx.contrib.Inverse(s)"
    " t = MatMul(i, c) u = Relu(t) y = MatMul(u, d) }"
)


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "obc_onnx", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def test_what_a_library_brings_is_run(tmp_path: Path) -> None:
    extensions = pytest.importorskip(
        "onnxruntime_extensions", reason="onnxruntime-extensions is not installed"
    )
    library = extensions.get_library_path()
    model = build(TEXT, domain="ai.onnx.contrib")
    onnx.save(model, tmp_path / "model.onnx")
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    files = (tmp_path / "model.onnx", "-o", small, "--plan-out", plan, "--target-macs", "0.6")
    given = ("--custom-op-library", library)
    without = run("compress", *files, "--value-shape", "i:4x4", "--no-latency")
    assert "unknown nodes unchanged" in without
    found = run("compress", *files, *given, "--force", "--no-latency")
    assert "unknown nodes unchanged" not in found
    checks = run("verify", tmp_path / "model.onnx", small, "--plan", plan, *given)
    assert "not run" not in checks
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(small, options)
    (y,) = session.run(None, {"x": np.random.default_rng(0).standard_normal((4, 6), np.float32)})
    assert np.isfinite(y).all()
