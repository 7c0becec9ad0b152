"""Compare narrower networks with shallower ones, and with both, at equal targets.

    python tools/compare_depth.py MODEL --data DATA [--eval-data DATA] [--cost latency]
        [--target 0.7]... [--costs PROFILE.json] [--recover-minutes 0] [--image-scale 1]

For each target the model is compressed three times: with channels alone, with branches alone, and
with both in one plan. Each is repaired, and timed beside the original, one run after the other. The
table has what is left of MACs and of measured time, the branches that went, and the accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from obc_onnx.errors import InfeasibleTargetError
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.run.api import compress
from obc_onnx.samples.image_options import ImageOptions
from obc_onnx.samples.options import DataOptions

if TYPE_CHECKING:
    from obc_onnx.report.result import Result

WAYS = {
    "width": Budget(),
    "depth": Budget(depth=True, scope=Scope(min_channels=1.0)),
    "both": Budget(depth=True),
}
HEADER = (
    "| target | way | MACs left | time left | branches gone | accuracy |\n|---|---|--:|--:|--:|--:|"
)


def row(target: float, way: str, result: Result) -> str:
    """Write one line of the table."""
    report, (before, after) = result.report, result.plan.macs
    times, gone = report.latency_ms, len(result.plan.branches) + len(result.plan.spans)
    time = f"{times.after / times.before:.3f}" if times.after and times.before else "-"
    accuracy = "-" if report.accuracy.after is None else f"{100 * report.accuracy.after:.2f} %"
    return f"| {target:g} | {way} | {after / before:.3f} | {time} | {gone} | {accuracy} |"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data")
    parser.add_argument("--eval-samples", type=int, default=2000)
    parser.add_argument("--image-scale", type=float)
    parser.add_argument("--cost", default="latency", choices=Budget.costs())
    parser.add_argument("--target", type=float, action="append")
    parser.add_argument("--costs", type=Path)
    parser.add_argument("--recover-minutes", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Print the table, line by line."""
    options = parse()
    data = DataOptions(
        options.data,
        evaluation=options.eval_data,
        eval_samples=options.eval_samples,
        images=ImageOptions(scale=options.image_scale),
    )
    tqdm.write(HEADER)
    for target in options.target or (0.7, 0.5):
        for way, budget in WAYS.items():
            try:
                result = compress(
                    options.model,
                    data=data,
                    budget=budget.at(options.cost, target),
                    recover_minutes=options.recover_minutes,
                    latency=True,
                    costs=options.costs,
                    seed=options.seed,
                )
            except InfeasibleTargetError as error:
                tqdm.write(f"| {target:g} | {way} | out of reach: {error} | | | |")
                continue
            tqdm.write(row(target, way, result))


if __name__ == "__main__":
    main()
