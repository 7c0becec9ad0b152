"""What coupling knows of a tensor: its axes, and the numbers in it where they describe shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import Dim, Joined, Product, Take
from obc_onnx.axes.sizes import Sized, axes_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.axes.unification import AxisSystem
    from obc_onnx.graph.node import Node

    Shape = tuple[int, ...]

MAX_NUMBERS = 256
"""Larger tensors hold data: what is in them is not followed."""

Wanted = Dim | Product | Joined | Take | Sized | int | float | None
"""What a number has to be: the size of an axis, what follows sizes, this number, or anything."""


@dataclass(frozen=True)
class Value:
    """What coupling knows of a tensor.

    Attributes:
        axes: One expression per axis.
        numbers: The elements of a small tensor that may describe shapes, in its shape, where they
            are followed; an array of objects where some are `Sized`.
        constant: Whether it depends on initializers only.
    """

    axes: tuple[Expr, ...]
    numbers: NDArray[Any] | None = None
    constant: bool = False

    @property
    def shape(self) -> Shape:
        """Concrete sizes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def sized(self) -> Iterator[Sized]:
        """The elements that follow sizes."""
        if self.numbers is not None and self.numbers.dtype == object:
            yield from (number for number in self.numbers.flat if isinstance(number, Sized))


@dataclass(frozen=True)
class Spelling:
    """Numbers that a node spells out, and what they have to be once units are removed.

    Attributes:
        place: An input slot, or the name of an attribute; either may be left out.
        wanted: For each number, what it has to be.
        copied: Axes of which 0 stands for a size, as in a Reshape; by place.
        infers: Whether -1 may stand for one size.
        scalar: Whether the attribute is one number and not a list.
        because: Axes that, where they shrink, make a place necessary that is left out, and a number
            wrong that is not what it stands for, such as a bound that counts from the end.
        drops: Attributes that must not stand beside what is written.
    """

    node: Node
    place: int | str
    wanted: tuple[Wanted, ...]
    copied: tuple[Expr, ...] = ()
    infers: bool = False
    scalar: bool = False
    because: tuple[Expr, ...] = ()
    drops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Renumbering:
    """Constant positions of an axis that a node picks, in an input slot.

    Attributes:
        source: The axis that is picked from.
        picked: Its positions, in order, not negative.
    """

    node: Node
    slot: int
    source: Expr
    picked: tuple[int, ...]


def concrete(numbers: NDArray[Any], system: AxisSystem) -> NDArray[Any] | None:
    """Return numbers as they are before anything is removed; None where one differs by run."""
    if numbers.dtype != object:
        return numbers
    values = np.empty(numbers.shape, object)
    for place, number in np.ndenumerate(numbers):
        if any(system.is_open(axis) for axis in axes_of(number)):
            return None
        values[place] = value_of(number)
    return np.asarray(values.tolist()) if values.size else np.zeros(values.shape, np.int64)


def followed(array: NDArray[Any]) -> NDArray[Any] | None:
    """Return an array whose elements may describe shapes, None where it is data."""
    return array if array.size <= MAX_NUMBERS and array.dtype.kind in "iufbO" else None


def apply(
    function: Callable[..., Any], *operands: NDArray[Any] | None, shape: Shape = ()
) -> NDArray[Any] | None:
    """Compute with numbers as numpy would.

    Args:
        function: What to compute.
        operands: What with.
        shape: Of what comes out, where that may be larger than the operands.
    Returns:
        None where an operand is not followed, or what comes out is not.
    """
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands) or math.prod(shape) > MAX_NUMBERS:
        return None
    with np.errstate(all="ignore"):
        return followed(np.asarray(function(*known)))
