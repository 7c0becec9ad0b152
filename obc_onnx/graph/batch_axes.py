"""Where a model has its samples: the batch axis of each input and output, and how many it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.node import Port

    Feed = dict[str, NDArray[Any]]
    Shape = tuple[int, ...]
    Axes = Mapping[str, int | None]

_LEAST_RANK = 2
"""A static input of fewer axes holds no samples."""


@dataclass(frozen=True)
class BatchAxes:
    """The batch of a model.

    Attributes:
        inputs: The axis along which each input holds samples; None where it holds none. Such an
            input is given once for all samples, or with one sample each run.
        outputs: The axis of each output with one position for each sample, or None.
        size: Samples of a run where that is not free.
        proven: Whether outputs of several samples were compared with those of each alone.
        note: What a report says of it, or nothing.
    """

    inputs: Axes
    outputs: Axes
    size: int | None = None
    proven: bool = False
    note: str = field(default="", compare=False)

    @property
    def notes(self) -> list[str]:
        """What a report says: of a fixed number of samples, and of axes that are not the first."""
        if all(axis == 0 for axis in self.inputs.values()):
            return [self.note] if self.note else []
        along = [f"axis {axis} of '{n}'" for n, axis in self.inputs.items() if axis is not None]
        rest = [f"'{name}'" for name, axis in self.inputs.items() if axis is None]
        found = [f"samples are on {' and '.join(along)}"] if along else []
        found += [f"{' and '.join(rest)}: no axis holds samples"] if rest else []
        return ["; ".join(found), *([self.note] if self.note else [])]

    def resized(self, shapes: Mapping[str, Shape], count: int) -> dict[str, Shape]:
        """Return the shapes of inputs that hold `count` samples."""
        return {
            name: resized(shape, self.inputs.get(name), count) for name, shape in shapes.items()
        }

    def count(self, feed: Mapping[str, Any]) -> int:
        """Return how many samples a feed of arrays or tensors holds; 1 without a batch axis."""
        return self.count_of({name: value.shape for name, value in feed.items()})

    def count_of(self, shapes: Mapping[str, Shape]) -> int:
        """Return how many samples inputs of these shapes hold; 1 without a batch axis."""
        sizes = (shapes[name][axis] for name, axis in self.inputs.items() if axis is not None)
        return next(sizes, 1)

    def chosen(self, feed: Mapping[str, NDArray[Any]], places: Sequence[int]) -> Feed:
        """Take samples out of a feed; one may be taken several times."""
        return {
            name: array if (axis := self.inputs[name]) is None else array.take(places, axis)
            for name, array in feed.items()
        }


def resized(shape: Shape, axis: int | None, count: int) -> Shape:
    """Return a shape with another size on one axis; on none, the shape."""
    if axis is None:
        return tuple(shape)
    return (*shape[:axis], count, *shape[axis + 1 :])


def declared_axes(
    inputs: Sequence[Port], outputs: Sequence[Port], followers: Container[str] = ()
) -> BatchAxes:
    """Read what a model says of its batch: the first axis of its inputs, and others of that name.

    The size is free where the first axis of some input is open. Nothing is proven yet.

    Args:
        inputs: Of the model.
        outputs: Of the model.
        followers: Names of inputs that say nothing of the batch themselves.
    """
    telling = [port for port in inputs if port.name not in followers] or inputs
    shapes = [port.shape for port in telling if port.shape]
    is_open = any(isinstance(shape[0], str) for shape in shapes)
    is_open |= any(port.shape is None for port in telling)
    static = (shape[0] for shape in shapes if len(shape) >= _LEAST_RANK)
    size = None if is_open else next((n for n in static if isinstance(n, int)), None)
    names = (shape[0] for shape in shapes if isinstance(shape[0], str) and shape[0])
    wanted = next(names, None) if size is None else size
    return BatchAxes(
        inputs={port.name: _declared(port, wanted, static=size is not None) for port in inputs},
        outputs={port.name: _axis_of(port, wanted, 0) for port in outputs},
        size=size,
    )


def _declared(port: Port, wanted: int | str | None, *, static: bool) -> int | None:
    if port.shape is None:
        return 0
    if static and len(port.shape) < _LEAST_RANK:
        return None
    is_first = bool(port.shape) and isinstance(port.shape[0], int) == static
    return _axis_of(port, wanted, 0 if is_first else None)


def _axis_of(port: Port, wanted: int | str | None, otherwise: int | None) -> int | None:
    """Return the one axis of a size or name; where there is none or several, the other word."""
    shape = port.shape
    if shape is not None and wanted is not None and shape.count(wanted) == 1:
        return shape.index(wanted)
    return otherwise if shape is None or shape else None


def is_anonymous(symbol: int | str) -> bool:
    """Say whether a declared size is open, and has no name that says which others equal it."""
    return symbol in ("", "?")
