"""Branches that compete with units: which may go, what each is worth, and costs without them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from obc_onnx.branches.find import chosen, find_branches, still_there
from obc_onnx.errors import RequestError
from obc_onnx.surgery.bypass import bypassed, without_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.branches.find import Branch, StandIns
    from obc_onnx.branches.left import Left, Removal
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.planning.costs import Cost
    from obc_onnx.saliency.options import Ranking

    Saliency = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Depth:
    """The branches of a network that may go.

    Attributes:
        coupling: Of the whole network.
        branches: Those that may go; none where depth was not asked for.
    """

    coupling: Coupling
    branches: tuple[Branch, ...]
    _known: dict[tuple[str, ...], Coupling] = field(default_factory=dict)
    _costs: dict[tuple[str, tuple[str, ...]], Cost] = field(default_factory=dict)

    @classmethod
    def of(cls, coupling: Coupling, *, asked: bool, ranking: Ranking) -> Depth:
        """Find the branches of a network, where that was asked for.

        Raises:
            RequestError: It has none, or the ranking keeps shares of groups equal.
        """
        if not asked:
            return cls(coupling, ())
        if ranking not in ("global", "per-cost"):
            raise RequestError(
                f"`Budget.ranking` '{ranking}' takes shares of groups, and a branch has none: with "
                f"`Budget.depth` use 'per-cost' or 'global'"
            )
        found = find_branches(coupling)
        if not found:
            raise RequestError(
                "`Budget.depth` finds no branch: no computed value of this model has the axes of "
                "another one that it is computed from, with a product or a matrix in between"
            )
        return cls(coupling, found)

    def network(self, left: Left) -> Coupling:
        """Return the coupling without the branches that are gone."""
        key = _key(left.stand_ins)
        if key not in self._known:
            self._known[key] = bypassed(self.coupling, left.stand_ins)
        return self._known[key]

    def cost(self, cost: Cost, left: Left) -> Cost:
        """Return a cost of the whole network as that of what is left, whatever the widths."""
        if not left.stand_ins:
            return cost
        key = (cost.name, _key(left.stand_ins))
        if key not in self._costs:
            self._costs[key] = cost.on(self.network(left))
        return self._costs[key]

    def total(self, cost: Cost, left: Left) -> int:
        """Return what is left of a cost."""
        keep = without_gone(self.network(left), left.keep) if left.stand_ins else left.keep
        return self.cost(cost, left).total(keep)

    def standing(self, left: Left) -> list[Branch]:
        """List the branches that may still go."""
        if not self.branches:
            return []
        graph = self.network(left).graph
        there = {own.name for own in still_there(graph, self.branches, left.stand_ins)}
        return [branch for branch in self.branches if branch.name in there]

    def worth(
        self, left: Left, saliency: Saliency, ranking: Ranking, costs: Sequence[Cost]
    ) -> dict[Branch, float]:
        """Say what branches that may still go are worth: their saliency, by what each saves.

        Args:
            left: What is left.
            saliency: Of units and branches.
            ranking: How units are compared.
            costs: Those of the whole network that have to shrink.
        """
        found = {}
        for branch in self.standing(left):
            worth, after = float(saliency[branch.name][0]), left.without([branch])
            if ranking == "per-cost":
                parts = [(self.total(c, left) - self.total(c, after)) / c.full for c in costs]
                worth = worth / sum(parts) if sum(parts) > 0 else float("inf")
            found[branch] = worth
        return found

    def shallowest(self, left: Left) -> Left:
        """Return what is left where every branch goes; of those that meet, the larger one."""
        taken, gone = list["Removal"](), set[str]()
        for branch in sorted(self.branches, key=lambda branch: -len(branch.nodes)):
            if gone.isdisjoint((branch.value, branch.stand_in)):
                taken.append(branch)
                gone.update(branch.nodes[:-1])
        return left.without(taken)

    def needed(self, stand_ins: StandIns) -> tuple[Branch, ...]:
        """List the branches that go, without those of values that are gone with another one."""
        found = dict(stand_ins)
        for value in stand_ins:
            others = {own: other for own, other in found.items() if own != value}
            if value not in bypassed(self.coupling, others).graph.producers:
                found = others
        return chosen(self.coupling, found)


def _key(stand_ins: StandIns) -> tuple[str, ...]:
    return tuple(sorted(f"{value}\n{other}" for value, other in stand_ins.items()))
