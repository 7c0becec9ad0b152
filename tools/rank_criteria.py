"""Compare the scores of criteria with what removing each unit really does to the loss.

    python tools/rank_criteria.py MODEL --data DATA.npz [--samples 512] [--variant jacobian]...
        [--measured 1000] [--cache FILE.npz]

Every unit is masked alone, in ONNX Runtime, and the change of the mean cross entropy over samples
from the held-out end of the data is measured. Units are scored on its beginning. For each criterion
the table has Spearman's rank correlation of the scores with that change, and with its absolute
value: over all units, and within each group, averaged over the groups. A variant is as in
`compare_criteria.py`. The changes are kept in the cache, since they take minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from compare_criteria import evaluate, parse_variant

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.errors import RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.placing import first_of, known_by, shapes_of
from obc_onnx.samples.read import load_samples
from obc_onnx.surgery.mask import mask_reads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples

    Values = dict[str, NDArray[np.float64]]

VARIANTS = (
    *CRITERIA,
    "jacobian:rows=sample",
    "jacobian:objective=pseudo",
    "jacobian:objective=output",
    "jacobian:reduction=coupled",
)


def loss_changes(coupling: Coupling, samples: Samples) -> Values:
    """Mask one unit after the other."""
    _, whole = evaluate(coupling.graph, samples)
    units = [(group, unit) for group in coupling.groups for unit in range(group.size)]
    found = {group.name: np.zeros(group.size) for group in coupling.groups}
    for group, unit in tqdm(units):
        keep = {group.dim: np.arange(group.size) != unit}
        found[group.name][unit] = evaluate(mask_reads(coupling, keep), samples)[1] - whole
    return found


def spearman(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Return the correlation of ranks; equal numbers share the mean of theirs."""
    ranks = []
    for values in (left, right):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts + 1) / 2)[inverse])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    left_ranks, right_ranks = ranks
    return float(np.corrcoef(left_ranks, right_ranks)[0, 1])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--measured", type=int, default=1000)
    parser.add_argument("--variant", action="append", help="May be repeated; all by default.")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    graph = Graph.load(options.model)
    samples = load_samples(options.data, graph).part(slice(0, options.samples))
    held = load_samples(options.eval_data, graph).part(slice(0, options.measured))
    given = known_by(graph, samples), shapes_of(samples)
    coupling, _ = analyse(*given, DEFAULT_RULES, Clock(), feed=first_of(samples))
    if options.cache and options.cache.exists():
        changes = dict(np.load(options.cache))
    else:
        changes = loss_changes(coupling, held)
        if options.cache:
            arrays: dict[str, Any] = {**changes}
            np.savez(options.cache, **arrays)
    print("| variant | all units | within groups | all units, absolute | within, absolute |")
    print("|---|---:|---:|---:|---:|")
    for variant in tqdm(options.variant or VARIANTS):
        name, scoring = parse_variant(variant, Scoring(objective="labels", samples=options.samples))
        try:
            scores = make_criterion(name).score(Scene(coupling, samples, scoring=scoring), {})
        except RequestError as error:
            tqdm.write(f"| {variant} | refused: {error} | | | |", file=sys.stdout)
            continue
        cells = []
        for truth in (changes, {name: np.abs(change) for name, change in changes.items()}):
            every = [np.concatenate([values[g] for g in changes]) for values in (scores, truth)]
            cells += [spearman(*every), np.mean([spearman(scores[g], truth[g]) for g in truth])]
        tqdm.write(f"| {variant} | {' | '.join(f'{c:.3f}' for c in cells)} |", file=sys.stdout)


if __name__ == "__main__":
    main()
