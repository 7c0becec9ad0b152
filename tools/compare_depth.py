"""Compare narrower networks with shallower ones, and with both, at equal targets.

    python tools/compare_depth.py MODEL --data DATA [--eval-data DATA] [--cost latency]
        [--target 0.7]... [--costs PROFILE.json] [--recover-minutes 0] [--image-scale 1]

For each target the model is compressed three times: with channels alone, with branches alone, and
with both in one plan. Each is repaired. At the end the original and all that came of it are timed,
a few runs of each after the other, so that what else the machine does falls on all alike.

The table has what is left of MACs, and of measured time in the median of all rounds, with the
quartiles; how many branches of sums and how many spans went; and the accuracy.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from obc_onnx.engines.options import EngineOptions
from obc_onnx.engines.table import make_engine
from obc_onnx.errors import InfeasibleTargetError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.graph.shapes import input_shapes
from obc_onnx.latency.measure import loaded
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.run.api import compress
from obc_onnx.samples.image_options import ImageOptions
from obc_onnx.samples.options import DataOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from obc_onnx.report.result import Result

WAYS = {
    "width": Budget(),
    "depth": Budget(depth=True, scope=Scope(min_channels=1.0)),
    "both": Budget(depth=True),
}
RUNS = 7
"""Of one model in each round; the median counts."""
HEADER = (
    "| target | way | MACs left | time left | branches, spans gone | accuracy |\n"
    "|---|---|--:|--:|--:|--:|"
)


class Row(NamedTuple):
    """One network that is compared."""

    target: float
    way: str
    result: Result

    def told(self, shares: NDArray[np.float64]) -> str:
        """Write one line of the table; `shares` are those of the original's time, by round."""
        report, plan = self.result.report, self.result.plan
        low, middle, high = np.quantile(shares, (0.25, 0.5, 0.75))
        before, after = plan.macs
        gone = f"{len(plan.branches)}, {len(plan.spans)}"
        accuracy = report.accuracy.after
        told = "-" if accuracy is None else f"{100 * accuracy:.2f} %"
        return (
            f"| {self.target:g} | {self.way} | {after / before:.3f} | {middle:.3f} "
            f"({low:.3f} to {high:.3f}) | {gone} | {told} |"
        )


def shares_in_turns(
    original: Graph, graphs: Sequence[Graph], threads: int | None, rounds: int
) -> NDArray[np.float64]:
    """Time graphs beside the original in ONNX Runtime, one sample a run, shape [rounds, graphs]."""
    shapes = {name: (1, *shape[1:]) for name, shape in input_shapes(original).items()}
    feed = random_feed(original, shapes, seed=0)
    engine = make_engine(EngineOptions(threads=threads))
    with ExitStack() as stack:
        every = [stack.enter_context(loaded(engine, one, feed)) for one in (original, *graphs)]
        for one in every:
            one.warm_up()
        turns = [[[m.turn_seconds() for _ in range(RUNS)] for m in every] for _ in range(rounds)]
    seconds = np.median(turns, axis=-1)
    return np.asarray(seconds[:, 1:] / seconds[:, :1])


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
    parser.add_argument("--threads", type=int, help="of the rounds at the end")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = parse()
    rows = [*compared(options)]
    graphs = [Graph.from_model(row.result.model) for row in rows]
    shares = shares_in_turns(Graph.load(options.model), graphs, options.threads, options.rounds)
    tqdm.write(HEADER)
    for row, own in zip(rows, shares.T, strict=True):
        tqdm.write(row.told(own))


def compared(options: argparse.Namespace) -> list[Row]:
    """Compress the model in each way for each target that it reaches."""
    data = DataOptions(
        options.data,
        evaluation=options.eval_data,
        eval_samples=options.eval_samples,
        images=ImageOptions(scale=options.image_scale),
    )
    rows = []
    for target in options.target or (0.7, 0.5):
        for way, budget in WAYS.items():
            try:
                result = compress(
                    options.model,
                    data=data,
                    budget=budget.at(options.cost, target),
                    recover_minutes=options.recover_minutes,
                    latency=False,
                    costs=options.costs,
                    seed=options.seed,
                )
            except InfeasibleTargetError as error:
                tqdm.write(f"{target:g} by {way} is out of reach: {error}")
                continue
            rows.append(Row(target, way, result))
    return rows


if __name__ == "__main__":
    main()
