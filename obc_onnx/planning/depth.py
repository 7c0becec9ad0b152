"""Branches that compete with units: which may go, what each is worth, and costs without them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from obc_onnx.branches.find import find_branches
from obc_onnx.errors import RequestError
from obc_onnx.surgery.bypass import bypassed, without_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.branches.find import Branch, Branches
    from obc_onnx.branches.left import Left
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
                "`Budget.depth` finds no branch: no sum in this model adds two computed values of "
                "equal axes, one of which weights lie in front of alone"
            )
        return cls(coupling, found)

    def network(self, left: Left) -> Coupling:
        """Return the coupling without the branches that are gone."""
        key = _key(left.branches)
        if key not in self._known:
            self._known[key] = bypassed(self.coupling, left.branches)
        return self._known[key]

    def cost(self, cost: Cost, left: Left) -> Cost:
        """Return a cost of the whole network as that of what is left, whatever the widths."""
        if not left.branches:
            return cost
        key = (cost.name, _key(left.branches))
        if key not in self._costs:
            self._costs[key] = cost.on(self.network(left))
        return self._costs[key]

    def total(self, cost: Cost, left: Left) -> int:
        """Return what is left of a cost."""
        keep = without_gone(self.network(left), left.keep) if left.branches else left.keep
        return self.cost(cost, left).total(keep)

    def standing(self, left: Left) -> list[Branch]:
        """List the branches that may still go."""
        there = self.network(left).graph.producers if self.branches else {}
        return [b for b in self.branches if b.sum in there and b.sum not in left.branches]

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
        """Return what is left where every branch goes; of two of one sum, the larger one."""
        by_size = sorted(self.branches, key=lambda branch: -len(branch.nodes))
        return left.without(by_size)

    def needed(self, branches: Branches) -> dict[str, str]:
        """Leave out branches of sums that are gone with another one."""
        found = dict(branches)
        for sum_ in branches:
            others = {own: gone for own, gone in found.items() if own != sum_}
            if sum_ not in bypassed(self.coupling, others).graph.producers:
                found = others
        return found


def _key(branches: Branches) -> tuple[str, ...]:
    return tuple(sorted(f"{sum_}\n{output}" for sum_, output in branches.items()))
