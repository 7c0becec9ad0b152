"""Inputs to run a model on where there is no data."""

from __future__ import annotations

import math
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import ModelError
from obc_onnx.graph.node import is_float
from obc_onnx.graph.session import Session
from obc_onnx.graph.soundness import most_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port

    Feed = dict[str, NDArray[Any]]
    Shapes = Mapping[str, tuple[int, ...]]

_MOST_TRIALS = 30
_DRAWN_BYTES = 8
"""An element takes so many while it is drawn."""


def random_feed(graph: Graph, shapes: Shapes, seed: int) -> Feed:
    """Draw inputs that the model can run on: standard normal floats, and integers by trial.

    An integer may be an index, a mask, a length or a pixel. The first choice of `_draws` with which
    every output is finite is taken, else the first with which ONNX Runtime runs.

    Raises:
        ModelError: ONNX Runtime runs with none of them; the message is that of the last one.
    """
    feeds = candidates(graph, shapes, seed)
    first = next(feeds)
    if all(is_float(port.dtype) for port in graph.inputs):
        return first
    runs: Feed | None = None
    for feed, outputs in trials(Session(graph, optimize=False), (first, *feeds)):
        if all(_is_finite(value) for value in outputs.values()):
            return feed
        runs = runs or feed
    return runs or first


def trials(session: Session, feeds: Iterable[Feed]) -> Iterator[tuple[Feed, Feed]]:
    """Run on each input in turn; give those that the model runs on, with the outputs.

    Raises:
        ModelError: ONNX Runtime runs with none of them; the message is that of the last one.
    """
    runs, refusal = False, None
    for feed in feeds:
        try:
            outputs = session.run(feed)
        except ModelError as error:
            refusal = error
            continue
        runs = True
        yield feed, outputs
    if refusal is not None and not runs:
        raise refusal


def candidates(graph: Graph, shapes: Shapes, seed: int) -> Iterator[Feed]:
    """Draw inputs in every way that integers may be meant, most telling values first.

    Args:
        graph: The model.
        shapes: Of each input.
        seed: Equal seeds draw equal inputs.
    """
    check_room(graph, shapes)
    rng = np.random.default_rng(seed)
    draws = [_draws(port, shapes[port.name], rng) for port in graph.inputs]
    names = [port.name for port in graph.inputs]
    return (dict(zip(names, drawn, strict=True)) for drawn in islice(product(*draws), _MOST_TRIALS))


def draw_input(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """Draw what an input holds, in the most telling way."""
    return _draws(port, shape, rng)[0]


def check_runs(graph: Graph, shapes: Shapes) -> None:
    """Check that ONNX Runtime runs a model on some random input.

    Raises:
        ModelError: It does not; the message is that of the last one.
    """
    next(trials(Session(graph, optimize=False), candidates(graph, shapes, seed=0)))


def check_room(graph: Graph, shapes: Shapes) -> None:
    """Check that values fit into the memory that a model may take, before any is made.

    Args:
        graph: The model.
        shapes: Of values, by name.
    Raises:
        ModelError: One does not; the message names it.
    """
    held = graph.file_bytes or sum(array.nbytes for array in graph.initializers.values())
    most = most_bytes(held) // _DRAWN_BYTES
    for name, shape in shapes.items():
        if math.prod(shape) > most:
            raise ModelError(
                f"value '{name}' of shape {tuple(shape)} has {math.prod(shape)} elements, more "
                f"than the {most} that a model of {held} bytes is run with: give smaller sizes of "
                f"inputs, or split the model"
            )


def _draws(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> list[NDArray[Any]]:
    if is_float(port.dtype):
        return [rng.standard_normal(shape).astype(port.dtype)]
    drawn = [rng.integers(0, 2, shape).astype(port.dtype)]
    if port.dtype in (np.uint8, np.int8):  # a pixel, or a number that was quantised
        limits = np.iinfo(port.dtype)
        drawn.insert(0, rng.integers(limits.min, limits.max + 1, shape).astype(port.dtype))
    return [*drawn, np.ones(shape, port.dtype), np.zeros(shape, port.dtype)]


def _is_finite(value: Any) -> bool:
    array = np.asarray(value)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
