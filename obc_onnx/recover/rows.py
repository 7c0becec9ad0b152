"""What one use of a layer is given and should give, as rows of least squares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from obc_onnx.recover.pair import factors_of, usual_of
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
        shape: Samples and positions that there are.
        where: An index of those that are taken.
        n_rows: How many it takes.
        real: Which of them are no padding, shape [n_rows]; None where all are.
        values: What makes the target, see `Target`.
    """

    shape: list[int]
    where: tuple[Any, ...]
    n_rows: int
    real: Tensor | None
    values: tuple[Tensor, Tensor | None]


class Limited(NamedTuple):
    """Rows whose outputs need not be what is wanted, each of shape [blocks, rows, outputs].

    Attributes:
        x: Inputs, shape [blocks, rows, inputs].
        wanted: What the original gives.
        low: Below it outputs are as good as at it; None where there is no such bound.
        high: The same above.
    """

    x: Tensor
    wanted: Tensor
    low: Tensor | None
    high: Tensor | None

    def nearest(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a matrix gives, and the outputs nearest to it that do as well as wanted ones.

        Args:
            matrix: Shape [blocks, outputs, inputs].
        """
        given, near = self.x @ matrix.to(self.x).mT, self.wanted
        if self.high is not None:
            near = torch.where(self.wanted >= self.high, torch.maximum(given, self.high), near)
        if self.low is not None:
            near = torch.where(self.wanted <= self.low, torch.minimum(given, self.low), near)
        return given, near


class Rows:
    """The inputs of a layer and its wanted outputs, at real positions drawn by chance.

    They are laid out for each pass again: the inputs of a filter take many times the memory of what
    they are made of. Rows are picked first, and all else is done to those.

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
        self._pair, self._layer, self._target, self._biased = pair, layer, target, biased
        self._call = pair.cut.call(layer.node.key)
        self._arguments = pair.cut.arguments(layer.node.key)
        self._drawn = [self._draw(i, rng) for i in range(len(self))]
        outputs = (self._outputs(i) for i in range(len(self)))
        self._usual = usual_of([y.square().sum((0, 2)) for y in outputs])

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self._arguments)

    def of(self, i: int) -> tuple[Tensor, Tensor]:
        """Return inputs [blocks, rows, inputs] and outputs [blocks, rows, outputs] of a chunk."""
        y = self._outputs(i)
        factor = factors_of(y, self._usual)
        return self._inputs(i) * factor, y * factor

    def limited(self, i: int) -> Limited:
        """Return the same of a chunk, with the outputs beyond which nothing changes."""
        y = self._outputs(i)
        factor = factors_of(y, self._usual)
        low, high = (None if limit is None else limit * factor for limit in self._limits(i))
        return Limited(self._inputs(i) * factor, y * factor, low, high)

    def _outputs(self, i: int) -> Tensor:
        """Return wanted outputs of a chunk's product, shape [blocks, rows, outputs]."""
        drawn = self._drawn[i]
        return self._laid_out(i, self._target.outputs(self._layer, *drawn.values, drawn.where))

    def _limits(self, i: int) -> list[Tensor | None]:
        """Return the outputs beyond which nothing changes, each of their shape or None."""
        drawn = self._drawn[i]
        limits = self._target.limits(self._layer, *drawn.values, drawn.where)
        return [None if limit is None else self._laid_out(i, limit) for limit in limits]

    def _laid_out(self, i: int, outputs: Tensor) -> Tensor:
        """Bring picked outputs of the layer, or ones for all rows, into rows of its product."""
        drawn, width = self._drawn[i], self._layer.width
        rows = outputs.reshape(-1, width).expand(drawn.n_rows, width)
        added = self._layer.added(self._call, self._arguments[i])
        if added is not None:
            rows = rows - wide(added.expand(*drawn.shape, width)[drawn.where]).reshape(-1, width)
        return self._in_blocks(drawn, rows)

    def _inputs(self, i: int) -> Tensor:
        """Bring inputs of a chunk into rows, shape [blocks, rows, inputs]."""
        drawn = self._drawn[i]
        parts = self._layer.inputs(self._call, self._arguments[i], _TOGETHER)
        x = self._in_blocks(drawn, torch.cat([wide(part[drawn.where]) for part in parts]))
        return torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1) if self._biased else x

    def _in_blocks(self, drawn: _Drawn, values: Tensor) -> Tensor:
        rows = values.reshape(drawn.n_rows, self._layer.blocks, -1).transpose(0, 1)
        return rows if drawn.real is None else rows[:, drawn.real]

    def _draw(self, i: int, rng: np.random.Generator) -> _Drawn:
        """Draw positions of a chunk, the same ones of all its samples."""
        values = self._pair.values_of(self._target, i)
        shape = self._target.shape(self._layer, values[0])
        where = self._pair.draw(shape, rng)
        n_rows = shape[0] * (len(where[1]) if len(where) > 1 else math.prod(shape[1:]))
        real = self._pair.counted(self._layer, i, shape)
        own = None if real is None else real[where].reshape(-1)
        return _Drawn(shape, where, n_rows, own, values)
