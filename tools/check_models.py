"""Analyse, compress and verify every model of a folder, and print a table.

    python tools/check_models.py FOLDER [--only PATTERN]... [--plans 20] [--json FILE]

For each `.onnx` file: its groups, the share of its params that free groups hold, what
`compress --criterion l2 --target-macs 0.5` gives, and the largest errors at batch 1 and 3: of
random plans against the masked original, and of the twin against ONNX Runtime. A random plan
removes 10 to 70 % of every exact group. Vectors of equal numbers, such as layer scales of 1e-6
before training, are drawn again for that: they would hide what a wrong cut does. The effect is how
far the masked original is from the original.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from given import given
from tqdm import tqdm

from obc_onnx import compress
from obc_onnx.axes.expressions import count, leaves
from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.errors import InfeasibleTargetError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.node import is_float
from obc_onnx.graph.precision import relative_error
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import derived_twin, run_module

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep

TARGET = 0.5
BATCHES = (1, 3)
REMOVED = (0.1, 0.7)
COLUMNS = (
    ("model", "model"), ("nodes", "nodes"), ("groups", "n_groups"), ("units", "n_units"),
    ("inexact", "n_inexact"), ("params in free groups", "free_share"),
    ("coupling, ms", "coupling_ms"), ("MACs left", "macs_share"),
    ("worst error of random plans", "error"), ("least effect", "effect"),
    ("twin's error", "twin_error"),
    ("seconds", "seconds"), ("note", "note"),
)  # fmt: skip


@dataclass
class Row:
    """What was found of one model.

    Attributes:
        n_inexact: Groups that are pruned with --allow-inexact only.
        free_share: Share of the params that lie in exact groups.
        macs_share: MACs left after compression to `TARGET`; None where that was refused.
        error: Largest error of the random plans, as a share of the RMS of an output.
        effect: Smallest effect of a random plan, in the same unit.
        twin_error: Largest error of the twin, at every batch, in the same unit.
        note: Why the target was not reachable.
    """

    model: str
    nodes: int
    n_groups: int
    n_units: int
    n_inexact: int
    free_share: float
    coupling_ms: float
    macs_share: float | None
    error: float
    effect: float
    twin_error: float
    seconds: float
    note: str


def check(path: Path, n_plans: int) -> Row:
    """Check one model."""
    start, clock = time.perf_counter(), Clock()
    graph = Graph.load(path)
    coupling, _ = analyse(graph, None, DEFAULT_RULES, clock)
    exact = [group for group in coupling.groups if group.inexact is None]
    share, note = None, ""
    try:
        budget = Budget(TARGET, scope=Scope(min_channels=1))
        report = compress(graph, budget=budget, latency=False, criterion="l2").report
        share = (report.macs.after or 0) / (report.macs.before or 1)
    except InfeasibleTargetError as error:
        note = str(error)
    lively, _ = analyse(_enliven(graph), None, DEFAULT_RULES, Clock())
    measured = list(_measure(lively, n_plans))
    return Row(
        model=path.stem,
        nodes=len(graph.nodes),
        n_groups=len(exact),
        n_units=sum(group.size for group in exact),
        n_inexact=len(coupling.groups) - len(exact),
        free_share=_share_of(coupling, {group.dim for group in exact}),
        coupling_ms=1e3 * clock.seconds["coupling"],
        macs_share=share,
        error=max((error for error, _ in measured), default=0.0),
        effect=min((effect for _, effect in measured), default=0.0),
        twin_error=_twin_error(lively),
        seconds=time.perf_counter() - start,
        note=note,
    )


def _share_of(coupling: Coupling, dims: set[Dim]) -> float:
    total = held = 0
    for name, array in coupling.graph.initializers.items():
        if is_float(array.dtype):
            own = {dim for axis in coupling.axes.get(name, ()) for dim in leaves(axis)}
            total += array.size
            held += array.size if own & dims else 0
    return held / total if total else 0.0


def _enliven(graph: Graph) -> Graph:
    """Draw vectors of equal numbers again, around 1."""
    rng = np.random.default_rng(0)
    equal = {
        name: rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)
        for name, array in graph.initializers.items()
        if is_float(array.dtype) and array.size == max(array.shape, default=0) > 1
        if np.ptp(array.astype(np.float64)) == 0
    }
    return graph.edit(equal)


def _measure(coupling: Coupling, n_plans: int) -> Iterator[tuple[float, float]]:
    """Compare random plans with the masked original, and that with the original."""
    rng = np.random.default_rng(0)
    original = Session(coupling.graph, optimize=False)
    for _ in range(n_plans):
        keep = random_keep(coupling, rng)
        if not keep:
            return
        pruned = Session(remove_units(coupling, keep), optimize=False)
        masked = Session(mask_reads(coupling, keep), optimize=False)
        for batch in BATCHES if coupling.batch is not None else (None,):
            feed = _feed(coupling.graph, rng, batch)
            runs = [session.run(feed) for session in (pruned, masked, original)]
            errors, effects = (
                max(relative_error(run[name], runs[1][name]) for name in run)
                for run in (runs[0], runs[2])
            )
            yield errors, effects


def _twin_error(coupling: Coupling) -> float:
    graph, rng = coupling.graph, np.random.default_rng(0)
    twin, session = derived_twin(graph, coupling), Session(graph)
    errors = []
    for batch in BATCHES if coupling.batch is not None else (None,):
        feed = _feed(graph, rng, batch)
        found, expected = run_module(twin, graph, feed), session.run(feed)
        errors += [relative_error(found[name], expected[name]) for name in expected]
    return max(errors)


def _feed(graph: Graph, rng: np.random.Generator, batch: int | None) -> dict[str, NDArray[Any]]:
    shapes = {
        port.name: [
            given(batch, "a batch size") if isinstance(size, str) else size
            for size in port.shape or ()
        ]
        for port in graph.inputs
    }
    return {
        port.name: rng.standard_normal(shapes[port.name]).astype(port.dtype)
        if is_float(port.dtype)
        else np.zeros(shapes[port.name], port.dtype)
        for port in graph.inputs
    }


def random_keep(coupling: Coupling, rng: np.random.Generator) -> Keep:
    """Draw units to keep of every exact group, and at least one of every tied axis."""
    low, high = REMOVED
    while True:
        keep = {}
        for group in coupling.groups:
            if group.inexact is None:
                n_removed = min(round(group.size * rng.uniform(low, high)), group.size - 1)
                keep[group.dim] = np.ones(group.size, np.bool_)
                keep[group.dim][rng.permutation(group.size)[:n_removed]] = False
        if all(count(axis, keep) for axis in coupling.tied_axes):
            return keep
        high = (low + high) / 2


def render(rows: list[Row]) -> str:
    """Write a Markdown table."""
    lines = [" | ".join(title for title, _ in COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(_cell(getattr(row, key)) for _, key in COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return (
        f"{value:.3g}" if isinstance(value, float) else "refused" if value is None else str(value)
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", help="Pattern of file names; may be repeated.")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    options = parser.parse_args()
    paths = [
        path
        for path in sorted(options.folder.glob("*.onnx"))
        if any(fnmatch.fnmatch(path.stem, pattern) for pattern in options.only or ["*"])
    ]
    rows = [check(path, options.plans) for path in tqdm(paths)]
    print(render(rows))
    if options.json:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
