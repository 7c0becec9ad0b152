"""Train a whole network sparsely, and tell what stripping then takes out of it.

    python tools/try_stripping.py MODEL --data TRAIN.npz --eval-data TEST.npz [--epochs 4]
        [--strength 0.003] [--lr 0.02] [--below 0 1e-4 1e-3 1e-2] [-o SPARSE.onnx]

Prints a row for each size up to which weights count as zeros: units that go, MACs and params that
are left, the largest error of an output on random inputs, and the accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from obc_onnx.coupling.analysis import Clock, analyse, load_model
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.run.strip import strip
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import open_samples
from obc_onnx.training.options import Training, TrainingOptions
from obc_onnx.training.stage import sparsify


def main() -> None:
    """Train, strip at every threshold, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="what to train on")
    parser.add_argument("--eval-data", type=Path, required=True, help="what to measure on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--strength", type=float, default=0.003, help="of the pull on weak units")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--below", type=float, nargs="+", default=[0.0, 1e-4, 1e-3, 1e-2])
    parser.add_argument("-o", "--output", type=Path, help="where to write the sparse network")
    args = parser.parse_args()
    graph = load_model(args.model)
    samples, held = open_samples(DataOptions(args.data, evaluation=args.eval_data), graph, None)
    assert samples is not None
    assert held is not None
    coupling, _ = analyse(graph, None, DEFAULT_RULES, Clock())
    options = TrainingOptions(
        epochs=0, sparse_epochs=args.epochs, sparse_reg=args.strength, lr=args.lr
    )
    sparse, _ = sparsify(coupling, samples, Training(options, 0, "cpu"))
    if args.output is not None:
        sparse.save(args.output)
    print(
        f"accuracy {accuracy(graph, held):.4f}, after sparse training {accuracy(sparse, held):.4f}"
    )
    print("| below | units that go | MACs left | params left | error | accuracy |")
    print("|---:|---:|---:|---:|---:|---:|")
    for below in args.below:
        result = strip(sparse, below=below)
        macs, params = (
            (change.after or 0) / (change.before or 1)
            for change in (result.report.macs, result.report.params)
        )
        cells = [
            f"{below:g}",
            str(result.report.n_units),
            f"{macs:.1%}",
            f"{params:.1%}",
            f"{max(result.report.errors.values()):.2g}",
            f"{accuracy(result.graph, held):.4f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
