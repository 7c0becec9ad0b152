"""Stand-ins for what nodes give that ONNX Runtime does not know, where the data holds none.

They are drawn at random: what is behind such a node is then analysed and verified, and what is
measured there says little.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.graph.feeds import draw_input
from obc_onnx.graph.shapes import check_given, missing_size
from obc_onnx.samples.lazy import LazyArray, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]

_DRAWN = 64
"""Samples of a stand-in that differ; more take them by turns."""


class Repeated(Source):
    """A few samples that many take by turns.

    Args:
        pool: Shape [drawn, ...].
        count: How many samples there are to be.
    """

    def __init__(self, pool: NDArray[Any], count: int) -> None:
        self._pool = pool
        self.shape, self.dtype = (count, *pool.shape[1:]), pool.dtype

    def read(self, which: NDArray[np.int64]) -> NDArray[Any]:
        """Copy samples."""
        return self._pool[which % len(self._pool)]

    def where(self, place: int) -> str:
        """Say which stand-in a sample has."""
        return f"stand-in {place % len(self._pool)}"


def with_stand_ins(
    samples: Samples, graph: Graph, named: Axes, given: Mapping[str, Shape]
) -> Samples:
    """Add what the data lacks of what such nodes give.

    Args:
        samples: Not placed yet.
        graph: The model that they are for.
        named: The batch axis of inputs, where it is named.
        given: Shapes by input name.
    Raises:
        ShapeError: The file does not say what shape a value has, and it is not given.
        RequestError: A shape that is given contradicts the file.
    """
    held = {*samples.inputs, *samples.fixed}
    lacking = [p for p in graph.inputs if p.name in graph.opaque.givers and p.name not in held]
    if not lacking:
        return samples
    axes = {**graph.batch_axes.inputs, **named}
    count, rng = _count(samples, axes), np.random.default_rng(0)
    drawn: dict[str, NDArray[Any] | LazyArray] = {}
    for port in lacking:
        check_given(port, graph, given.get(port.name))
        axis = axes[port.name]
        shape = _shape_of(port, graph, given.get(port.name, port.shape or ()), axis)
        if axis is None:
            drawn[port.name] = draw_input(port, shape, rng)
        else:
            rest = (*shape[:axis], *shape[axis + 1 :])
            pool = draw_input(port, (min(count, _DRAWN), *rest), rng)
            drawn[port.name] = LazyArray(Repeated(pool, count))
    return replace(samples, inputs={**samples.inputs, **drawn}, drawn=tuple(drawn))


def _count(samples: Samples, axes: Axes) -> int:
    """Return how many samples there are, by the first input that tells."""
    for name, array in samples.inputs.items():
        if isinstance(array, LazyArray) and array.source.apart:
            return len(array)
        axis = axes.get(name)
        if axis is not None and axis < array.ndim:
            return int(array.shape[axis])
    return 1


def _shape_of(
    port: Port, graph: Graph, shape: tuple[int | str, ...], axis: int | None
) -> tuple[int, ...]:
    """Return a shape of known sizes; that of the batch has no meaning."""
    for place, size in enumerate(shape):
        if isinstance(size, str) and place != axis:
            raise missing_size(port, graph, place)
    return tuple(size if isinstance(size, int) else 1 for size in shape)
