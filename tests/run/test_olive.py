"""Pruning as a pass of Olive, where `OLIVE_PYTHON` names a Python with `olive-ai` and this package."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from small import images, saved

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = os.environ.get("OLIVE_PYTHON")
WORKFLOW = """
import sys
from olive.workflows import run
from obc_onnx.olive_pass import package_config

model, data, folder = sys.argv[1:]
prune = {"type": "ObcPrune", "target_macs": 0.6, "data": data, "recover_minutes": 0.0}
half = {"type": "OnnxFloatToFloat16", "keep_io_types": True}
config = {
    "input_model": {"type": "ONNXModel", "model_path": model},
    "passes": {"prune": prune, "half": half},
    "output_dir": folder + "/out", "cache_dir": folder + "/cache", "evaluate_input_model": False,
}
run(config, package_config=package_config())
"""


@pytest.mark.skipif(not PYTHON, reason="OLIVE_PYTHON names no Python with Olive")
def test_olive_prunes_and_then_converts_to_float16(tmp_path: Path) -> None:
    model, pixels = saved(tmp_path), images(40)
    np.savez(tmp_path / "data.npz", x=pixels)
    arguments = (model, tmp_path / "data.npz", tmp_path)
    done = subprocess.run(
        [str(PYTHON), "-c", WORKFLOW, *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "out").rglob("*.onnx")
    before, after = (onnx.load(path).graph.initializer for path in (model, result))
    assert {t.data_type for t in after if t.dims} == {onnx.TensorProto.FLOAT16}
    count = [sum(int(np.prod(t.dims)) for t in own) for own in (before, after)]
    assert 0 < count[1] < 0.8 * count[0]
    y = onnxruntime.InferenceSession(result).run(None, {"x": pixels})[0]
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
