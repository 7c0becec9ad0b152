"""Gradients of convolutions stay within their memory, and training gives the same bytes again.

torch leaves convolutions to oneDNN, whose kernels differ between processors. Child processes run
with those for AVX2, which any x86 machine can be told to take, and with its own.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build
from nets import HEAD, NETS

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
KERNELS = pytest.mark.parametrize("kernels", ["AVX2", "DEFAULT"])
THREADS = pytest.mark.parametrize("threads", [1, 2])
STRIDED = (
    "net (float[N,3,16,16] x) => (float[N,4] y) <float[6,3,3,3] w1, float[12,6,1,1] w2,"
    " float[8,6,1,1] w3, float[12,8,3,3] w4, float[4,12] fc, float[4] fc_b>"
    "{ c1 = Conv<pads=[1,1,1,1]>(x, w1) t1 = Relu(c1) s = Conv<strides=[2,2]>(t1, w2)"
    "  c3 = Conv(t1, w3) t3 = Relu(c3) c4 = Conv<strides=[2,2],pads=[1,1,1,1]>(t3, w4)"
    f"  a = Add(s, c4) last = Relu(a) {HEAD} }}"
)
CONVOLUTIONS = {"strided": STRIDED} | {
    name: NETS[name] for name in ("dense", "grouped", "depthwise", "line", "volume", "transposed")
}


def guarded(kernels: str) -> dict[str, str]:
    """Return an environment in which the allocator checks what lies beside each allocation."""
    checks = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    library = ctypes.util.find_library("c_malloc_debug")  # glibc's; others check nothing
    preload = {"LD_PRELOAD": library} if library else {}
    return {**os.environ, **checks, **preload, "ONEDNN_MAX_CPU_ISA": kernels}


def run(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a child process, which has to end well."""
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@KERNELS
@THREADS
def test_gradients_of_every_form_are_right_and_stay_within_their_memory(
    kernels: str, threads: int
) -> None:
    found = run([str(HERE / "conv_gradients.py"), str(threads)], guarded(kernels))
    assert "forms tried" in found
    assert "wrong" not in found, found


@KERNELS
@THREADS
@pytest.mark.parametrize("net", CONVOLUTIONS)
def test_the_same_command_gives_the_same_bytes(
    tmp_path: Path, net: str, threads: int, kernels: str
) -> None:
    model = build(CONVOLUTIONS[net])
    onnx.save(model, tmp_path / "net.onnx")
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((40, *sizes)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x)
    environment = {**guarded(kernels), "OMP_NUM_THREADS": str(threads)}
    made = set()
    for repeat in range(2):
        target = tmp_path / f"{repeat}.onnx"
        command = ["compress", str(tmp_path / "net.onnx"), "-o", str(target), "--epochs", "2"]
        data = ["--data", str(tmp_path / "samples.npz"), "--batch-size", "8"]
        run(["-m", "obc_onnx", *command, *data], environment)
        made.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(made) == 1
