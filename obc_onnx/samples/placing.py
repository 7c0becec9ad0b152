"""Find where arrays have their samples, check that they fit the model, and what they say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obc_onnx.errors import DataError
from obc_onnx.graph.shapes import ANALYSIS_BATCH
from obc_onnx.samples.batch_guesses import check_named, guesses
from obc_onnx.samples.batching import find_batch, pair_of, random_pair
from obc_onnx.samples.checks import check_content, check_layout, check_shape
from obc_onnx.samples.lazy import LazyArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes, BatchAxes
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.batch_runs import Pair
    from obc_onnx.samples.samples import Samples


def place(samples: Samples, graph: Graph, what: str, named: Axes) -> Samples:
    """Find the axes that hold samples, and bring those to the front.

    Guesses that the shapes contradict are left out; the others are tried on two samples.

    Args:
        samples: Not placed yet.
        graph: The model that they are for.
        what: How messages call them.
        named: The batch axis of inputs, where it is named.
    Raises:
        DataError: Ranks, types, sizes or values do not fit the model.
        RequestError: An axis is named that the model does not have.
    """
    check_named(graph, named)
    arrays = samples.inputs
    ranks = {p.name: arrays[p.name].ndim if p.shape is None else len(p.shape) for p in graph.inputs}
    sizes = {
        name: array.shape
        for name, array in arrays.items()
        if not (isinstance(array, LazyArray) and array.source.apart)
    }
    tried = list(guesses(graph.inputs, graph.batch_axes, named, sizes))
    if graph.batch_axes.proven:
        tried = [graph.batch_axes]
    placings = [samples.placed(guess, ranks) for guess in tried]
    fitting = [placed for placed in placings if _fits(placed, graph)]
    first = (fitting or placings)[0]
    check(first, graph, what)
    if graph.batch_axes.proven:
        return first

    def pair_for(guess: BatchAxes) -> Pair:
        placed = samples.placed(guess, ranks)
        if guess.size is None and len(placed) > 1:
            return pair_of(placed.feed(slice(0, 2)), guess)
        one = placed.feed(slice(0, 1))
        if guess.size is not None:
            return pair_of(guess.chosen(one, [0, 0]), guess)
        return random_pair(graph, guess, {name: array.shape for name, array in one.items()})

    fits = [placed.batch_axes for placed in fitting if placed.batch_axes is not None]
    found = find_batch(graph, fits, pair_for, named)
    placed = samples.placed(found, ranks)
    if not placed.inputs:
        raise DataError(f"{what} does not say where its samples are: {found.note}")
    _check_layout(placed, graph, what)
    return placed


def _fits(samples: Samples, graph: Graph) -> bool:
    """Say whether shapes fit."""
    try:
        _check_layout(samples, graph, "")
    except DataError:
        return False
    return True


def check(samples: Samples, graph: Graph, what: str) -> None:
    """Check shapes, counts, types and values of samples that are placed.

    Raises:
        DataError: They do not fit the model.
    """
    _check_layout(samples, graph, what)
    arrays = {**samples.inputs, **samples.fixed}
    for port in graph.inputs:
        check_content(arrays[port.name], port)


def _check_layout(samples: Samples, graph: Graph, what: str) -> None:
    axes = graph.batch_axes if samples.batch_axes is None else samples.batch_axes
    for port in graph.inputs:
        if port.name in samples.fixed:
            check_shape(samples.fixed[port.name].shape, port)
        else:
            check_layout(samples.inputs[port.name], port, axes.inputs[port.name])
    counts = {len(array) for array in samples.inputs.values()}
    if not counts:
        raise DataError(
            f"{what} holds no samples: every input is given once; give those that differ from "
            f"sample to sample one axis more in front"
        )
    if len(counts) != 1:
        own = ", ".join(
            f"{len(array)} of '{name}' on axis {axes.inputs[name]}"
            for name, array in samples.inputs.items()
        )
        raise DataError(
            f"{what} has inputs of different lengths: {sorted(counts)}, namely {own}; where a "
            f"batch is on another axis, name it with `batch_axes`"
        )


def known_by(graph: Graph, samples: Samples | None) -> Graph:
    """Return a graph with the batch axes that samples have shown."""
    if samples is None or samples.batch_axes is None:
        return graph
    return graph.with_batch(samples.batch_axes)


def first_of(samples: Samples | None) -> dict[str, NDArray[Any]] | None:
    """Return as many samples as a run takes at least; None without any."""
    if samples is None:
        return None
    return samples.feed(slice(0, (samples.batch_axes.size or 1) if samples.batch_axes else 1))


def shapes_of(samples: Samples | None) -> dict[str, tuple[int, ...]]:
    """Take input sizes besides the batch from the samples, which the model may leave open."""
    first = first_of(samples)
    if first is None or samples is None or samples.batch_axes is None:
        return {}
    shapes = {name: array.shape for name, array in first.items()}
    return samples.batch_axes.resized(shapes, samples.batch_axes.size or ANALYSIS_BATCH)
