"""Compare one layer of low rank, by plain and by weighted SVD, with fewer channels at equal MACs.

    python tools/compare_low_rank.py MODEL --weight NAME --data DATA --eval-data DATA
        [--left 0.5]... [--refit-samples 1024] [--image-scale 1]

The layer keeps a share of its MACs: as two layers, or with fewer of the channels that it reads.
Those are then missing in front of it too, so that fewer have to go. The table has the error of
outputs on held-out samples, as cut and after least squares, and the accuracy with labels; with
`--refit-samples 0` nothing is repaired.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from given import given
from tqdm import tqdm

from obc_onnx.coupling.analysis import Clock
from obc_onnx.errors import InfeasibleTargetError
from obc_onnx.low_rank.layers import Dense, find_dense
from obc_onnx.low_rank.moments import moments_of
from obc_onnx.low_rank.split import Halves, split
from obc_onnx.measuring.error import Distance
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.search import search_plan
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.stage import recover
from obc_onnx.run.opened import analysed, read
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import choose_criterion, make_scene, score_left
from obc_onnx.samples.image_options import ImageOptions
from obc_onnx.samples.options import DataOptions
from obc_onnx.surgery.cut import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

HEADER = (
    "| layer's MACs left | way | rank or channels | error as cut | after refit | accuracy |\n"
    "|--:|---|--:|--:|--:|--:|"
)


@dataclass(frozen=True)
class Network:
    """A network, one layer of which is cut, and samples."""

    coupling: Coupling
    layer: Dense
    samples: Samples
    held: Samples
    refit: int
    seed: int

    def cuts(self, left: float) -> Iterator[tuple[str, int, Cut]]:
        """Yield what each way leaves where the layer keeps a share of its MACs."""
        shape = self.coupling.graph.initializers[self.layer.weight].shape
        width, height = shape[self.layer.reads], shape[self.layer.writes]
        rank = int(left * width * height / (width + height))
        (seen,) = moments_of(self.coupling, [self.layer], self.samples).values()
        for way, moment in (("plain SVD", None), ("SVD on samples", seen)):
            halves = Halves.of(self.coupling, self.layer, moment)
            found = split(self.coupling, [halves], None)
            (dim,) = (g.dim for g in found.groups if found.pair_of(g.dim))
            yield way, rank, Cut.of(found, {dim: np.arange(dim.size) < rank})
        layer = self.coupling.node_macs(self.layer.node, {})
        whole = self.coupling.macs({})
        budget = Budget(
            1 - (1 - left) * layer / whole,
            scope=Scope(only=(self.layer.weight,), round_to=1, min_channels=1),
        )
        try:
            yield "fewer channels", *self._narrow(budget)
        except InfeasibleTargetError as error:
            tqdm.write(f"| {left:g} | fewer channels | out of reach: {error} | | | |")

    def _narrow(self, budget: Budget) -> tuple[int, Cut]:
        """Cut channels in front of the layer by the Jacobian criterion."""
        scoring = Scoring()
        criterion = choose_criterion(None, self.samples, scoring)
        scene = make_scene(self.coupling, self.samples, scoring, self.seed, "cpu")
        score = partial(score_left, criterion, scene)
        plan = search_plan(self.coupling, score, budget, criterion.name, self.seed)
        cut = Cut.of(self.coupling, plan.keep(self.coupling))
        return cut.pruned.initializers[self.layer.weight].shape[self.layer.reads], cut

    def row(self, left: float, way: str, width: int, cut: Cut) -> str:
        """Write one line of the table."""
        distance, repaired = Distance(self.coupling, self.held), cut.pruned
        before = after = f"{distance(repaired):.4f}"
        if self.refit:
            bench = Bench(cut.coupling, self.samples.part(slice(0, self.refit)))
            repaired = recover(cut, bench, "refit", self.seed).graph
            after = f"{distance(repaired):.4f}"
        told = _told(repaired, self.held)
        cells = (f"{left:g}", way, str(width), before, after if self.refit else "-", told)
        return f"| {' | '.join(cells)} |"


def _told(graph: Graph, held: Samples) -> str:
    found = None if held.labels is None else accuracy(graph, held)
    return "-" if found is None else f"{100 * found:.2f} %"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--weight", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--eval-samples", type=int, default=2000)
    parser.add_argument("--image-scale", type=float)
    parser.add_argument("--left", type=float, action="append")
    parser.add_argument("--refit-samples", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Print the table, line by line."""
    options = parse()
    images = ImageOptions(scale=options.image_scale)
    data = DataOptions(
        options.data,
        evaluation=options.eval_data,
        eval_samples=options.eval_samples,
        images=images,
    )
    graph, samples, held = read(options.model, data, None, None)
    samples, held = given(samples, "samples"), given(held, "samples to measure on")
    coupling, _ = analysed(graph, samples, None, None, DEFAULT_RULES, Clock())
    layers = {layer.weight: layer for layer in find_dense(coupling)}
    layer = given(layers.get(options.weight), f"a weight that may be split, of {', '.join(layers)}")
    network = Network(coupling, layer, samples, held, options.refit_samples, options.seed)
    tqdm.write(HEADER)
    for left in options.left or (0.75, 0.5, 0.25):
        for way, width, cut in network.cuts(left):
            tqdm.write(network.row(left, way, width, cut))


if __name__ == "__main__":
    main()
