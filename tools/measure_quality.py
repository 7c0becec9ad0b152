"""Measure what compression with the command's defaults leaves of a model, step by step.

    python tools/measure_quality.py run MODEL --data TRAIN.npz --eval-data TEST.npz --csv FILE
        [--target 0.85] [--draws 3] [--samples 1000] [--minutes 3] [--eval-limit 10000]
    python tools/measure_quality.py table FILE

Labels are used to measure accuracy alone. Each draw takes other samples to score and repair with.
Every plan is cut three times: without repair, with least squares, and with refinement by gradient
after that. Rows are added to the CSV as they come and those that are there already are skipped.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from csv_rows import answer, append, begin, cell, opened, read
from tqdm import tqdm

from obc_onnx.planning.budget import Budget
from obc_onnx.recover.methods import MINUTES
from obc_onnx.run.api import apply, make_plan
from obc_onnx.samples.options import DataOptions

if TYPE_CHECKING:
    import argparse
    from typing import Any

TARGETS = (0.85, 0.7, 0.5)
STEPS: dict[str, dict[str, Any]] = {
    "cut": {"recover": "none"},
    "refit": {"recover_minutes": 0.0},
    "refined": {},
}


@dataclass(frozen=True)
class Row:
    """What one result is worth.

    Attributes:
        target: Share of the MACs that was asked for.
        macs: Share that is left.
        before: Accuracy of the original, in [0, 1]; not a number without labels.
        accuracy: Of the result.
        error: Distance of the outputs, the mean over outputs; see `OutputError`.
        seconds: Of scoring and planning, and of repair, in CPU time.
    """

    model: str
    target: float
    step: str
    draw: int
    macs: float
    before: float
    accuracy: float
    error: float
    seconds: float


def run(options: argparse.Namespace) -> None:
    """Measure every result that the file lacks."""
    torch.set_num_threads(options.threads)
    _, everything, held = opened(options)
    done = {(row.model, row.target, row.step, row.draw) for row in read(options.csv, Row)}
    name, targets = options.model.stem, options.target or TARGETS
    for draw, target in tqdm([(d, t) for d in range(options.draws) for t in targets]):
        lacking = [step for step in STEPS if (name, target, step, draw) not in done]
        if not lacking:
            continue
        drawn = np.random.default_rng(draw).permutation(len(everything))[: options.samples]
        used = replace(everything.part(np.sort(drawn)), labels=None)
        start = time.process_time()
        plan = make_plan(options.model, data=DataOptions(used), budget=Budget(target), seed=draw)
        planned = time.process_time() - start
        for step in lacking:
            chosen = {"recover_minutes": options.minutes, **STEPS[step]}
            start = time.process_time()
            found = apply(
                options.model,
                plan,
                data=DataOptions(used, evaluation=held),
                seed=draw,
                latency=False,
                **chosen,
            )
            report = found.report
            before, after = report.accuracy.before, report.accuracy.after
            row = Row(
                model=name,
                target=target,
                step=step,
                draw=draw,
                macs=plan.macs[1] / plan.macs[0],
                before=float("nan") if before is None else before,
                accuracy=float("nan") if after is None else after,
                error=float(np.mean([output.error for output in report.outputs])),
                seconds=planned + time.process_time() - start,
            )
            append(options.csv, [row])


def table(options: argparse.Namespace) -> None:
    """Print accuracy, error and minutes of each step, in Markdown."""
    rows = read(options.csv, Row)
    print("| model | target | step | accuracy, % | error of outputs | CPU minutes |")
    print("|---|---:|---|---:|---:|---:|")
    groups: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.model, row.target, row.step].append(row)
    for (model, target, step), group in sorted(groups.items(), key=_order):
        accuracy = cell([100 * row.accuracy for row in group], 1)
        error, minutes = (
            cell([row.error for row in group], 3),
            cell([row.seconds / 60 for row in group], 1),
        )
        before = 100 * group[0].before
        print(f"| {model}, {before:.1f} | {target:g} | {step} | {accuracy} | {error} | {minutes} |")


def _order(entry: tuple[tuple[str, float, str], list[Row]]) -> tuple[str, float, int]:
    model, target, step = entry[0]
    return model, -target, list(STEPS).index(step)


def main() -> None:
    """Run from the command line."""
    parser, commands, command = begin(__doc__, run)
    command.add_argument("--target", action="append", type=float, help="May be repeated.")
    command.add_argument("--draws", type=int, default=3)
    command.add_argument("--samples", type=int, default=1000)
    command.add_argument("--minutes", type=float, default=MINUTES)
    command.add_argument("--eval-limit", type=int, default=10000)
    command.add_argument("--threads", type=int, default=1)
    answer(parser, commands, table)


if __name__ == "__main__":
    main()
