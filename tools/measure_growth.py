"""Measure how the analysis grows with the number of nodes, and write docs/growth.md.

    python tools/measure_growth.py [--family NAME ...] [--nodes N ...] [--limit SECONDS] [--write]

Each family of `graph_families` at each size runs in a process of its own. Stages are those of
`obc-onnx inspect`: load, analyse, and format as text and as JSON. Seconds are those of one CPU, and
memory is the most that the process takes above its imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from graph_families import FAMILIES
from turns import FLAG, peak_mib

PAGE = Path(__file__).resolve().parents[1] / "docs" / "growth.md"
STAGES = ("load", "analyse", "format")
SIZES = (1000, 3000, 10_000)
Figures = dict[str, float]


def measure(path: Path, limit: int) -> None:
    """Inspect one model stage by stage, and print seconds and sizes as JSON."""
    from obc_onnx.graph.model import Graph
    from obc_onnx.report.terminal import inspection_text
    from obc_onnx.run.inspection import inspect

    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    before, times = peak_mib(), [time.process_time()]
    graph = Graph.load(path)
    times.append(time.process_time())
    inspection = inspect(graph)
    times.append(time.process_time())
    written = {"text": inspection_text(inspection), "json": inspection.to_json()}
    times.append(time.process_time())
    seconds = dict(zip(STAGES, np.diff(times).tolist(), strict=True))
    sizes = {name: len(text) / 1000 for name, text in written.items()}
    figures = {"nodes": len(graph.nodes), **seconds, "mib": peak_mib() - before, **sizes}
    print(json.dumps(figures))


def figures_of(family: str, n_nodes: int, limit: int) -> Figures | None:
    """Measure one family at one size in a process of its own; None where that takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(FAMILIES[family](n_nodes), path)
        command = [sys.executable, __file__, FLAG, str(path), "--limit", str(limit)]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        if run.returncode:
            print(family, n_nodes, run.stderr[-300:] or run.returncode, file=sys.stderr)
            return None
        return {"asked": n_nodes, "kb": path.stat().st_size / 1000, **json.loads(run.stdout)}


def total(figures: Figures) -> float:
    """Add the seconds of all stages up."""
    return sum(figures[stage] for stage in STAGES)


def exponent(runs: list[Figures], what: str, against: str) -> float:
    """Fit how a figure grows: the slope of both logarithms."""
    x, y = ([max(run[name], 1e-3) for run in runs] for name in (against, what))
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def row(family: str, runs: list[Figures | None]) -> str:
    """Write one line of the table: figures of the largest size, exponents over all."""
    known = [{**run, "total": total(run)} for run in runs if run is not None]
    if len(known) < len(runs) or not known:
        return f"| {family} | stopped |"
    last = known[-1]
    fits = [
        f"{exponent(known, what, against):.2f}" if len(known) > 1 else ""
        for what, against in (("total", "asked"), ("total", "kb"), ("json", "asked"))
    ]
    cells = [f"{last[stage]:.2f}" for stage in STAGES]
    cells += [f"{last['total']:.2f}", *fits, f"{last['mib']:.0f}"]
    cells += [f"{last[name]:,.0f}" for name in ("kb", "text", "json")]
    return f"| {family} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(FLAG, type=Path, dest="measured", help="measure this model alone")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--nodes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--limit", type=int, default=120, help="seconds of CPU for each run")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.measured is not None:
        measure(options.measured, options.limit)
        return
    lines = []
    for family in options.family:
        lines.append(row(family, [figures_of(family, n, options.limit) for n in options.nodes]))
        print(lines[-1], flush=True)
    if options.write:
        PAGE.write_text(page(options.nodes, lines), encoding="utf-8")


def page(sizes: list[int], lines: list[str]) -> str:
    """Write the page."""
    shown = ", ".join(f"{size:,}" for size in sizes)
    docs = (f"- `{name}`: {(made.__doc__ or '').strip()}" for name, made in FAMILIES.items())
    asked = " ".join(map(str, sizes))
    return "\n".join(
        [HEAD.format(sizes=shown, asked=asked), *lines, "", "## Families", "", *docs, ""]
    )


HEAD = """# Growth

Written by `python tools/measure_growth.py --nodes {asked} --write`: do not edit it by hand.

What `obc-onnx inspect` takes for graphs that stretch one thing each, at {sizes} nodes, on one core.
Figures are those of the largest; an exponent of 1 is linear, in nodes or in bytes of the file.
Memory is the most above what imports take. The file of a dense block grows with the square of its
nodes.

| family | load, s | analyse, s | format, s | all, s | exponent, nodes | exponent, bytes \
| exponent of JSON | MiB | file, kB | text, kB | JSON, kB |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


if __name__ == "__main__":
    main()
