"""Compare both orders of pruning and quantising, as a table of accuracies.

    python tools/compare_quantised.py MODEL... --data TRAIN.npz --eval-data TEST.npz
        [--targets 0.7,0.5] [--calibrate 512]

ONNX Runtime's `quantize_static` quantises, per channel, to uint8 activations and int8 weights, with
norms folded. Pruning repairs in closed form, with the command's defaults else; labels are used to
measure accuracy alone, in ONNX Runtime with all optimisations.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from given import given
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from obc_onnx.graph.model import Graph
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.run.api import compress
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import load_samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.samples.samples import Samples

BATCH = 64


class Reader(CalibrationDataReader):  # type: ignore[misc]  # it comes without types
    """Feeds what ONNX Runtime measures ranges on."""

    def __init__(self, samples: Samples) -> None:
        self._feeds = (samples.feed(part) for part in samples.batches(BATCH))

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """Return the next batch."""
        return next(self._feeds, None)


def quantise(source: Path, target: Path, samples: Samples) -> None:
    """Write the quantised form of a model of floats.

    Args:
        source: The model.
        target: Where to.
        samples: To measure ranges on.
    """
    folded = target.with_suffix(".folded.onnx")
    quant_pre_process(source, folded, skip_symbolic_shape=True)
    quantize_static(
        folded,
        target,
        Reader(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def prune(source: Path, target: Path, data: DataOptions, share: float) -> None:
    """Write what is left of a model at a share of its MACs."""
    result = compress(source, data=data, budget=share, recover_minutes=0, latency=False)
    result.save(target)


def main() -> None:
    """Print a row for each model and target."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("models", nargs="+", type=Path)
    options.add_argument("--data", required=True, type=Path)
    options.add_argument("--eval-data", required=True, type=Path)
    options.add_argument("--targets", default="0.7,0.5")
    options.add_argument("--calibrate", default=512, type=int)
    asked = options.parse_args()
    print("| model | MACs | float | quantised | pruned, then quantised | quantised, then pruned |")
    print("|---|---:|---:|---:|---:|---:|")
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            compare(model, Path(folder), asked)


def compare(model: Path, folder: Path, asked: argparse.Namespace) -> None:
    """Print the rows of a model.

    Args:
        model: Of floats.
        folder: For what is made on the way.
        asked: The options.
    """
    graph = Graph.load(model)
    used, test = (load_samples(path, graph) for path in (asked.data, asked.eval_data))
    ranges = used.part(slice(0, asked.calibrate))
    data = DataOptions(source=asked.data, evaluation=asked.eval_data)

    def percent(path: Path) -> str:
        return f"{100 * given(accuracy(Graph.load(path), test), 'labels'):.2f}"

    whole = folder / "whole.int8.onnx"
    quantise(model, whole, ranges)
    start = f"| {model.stem} | {{}} | {percent(model)} | {percent(whole)} |"
    for share in map(float, asked.targets.split(",")):
        paths = [folder / f"{share}.{order}.onnx" for order in ("float", "last", "first")]
        prune(model, paths[0], data, share)
        quantise(paths[0], paths[1], ranges)
        prune(whole, paths[2], data, share)
        print(start.format(share), f"{percent(paths[1])} | {percent(paths[2])} |", flush=True)


if __name__ == "__main__":
    main()
