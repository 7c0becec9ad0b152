"""Try mutated models and files of every kind: `python tests/fuzz/run.py --seconds 60`.

Each case is a kind and a number, and equal ones are equal. They run in a process of their own, so
that a crash, a hang or too much memory is one case that failed, and is named. What failed once lies
in `faults/`, as `KIND-WHAT`, and is tried first.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
FAULTS = Path(__file__).parent / "faults"
KINDS = (
    *("model",) * 12,
    *("plan", "limits", "archive", "scores", "tar", "picture", "checkpoint"),
)
"""In the order in which they are tried, again and again."""
HANGS_AFTER, STARTS_WITHIN = 600.0, 600.0
"""Seconds by the clock. A process that computes all the time ends itself sooner, see `worker`."""
READY = "ready"
"""What the process says once, before it is given any case."""
FAULT = "FAULT"
COMMAND = ("-m", "fuzz.worker")
"""What runs cases, as Python's options."""


def cases(first: int) -> Iterator[tuple[str, str]]:
    """Yield cases: those that failed once, then others without end."""
    for path in sorted(FAULTS.iterdir()):
        yield path.name.partition("-")[0], str(path)
    number = first
    while True:
        for kind in KINDS:
            number += 1
            yield kind, str(number)


class Worker:
    """The process that tries cases; it is started again where one ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def attempt(self, kind: str, case: str) -> dict[str, str]:
        """Try a case."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{kind} {case}\n")
        process.stdin.flush()
        line = self._line(process, HANGS_AFTER)
        if line:
            found: dict[str, str] = json.loads(line)
            return found
        self.end()
        said = "hangs" if line is None else f"ended the process with {process.returncode}"
        return {"reached": FAULT, "said": said}

    def end(self) -> None:
        """End the process, where there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        paths = [str(TESTS), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        said = self._line(self._process, STARTS_WITHIN)
        if said is None or said.strip() != READY:
            self.end()
            raise RuntimeError(f"the process that tries cases did not start: {COMMAND}")
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
        """Read a line; empty where the process has ended, None where it says nothing."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else None


def fuzz(
    seconds: float, first: int, most: int | None = None, least: int = 0
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Try cases for some time.

    Args:
        seconds: How long.
        first: The number of the first case.
        most: How many, at most.
        least: How many, however long they take.
    Returns:
        How many there were of each kind and class, and a line for each that failed.
    """
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    worker, end = Worker(), time.monotonic() + seconds
    try:
        for done, (kind, case) in enumerate(islice(cases(first), most)):
            if done >= least and time.monotonic() > end:
                break
            found = worker.attempt(kind, case)
            counts[kind, found["reached"]] += 1
            if found["reached"] == FAULT:
                faults.append(f"{kind} {case}: {found['said']}")
    finally:
        worker.end()
    return counts, faults


def main() -> int:
    """Fuzz, and print counts by class."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    asked = parser.parse_args()
    counts, faults = fuzz(asked.seconds, asked.first)
    for (kind, found), count in sorted(counts.items()):
        sys.stdout.write(f"{kind:12} {found:12} {count:8,}\n")
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
