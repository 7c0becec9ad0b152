"""Measure what `compress` costs with data: CPU seconds, passes of the network, and memory.

    python tools/measure_cost.py MODEL... [--data DATA.npz] [--samples 64] [--target-macs 0.7]
        [--code FOLDER]...

A pass is ONNX Runtime on all samples, in CPU seconds, loading aside. Repair goes without refinement
by gradient, whose time is an option. Shares of stages are those of a clock. Without `--data`
samples are drawn by chance. `--code` takes the package from another checkout, and may be given
several times: before and after a change in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from given import given

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
UNITS = {"linux": 2**10}
"""Bytes of a unit in which a system tells peaks of memory."""
BATCH = 32
HEADER = """| model | code | CPU s | passes | peak MiB | share of stages, % |
|---|---|---:|---:|---:|---|"""


class Cost(NamedTuple):
    """What a process took.

    Attributes:
        seconds: Of CPUs.
        peak: Bytes of memory.
        stages: Seconds of each stage, by a clock.
    """

    seconds: float
    peak: int
    stages: dict[str, float]

    def row(self, model: str, code: str, a_pass: float) -> str:
        """Write a row of the table.

        Args:
            model: Its name.
            code: That of the checkout.
            a_pass: CPU seconds of one pass.
        """
        whole = sum(self.stages.values())
        shares = {stage: round(100 * seconds / whole) for stage, seconds in self.stages.items()}
        named = ", ".join(f"{stage} {share}" for stage, share in shares.items() if share)
        figures = f"{self.seconds:.1f} | {self.seconds / a_pass:.1f} | {self.peak / 2**20:.0f}"
        return f"| {model} | {code} | {figures} | {named} |"


def draw(graph: Graph, n_samples: int) -> dict[str, NDArray[Any]]:
    """Draw inputs by chance: the first axis holds the samples, and no other may be open."""
    rng = np.random.default_rng(0)
    drawn: dict[str, Any] = {}
    for port in graph.inputs:
        shape = given(port.shape, f"the rank of '{port.name}'")
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        if len(sizes) < len(shape) - 1:
            raise SystemExit(f"input '{port.name}' has the shape {port.shape}: give --data")
        drawn[port.name] = rng.standard_normal((n_samples, *sizes)).astype(port.dtype)
    return drawn


def seconds_of_pass(graph: Graph, inputs: dict[str, NDArray[Any]]) -> float:
    """Run all samples once, and return the CPU seconds of that."""
    session, names = Session(graph), [port.name for port in graph.inputs]
    size = graph.batch or BATCH
    count = len(inputs[names[0]])
    start = time.process_time()
    for first in range(0, count - size + 1 if graph.batch else count, size):
        session.run({name: inputs[name][first : first + size] for name in names})
    return time.process_time() - start


def cost_of(model: Path, data: Path, target: float, code: Path) -> Cost:
    """Compress a model in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--recover-minutes", "0", "--no-latency", "--target-macs", str(target), "--json"]
        output = ["-o", f"{folder}/small.onnx", "--data", str(data)]
        command = [sys.executable, "-m", "obc_onnx", "compress", str(model), *output, *options]
        report = Path(folder) / "report.json"
        with report.open("wb") as file:
            environment = {**os.environ, "PYTHONPATH": str(code)}
            child = subprocess.Popen(command, stdout=file, env=environment, cwd=folder)
            _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{model}: the command failed")
        stages = json.loads(report.read_text(encoding="utf-8"))["seconds"]
    peak = used.ru_maxrss * UNITS.get(sys.platform, 1)
    return Cost(used.ru_utime + used.ru_stime, peak, stages)


def main() -> None:
    """Measure models, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path, help="Samples, an .npz for all models.")
    parser.add_argument("--samples", type=int, default=64, help="How many are drawn (default 64).")
    parser.add_argument("--target-macs", type=float, default=0.7, help="Share (default 0.7).")
    parser.add_argument("--code", type=Path, action="append", help="Checkout to take code from.")
    asked = parser.parse_args()
    print(HEADER)
    for model in asked.models:
        graph = Graph.load(model)
        with tempfile.TemporaryDirectory() as folder:
            data = asked.data or Path(folder) / "samples.npz"
            if asked.data is None:
                np.savez(data, allow_pickle=False, **draw(graph, asked.samples))
            with np.load(data) as archive:
                a_pass = seconds_of_pass(graph, dict(archive))
            for code in asked.code or [ROOT]:
                cost = cost_of(model.resolve(), data.resolve(), asked.target_macs, code.resolve())
                print(cost.row(model.stem, code.resolve().name, a_pass), flush=True)


if __name__ == "__main__":
    main()
