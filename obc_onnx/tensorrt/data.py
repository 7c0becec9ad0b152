"""Samples as files: those to calibrate on, one run as raw bytes, and what a model gives for it."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError, ModelError
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

    Feed = Mapping[str, NDArray[Any]]

_ALLOWED = 1.5
"""How far results may be from what was measured: as many times."""
_ROUNDING = 1e-5
"""What other versions of a runtime may round otherwise, as a distance of cosines."""


@dataclass(frozen=True)
class Runs:
    """Samples in runs of one size, without stand-ins for what unknown nodes give.

    Attributes:
        samples: As many as fill whole runs.
        size: Samples of a run.
        names: The inputs of the file.
    """

    samples: Samples
    size: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph, samples: Samples, wanted: int, most: int) -> Runs:
        """Choose samples.

        Args:
            graph: The model.
            samples: Placed for it.
            wanted: Samples of a run, where the model does not say it.
            most: How many there may be.
        Raises:
            ModelError: An input is no tensor of numbers.
            DataError: There are too few for one run.
        """
        size = graph.batch or wanted
        count = min(len(samples), max(most, size)) // size * size
        if count == 0:
            raise DataError(
                f"a run takes {size} samples, but there are {len(samples)} to work with: give more "
                f"`data`, or smaller `batches`"
            )
        ports = [port for port in graph.inputs if port.name not in graph.opaque.givers]
        for port in (*ports, *graph.outputs):
            if port.dtype.kind == "O":
                raise ModelError(f"'{port.name}' is no tensor of numbers, which a raw file holds")
        return cls(samples.part(slice(0, count)), size, tuple(port.name for port in ports))

    @property
    def axes(self) -> dict[str, int | None]:
        """The axis along which each input holds samples; None for one that is given once."""
        batch = self.samples.batch_axes
        return {name: 0 if batch is None else batch.inputs[name] for name in self.names}

    def all(self) -> dict[str, NDArray[Any]]:
        """Return all samples, as the model takes them but for their number."""
        return self._own(self.samples.feed(slice(0, len(self.samples))))

    def first(self) -> dict[str, NDArray[Any]]:
        """Return one run."""
        return self._own(self.samples.feed(slice(0, self.size)))

    def feeds(self) -> Iterator[Feed]:
        """Yield each run, with all that the graph takes."""
        return (self.samples.feed(part) for part in self.samples.batches(self.size))

    def _own(self, feed: Feed) -> dict[str, NDArray[Any]]:
        return {name: feed[name] for name in self.names}


def npz(arrays: Feed) -> bytes:
    """Write arrays as `numpy.savez` does, whatever their names; equal ones give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return file.getvalue()


def raw(arrays: Feed, kind: str) -> dict[str, tuple[str, bytes]]:
    """Name a raw file for each array, as trtexec reads it, and give its bytes.

    Args:
        arrays: By name.
        kind: How the names of files begin.
    """
    return {
        name: (f"{kind}{place}_{re.sub(r'[^0-9A-Za-z]+', '_', name)}.bin", array.tobytes())
        for place, (name, array) in enumerate(arrays.items())
    }


def similarities(graphs: Sequence[Graph], runs: Runs) -> dict[str, float]:
    """Measure how alike the outputs of two models are: what a comparison may ask of them.

    Returns:
        For each output the least cosine of a run, less half of its distance from 1.
    """
    sessions = [Session(graph) for graph in graphs]
    least: dict[str, float] = {}
    for feed in runs.feeds():
        one, other = (session.run(feed) for session in sessions)
        for name in one:
            least[name] = min(least.get(name, 1.0), _cosine(one[name], other[name]))
    return {name: 1 - _ALLOWED * (1 - cosine) - _ROUNDING for name, cosine in least.items()}


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    first, second = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else float(np.array_equal(first, second))
