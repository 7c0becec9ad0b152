"""What the masked oracle looks at, and the mistakes that it has to find.

Outputs alone prove little where they are saturated, or where the network amplifies rounding. So the
pruned graph is compared with the masked original at every product whose weights were cut too. There
a mistake is as large as it gets, and rounding as small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import leaves, mask
from obc_onnx.graph.session import Session
from obc_onnx.surgery.bypass import bypassed
from obc_onnx.surgery.gate import gated
from obc_onnx.surgery.mask import mask_reads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.branches.find import StandIns
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph

    Values = dict[str, NDArray[Any]]

_MOST_ELEMENTS = 2**16
"""Of one value inside the network; more of them say nothing more about a unit."""
_MOST_TRIALS = 8
_SEED = 0


def one_less(keep: Keep, dims: Sequence[Dim]) -> Iterator[Keep]:
    """Remove one more unit of one dim after the other, drawn by a fixed seed.

    Args:
        keep: The units that are left; of dims that it lacks all are.
        dims: Of which units go.
    """
    rng = np.random.default_rng(_SEED)
    for place in islice(cycle(rng.permutation(len(dims))), _MOST_TRIALS):
        dim = dims[place]
        kept = keep[dim].copy() if dim in keep else np.ones(dim.size, np.bool_)
        kept[rng.choice(np.flatnonzero(kept))] = False
        yield {**keep, dim: kept}


@dataclass(frozen=True)
class Oracle:
    """Runs the masked original and the pruned graph, and shows the same of both.

    Attributes:
        coupling: Of the original.
        keep: For each dim that loses units, which units stay; a mask has to stand for the others.
        feed: Inputs by name.
        stand_ins: For each value that goes with a branch, what is read in its place.
    """

    coupling: Coupling
    keep: Keep
    feed: Mapping[str, NDArray[Any]]
    stand_ins: StandIns = field(default_factory=dict)

    def masked(self, keep: Keep, stand_ins: StandIns | None = None) -> Graph:
        """Return the original with zeros where units are read, and in front of what branches add.

        Args:
            keep: The units that stay.
            stand_ins: For the values that go; those of this oracle by default.
        """
        graph = mask_reads(self.coupling, keep)
        return gated(graph, self.stand_ins if stand_ins is None else stand_ins)

    @cached_property
    def names(self) -> list[str]:
        """The outputs, and what nodes compute whose weights lose positions of any axis.

        Where branches go, what reads their values is compared as well, but for their sizes. An axis
        that holds samples besides units is not followed, since there may be more or fewer samples
        than the coupling was found for.
        """
        coupling = self.coupling
        sized = {
            dim
            for name in coupling.graph.initializers
            for axis in coupling.axes.get(name, ())
            for dim in leaves(axis)
        }
        products = [
            name
            for role in coupling.roles
            if self._loses(coupling.axes[role.node.inputs[role.slot]][role.axis])
            for name in role.node.outputs
            if name in coupling.axes
            and all(sized.issuperset(leaves(a)) for a in coupling.axes[name] if self._loses(a))
        ]
        readers = [
            node.key
            for value in self.stand_ins
            for node, _ in coupling.graph.consumers.get(value, ())
            if node.key in coupling.axes and coupling.values[node.key].numbers is None
        ]
        left = bypassed(coupling, self.stand_ins).axes
        found = [name for name in (*products, *readers) if name in left]
        return list(dict.fromkeys([*self._outputs, *found]))

    @cached_property
    def _outputs(self) -> list[str]:
        return [port.name for port in self.coupling.graph.outputs]

    def run_pruned(self, graph: Graph) -> Values:
        """Return what the pruned graph computes, thinned."""
        return self._thinned(self._run(graph))

    def run_masked(self, graph: Graph) -> Values:
        """Return what is kept of what the original or a masked one computes, thinned."""
        values = self._run(graph)
        for name in self.names:
            for axis, expr in enumerate(self.coupling.axes.get(name, ())):
                if self._loses(expr):
                    values[name] = values[name].compress(mask(expr, self.keep), axis)
        return self._thinned(values)

    def mistakes(self) -> Iterator[Graph]:
        """Leave one branch in after the other, and remove one kept unit too many of one group."""
        for value in self.stand_ins:
            fewer = {own: other for own, other in self.stand_ins.items() if own != value}
            yield self.masked(self.keep, fewer)
        cut = [group.dim for group in self.coupling.groups if group.dim in self.keep]
        for keep in one_less(self.keep, cut):
            yield self.masked(keep)

    def _run(self, graph: Graph) -> Values:
        return Session(graph, optimize=False, outputs=self.names).run(self.feed)

    def _thinned(self, values: Values) -> Values:
        """Leave positions out of large values inside the network, along axes that lose no units.

        The first axis stays, which may be that of samples, and so do outputs.
        """
        for name in self.names[len(self._outputs) :]:
            axes, part = self.coupling.axes[name], values[name]
            whole = [axis for axis in range(1, len(axes)) if not self._loses(axes[axis])]
            while part.size > _MOST_ELEMENTS and any(part.shape[axis] > 1 for axis in whole):
                longest = max(whole, key=part.shape.__getitem__)
                part = part[(slice(None),) * longest + (slice(None, None, 2),)]
            values[name] = part.copy()  # a view would keep the whole
        return values

    def _loses(self, axis: Expr) -> bool:
        return any(dim in self.keep for dim in leaves(axis))
