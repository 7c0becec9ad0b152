"""The original network as a teacher."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.graph.session import Session
from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.measuring.scales import measure_scales
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples

_CACHE_BYTES = 2**28
"""Outputs are kept for all samples as long as they fit into this."""
_MEASURED = 1024
"""Samples that the scales of outputs are measured on, at most."""


class Teacher:
    """Gives the original's outputs: in ONNX Runtime on a CPU, as a twin on a GPU.

    Args:
        coupling: Of the original.
        samples: That it will be asked for.
        device: Where the outputs are wanted.
        varies: Whether samples look different each time, so that nothing can be kept.

    Attributes:
        scales: Of the float outputs, by name.
    """

    def __init__(
        self, coupling: Coupling, samples: Samples, device: torch.device, *, varies: bool
    ) -> None:
        graph = coupling.graph
        self._session = Session(graph, takes_turns=True)
        self._device, self._samples = device, samples
        self._ports = graph.inputs
        self._names = [port.name for port in graph.outputs]
        self._size = batch_size_of(graph)
        first = self._session.run(samples.feed(slice(0, self._size)))
        self._axes = [graph.batch_axes.outputs.get(name) for name in self._names]
        count = min(self._size, len(samples))
        by_sample = all(
            axis is not None and first[name].shape[axis : axis + 1] == (count,)
            for name, axis in zip(self._names, self._axes, strict=True)
        )
        per_run = sum(array.nbytes for array in first.values())
        fits = per_run * math.ceil(len(samples) / self._size) <= _CACHE_BYTES
        self._keeps = by_sample and fits and not varies
        some = samples.part(slice(0, max(_MEASURED // self._size, 1) * self._size))
        measured = measure_scales(coupling, some, self._session.run, self._size)
        self.scales = {scale.name: scale for scale in measured}
        self._twin = None
        if device.type != "cpu" and not self._keeps:
            self._twin = derived_twin(graph, coupling, frozen=True).to(device)

    def outputs(self, which: NDArray[np.int64], feed: Mapping[str, NDArray[Any]]) -> list[Tensor]:
        """Return the outputs for samples.

        Args:
            which: Their places among all.
            feed: What the student is given for them.
        """
        if self._keeps:
            kept = zip(self._kept, self._axes, strict=True)
            arrays = [array.take(which, axis) for array, axis in kept]
        elif self._twin is not None:
            with torch.no_grad():
                return list(self._twin(*as_inputs(self._ports, feed, self._device)))
        else:
            values = self._session.run(feed)
            arrays = [values[name] for name in self._names]
        return [torch.from_numpy(array).to(self._device) for array in arrays]

    @cached_property
    def _kept(self) -> list[NDArray[Any]]:
        """Compute the outputs for all samples, once they are asked for."""
        return self._all(self._samples)

    def _all(self, samples: Samples) -> list[NDArray[Any]]:
        runs = [self._session.run(samples.feed(part)) for part in samples.batches(self._size)]
        return [
            np.concatenate([run[name] for run in runs], axis or 0)
            for name, axis in zip(self._names, self._axes, strict=True)
        ]
