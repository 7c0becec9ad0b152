"""Score with several losses, cut, repair, and measure what each plan is worth after repair.

    python tools/compare_objectives.py run MODEL --data TRAIN.npz --eval-data TEST.npz --csv FILE
        [--variant jacobian:objective=output] [--variant jacobian+taylor] [--target 0.7]
        [--scored 512] [--repaired 512] [--repeats 3] [--eval-limit 2000] [--threads 1]
    python tools/compare_objectives.py table FILE

A variant is a criterion and, after a colon, fields of `Scoring` that differ from the defaults. Of
two that a plus joins, the scores are added, each as a share of its own total. Repeats draw other
samples to score on; those to repair with are the first of the data, the same for all. Budgets are
those of the command: widths are multiples, units are compared per cost. Rows are added to the CSV
as they come and those that are there already are skipped.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from compare_criteria import parse_variant
from csv_rows import answer, append, begin, cell, opened, read
from given import accuracy
from tqdm import tqdm

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.measuring.error import output_error
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import STEPS, Budget
from obc_onnx.planning.search import search_plan
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.stage import recover
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import choose_criterion, make_scene, score_left
from obc_onnx.surgery.cut import Cut

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from obc_onnx.branches.left import Left
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples

TARGETS = (0.7, 0.5)
VARIANTS = (
    "jacobian:rows=batch,objective=labels",
    "jacobian:objective=labels",
    "jacobian:objective=output",
    "jacobian:objective=mixed",
)


@dataclass(frozen=True)
class Row:
    """What one plan gave.

    Attributes:
        target: Share of the MACs that was asked for.
        macs: Share that is left.
        before: Accuracy of the original.
        cut: Accuracy of the cut network.
        accuracy: Accuracy of the repaired network.
        error: Of its outputs, see `Distance`.
        seconds: Of scoring.
    """

    model: str
    variant: str
    target: float
    repeat: int
    macs: float
    before: float
    cut: float
    accuracy: float
    error: float
    seconds: float


class Scorer:
    """Scores by a variant, and takes the time."""

    def __init__(
        self, coupling: Coupling, samples: Samples, variant: str, repeat: int, base: Scoring
    ) -> None:
        self.seconds = 0.0
        self._parts = []
        for part in variant.split("+"):
            name, scoring = parse_variant(part, base)
            scene = make_scene(coupling, samples, scoring, repeat, "cpu")
            self._parts.append(partial(score_left, choose_criterion(name, samples, scoring), scene))

    def __call__(self, left: Left) -> dict[str, NDArray[np.float64]]:
        """Score; add the scores of what a plus joins, each as a share of its total."""
        start = time.perf_counter()
        found = [part(left) for part in self._parts]
        self.seconds += time.perf_counter() - start
        if len(found) == 1:
            return found[0]
        totals = [sum(float(own.sum()) for own in scores.values()) for scores in found]
        return {
            group: np.sum([s[group] / t for s, t in zip(found, totals, strict=True)], axis=0)
            for group in found[0]
        }


def run(options: argparse.Namespace) -> None:
    """Measure every variant that the file lacks."""
    torch.set_num_threads(options.threads)
    graph, samples, held = opened(options)
    repaired = replace(samples.part(slice(0, options.repaired)), labels=None)
    coupling, _ = analyse(graph, None, DEFAULT_RULES, Clock())
    name, before = options.model.stem, accuracy(graph, held)
    base = Scoring(samples=options.scored)
    done = {(r.model, r.variant, r.target, r.repeat) for r in read(options.csv, Row)}
    variants, targets = options.variant or VARIANTS, options.target or TARGETS
    jobs = [(repeat, variant) for repeat in range(options.repeats) for variant in variants]
    for repeat, variant in tqdm(jobs):
        lacking = [t for t in targets if (name, variant, t, repeat) not in done]
        if not lacking:
            continue
        for target in lacking:
            scorer = Scorer(coupling, samples, variant, repeat, base)
            budget = Budget(target, steps=options.steps)
            plan = search_plan(coupling, scorer, budget, "jacobian", repeat)
            cut = Cut.of(coupling, plan.keep(coupling))
            found = recover(cut, Bench(coupling, repaired), "refit", 0).graph
            row = Row(
                model=name,
                variant=variant,
                target=target,
                repeat=repeat,
                macs=plan.macs[1] / plan.macs[0],
                before=before,
                cut=accuracy(cut.pruned, held),
                accuracy=accuracy(found, held),
                error=output_error(coupling, found, held),
                seconds=scorer.seconds,
            )
            append(options.csv, [row])


def table(options: argparse.Namespace) -> None:
    """Print accuracy and error after repair for each model, in Markdown."""
    rows = read(options.csv, Row)
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        targets = sorted({row.target for row in own}, reverse=True)
        heads = [f"{what}, {t:g} of the MACs" for t in targets for what in ("%", "error")]
        print(f"\n**{model}**, {100 * own[0].before:.1f} % before\n")
        print(f"| variant | {' | '.join(heads)} | s |")
        print(f"|---|{'---:|' * (len(heads) + 1)}")
        found: dict[str, list[Row]] = defaultdict(list)
        for row in own:
            found[row.variant].append(row)
        for variant, group in found.items():
            cells = []
            for target in targets:
                at = [row for row in group if row.target == target]
                cells += [cell([100 * r.accuracy for r in at], 1), cell([r.error for r in at], 3)]
            print(f"| {variant} | {' | '.join(cells)} | {cell([group[0].seconds], 1)} |")


def main() -> None:
    """Run from the command line."""
    parser, commands, command = begin(__doc__, run)
    command.add_argument("--variant", action="append", help="May be repeated.")
    command.add_argument("--target", action="append", type=float, help="May be repeated.")
    command.add_argument("--steps", type=int, default=STEPS)
    command.add_argument("--scored", type=int, default=512)
    command.add_argument("--repaired", type=int, default=512)
    command.add_argument("--repeats", type=int, default=1)
    command.add_argument("--eval-limit", type=int, default=2000)
    command.add_argument("--threads", type=int, default=1)
    answer(parser, commands, table)


if __name__ == "__main__":
    main()
