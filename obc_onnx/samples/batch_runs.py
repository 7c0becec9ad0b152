"""Compare runs on two samples: output by output, and node by node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import ModelError
from obc_onnx.graph.node import is_float
from obc_onnx.graph.precision import is_quantised, precision_of, relative_error
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node

    Feed = dict[str, NDArray[Any]]

_OF_ROUNDED = 0.5
"""Of networks that quantise what they see, whose scale may be that of the whole batch, and where
no input can be shaken."""
_OF_ROUNDINGS = 10
"""Times what `SHAKE` changes: networks may magnify roundings, which differ with a batch's size."""
SHAKE = 1e-6
"""Share by which floats are off where roundings are tried."""
_OF_NOISE = 3
"""Times the distance of two runs on the same input, where a model draws at random."""
_LEAST_RANK = 2
"""Floats of fewer axes may be computed from sizes."""


@dataclass(frozen=True)
class Pair:
    """Two samples: together, each alone, and each beside itself.

    Attributes:
        swapped: Both together, the second one first.
        shaken: The first alone, with floats that are off by some roundings.
    """

    together: Feed
    alone: tuple[Feed, Feed]
    doubled: tuple[Feed, Feed]
    swapped: Feed
    shaken: Feed


@dataclass(frozen=True)
class Fault:
    """The first node that lets one sample change what another gets.

    Attributes:
        node: None where no single one is to blame.
        mixes: Whether it puts together what its inputs hold apart. Else what samples have was
            folded together before, or their numbers of positions differ.
    """

    node: Node | None
    mixes: bool


class Runs:
    """The values that a model has for a pair.

    Whether one sample changes what another gets is told by runs of equal size: the arithmetic of
    kernels depends on sizes, and networks may magnify that beyond any tolerance.

    Args:
        session: Of the model.
        pair: What it is run on.
    Raises:
        ModelError: ONNX Runtime refuses a run.
    """

    def __init__(self, session: Session, pair: Pair) -> None:
        self.together = session.run(pair.together)
        self.alone = [session.run(feed) for feed in pair.alone]
        self.doubled = [session.run(feed) for feed in pair.doubled]
        self.shaken = session.run(pair.shaken)
        self.joined = {name: self._joined_axis(name) for name in self.together}
        self._blocks = {
            name: self._n_blocks(name, axis)
            for name, axis in self.joined.items()
            if axis is not None
        }

    def _joined_axis(self, name: str) -> int | None:
        """Return the axis on which both are as long as each alone together, None without one."""
        one, other, both = (run[name] for run in (*self.alone, self.together))
        if not all(isinstance(value, np.ndarray) for value in (one, other, both)):
            return None
        if one.shape != other.shape or one.ndim != both.ndim:
            return None
        differs = [axis for axis in range(one.ndim) if one.shape[axis] != both.shape[axis]]
        if len(differs) != 1 or both.shape[differs[0]] != 2 * one.shape[differs[0]]:
            return None
        return differs[0]

    def is_folded(self, name: str) -> bool:
        """Say whether a sample has several positions, or none, on the axis of the samples."""
        axis = self.joined.get(name)
        return axis is not None and self.alone[0][name].shape[axis] != 1

    def shares(self, name: str, both: NDArray[Any]) -> list[NDArray[Any]]:
        """Take a value of two samples apart, along the joined axis."""
        axis = self.joined[name]
        assert axis is not None
        return _shares(both, axis, self._blocks[name])

    def _n_blocks(self, name: str, axis: int) -> int:
        """Return in how many blocks the joined axis holds one sample beside the other.

        It is 1 where all positions of a sample are together, and as many as there are heads where
        these go before the batch. Of what is possible, that which is nearest to each alone counts;
        where samples change each other, nothing is near.
        """
        if not self.is_folded(name):
            return 1
        n_positions = self.alone[0][name].shape[axis]
        possible = [count for count in range(1, n_positions + 1) if n_positions % count == 0]
        return min(possible, default=1, key=lambda blocks: self._distance_alone(name, axis, blocks))

    def distance(self, name: str) -> float:
        """Return how much of one sample's share of a value the other one changes.

        Where there are no shares, how much of all the second one changes.
        """
        axis, both = self.joined[name], self.together[name]
        if axis is None:
            return distance(self.doubled[0][name], both)
        return max(
            distance(self.shares(name, run[name])[place], self.shares(name, both)[place])
            for place, run in enumerate(self.doubled)
        )

    def distance_alone(self, name: str) -> float:
        """Return how far both are from each alone."""
        axis = self.joined[name]
        assert axis is not None
        return self._distance_alone(name, axis, self._blocks[name])

    def _distance_alone(self, name: str, axis: int, blocks: int) -> float:
        shares = _shares(self.together[name], axis, blocks)
        return distance(np.stack([run[name] for run in self.alone]), np.stack(shares))

    def noise(self, name: str) -> float:
        """Return what some roundings of the inputs change."""
        return distance(self.shaken[name], self.alone[0][name])


def _shares(both: NDArray[Any], axis: int, blocks: int) -> list[NDArray[Any]]:
    """Take two samples apart that lie beside each other in blocks of an axis."""
    shape = both.shape
    size = shape[axis] // (2 * blocks)
    cut = both.reshape(*shape[:axis], blocks, 2, size, *shape[axis + 1 :])
    one = (*shape[:axis], blocks * size, *shape[axis + 1 :])
    return [cut.take(place, axis + 1).reshape(one) for place in range(2)]


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the relative error; 0 where both are equal, NaN included."""
    same = np.array_equal(found, expected, equal_nan=is_float(found.dtype))
    return 0.0 if same else relative_error(found, expected)


def allowed_distance(graph: Graph) -> float:
    """Return what two computations of the same may differ by."""
    return _OF_ROUNDED if is_quantised(graph) else precision_of(graph).tolerance


def changed_output(session: Session, graph: Graph, pair: Pair, runs: Runs) -> str | None:
    """Name an output of which one sample changes the other's share, beyond noise.

    Whole numbers, which rounding may tip over, count only where no float tells.
    """
    joined = [name for name, axis in runs.joined.items() if axis is not None]
    floats = [name for name in joined if is_float(runs.together[name].dtype)]
    allowed = allowed_distance(graph)
    rounded = all(not is_float(array.dtype) for array in pair.together.values())
    far = {}
    for name in floats or joined:
        loose = max(allowed, _OF_ROUNDED if rounded else _OF_ROUNDINGS * runs.noise(name))
        if (found := runs.distance(name)) > allowed or (found := runs.distance_alone(name)) > loose:
            far[name] = found
    again = session.run(pair.together) if far else {}
    noise = {name: distance(again[name], runs.together[name]) for name in far}
    return next((name for name in far if far[name] > _OF_NOISE * noise[name]), None)


def is_ordered(session: Session, graph: Graph, pair: Pair, runs: Runs, name: str) -> bool:
    """Say whether an output depends on the order of samples, beyond rounding.

    Time does, and a statistic over a batch does not.
    """
    swapped = runs.shares(name, session.run(pair.swapped)[name])
    found = distance(np.stack(swapped[::-1]), np.stack(runs.shares(name, runs.together[name])))
    return found > max(allowed_distance(graph), _OF_ROUNDINGS * runs.noise(name))


def find_fault(graph: Graph, pair: Pair) -> Fault:
    """Find the first node that lets one sample change what another gets.

    Every value of the model is looked at, which takes as much memory as they do.
    """
    names = [name for node in graph.nodes for name in node.outputs if name]
    try:
        session = Session(graph, optimize=False, outputs=names)
        runs = Runs(session, pair)
    except ModelError:  # it has values that ONNX Runtime cannot hand out
        return Fault(None, mixes=False)
    allowed = allowed_distance(graph)
    for node in graph.nodes:
        for name in node.outputs:
            if name and _tells(runs.together[name]) and _parts(runs, name, allowed):
                folded = any(
                    runs.is_folded(source) for source in node.inputs if source in runs.joined
                )
                one, both = runs.alone[0][name], runs.together[name]
                counts = runs.joined[name] is None and one.shape != both.shape
                return Fault(node, mixes=not folded and not counts)
    return Fault(None, mixes=False)


def _tells(value: Any) -> bool:
    return isinstance(value, np.ndarray) and is_float(value.dtype) and value.ndim >= _LEAST_RANK


def _parts(runs: Runs, name: str, allowed: float) -> bool:
    one = runs.alone[0][name]
    if runs.joined[name] is None and one.shape != runs.together[name].shape:
        return True
    return runs.distance(name) > allowed
