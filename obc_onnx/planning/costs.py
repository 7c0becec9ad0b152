"""What a network costs, and what one unit less would save.

Budgets and rankings are in terms of these objects; nothing else knows how a cost is counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from obc_onnx.axes.expressions import count, leaves
from obc_onnx.errors import InvariantError
from obc_onnx.graph.node import holds_weights
from obc_onnx.planning.blocks import units_of_block
from obc_onnx.surgery.cut import outline_cut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Group, Keep, Pair
    from obc_onnx.latency.predictor import Forecast, Predictor


class Cost(ABC):
    """One way to count what a network costs.

    Args:
        coupling: Of the network.
        splits: Whether repair or training may make copies of a vector differ that the cut leaves
            equal; then what is left counts each of them.
        predictor: What tells milliseconds, for a cost that is a time.
        bypasses: Whether branches are gone, so that what is left is repaired or trained.

    Attributes:
        name: Its name in plans, and in the option of its target.
        label: What is counted, for people.
        is_timed: Whether a profile tells it, and not the network alone.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    is_timed: ClassVar[bool] = False

    def __init__(
        self,
        coupling: Coupling,
        *,
        splits: bool = False,
        predictor: Predictor | None = None,
        bypasses: bool = False,
    ) -> None:
        self._coupling = coupling
        self._splits = splits
        self._predictor = predictor
        self._bypasses = bypasses

    def on(self, left: Coupling) -> Self:
        """Return the same cost of the network without branches, as `bypassed` gives it.

        Its shares are those of the whole network.
        """
        splits, predictor = self._splits, self._predictor
        found = type(self)(left, splits=splits, predictor=predictor, bypasses=True)
        found.full = self.full
        return found

    def _splits_copies(self, keep: Keep) -> bool:
        return self._splits and (bool(keep) or self._bypasses)

    @cached_property
    def full(self) -> int:
        """What a share of this cost is a share of."""
        return self.total({})

    def total(self, keep: Keep) -> int:
        """Return the cost once only the kept units are left."""
        return sum(cost for cost, _ in self.parts(keep))

    @abstractmethod
    def parts(self, keep: Keep) -> list[tuple[int, str]]:
        """List what the cost is made of, each part with the name of what causes it."""

    @abstractmethod
    def around(self, dim: Dim, keep: Keep) -> int:
        """Return that part of the cost which depends on how many units of a dim are left."""

    def told(self, amount: int) -> str:
        """Write an amount for people."""
        return f"{amount:,} {self.label}"

    def share_told(self, amount: int) -> str:
        """Write a part of the cost for people."""
        return f"{100 * amount / self.full:.1f} %"

    def marginal(self, group: Group, keep: Keep) -> NDArray[np.float64]:
        """Return what removing one unit saves, all others being left as they are.

        Returns:
            For each unit of the group, shape [n_units]; 0 for those that are gone.
        """
        left = units_left(group, keep)
        saved = np.zeros(group.size)
        before = self.around(group.dim, keep)
        for unit in np.flatnonzero(left):
            fewer = left.copy()
            fewer[unit] = False
            saved[unit] = before - self.around(group.dim, {**keep, group.dim: fewer})
            if group.dim not in self._uneven:
                saved[left] = saved[unit]
                break
        return saved

    @cached_property
    def _uneven(self) -> set[Dim]:
        """Dims of which axes take some positions, so that units differ in what they cost."""
        return {dim for axis in self._coupling.tied_axes for dim in leaves(axis)}


class Macs(Cost):
    """Multiply-accumulates of one sample."""

    name, label = "macs", "MACs"

    def parts(self, keep: Keep) -> list[tuple[int, str]]:
        """List the nodes that multiply and accumulate."""
        of = self._coupling
        return [(of.node_macs(node, keep), node.label) for node in of.costed]

    def total(self, keep: Keep) -> int:
        """Count the MACs of one sample."""
        return self._coupling.macs(keep)

    def around(self, dim: Dim, keep: Keep) -> int:
        """Count the MACs of the nodes that a dim runs through."""
        of = self._coupling
        nodes, pairs = of.costed_by_dim.get(dim, ()), of.pairs_by_dim.get(dim, ())
        joined = sum(max(of.extra_macs(pair, keep), 0) for pair in pairs)
        return sum(of.node_macs(node, keep) for node in nodes) - joined


class _OfInitializers(Cost):
    """A cost of initializers."""

    def parts(self, keep: Keep) -> list[tuple[int, str]]:
        """List the initializers."""
        return [(self._of(name, keep), f"'{name}'") for name in self._weights]

    def around(self, dim: Dim, keep: Keep) -> int:
        """Count what the initializers that a dim lies on hold."""
        return sum(self._of(name, keep) for name in self._by_dim.get(dim, ()))

    @cached_property
    def _weights(self) -> dict[str, int]:
        """What one element of each initializer that counts costs."""
        arrays = self._coupling.graph.initializers
        return {name: 1 for name, array in arrays.items() if holds_weights(array.dtype)}

    @cached_property
    def _by_dim(self) -> dict[Dim, dict[str, None]]:
        table: dict[Dim, dict[str, None]] = {}
        for name in self._weights:
            for axis in self._coupling.axes.get(name, ()):
                for dim in leaves(axis):
                    table.setdefault(dim, {})[name] = None
        return table

    def _of(self, name: str, keep: Keep) -> int:
        axes = self._coupling.axes.get(name)
        if axes is None:
            return self._weights[name] * self._coupling.graph.initializers[name].size
        return self._weights[name] * math.prod(count(axis, keep) for axis in axes)


class Params(_OfInitializers):
    """Elements of weights."""

    name, label = "params", "params"

    def total(self, keep: Keep) -> int:
        """Count what is written, or every copy."""
        if not self._splits_copies(keep):
            return self._coupling.params(keep)
        return super().total(keep) - self._joined(self._coupling.pairs, keep)

    def _joined(self, pairs: Iterable[Pair], keep: Keep) -> int:
        """Count what pairs hold beyond the layers that they count as."""
        return sum(max(self._coupling.extra_params(pair, keep), 0) for pair in pairs)

    def around(self, dim: Dim, keep: Keep) -> int:
        """Count what the initializers that a dim lies on hold, and the other copies of them."""
        joined = self._joined(self._coupling.pairs_by_dim.get(dim, ()), keep)
        if self._splits:
            return super().around(dim, keep) - joined
        copies, names = self._coupling.graph.copies, self._by_dim.get(dim, {})
        origins = {copies.get(name, name) for name in names}
        others = {name for name in self._weights if copies.get(name, name) in origins}
        written = (names.keys() | others) - self._coupling.merged(keep).keys()
        return sum(self._of(name, keep) for name in written) - joined


class FileSize(_OfInitializers):
    """Bytes of the written file.

    What a unit saves is predicted from the initializers that shrink. The total is exact, since a
    file is more than its weights: it is the size of the graph that surgery writes, byte for byte.
    """

    name, label = "size", "file bytes"

    @cached_property
    def full(self) -> int:
        """The size of the file that the model was read from; of the one to write without one."""
        return self._coupling.graph.file_bytes or self.total({})

    def total(self, keep: Keep) -> int:
        """Count what would be written, or that with every copy."""
        graph = self._coupling.graph
        pruned = outline_cut(self._coupling, keep) if keep else graph
        return pruned.size_bytes(apart=self._splits_copies(keep))

    @cached_property
    def _weights(self) -> dict[str, int]:
        arrays = self._coupling.graph.initializers
        return {name: array.itemsize for name, array in arrays.items()}


class Latency(Cost):
    """Nanoseconds of one run, as a profile tells them.

    Runtimes pad widths to blocks: most units save nothing by themselves. What one saves is its part
    of what a whole block does.
    """

    name, label, is_timed = "latency", "latency", True

    def parts(self, keep: Keep) -> list[tuple[int, str]]:
        """List what runs, and what is spent outside of any node."""
        return [(_nanoseconds(ms), label) for ms, label in self._forecast.parts(keep)]

    def around(self, dim: Dim, keep: Keep) -> int:
        """Count the time of what a dim runs through."""
        return _nanoseconds(self._forecast.around(dim, keep))

    def marginal(self, group: Group, keep: Keep) -> NDArray[np.float64]:
        """Return what removing the next block of units saves, shared out among them."""
        left = units_left(group, keep)
        block = units_of_block(self._coupling, group, self._forecast.block(group.dim))
        going = np.flatnonzero(left)[1:][-block:]  # one unit has to stay
        saved = np.zeros(group.size)
        if going.size:
            fewer = left.copy()
            fewer[going] = False
            after = self.around(group.dim, {**keep, group.dim: fewer})
            saved[left] = (self.around(group.dim, keep) - after) / going.size
        return saved

    def told(self, amount: int) -> str:
        """Write milliseconds."""
        return f"{amount / _MILLION:.4g} ms"

    def share_told(self, amount: int) -> str:
        """Write milliseconds."""
        return self.told(amount)

    @cached_property
    def _forecast(self) -> Forecast:
        if self._predictor is None:
            raise InvariantError("a cost of time was counted without a profile")
        return self._predictor.on(self._coupling)


_MILLION = 10**6
"""Nanoseconds of a millisecond."""


def _nanoseconds(ms: float) -> int:
    return round(ms * _MILLION)


COSTS: dict[str, type[Cost]] = {cost.name: cost for cost in (Macs, Params, Latency, FileSize)}
"""Those that a budget may limit, the cheapest to count first."""


def share_of(target: float, full: int) -> float:
    """Return a target as a share of the full cost.

    Args:
        target: A share in (0, 1], or a number above 1.
        full: The cost of the original.
    """
    return target if target <= 1 or not full else target / full


def target_of_rest(name: str, target: float, original: Coupling, rest: Coupling) -> float:
    """Return a target of a model as one of what stripping has left of it.

    Args:
        name: Of the cost.
        target: A share in (0, 1] of the original's, which becomes one of what is left; a number
            above 1 stays.
        original: Of the model.
        rest: Of what is left.
    """
    if target > 1:
        return target
    full, left = (COSTS[name](coupling).full for coupling in (original, rest))
    return min(target * full / left, 1.0)


def units_left(group: Group, keep: Keep) -> NDArray[np.bool_]:
    """Say which units of a group are still there; do not write into the result."""
    return keep.get(group.dim, np.ones(group.size, np.bool_))
