"""Fine-tune a pruned classifier in several ways, from equal plans, on equal data.

    python tools/compare_training.py run MODEL --data TRAIN.npz --eval-data TEST.npz --csv FILE
        [--variant plain,loss=ce] [--variant select,loss=ce:0.5+kd:0.5] [--target 0.5]
        [--epochs 2] [--lr 0.02] [--batch-size 128] [--repeats 3] [--limit N]
        [--precision bfloat16] [--threads 2]
    python tools/compare_training.py table FILE

A variant starts with one of

- plain: the sliced weights learn;
- select: equivalent pruning from the kept units, as in the paper;
- channel-ls: equivalent pruning from least squares;

and goes on with fields of `TrainingOptions` that differ, and with `recover=METHOD`, the repair
before training, where that is not `auto`; terms of a loss are joined by `+`. A
repeat has a seed of its own, for the plan as for training, and all variants of a repeat share the
plan. Training takes all samples and its result is the last epoch; the test samples choose nothing.
Rows are added to the CSV as they come and those that are there already are skipped, so that a run
can be continued.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from csv_rows import answer, append, begin, cell, read
from given import given
from tqdm import tqdm

from obc_onnx import compress, make_plan
from obc_onnx.graph.model import Graph
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.recover.methods import METHODS
from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import load_samples
from obc_onnx.training.options import PRECISIONS, TrainingOptions, parse_loss

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Method

STARTS: dict[str, dict[str, Any]] = {
    "plain": {"equivalent": False},
    "select": {"equivalent": True},
    "channel-ls": {"equivalent": True, "start": "channel-ls"},
}
LOSSES = ("ce", "kd", "ce:0.5+kd:0.5")
TARGETS = (1 / 2, 1 / 3, 1 / 6)
CROP = 2
READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": "yes".__eq__}
"""By the type of a field; words stay words."""


@dataclass(frozen=True)
class Row:
    """What one run of training gave.

    Attributes:
        target: Share of the MACs that was asked for.
        macs: Share that is left.
        before: Test accuracy of the original.
        accuracy: Test accuracy of the result.
        seconds: Of training.
    """

    model: str
    variant: str
    target: float
    epochs: int
    repeat: int
    macs: float
    before: float
    accuracy: float
    seconds: float


def parse_variant(text: str, base: TrainingOptions) -> tuple[TrainingOptions, Method]:
    """Read `start,field=value,...`, and the method of repair."""
    start, *rest = text.split(",")
    changes, recover = dict(STARTS[start]), METHODS[0]
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in fields(base)}
    for item in rest:
        name, value = item.split("=")
        if name == "recover":
            recover = next(method for method in METHODS if method == value)
        elif name == "loss":
            changes[name] = parse_loss(value.replace("+", ","))
        else:
            changes[name] = READERS.get(kinds[name], str)(value)
    return replace(base, **changes), recover


def run(options: argparse.Namespace) -> None:
    """Train every variant that the file lacks."""
    torch.set_num_threads(options.threads)
    graph = Graph.load(options.model)
    samples = load_samples(options.data, graph)
    samples = samples.part(slice(0, options.limit))
    held = load_samples(options.eval_data, graph)
    data = DataOptions(samples, evaluation=held)
    base = TrainingOptions(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        validation=0.0,
        precision=options.precision,
        augmentation=Augmentation(crop=CROP, flip=True),
    )
    variants = options.variant or [f"{s},loss={loss}" for s in STARTS for loss in LOSSES]
    name = options.model.stem
    done = {
        (r.model, r.variant, r.epochs, r.repeat, round(r.target, 3)) for r in read(options.csv, Row)
    }
    jobs = [
        (repeat, target, variant)
        for repeat in range(options.first_repeat, options.repeats)
        for target in options.target or TARGETS
        for variant in variants
    ]
    plans: dict[tuple[int, float], PruningPlan] = {}
    for repeat, target, variant in tqdm(jobs):
        if (name, variant, options.epochs, repeat, round(target, 3)) in done:
            continue
        if (repeat, target) not in plans:
            budget = Budget(target, scope=Scope(round_to=1, min_channels=1))
            plans[repeat, target] = make_plan(graph, data=data, budget=budget, seed=repeat)
        training, recover = parse_variant(variant, base)
        report = compress(
            graph,
            data=data,
            seed=repeat,
            plan=plans[repeat, target],
            training=training,
            recover=recover,
        ).report
        found = Row(
            name,
            variant,
            target,
            options.epochs,
            repeat,
            given(report.macs.after, "MACs") / given(report.macs.before, "MACs"),
            given(report.accuracy.before, "labels"),
            given(report.accuracy.after, "labels"),
            report.seconds["fine-tune"],
        )
        append(options.csv, [found])


def table(options: argparse.Namespace) -> None:
    """Print accuracy for each model, mean and deviation over the repeats, in Markdown."""
    found: dict[tuple[str, int], dict[str, dict[float, list[Row]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in read(options.csv, Row):
        found[row.model, row.epochs][row.variant][row.target].append(row)
    for (model, epochs), variants in found.items():
        targets = sorted({t for by_target in variants.values() for t in by_target}, reverse=True)
        before = next(rows[0].before for own in variants.values() for rows in own.values())
        heads = [f"1/{1 / target:.0f} of the MACs" for target in targets]
        print(f"\n**{model}**, {100 * before:.2f} % before, epochs: {epochs}\n")
        print(f"| variant | repeats | {' | '.join(heads)} |")
        print(f"|---|---:|{'---:|' * len(targets)}")
        for variant, by_target in variants.items():
            cells = [cell([100 * row.accuracy for row in by_target[t]], 2) for t in targets]
            print(f"| {variant} | {max(map(len, by_target.values()))} | {' | '.join(cells)} |")


def main() -> None:
    """Run from the command line."""
    parser, commands, command = begin(__doc__, run)
    command.add_argument("--variant", action="append", help="May be repeated; all by default.")
    command.add_argument("--target", action="append", type=float, help="May be repeated.")
    command.add_argument("--epochs", type=int, default=2)
    command.add_argument("--lr", type=float, default=0.02)
    command.add_argument("--batch-size", type=int, default=128)
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--first-repeat", type=int, default=0)
    command.add_argument("--limit", type=int, help="Train on so many samples only.")
    command.add_argument("--precision", choices=PRECISIONS, default="float32")
    command.add_argument("--threads", type=int, default=2)
    answer(parser, commands, table)


if __name__ == "__main__":
    main()
