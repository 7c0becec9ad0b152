"""Passes over the samples: as many at a time as memory holds, and each process its share."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from obc_onnx.progress import track
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.processes import own_share
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor

    from obc_onnx.coupling.model import Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.saliency.criterion import Scene
    from obc_onnx.twin.module import TorchTwin

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def masked_twin(scene: Scene, keep: Keep) -> tuple[Graph, TorchTwin]:
    """Mask the units that are gone, which gives what the pruned network gives.

    Returns:
        The masked graph, and its twin on the scene's device, with weights that do not learn.
    """
    coupling = scene.coupling
    graph = mask_reads(coupling, keep) if keep else coupling.graph
    return graph, derived_twin(graph, coupling, frozen=True).to(scene.device)


class Sweep(Generic[Result]):
    """Runs a function over the samples of a scene.

    Args:
        scene: The samples, and how they are looked at.
        graph: The model, for the order of its inputs.
        run: Gives something for inputs and their places; a second call after one that ran out of
            memory has to give the same.
        one_by_one: Whether only single samples can be told apart.
    """

    def __init__(
        self,
        scene: Scene,
        graph: Graph,
        run: Callable[[list[Tensor], slice], Result],
        *,
        one_by_one: bool = False,
    ) -> None:
        self._scene, self._graph, self._run = scene, graph, run
        scoring = scene.scoring
        size = graph.batch or scoring.row_size
        self.by_batch = scoring.rows == "batch"
        self._capacity = 1 if one_by_one and not self.by_batch and graph.batch is None else size
        # a row of a batch spans as many passes of a model of static batch as it takes
        row = -(-scoring.row_size // size) * size
        self._part = row if self.by_batch else self._capacity

    def rows(self) -> Iterator[tuple[list[Result], int]]:
        """Yield what belongs together: all results of a batch, or of some samples; and how many."""
        samples = self._scene.data()
        for part in track(own_share(list(samples.batches(self._part))), "scoring"):
            yield list(self._chunks(part)), part.stop - part.start

    def _chunks(self, part: slice) -> Iterator[Result]:
        start = part.start
        while start < part.stop:
            chunk = slice(start, min(start + self._capacity, part.stop))
            try:
                yield self._once(chunk)
            except (RuntimeError, MemoryError) as error:
                if self._capacity == 1 or self._graph.batch or not _is_lack_of_memory(error):
                    raise
                self._capacity //= 2
                logger.info("out of memory: going on with %d samples per pass", self._capacity)
            else:
                start = chunk.stop

    def _once(self, chunk: slice) -> Result:
        scene = self._scene
        inputs = as_inputs(self._graph.inputs, scene.data().feed(chunk), scene.device)
        with self._precision():
            return self._run(inputs, chunk)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._scene.scoring.amp:
            return nullcontext()
        return torch.autocast(self._scene.device.partition(":")[0], torch.bfloat16)


def _is_lack_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
