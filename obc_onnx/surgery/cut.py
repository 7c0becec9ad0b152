"""Write the graph without the removed units.

It follows from the coupling alone. No operator is named here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.memory import make_room
from obc_onnx.surgery.bypass import bypassed, without_gone
from obc_onnx.surgery.respelling import respell

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.branches.find import StandIns
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph


@dataclass(frozen=True)
class Cut:
    """A graph without some of its units, beside what it was cut from.

    Attributes:
        coupling: Of the original without the branches that go.
        keep: For each dim that loses units, which units stay, shape [n_units].
        pruned: The original without the others; repair and training change its weights.
        stand_ins: For each value that goes with a branch, what is read in its place.
        whole_coupling: Of the graph with those, whose values are wanted; None where none goes.
    """

    coupling: Coupling
    keep: Keep
    pruned: Graph
    stand_ins: StandIns = field(default_factory=dict)
    whole_coupling: Coupling | None = None

    @classmethod
    def of(cls, coupling: Coupling, keep: Keep, stand_ins: StandIns | None = None) -> Cut:
        """Cut a graph.

        Args:
            coupling: Of the whole graph.
            keep: For each dim that loses units, which units stay.
            stand_ins: For each value that goes with a branch, what is read in its place.
        """
        if not stand_ins:
            return cls(coupling, keep, remove_units(coupling, keep))
        left = bypassed(coupling, stand_ins)
        keep = without_gone(left, keep)
        return cls(left, keep, remove_units(left, keep), stand_ins, coupling)

    @property
    def original(self) -> Coupling:
        """Of the graph with all units and branches: its values are what is wanted."""
        return self.coupling if self.whole_coupling is None else self.whole_coupling

    def holding(self, pruned: Graph) -> Cut:
        """Return the same cut with other weights."""
        return replace(self, pruned=pruned)

    def whole(self) -> Coupling:
        """Return the coupling without branches, with the weights of this cut where those stay.

        With the other units masked, that network gives what this cut gives.
        """
        graph = self.coupling.graph
        kept = self.coupling.kept_positions(self.keep)
        spelled = {
            graph.producers[patch.key].read_at(patch.place)  # numbers that only the cut has right
            for patch in self.coupling.patches
            if isinstance(patch.place, int)
        }
        arrays = {}
        for name in (graph.initializers.keys() & self.pruned.initializers.keys()) - spelled:
            new, old = self.pruned.initializers[name], graph.initializers[name]
            if new is old or not graph.may_change(name):
                continue
            cut = kept.get(name, {})
            index = np.ix_(*(cut.get(axis, range(size)) for axis, size in enumerate(old.shape)))
            part = old[index]  # what did not change needs no copy
            if part.shape == new.shape and not np.array_equal(part, new):
                arrays[name] = old.copy()
                arrays[name][index] = new
        return replace(self.coupling, graph=graph.edit(arrays).known_as(graph))


def remove_units(coupling: Coupling, keep: Keep) -> Graph:
    """Return the graph with only the kept units.

    Args:
        coupling: Of the graph to cut.
        keep: For each dim that loses units, which units stay, shape [n_units]; at least one each.
    Returns:
        A new graph; the original is left as it is. With nothing to remove, an equal one.
    """
    graph = coupling.graph
    sliced = slice_initializers(graph.initializers, coupling.kept_positions(keep))
    return respell(coupling, keep, sliced)


def outline_cut(coupling: Coupling, keep: Keep) -> Graph:
    """Return what `remove_units` returns, but with zeros in large weights: that costs little.

    Its size is right; nothing may look at its weights.
    """
    graph = coupling.graph
    compared = graph.copies.keys() | set(graph.copies.values())  # equal ones are written as one
    kept = coupling.kept_positions(keep)
    large = {name: kept[name] for name in kept.keys() & graph.left_out - compared}
    real = {name: axes for name, axes in kept.items() if name not in large}
    sliced = slice_initializers(graph.initializers, real)
    for name, axes in large.items():
        array = graph.initializers[name]
        shape = [len(axes.get(axis, range(size))) for axis, size in enumerate(array.shape)]
        sliced[name] = np.zeros(shape, array.dtype)  # pages that nobody writes to are not there
    return respell(coupling, keep, sliced)


def slice_initializers(
    arrays: dict[str, NDArray[Any]], kept: dict[str, dict[int, NDArray[np.int64]]]
) -> dict[str, NDArray[Any]]:
    """Take the kept positions of every initializer that shrinks.

    Args:
        arrays: Initializers by name.
        kept: For each initializer, for each axis that shrinks, the kept indices.
    """
    make_room(sum(arrays[name].nbytes for name in kept))
    sliced = {}
    for name, axes in kept.items():
        array = arrays[name]
        for axis, positions in axes.items():
            array = array.take(positions, axis)
        sliced[name] = array
    return sliced
