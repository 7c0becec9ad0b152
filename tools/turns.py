"""Measure several ways of doing one thing side by side, each in a process of its own.

The processes take turns, so that a noisy machine is equally noisy to all of them, and the least
time of each counts. Memory is what a process needs above the start of its measurement.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Figures = dict[str, float]

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Of Linux: `getrusage` would count what the parent of this process has used."""
_RESET = "5"
FLAG = "--measure"
"""With the name of a way behind it, a tool measures that one and prints its figures."""


def take_turns(
    ways: Sequence[str], rounds: int, more: Sequence[str] = ()
) -> dict[str, list[Figures]]:
    """Start the running tool once for each way and round.

    Args:
        ways: Their names.
        rounds: How often.
        more: Further arguments for the tool, besides those that it was started with.
    """
    found: dict[str, list[Figures]] = {way: [] for way in ways}
    for _ in tqdm(range(rounds)):
        for way, figures in found.items():
            command = [sys.executable, *sys.argv, *more, FLAG, way]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            figures.append(json.loads(run.stdout))
    return found


def best(found: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Pick the fastest run of each way."""
    return {way: min(runs, key=lambda f: f["seconds"]) for way, runs in found.items()}


def measure(work: Callable[[], None], **facts: float) -> None:
    """Run once, and print seconds, MiB above the start, and other facts as JSON."""
    PEAK.write_text(_RESET, encoding="ascii")
    before = peak_mib()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": peak_mib() - before, **facts}))


def peak_mib() -> float:
    """Read the most memory that was in use since it was last reset."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
