"""Guess which axes of the inputs hold the samples: by names, by sizes, by the order of axes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from obc_onnx.errors import RequestError
from obc_onnx.graph.batch_axes import is_anonymous

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from obc_onnx.graph.batch_axes import Axes, BatchAxes
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port

    Shape = tuple[int, ...]

_MOST_GUESSES = 64


def check_named(graph: Graph, named: Axes) -> None:
    """Check the axes that a user names.

    Raises:
        RequestError: One is not of the model.
    """
    ports = {port.name: port for port in graph.inputs}
    for name, axis in named.items():
        if name not in ports:
            raise RequestError(
                f"a batch axis is given for '{name}', but the model's inputs are: "
                f"{', '.join(ports)}"
            )
        shape = ports[name].shape
        if axis is not None and shape is not None and not 0 <= axis < len(shape):
            raise RequestError(
                f"input '{name}' has {len(shape)} axes: its batch cannot be on axis {axis}"
            )


def guesses(
    ports: Sequence[Port], declared: BatchAxes, named: Axes, sizes: Mapping[str, Shape]
) -> Iterator[BatchAxes]:
    """Yield what the batch axes of the inputs may be, the most likely first.

    Open axes of one name go together. The batch is looked for on first axes, then on later ones.

    Args:
        ports: The inputs.
        declared: What the model says, for the outputs and for inputs without open axes.
        named: Axes that the user names.
        sizes: Shapes of arrays, where there are some: a size that is not the declared one tells.
    """
    if declared.size is not None:  # what declares no shape follows the others
        ports = [p if p.shape is not None else replace(p, shape=sizes.get(p.name)) for p in ports]
    seen = set[tuple[int | None, ...]]()
    for choices in _choices(ports, declared, named, sizes):
        for axes in islice(product(*choices), _MOST_GUESSES):
            size = _static_size(ports, axes)
            if axes in seen or size == 0:
                continue
            seen.add(axes)
            inputs = {port.name: axis for port, axis in zip(ports, axes, strict=True)}
            if all(axis is None for axis in axes):
                size = 1
            yield replace(declared, inputs=inputs, size=size)
    if not seen:  # static sizes in front contradict each other: none of them counts samples
        yield replace(declared, inputs=dict.fromkeys(port.name for port in ports), size=1)


def _choices(
    ports: Sequence[Port], declared: BatchAxes, named: Axes, sizes: Mapping[str, Shape]
) -> Iterator[list[list[int | None]]]:
    """Yield, for each axis that may be the batch, what the axes of all inputs may then be.

    A static 1 in front is a batch of one; a larger static size is one where no open axis is.
    """
    found = {port.name: _told(_sizes_of(port, sizes), sizes.get(port.name)) for port in ports}
    fixed = {name: axis for name, axis in found.items() if axis is not None} | dict(named)
    is_open = {
        port.name: [axis for axis, n in enumerate(_sizes_of(port, sizes)) if isinstance(n, str)]
        for port in ports
        if port.name not in fixed
    }
    seeds = sorted((axis, i) for i, p in enumerate(ports) for axis in is_open.get(p.name, ()))
    told = [(axis, i) for i, p in enumerate(ports) if (axis := named.get(p.name)) is not None]
    written = [[{**declared.inputs, **fixed}[port.name]] for port in ports]
    if declared.size == 1 and not told:
        yield written
    for axis, number in told[:1] or seeds:
        shape = _sizes_of(ports[number], sizes)
        symbol = shape[axis] if axis < len(shape) else ""
        yield [
            [axis] if i == number else _along(port, symbol, is_open.get(port.name), fixed)
            for i, port in enumerate(ports)
        ]
    if not told and (declared.size is not None or not seeds):
        yield written


def _sizes_of(port: Port, sizes: Mapping[str, Shape]) -> tuple[int | str, ...]:
    """Return the declared sizes; of an input that declares none, as many open ones as it has."""
    if port.shape is not None:
        return port.shape
    return ("",) * len(sizes.get(port.name, (1,)))


def _told(declared: tuple[int | str, ...], found: Shape | None) -> int | None:
    """Return the one static axis on which an array is of another size than the model takes."""
    if found is None or len(found) != len(declared):
        return None
    pairs = enumerate(zip(declared, found, strict=True))
    other = [axis for axis, (size, own) in pairs if isinstance(size, int) and size != own]
    return other[0] if len(other) == 1 else None


def _along(
    port: Port, symbol: int | str, is_open: list[int] | None, fixed: Axes
) -> list[int | None]:
    """Say which axes of an input may go with one of that declared size in another input."""
    if not is_open:
        return [fixed.get(port.name)]
    if not is_anonymous(symbol) and symbol in (port.shape or ()):
        return [(port.shape or ()).index(symbol)]
    return [*is_open, None]


def _static_size(ports: Sequence[Port], axes: tuple[int | None, ...]) -> int | None:
    """Return the size that is written on the chosen axes; None if none is, 0 if several are."""
    chosen = (
        port.shape[axis]
        for port, axis in zip(ports, axes, strict=True)
        if axis is not None and port.shape is not None
    )
    sizes = {size for size in chosen if isinstance(size, int)}
    return next(iter(sizes), None) if len(sizes) < 2 else 0  # noqa: PLR2004 - they contradict
