"""What ModelOpt's own INT8 quantiser makes of results, where `MODELOPT_PYTHON` names its Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import onnx
import pytest
from conftest import ROOT

from obc_onnx import Budget, Scope, compress

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = os.environ.get("MODELOPT_PYTHON")
CONVOLUTIONS = 21


def quantised_convolutions(source: Path, target: Path) -> int:
    """Quantise a file, and count the convolutions that read dequantised inputs and weights."""
    command = [str(PYTHON), "-m", "modelopt.onnx.quantization", f"--onnx_path={source}"]
    command += ["--quantize_mode=int8", f"--output_path={target}", "--calibration_eps", "cpu"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, env=clean, timeout=500)
    graph = onnx.load(target).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return sum(
        all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in graph.node
        if node.op_type == "Conv"
    )


@pytest.mark.skipif(not PYTHON, reason="MODELOPT_PYTHON names no Python with ModelOpt")
def test_modelopt_quantises_as_many_convolutions_as_before(tmp_path: Path) -> None:
    whole = tmp_path / "whole.onnx"  # ModelOpt writes beside what it reads
    shutil.copyfile(ROOT / "models" / "fashion_resnet20.onnx", whole)
    budget = Budget(target_macs=0.6, scope=Scope(runtime="tensorrt-int8"))
    compress(whole, budget=budget, recover="none", latency=False).save(tmp_path / "small.onnx")
    counts = [
        quantised_convolutions(tmp_path / f"{name}.onnx", tmp_path / f"{name}.int8.onnx")
        for name in ("whole", "small")
    ]
    assert counts == [CONVOLUTIONS, CONVOLUTIONS]
