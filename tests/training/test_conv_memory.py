"""Gradients of convolutions stay within their memory, and training gives the same bytes again.

torch leaves convolutions to oneDNN, whose kernels differ between processors. Child processes run
with those for AVX2, which any x86 machine can be told to take, and with its own.
"""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAMS = ROOT / "tests"
KERNELS = pytest.mark.parametrize("kernels", ["AVX2", "DEFAULT"])
THREADS = pytest.mark.parametrize("threads", [1, 2])


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
        timeout=500,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@KERNELS
@THREADS
def test_gradients_of_every_form_are_right_and_stay_within_their_memory(
    kernels: str, threads: int
) -> None:
    found = run([str(PROGRAMS / "conv_gradients.py"), str(threads)], guarded(kernels))
    assert "forms tried" in found
    assert "wrong" not in found, found


@KERNELS
@THREADS
def test_training_again_gives_the_same_bytes(kernels: str, threads: int) -> None:
    first, second = (
        run([str(PROGRAMS / "conv_training.py"), str(threads)], guarded(kernels)) for _ in range(2)
    )
    assert len(first.splitlines()) > 1
    assert first == second
