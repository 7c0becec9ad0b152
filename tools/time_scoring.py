"""Time scoring, and measure its memory, against a training step and the paper's own way.

    python tools/time_scoring.py MODEL --data DATA.npz [--batches 50] [--batch-size 128]
        [--rounds 3] [--json FILE]

`turns` says how it measures. Loading the data and building the twin are not timed. The ways are:

- ours: the Jacobian criterion, one row per sample;
- step: forward and backward with gradients of all weights, over the same batches;
- stored: as the paper's authors do it, one sample at a time: the gradients of every row are kept,
  and reduced at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from given import given, labels_of
from torch.nn.functional import cross_entropy
from turns import FLAG, best, take_turns
from turns import measure as measure_run

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.placing import first_of, known_by, shapes_of
from obc_onnx.samples.read import load_samples
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, fx

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples

WAYS = ("ours", "step", "stored")
STORED_SHARE = 16
"""The stored way sees one in so many samples: it is timed per row, and would not fit else."""
N_CLASSES = 10


def twin_of(coupling: Coupling) -> fx.GraphModule:
    """Build a twin whose weights have gradients."""
    return build_twin(coupling.graph, coupling.shapes, coupling.rules)


def batches(samples: Samples, name: str, size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut samples into batches of tensors."""
    labels = torch.from_numpy(labels_of(samples))
    return [
        (torch.from_numpy(samples.feed(part)[name]), labels[part]) for part in samples.batches(size)
    ]


def score(coupling: Coupling, samples: Samples, size: int) -> Callable[[], None]:
    """Score every sample."""
    scoring = Scoring(rows="sample", samples=len(samples), batch_size=size)
    scene = Scene(coupling, samples, scoring=scoring)
    criterion = make_criterion("jacobian")

    def run() -> None:
        criterion.score(scene, {})

    return run


def step(coupling: Coupling, samples: Samples, size: int) -> Callable[[], None]:
    """Compute the gradients of all weights for every batch."""
    twin, name = twin_of(coupling), coupling.graph.inputs[0].name

    def run() -> None:
        for x, labels in batches(samples, name, size):
            twin.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(twin(x)[0], labels))

    return run


def stored(coupling: Coupling, samples: Samples, _size: int) -> Callable[[], None]:
    """Keep the gradients of every sample, and multiply them with the weights at the end."""
    twin, name = twin_of(coupling), coupling.graph.inputs[0].name
    few = samples.part(slice(0, max(len(samples) // STORED_SHARE, 1)))

    def run() -> None:
        rows: dict[str, list[Tensor]] = {key: [] for key, _ in twin.named_parameters()}
        for x, labels in batches(few, name, 1):
            twin.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(twin(x)[0], labels))
            for key, parameter in twin.named_parameters():
                rows[key].append(given(parameter.grad, f"a gradient of '{key}'").clone())
        for key, parameter in twin.named_parameters():
            products = torch.stack(rows.pop(key)) * parameter.detach()
            products.flatten(2).sum(2).square().sum(0) if parameter.ndim > 1 else products.square()

    return run


def measure(options: argparse.Namespace) -> None:
    """Measure one way, and print the figures as JSON."""
    graph = Graph.load(options.model)
    samples = load_samples(options.data, graph)
    samples = samples.part(slice(0, options.batches * options.batch_size))
    given = known_by(graph, samples), shapes_of(samples)
    coupling, _ = analyse(*given, DEFAULT_RULES, Clock(), feed=first_of(samples))
    ways = {"ours": score, "step": step, "stored": stored}
    run = ways[options.measure](coupling, samples, options.batch_size)
    rows = len(samples) // (STORED_SHARE if options.measure == "stored" else 1)
    measure_run(run, rows=rows)


def write_pictures(path: Path, graph: Graph, count: int) -> None:
    """Write random pictures, for a network without data."""
    rng = np.random.default_rng(0)
    port = graph.inputs[0]
    sizes = [int(size) for size in given(port.shape, f"a shape of '{port.name}'")[1:]]
    inputs = rng.standard_normal((count, *sizes)).astype(port.dtype)
    labels = rng.integers(0, N_CLASSES, count)
    arrays: dict[str, Any] = {port.name: inputs, "labels": labels}
    np.savez(path, **arrays)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="Drawn where there is no file.")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="Also write the figures to this file.")
    parser.add_argument(FLAG, choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.data.exists():
        graph = Graph.load(options.model)
        write_pictures(options.data, graph, options.batches * options.batch_size)
    if options.measure:
        measure(options)
        return
    found = take_turns(WAYS, options.rounds)
    least = best(found)
    print("| way | seconds | rows | ms per row | MiB above the start |")
    print("|---|---:|---:|---:|---:|")
    for way, f in least.items():
        each = 1e3 * f["seconds"] / f["rows"]
        print(f"| {way} | {f['seconds']:.2f} | {f['rows']} | {each:.2f} | {f['mib']:.0f} |")
    ratio = least["ours"]["seconds"] / least["step"]["seconds"]
    per_row = least["stored"]["seconds"] / least["stored"]["rows"]
    faster = per_row / (least["ours"]["seconds"] / least["ours"]["rows"])
    print(f"\nours over step: {ratio:.2f}; stored over ours, per row: {faster:.1f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
