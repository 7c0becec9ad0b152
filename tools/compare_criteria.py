"""Prune a classifier step by step with every criterion, without fine-tuning, and plot what is left.

    python tools/compare_criteria.py run MODEL --data TRAIN.npz --eval-data TEST.npz --csv FILE
        [--variant jacobian] [--variant jacobian:rows=sample,objective=pseudo] [--ranking global]
        [--batches 50] [--batch-size 128] [--repeats 3] [--eval-limit 2000]
    python tools/compare_criteria.py plot FILE --out PREFIX
    python tools/compare_criteria.py table FILE

A variant is a criterion, and after a colon fields of `Scoring` that differ from the defaults of
this tool, which are rows of batches and so the loss of labels. After each step the pruned network
is scored again. Rows are added to the CSV as they come and those that are there already are
skipped, so that a run can be continued. Repeats differ in the samples that are drawn. To plot:

    pip install matplotlib
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from csv_rows import answer, append, begin, read
from given import labels_of
from tqdm import tqdm

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.errors import InfeasibleTargetError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.measuring.outputs import answers
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.search import search_plan
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.options import RANKINGS, Scoring
from obc_onnx.saliency.scores import make_scene, score_left
from obc_onnx.samples.read import load_samples
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from obc_onnx.saliency.options import Ranking
    from obc_onnx.samples.samples import Samples

SHARES = tuple(np.round(np.arange(0.9, 0.09, -0.1), 2).tolist())
"""Shares of the MACs to stop at."""
SMALLEST_PARAMS = 0.2
"""Share of the params at which a run ends."""
TABLE_SHARES = (0.7, 0.5, 0.3)
EVAL_BATCH = 250


@dataclass(frozen=True)
class Row:
    """What is left after a step.

    Attributes:
        target: Share of the MACs that was asked for.
        macs: Share that is left.
        params: Share of the params that is left.
        loss: Mean cross entropy on the samples that were held out.
        seconds: Of scoring.
    """

    variant: str
    ranking: str
    repeat: int
    target: float
    macs: float
    params: float
    accuracy: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    original: Graph
    samples: Samples
    held: Samples
    steps: tuple[float, ...]
    ranking: Ranking


def parse_variant(text: str, base: Scoring) -> tuple[str, Scoring]:
    """Read `criterion:field=value,...`."""
    name, _, rest = text.partition(":")
    values: dict[str, Any] = dict(item.split("=") for item in rest.split(",") if item)
    for field in fields(Scoring):
        if field.name in values and field.name in ("samples", "batches", "batch_size"):
            values[field.name] = int(values[field.name])
        if field.name in values and field.name in ("depthwise", "amp"):
            values[field.name] = values[field.name] == "yes"
    return name, replace(base, **values)


def prune(setting: Setting, variant: str, scoring: Scoring, repeat: int) -> Iterator[Row]:
    """Prune to every share of the MACs in turn."""
    name, scoring = parse_variant(variant, scoring)
    criterion, graph = make_criterion(name), setting.original
    coupling, _ = analyse(graph, None, DEFAULT_RULES, Clock())
    samples = make_scene(coupling, setting.samples, scoring, repeat, "cpu").data()
    if scoring.objective == "pseudo":  # the answers of the original, at every step
        samples = replace(samples, labels=answers(graph, samples))
        scoring = replace(scoring, objective="labels")
    full, params = coupling.macs({}), coupling.params({})
    for target in setting.steps:
        scene = make_scene(coupling, samples, scoring, repeat, "cpu")
        share = min(target * full / coupling.macs({}), 1.0)
        budget = Budget(share, setting.ranking, steps=1, scope=Scope(round_to=1, min_channels=1))
        start = time.perf_counter()
        try:
            plan = search_plan(coupling, partial(score_left, criterion, scene), budget, name, 0)
        except InfeasibleTargetError:
            return
        seconds = time.perf_counter() - start
        graph = remove_units(coupling, plan.keep(coupling))
        coupling, _ = analyse(graph, None, DEFAULT_RULES, Clock())
        accuracy, loss = evaluate(graph, setting.held)
        left = coupling.macs({}) / full, coupling.params({}) / params
        yield Row(variant, setting.ranking, repeat, target, *left, accuracy, loss, seconds)
        if left[1] <= SMALLEST_PARAMS:
            return


def evaluate(graph: Graph, samples: Samples) -> tuple[float, float]:
    """Return accuracy and mean cross entropy."""
    session, name = Session(graph), graph.outputs[0].name
    correct = total = 0.0
    for part in samples.batches(EVAL_BATCH):
        logits = session.run(samples.feed(part))[name].astype(np.float64)
        labels = labels_of(samples)[part]
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        correct += float((logits.argmax(1) == labels).sum())
        total -= float(logs[np.arange(len(labels)), labels].sum())
    return correct / len(samples), total / len(samples)


def run(options: argparse.Namespace) -> None:
    """Run every variant that the file lacks."""
    original = Graph.load(options.model)
    samples = load_samples(options.data, original)
    held = load_samples(options.eval_data, original).part(slice(0, options.eval_limit))
    setting = Setting(original, samples, held, SHARES[:: options.stride], options.ranking)
    base = Scoring(rows="batch", batches=options.batches, batch_size=options.batch_size)
    done = {(row.variant, row.ranking, row.repeat) for row in read(options.csv, Row)}
    jobs = [(v, r) for r in range(options.repeats) for v in options.variant or CRITERIA]
    for variant, repeat in tqdm(jobs):
        if (variant, options.ranking, repeat) not in done:
            append(options.csv, list(prune(setting, variant, base, repeat)))


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str], dict[float, list[Row]]]:
    """Gather the repeats of each variant and target."""
    found: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row.variant, row.ranking][row.target].append(row)
    return found


def plot(options: argparse.Namespace) -> None:
    """Draw accuracy and loss against what was pruned, with the spread of the repeats."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = grouped(read(options.csv, Row))
    figure, panels = plt.subplots(2, 2, figsize=(12, 10), dpi=80, layout="constrained")
    for column, share in enumerate(("params", "macs")):
        for line, value in enumerate(("accuracy", "loss")):
            panel = panels[line][column]
            for number, ((variant, ranking), targets) in enumerate(groups.items()):
                points = [repeats for _, repeats in sorted(targets.items(), reverse=True)]
                x = [100 * (1 - statistics.mean(getattr(r, share) for r in p)) for p in points]
                y = [statistics.mean(getattr(r, value) for r in p) for p in points]
                spread = [statistics.pstdev(getattr(r, value) for r in p) for p in points]
                style = {"color": f"C{number % 10}", "linestyle": "-:"[number // 10 % 2]}
                label = variant if ranking == "global" else f"{variant} {ranking}"
                panel.errorbar(x, y, spread, label=label, linewidth=1, capsize=2, **style)
            panel.set_xlabel(f"{share} removed, %")
            panel.set_ylabel(value)
            panel.grid(alpha=0.3)
            if value == "loss":
                panel.set_ylim(0, 4)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    for kind in ("png", "svg"):
        figure.savefig(f"{options.out}.{kind}", metadata={"Date": None} if kind == "svg" else None)


def table(options: argparse.Namespace) -> None:
    """Print accuracy at some shares of the MACs, mean and deviation, in Markdown."""
    heads = [f"{100 * (1 - share):.0f} % of MACs removed" for share in TABLE_SHARES]
    print(f"| variant | ranking | repeats | {' | '.join(heads)} | s per scoring |")
    print(f"|---|---|---:|{'---:|' * (len(heads) + 1)}")
    for (variant, ranking), targets in grouped(read(options.csv, Row)).items():
        cells, repeats = [], max(map(len, targets.values()))
        for share in TABLE_SHARES:
            found = [100 * row.accuracy for row in targets.get(share, [])]
            spread = f" ± {statistics.pstdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "-")
        first = [row.seconds for row in targets[max(targets)]]
        cells.append(f"{statistics.mean(first):.1f}")
        print(f"| {variant} | {ranking} | {repeats} | {' | '.join(cells)} |")


def main() -> None:
    """Run from the command line."""
    parser, commands, command = begin(__doc__, run)
    command.add_argument("--variant", action="append", help="May be repeated; all by default.")
    command.add_argument("--ranking", choices=RANKINGS, default="global")
    command.add_argument("--batches", type=int, default=50)
    command.add_argument("--batch-size", type=int, default=128)
    command.add_argument("--repeats", type=int, default=1)
    command.add_argument("--eval-limit", type=int, default=2000)
    command.add_argument("--stride", type=int, default=1, help="Take every n-th step only.")
    command = commands.add_parser("plot")
    command.set_defaults(function=plot)
    command.add_argument("csv", type=Path)
    command.add_argument("--out", required=True, help="Path without suffix.")
    answer(parser, commands, table)


if __name__ == "__main__":
    main()
