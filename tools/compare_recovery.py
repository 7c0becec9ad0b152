"""Repair a pruned classifier in every way, without training, and measure what is left.

    python tools/compare_recovery.py run MODEL --data TRAIN.npz --eval-data TEST.npz --csv FILE
        [--criterion jacobian] [--target 0.7] [--method refit] [--samples 1000] [--repeats 1]
        [--eval-limit 4000] [--threads 2]
    python tools/compare_recovery.py peer MODEL --data ... --eval-data ... --csv FILE
    python tools/compare_recovery.py table FILE

Units are scored and repaired on the same samples, of which the repair sees no labels; those of a
repeat are drawn with its seed. Methods are those of `--recover`, but that `fuse` is fusion alone
and is not judged; `fuse+stats` is what the command calls fuse, and `auto` does not refine by
gradient, which `refine`, the default of the command, does. Rows are added to the CSV as they
come and those that are there already are skipped, so that a run can be continued. `peer` prunes
with onnxsim, at the least sparsity that meets the target, and says where none does; it needs

    pip install onnxsim
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from csv_rows import add_run, answer, append, cell, opened, read
from given import accuracy
from tqdm import tqdm

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.search import search_plan
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.fuse import fuse
from obc_onnx.recover.methods import MINUTES
from obc_onnx.recover.stage import recover
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import choose_criterion, make_scene, score_left
from obc_onnx.surgery.cut import Cut

if TYPE_CHECKING:
    from obc_onnx.recover.methods import Method
    from obc_onnx.samples.samples import Samples

Repair = Callable[[Cut, "Samples", int], Graph]


def step(method: Method, minutes: float = 0.0) -> Repair:
    """Return what repairs by one method, with refinement of so many minutes."""
    return lambda cut, samples, seed: (
        recover(cut, Bench(cut.coupling, samples), method, seed, minutes=minutes).graph
    )


METHODS: dict[str, Repair] = {
    "none": lambda cut, *_: cut.pruned,
    "stats": step("stats"),
    "fuse": lambda cut, *_: fuse(cut),
    "fuse+stats": step("fuse"),
    "refit": step("refit"),
    "auto": step("auto"),
    "refine": step("auto", MINUTES),
}
CRITERIA = ("jacobian", "taylor", "l2", "random")
SCORINGS = {
    "jacobian": Scoring(objective="labels", rows="batch"),
    "taylor": Scoring(objective="labels"),
    "l2": Scoring(),
    "random": Scoring(),
}
"""How the tables were made, whatever the defaults are now."""
TARGETS = (0.7, 0.5, 0.35)


@dataclass(frozen=True)
class Row:
    """What one repair gave.

    Attributes:
        target: Share of the MACs that was asked for.
        macs: Share that is left.
        before: Test accuracy of the original.
        accuracy: Test accuracy of the repaired network.
        seconds: Of the repair.
    """

    model: str
    criterion: str
    target: float
    method: str
    repeat: int
    macs: float
    before: float
    accuracy: float
    seconds: float


def run(options: argparse.Namespace) -> None:
    """Repair in every way that the file lacks."""
    torch.set_num_threads(options.threads)
    graph, everything, held = opened(options)
    coupling, _ = analyse(graph, None, DEFAULT_RULES, Clock())
    name, before = options.model.stem, accuracy(graph, held)
    done = {(r.model, r.criterion, r.target, r.method, r.repeat) for r in read(options.csv, Row)}
    jobs = [
        (repeat, criterion, target)
        for repeat in range(options.repeats)
        for criterion in options.criterion or CRITERIA
        for target in options.target or TARGETS
    ]
    for repeat, criterion, target in tqdm(jobs):
        methods = options.method or list(METHODS)
        lacking = [m for m in methods if (name, criterion, target, m, repeat) not in done]
        if not lacking:
            continue
        drawn = np.random.default_rng(repeat).permutation(len(everything))[: options.samples]
        samples = everything.part(np.sort(drawn))
        chosen = choose_criterion(criterion, samples, SCORINGS[criterion])
        scene = make_scene(coupling, samples, SCORINGS[criterion], repeat, "cpu")
        plan = search_plan(
            coupling,
            partial(score_left, chosen, scene),
            Budget(target, scope=Scope(round_to=1, min_channels=1)),
            criterion,
            repeat,
        )
        cut, bare = Cut.of(coupling, plan.keep(coupling)), replace(samples, labels=None)
        left = plan.macs[1] / plan.macs[0]
        for method in lacking:
            start = time.perf_counter()
            repaired = METHODS[method](cut, bare, repeat)
            seconds = time.perf_counter() - start
            found = accuracy(repaired, held)
            row = Row(name, criterion, target, method, repeat, left, before, found, seconds)
            append(options.csv, [row])


def prune_by_peer(
    setting: tuple[Graph, Samples, float], target: float, criterion: str
) -> tuple[Graph, float]:
    """Prune with onnxsim, at the least of 64 sparsities that leaves no more than the target.

    Returns:
        The graph, pruned where some sparsity meets the target, and the share of the MACs that is
        left.
    """
    import onnxsim

    graph, samples, full = setting
    model, low, high = graph.to_model(), 0, 64
    best: tuple[Graph, float] = graph, 1.0
    batches = [samples.feed(part) for part in samples.batches(64)]
    while high - low > 1:
        middle = (low + high) // 2
        if criterion == "onnxsim wanda":
            pruned = onnxsim.apply_structured_wanda_pruning(model, batches, sparsity=middle / 64)
        else:
            pruned = onnxsim.apply_structured_pruning(model, sparsity=middle / 64)
        found = Graph.from_model(pruned)
        left = analyse(found, None, DEFAULT_RULES, Clock())[0].macs({}) / full
        if left <= target:
            high, best = middle, (found, left)
        else:
            low = middle
    return best


def run_peer(options: argparse.Namespace) -> None:
    """Prune with onnxsim to every target that the file lacks."""
    graph, everything, held = opened(options)
    full = analyse(graph, None, DEFAULT_RULES, Clock())[0].macs({})
    samples = everything.part(slice(0, options.samples))
    name, before = options.model.stem, accuracy(graph, held)
    for target in tqdm(options.target or TARGETS):
        for criterion in ("onnxsim l2", "onnxsim wanda"):
            start = time.perf_counter()
            found, left = prune_by_peer((graph, samples, full), target, criterion)
            seconds = time.perf_counter() - start
            if left > target:
                print(f"{name}: {criterion} does not reach {target:g} of the MACs")
                continue
            share = accuracy(found, held)
            row = Row(name, criterion, target, "none", 0, left, before, share, seconds)
            append(options.csv, [row])


def table(options: argparse.Namespace) -> None:
    """Print accuracy for each model, and the seconds of each repair, in Markdown."""
    rows = read(options.csv, Row)
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        targets = sorted({row.target for row in own}, reverse=True)
        print(f"\n**{model}**, {100 * own[0].before:.1f} % before\n")
        print(f"| criterion | repair | {' | '.join(f'{t:g} of the MACs' for t in targets)} | s |")
        print(f"|---|---|{'---:|' * (len(targets) + 1)}")
        found: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in own:
            found[row.criterion, row.method].append(row)
        for (criterion, method), group in found.items():
            cells = [cell([100 * r.accuracy for r in group if r.target == t], 1) for t in targets]
            seconds = statistics.mean(row.seconds for row in group)
            print(f"| {criterion} | {method} | {' | '.join(cells)} | {seconds:.1f} |")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("peer", run_peer)):
        command = add_run(commands, name, function)
        command.add_argument("--target", action="append", type=float, help="May be repeated.")
        command.add_argument("--samples", type=int, default=1000)
        command.add_argument("--eval-limit", type=int, default=10000)
    command = commands.choices["run"]
    command.add_argument("--criterion", action="append", help="May be repeated.")
    command.add_argument("--method", action="append", choices=METHODS, help="May be repeated.")
    command.add_argument("--repeats", type=int, default=1)
    command.add_argument("--threads", type=int, default=2)
    answer(parser, commands, table)


if __name__ == "__main__":
    main()
