"""How far rounding alone moves what a model computes: the least that a check has to allow.

A network may amplify rounding, as a softmax over thousands of classes does: then it differs from
itself by more than another network differs from a wrong one. So what a check allows is measured on
the model that is checked. Its weights move by the last bit, and its values are compared with what
they were. Sums in another order, which is all that a right cut changes, do much the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.node import is_float
from obc_onnx.precision import allowed_error, epsilon_of, is_vacuous, precision_of, relative_error
from obc_onnx.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph

    Values = Mapping[str, NDArray[Any]]

MARGIN = 8
"""How many times the measured noise is allowed; honest errors are up to 3 times as large."""
_LARGEST = 0.1
"""Where outputs are all that is compared: above this share of an RMS, mistakes would be allowed."""
_DRAWS = 3
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
        return replace(reference, limits=limits)

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


def disturbed(graph: Graph, rng: np.random.Generator) -> Graph:
    """Move every weight of several axes by about its last bit, up or down.

    Whole numbers stay: a mask needs its zeros, and positions mean exact numbers. So do vectors and
    single numbers, such as exponents, scales of sizes and bounds.
    """
    weights = {}
    for name, array in graph.initializers.items():
        if is_float(array.dtype) and sum(size > 1 for size in array.shape) > 1:
            epsilon = epsilon_of(array.dtype)
            factors = np.array([1 - epsilon, 1 + epsilon]).astype(array.dtype)
            with np.errstate(over="ignore"):
                moved = array * factors[rng.integers(0, 2, array.shape, np.uint8)]
            stays = (array == np.rint(array)) | ~np.isfinite(moved)
            weights[name] = np.where(stays, array, moved)
    return graph.edit(weights)
