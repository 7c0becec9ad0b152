"""What one use of a layer is given and should give, as rows of least squares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from obc_onnx.recover.pair import factors_of
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from obc_onnx.recover.layers import Layer
    from obc_onnx.recover.pair import Pair
    from obc_onnx.recover.targets import Target

_TOGETHER = 8
"""Samples whose inputs are laid out at a time: a filter's own may be many times the input."""


class _Drawn(NamedTuple):
    """The rows of a chunk that are looked at.

    Attributes:
        where: An index of samples and positions.
        n_rows: How many it takes.
        real: Which of them are no padding, shape [n_rows]; None where all are.
    """

    where: tuple[Any, ...]
    n_rows: int
    real: Tensor | None


class Rows:
    """The inputs of a layer and its wanted outputs, at real positions drawn by chance.

    They are laid out for each pass anew: the inputs of a filter take many times the memory of what
    they are made of.

    Args:
        pair: Both networks, run as far as the layer.
        layer: Whose inputs they are.
        target: What it should give.
        rng: Draws positions.
        biased: Whether an input that is always 1 is added, as the last one.
    """

    def __init__(
        self, pair: Pair, layer: Layer, target: Target, rng: np.random.Generator, *, biased: bool
    ) -> None:
        self._pair, self._layer, self._biased = pair, layer, biased
        self._call = pair.cut.call(layer.node.key)
        self._arguments = pair.cut.arguments(layer.node.key)
        self._wanted, self._limits = pair.wanted(layer, target), pair.limits(layer, target)
        self._usual = pair.usual_size(layer, self._outputs)
        self._drawn = [self._draw(i, rng) for i in range(len(self))]

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self._arguments)

    def of(self, i: int) -> tuple[Tensor, Tensor]:
        """Return inputs [blocks, rows, inputs] and outputs [blocks, rows, outputs] of a chunk."""
        y = self._laid_out(i, self._outputs(i))
        factor = factors_of(y, self._usual)
        return self._inputs(i) * factor, y * factor

    def nearest(self, i: int, given: Tensor) -> Tensor:
        """Return of the outputs that do as well as the wanted ones those nearest to given ones.

        Args:
            i: Of the chunk.
            given: Shape [blocks, rows, outputs].
        """
        y = self._laid_out(i, self._outputs(i))
        factor = factors_of(y, self._usual)
        low, high = (
            self._laid_out(i, self._without_added(i, limit)) * factor for limit in self._limits(i)
        )
        y = y * factor
        above = torch.where(y >= high, torch.maximum(given, high), y)
        return torch.where(y <= low, torch.minimum(given, low), above)

    def _outputs(self, i: int) -> Tensor:
        """Return what the product of a chunk should be, shape [samples, *positions, outputs]."""
        return self._without_added(i, self._wanted(i))

    def _inputs(self, i: int) -> Tensor:
        """Bring inputs of a chunk into rows, shape [blocks, rows, inputs]."""
        drawn = self._drawn[i]
        parts = self._layer.inputs(self._call, self._arguments[i], _TOGETHER)
        x = self._in_blocks(drawn, torch.cat([wide(part[drawn.where]) for part in parts]))
        return torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1) if self._biased else x

    def _laid_out(self, i: int, outputs: Tensor) -> Tensor:
        """Bring outputs of a chunk into rows, shape [blocks, rows, outputs]."""
        return self._in_blocks(self._drawn[i], outputs[self._drawn[i].where])

    def _in_blocks(self, drawn: _Drawn, values: Tensor) -> Tensor:
        rows = values.reshape(drawn.n_rows, self._layer.blocks, -1).transpose(0, 1)
        return rows if drawn.real is None else rows[:, drawn.real]

    def _without_added(self, i: int, outputs: Tensor) -> Tensor:
        added = self._layer.added(self._call, self._arguments[i])
        return outputs if added is None else outputs - wide(added)

    def _draw(self, i: int, rng: np.random.Generator) -> _Drawn:
        """Draw positions of a chunk, the same ones of all its samples."""
        outputs = self._outputs(i)
        where = self._pair.draw(outputs.shape[:-1], rng)
        real = self._pair.counted(self._layer, i, outputs.shape[:-1])
        own = None if real is None else real[where].reshape(-1)
        return _Drawn(where, math.prod(outputs[where].shape[:-1]), own)
