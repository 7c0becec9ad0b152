"""Compress each public model with small data of its own kind, and print what became of it.

    python tools/try_public_models.py [--target 0.7] [--only PATTERN]

Data are drawn from a fixed seed: smooth pictures, bytes or ids, waves, states of zeros. What an
input holds is told from its type and shape; where a model has no batch axis, each sample takes a
run of its own. So figures say that a model goes through all stages, not how good the result is.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import obc_onnx
from obc_onnx.data import Samples, check_samples
from obc_onnx.errors import ObcError
from obc_onnx.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from obc_onnx.node import Port

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "public_models"
N_SAMPLES = 20
IMAGE_RANK, WAVE_RANK = 4, 2
IMAGE_SIZES = ((320, 320), (48, 192), (96, 96))
WAVE_LENGTHS = (576, 512, 16000)
RATE = 16000
STEPS = 3
"""Positions on an open axis of a model without a batch axis."""


@dataclass(frozen=True)
class Row:
    """What became of one model; a row of the table that is printed."""

    model: str
    outcome: str
    macs: str = "-"
    error: str = "-"
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"| {self.model} | {self.macs} | {self.error} | {self.seconds:.0f} | {self.outcome} |"
        )


@dataclass(frozen=True)
class Drawing:
    """Data for a model, and the axes that are named."""

    arrays: dict[str, NDArray[Any]]
    named: dict[str, int | None]


def drawings(graph: Graph) -> Iterator[Drawing]:
    """Yield data for a model, for each of the sizes that its inputs may have."""
    for sizes in zip(IMAGE_SIZES, WAVE_LENGTHS, strict=True):
        rng = np.random.default_rng(0)
        shapes = {port.name: shape_of(port, *sizes) for port in graph.inputs}
        arrays = {port.name: drawn(port, shapes[port.name], rng) for port in graph.inputs}
        yield Drawing(arrays, {})
    rng = np.random.default_rng(0)
    arrays = {}
    for port in graph.inputs:
        shape = [size if isinstance(size, int) else STEPS for size in port.shape or ()]
        arrays[port.name] = drawn(port, [N_SAMPLES, *shape], rng)
    yield Drawing(arrays, dict.fromkeys(arrays))


def shape_of(port: Port, image: tuple[int, int], length: int) -> list[int]:
    """Choose a shape; the batch is the first open axis, or the first whose size is 1."""
    declared = list(port.shape or ())
    is_open = [axis for axis, size in enumerate(declared) if isinstance(size, str)]
    batch = is_open[0] if is_open else next((i for i, n in enumerate(declared) if n == 1), None)
    usual = [0, 3, *image] if len(declared) == IMAGE_RANK else [length] * len(declared)
    shape = [size if isinstance(size, int) else usual[i] for i, size in enumerate(declared)]
    return [N_SAMPLES if axis == batch else size for axis, size in enumerate(shape)]


def drawn(port: Port, shape: list[int], rng: np.random.Generator) -> NDArray[Any]:
    """Draw what an input may hold."""
    if not port.shape:
        return np.array(RATE, port.dtype)
    if not np.issubdtype(port.dtype, np.floating):
        return rng.integers(0, 256, shape).astype(port.dtype)
    if len(port.shape) == IMAGE_RANK:
        noise = rng.standard_normal((*shape[:2], shape[2] // 8 + 1, shape[3] // 8 + 1))
        smooth = noise.repeat(8, 2).repeat(8, 3)[..., : shape[2], : shape[3]]
        return np.ascontiguousarray(smooth, port.dtype)
    if len(port.shape) == WAVE_RANK:
        return (0.1 * np.cumsum(rng.standard_normal(shape), axis=-1)).astype(port.dtype)
    return np.zeros(shape, port.dtype)


def tried(path: Path, target: float) -> Row:
    """Compress one model with the first data that it takes; else give the first refusal."""
    start, name = time.perf_counter(), str(path.relative_to(MODELS))
    graph = Graph.load(path)
    refusals = []
    for drawing in drawings(graph):
        try:
            samples = check_samples(Samples(drawing.arrays, None, {}), graph, named=drawing.named)
            result = obc_onnx.compress(path, data=samples, budget=target)
            error = max((output.error for output in result.report.outputs), default=0.0)
        except ObcError as refusal:
            refusals.append(f"{type(refusal).__name__}: {' '.join(str(refusal).split())}")
            continue
        macs, note = result.report.macs, result.graph.batch_axes.note
        seconds = time.perf_counter() - start
        before = f"{macs.before:,} to {macs.after:,}"
        return Row(
            name, f"compressed; {note}" if note else "compressed", before, f"{error:.2g}", seconds
        )
    return Row(name, refusals[0], seconds=time.perf_counter() - start)


def main() -> None:
    """Try every model that is there, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.7, help="Share of the MACs to leave.")
    parser.add_argument("--only", default="*", help="Pattern of paths to try.")
    options = parser.parse_args()
    print("| model | MACs | output error | seconds | outcome |\n|---|---|---|---|---|")
    for path in sorted(MODELS.rglob("*.onnx")):
        if fnmatch(str(path.relative_to(MODELS)), options.only):
            print(tried(path, options.target), flush=True)


if __name__ == "__main__":
    main()
