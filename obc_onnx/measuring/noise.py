"""How far rounding alone moves what a model computes: the least that a check has to allow.

A network may amplify rounding, as a softmax over thousands of classes does: then it differs from
itself by more than another network differs from a wrong one. So what a check allows is measured on
the model that is checked. Its weights move by the last bit, and its values are compared with what
they were. Sums in another order, which is all that a right cut changes, do much the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.graph.node import is_float
from obc_onnx.graph.precision import (
    allowed_error,
    epsilon_of,
    is_vacuous,
    precision_of,
    relative_error,
)
from obc_onnx.graph.session import Session
from obc_onnx.memory import make_room

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph

    Values = Mapping[str, NDArray[Any]]

MARGIN = 8
"""How many times the measured noise is allowed; honest errors are up to 3 times as large."""
_LARGEST = 0.1
"""Above this share of the RMS, allowing noise allows mistakes too."""
_DRAWS = 3
_STEPS_BACK = 4
"""Nodes between an output and what tells of it, such as a Sigmoid and a Reshape."""
_STRONGER = (2, 4, 8, 16, 32, 64)
"""Roundings that weights move by where fewer move nothing: the first step of a grid is its size."""
_AT_A_TIME = 2**20
"""Weights that are moved at a time."""
_SEED = 0


@dataclass(frozen=True)
class Limit:
    """How far a value may be from what it should be, as a `relative_error`.

    Attributes:
        floor: What its float type allows wherever the model is calm.
        noise: How far rounding alone moved it; infinite where it then had another shape or NaNs.
        most: What noise may raise the floor to; above that it raises nothing.
    """

    floor: float
    noise: float = 0.0
    most: float = float("inf")

    @property
    def allowed(self) -> float:
        """The largest accepted error."""
        raised = MARGIN * self.noise
        return raised if self.floor < raised < self.most else self.floor

    @property
    def is_mostly_noise(self) -> bool:
        """Say whether rounding alone moves the value so far that comparing it proves nothing."""
        return self.noise > _LARGEST


@dataclass(frozen=True)
class Reference:
    """What a graph computes, and how close another computation of it has to come.

    Attributes:
        values: By name.
        limits: One for each value.
        axes: Those along which outputs hold samples; any other value has them on the first.
    """

    values: Values
    limits: Mapping[str, Limit]
    axes: Mapping[str, int | None]

    @property
    def is_vacuous(self) -> bool:
        """Say whether no value varies from sample to sample beyond what it is allowed."""
        return bool(self.values) and all(
            is_vacuous(value, self.limits[name].allowed, self.axes.get(name, 0))
            for name, value in self.values.items()
        )

    @classmethod
    def of(cls, graph: Graph, values: Values) -> Reference:
        """Return a reference that allows what the graph's types do, and no noise.

        Args:
            graph: What computes the values.
            values: By name.
        """
        precision, axes = precision_of(graph), graph.batch_axes.outputs
        floors = {
            name: Limit(allowed_error(value, precision, axes.get(name, 0)))
            for name, value in values.items()
        }
        return cls(values, floors, axes)

    @classmethod
    def measured(
        cls, graph: Graph, run: Callable[[Graph], Values], most: float = float("inf")
    ) -> Reference:
        """Run a graph, and measure its noise.

        Args:
            graph: The graph.
            run: What runs it and returns values by name.
            most: What noise may raise a limit to.
        """
        rng = np.random.default_rng(_SEED)
        reference = cls.of(graph, run(graph))
        limits = {name: replace(limit, most=most) for name, limit in reference.limits.items()}
        for _ in range(_DRAWS):
            moved = run(disturbed(graph, rng))
            for name, value in reference.values.items():
                noise = max(limits[name].noise, relative_error(moved[name], value))
                limits[name] = replace(limits[name], noise=noise)
        for roundings in _STRONGER:
            resting = reference.at_rest(limits)
            if not resting:
                break
            moved = run(disturbed(graph, rng, roundings))
            for name in resting:
                noise = relative_error(moved[name], reference.values[name])
                limits[name] = replace(limits[name], noise=noise)
        return replace(reference, limits=limits)

    def at_rest(self, limits: Mapping[str, Limit]) -> list[str]:
        """Name the floats that nothing has moved yet.

        They may lie on a grid, as a sigmoid near 0 does where it is computed as a share of 1: two
        ways to round right are then a whole step apart, or none.
        """
        return [
            name
            for name, value in self.values.items()
            if not limits[name].noise and is_float(value.dtype) and value.any()
        ]

    @classmethod
    def of_outputs(cls, graph: Graph, feed: Values) -> Reference:
        """Run a graph in ONNX Runtime as it is written; only so much noise is allowed.

        Args:
            graph: The graph.
            feed: Inputs by name.
        Raises:
            ModelError: ONNX Runtime refuses the graph or the inputs.
        """
        return cls.measured(graph, lambda g: Session(g, optimize=False).run(feed), _LARGEST)

    def untold(self) -> list[str]:
        """Name the values that tell little: they are mostly rounding, or equal for all samples."""
        return [
            name
            for name, value in self.values.items()
            if self.limits[name].is_mostly_noise
            or is_vacuous(value, self.limits[name].allowed, self.axes.get(name, 0))
        ]

    def joined(
        self, other: Reference, names: Collection[str], tolerated: Collection[str]
    ) -> Reference:
        """Return a reference with some values of another one.

        Args:
            other: Of the same graph.
            names: Values of the other that are taken.
            tolerated: Values of this one that may be as far off as rounding makes them.
        """
        loose = {name: replace(self.limits[name], most=float("inf")) for name in tolerated}
        values = {name: other.values[name] for name in names}
        limits = {name: other.limits[name] for name in names}
        return replace(
            self, values={**values, **self.values}, limits={**limits, **self.limits, **loose}
        )

    @classmethod
    def behind(cls, graph: Graph, feed: Values, names: Collection[str]) -> Reference:
        """Run a graph, and return the floats that nodes of some values take, as far as they tell.

        Where those tell nothing either, what their nodes take is looked at in their place.

        Args:
            graph: The graph.
            feed: Inputs by name.
            names: Values that nodes compute, of which little is known.
        """
        found = cls({}, {}, {})
        for _ in range(_STEPS_BACK):
            if not (sources := _computed_from(graph, names)):
                break
            reference = cls.measured(graph, partial(_floats, sources, feed))
            names = reference.untold()
            telling = [name for name in reference.values if name not in names]
            found = found.joined(reference, telling, ())
        return found


def _computed_from(graph: Graph, names: Collection[str]) -> list[str]:
    """Name what nodes compute that the nodes of some values take."""
    nodes = (graph.producers[name] for name in names if name in graph.producers)
    used = dict.fromkeys(source for node in nodes for source in node.inputs)
    return [source for source in used if source in graph.producers]


def _floats(names: Sequence[str], feed: Values, graph: Graph) -> Values:
    """Run a graph, and return those of some values that are floats."""
    found = Session(graph, optimize=False, outputs=names).run(feed)
    return {n: v for n, v in found.items() if isinstance(v, np.ndarray) and is_float(v.dtype)}


def disturbed(graph: Graph, rng: np.random.Generator, roundings: int = 1) -> Graph:
    """Move every weight of several axes by about its last bit, or by more roundings, up or down.

    Whole numbers stay: a mask needs its zeros, and positions mean exact numbers. So do vectors and
    single numbers, such as exponents, scales of sizes and bounds. What quantised numbers are scaled
    by moves: so does what they stand for, and some fall into the next step.
    """
    moving = {
        name: array
        for name, array in graph.initializers.items()
        if is_float(array.dtype)
        and (sum(size > 1 for size in array.shape) > 1 or graph.is_scale(name))
    }
    make_room(sum(array.nbytes for array in moving.values()))
    return graph.edit({name: _moved(array, rng, roundings) for name, array in moving.items()})


def _moved(array: NDArray[Any], rng: np.random.Generator, roundings: int) -> NDArray[Any]:
    """Move weights, a part of them at a time: what that takes beside the result stays small."""
    epsilon = roundings * epsilon_of(array.dtype)
    factors = np.array([1 - epsilon, 1 + epsilon]).astype(array.dtype)
    up = rng.integers(0, 2, array.size, np.uint8)
    result = np.array(array, order="C").ravel()
    for start in range(0, array.size, _AT_A_TIME):
        own = result[start : start + _AT_A_TIME]
        with np.errstate(over="ignore"):
            moved = own * factors[up[start : start + _AT_A_TIME]]
        moves = (own != np.rint(own)) & np.isfinite(moved)
        np.copyto(own, moved, where=moves)
    return result.reshape(array.shape)
