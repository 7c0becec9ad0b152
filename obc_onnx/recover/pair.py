"""The original and the cut network, side by side: what a layer is given, and what it should give.

Both run in step over chunks of the samples, so that each layer sees what those in front of it have
become. Rows of a few tokens of a transformer may be far larger than all others; norms divide them
by their size. Repair would fit those alone, so that no row counts more than a few usual ones.

Source: Sun et al., Massive Activations in Large Language Models, arXiv 2402.17762, for the rows;
the limit on them, and samples that join, are recipes of this project.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.measuring.padding import real_of
from obc_onnx.recover.attention import MatrixProduct, find_products
from obc_onnx.recover.layers import Layer, find_layers, find_shared
from obc_onnx.recover.least_squares import Halves
from obc_onnx.recover.targets import Target, at_batch, target_of
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.codes import Codes
from obc_onnx.twin.lockstep import Lockstep, affordable
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.measuring.padding import RealOf
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut
    from obc_onnx.twin.module import TorchTwin

    Use = tuple[Layer, Target]

_SAMPLES = 1024
_CHUNKS = 5
"""Of the samples, at least, where there are as many; one of so many is held out."""
NEGLIGIBLE = 1e-6
"""Share of the outputs' squares: a layer that errs no more, as rounding does, is left alone."""
_ROWS = 65536
"""Of inputs and outputs, for each layer: positions of a picture are much alike."""
_USUAL = 3.0
"""Times the median of their squares: larger rows count as if they were of this size."""


class Pair:
    """The original and the cut network, in step over chunks of the samples.

    As many samples run from the start as fit into memory where most values are alive. Behind that
    place others join: they run through all that is repaired by then, each once.

    Args:
        cut: The cut graph.
        samples: To measure on; labels are not used.
        seed: Of the choice of samples.
        device: Where both networks run.
        products: Whether products of two values are looked for.

    Attributes:
        dense: The run of the original.
        cut: Of the cut network.
        twin: The cut network, whose weights are repaired.
        codes: Writes those, and what they are rounded by.
        layers: Of the cut network, each as its uses, with the outputs that these should have.
        scores: Products of the cut network.
        judges: Of each chunk, whether it is held out.
        is_fork: Whether the cut network goes on by itself, so that no samples may join.
    """

    def __init__(
        self, cut: Cut, samples: Samples, seed: int, device: str = "cpu", *, products: bool = True
    ) -> None:
        coupling = cut.original
        original = derived_twin(coupling.graph, coupling, frozen=True).to(device)
        self.twin = derived_twin(cut.pruned, coupling).to(device)
        self.twin.requires_grad_(False)  # noqa: FBT003 - weights that are operands, too, reach sums
        self._rooms = [
            affordable(network, coupling.shapes, _batch_of(coupling))
            for network in (original, self.twin)
        ]
        self._chunks = _Chunks(cut, samples, self._rooms[0][0], seed, device)
        cut = replace(cut, keep=self._chunks.keep)
        self.codes = Codes(coupling, cut.pruned, self.twin)
        self.cut = Lockstep(self.twin)
        self.layers = list(_layers_of(cut, self.twin, self.cut))
        self.scores: list[MatrixProduct] = []
        if products:
            alone = [uses[0][0] for uses in self.layers if len(uses) == 1]
            self.scores = find_products(cut, self.twin, alone, self._chunks.inputs(0))
        held = [target.value for uses in self.layers for _, target in uses]
        held += [value for product in self.scores for value in product.values]
        self.dense = Lockstep(original, held=held)
        self.judges: list[bool] = []
        self._real: list[RealOf] = []
        self.is_fork = False

    def advance(self, stop: int, values: Iterable[str]) -> None:
        """Run both networks, and let as many samples join as there is room for behind.

        Args:
            stop: The place in the cut one to stop in front of.
            values: Of the original that have to be there.
        """
        self.cut.advance(stop)
        self.dense.advance(max(self.dense.places[value] for value in values) + 1)
        if self.is_fork:
            return
        places = self.dense.done, self.cut.done
        n_samples = min(room[place] for room, place in zip(self._rooms, places, strict=True))
        for _ in range(len(self.judges), self._chunks.fitting(n_samples)):
            self._join()

    def _join(self) -> None:
        """Let one more chunk run up to where the others are."""
        number = len(self.judges)
        inputs = self._chunks.inputs(number)
        self.cut.join(inputs)
        self.dense.join(inputs)
        self._real.append(self._chunks.real(number))
        self.judges.append(self._chunks.judges(number))

    def forked(self) -> Pair:
        """Return a pair whose cut network goes on by itself, see `Lockstep.fork`."""
        other = copy.copy(self)
        other.cut, other.is_fork = self.cut.fork(), True
        return other

    def release(self, values: Iterable[str]) -> None:
        """Let go of values of the original that were held."""
        for value in values:
            self.dense.release(value)

    def halves(self, blocks: int, outputs: int, inputs: int) -> Halves:
        """Return empty moments for all chunks, see `Moments`."""
        return Halves(self.judges, (blocks, outputs, inputs))

    def real(self, i: int, name: str) -> NDArray[np.bool_] | None:
        """Say which positions of a value of the original are no padding in a chunk."""
        return self._real[i](name)

    def draw(self, shape: Sequence[int], rng: np.random.Generator) -> tuple[Any, ...]:
        """Draw which rows of a chunk are looked at: all, or the same positions of each sample.

        Args:
            shape: Of the rows: samples and positions.
            rng: Of the draw.
        Returns:
            What picks them from a tensor of that shape, which may have more axes.
        """
        n_samples, *positions = shape
        places = math.prod(positions)
        wanted = max(_ROWS // (n_samples * len(self.judges)), 1)
        if places <= wanted:
            return (slice(None),)
        chosen = np.unravel_index(np.sort(rng.choice(places, wanted, replace=False)), positions)
        return (slice(None), *map(torch.from_numpy, chosen))

    def real_rows(
        self, layer: Layer, i: int, some: tuple[Any, ...], *outputs: Tensor
    ) -> list[Tensor]:
        """Return rows of a chunk that are no padding, each of shape [rows, outputs].

        Args:
            layer: Whose outputs they are.
            i: Of the chunk.
            some: Picks those that are looked at.
            outputs: Shape [samples, *positions, outputs].
        """
        own = self.counted(layer, i, outputs[0].shape[:-1])
        picked = [rows[some] for rows in outputs]
        return [rows.flatten(0, -2) if own is None else rows[own[some]] for rows in picked]

    def counted(self, layer: Layer, i: int, shape: Sequence[int]) -> Tensor | None:
        """Say which rows of a layer's outputs count in a chunk: 1, and 0 where there is padding.

        Args:
            layer: Whose outputs they are.
            i: Of the chunk.
            shape: Of the rows: samples and positions.
        Returns:
            That shape; None where all count.
        """
        real = self._real[i](layer.output)
        if real is None or real.shape[layer.writes] > 1:
            return None
        rows = torch.from_numpy(real).movedim(layer.writes, -1)[..., 0]
        return rows.expand(*shape)

    def wanted(self, layer: Layer, target: Target) -> Callable[[int], Tensor]:
        """Return what gives the outputs that a layer should have for a chunk."""
        return lambda i: target.outputs(layer, *self.values_of(target, i))

    def values_of(self, target: Target, i: int) -> tuple[Tensor, Tensor | None]:
        """Return the values of a chunk that make a target: the original's, and what is added."""
        value = self.dense.values(target.value)[i]
        return value, None if target.other is None else self.cut.values(target.other)[i]

    def usual_size(self, layer: Layer, outputs: Callable[[int], Tensor]) -> float:
        """Return up to which sum of squares a row of wanted outputs counts whole.

        Args:
            layer: Whose outputs they are.
            outputs: Gives those of a chunk, shape [samples, *positions, outputs].
        """
        sizes = []
        for i in range(len(self.judges)):
            size = outputs(i).square().sum(-1)
            own = self.counted(layer, i, size.shape)
            sizes.append(size.flatten() if own is None else size[own])
        return usual_of(sizes)


def usual_of(sizes: Sequence[Tensor]) -> float:
    """Return up to which sum of squares a row counts whole.

    Args:
        sizes: Sums of squares of rows, of each chunk.
    """
    found = torch.cat(list(sizes))
    if not len(found):
        return math.inf
    median = float(found.median())
    return _USUAL * (median or float(found.mean())) or math.inf


def factors_of(y: Tensor, usual: float) -> Tensor:
    """Return what to multiply rows with, both inputs and outputs, shape [1, rows, 1].

    Args:
        y: Wanted outputs, shape [blocks, rows, outputs].
        usual: Up to which sum of squares a row counts whole.
    """
    size = y.square().sum((0, 2), keepdim=True)
    return (usual / size.clamp_min(usual)).sqrt() if math.isfinite(usual) else torch.ones_like(size)


class _Chunks:
    """Samples in chunks of one size, as some graphs need it, drawn by chance.

    Args:
        cut: The cut graph.
        samples: To draw from.
        n_first: How many may run from the start.
        seed: Of the draw.
        device: Where networks run.

    Attributes:
        keep: What stays, at the batch of a chunk.
    """

    def __init__(self, cut: Cut, samples: Samples, n_first: int, seed: int, device: str) -> None:
        graph = cut.coupling.graph
        self._coupling, self._samples, self._device = cut.coupling, samples, device
        most = min(len(samples), _SAMPLES)
        count = min(n_first, most)
        size = graph.batch or max(min(batch_size_of(graph), count // _CHUNKS), 1)
        self.keep, size = at_batch(cut.coupling, cut.keep, size)
        count = max(count // size, 1) * size
        drawn = np.random.default_rng(seed).permutation(len(samples))
        first = np.sort(np.resize(drawn[:count], count))  # a batch may take more than there are
        rest = drawn[count:most]
        self._size, self._n_first = size, count // size
        self._parts = [first[start : start + size] for start in range(0, count, size)]
        whole = range(0, len(rest) - size + 1, size)
        self._parts += [np.sort(rest[start : start + size]) for start in whole]

    def fitting(self, n_samples: int) -> int:
        """Return how many chunks have so many samples, or run from the start."""
        return max(min(n_samples // self._size, len(self._parts)), self._n_first)

    def inputs(self, i: int) -> list[Tensor]:
        """Return what networks are fed with a chunk."""
        feed = self._samples.feed(self._parts[i])
        return as_inputs(self._coupling.graph.inputs, feed, self._device)

    def real(self, i: int) -> RealOf:
        """Return what says of a chunk where values are no padding."""
        return real_of(self._coupling, self._samples, self._parts[i])

    def judges(self, i: int) -> bool:
        """Say whether a chunk is held out: the last ones of the first, then one of five."""
        if i >= self._n_first:
            return i % _CHUNKS == _CHUNKS - 1
        n_held = max(round(self._n_first / _CHUNKS), 1) if self._n_first > 1 else 0
        return i >= self._n_first - n_held


def _batch_of(coupling: Coupling) -> int:
    """Return how many samples the analysis' shapes are for."""
    graph = coupling.graph
    return graph.batch_axes.count_of(
        {port.name: coupling.shapes[port.name] for port in graph.inputs}
    )


def _layers_of(cut: Cut, twin: TorchTwin, run: Lockstep) -> Iterator[list[Use]]:
    """List the layers that a run calls, each as its uses."""
    alone = [[layer] for layer in find_layers(cut.coupling, cut.pruned, twin)]
    for uses in [*alone, *find_shared(cut.coupling, cut.pruned, twin)]:
        if all(use.node.key in run.calls for use in uses):
            yield [(use, target_of(use, cut, run)) for use in uses]
