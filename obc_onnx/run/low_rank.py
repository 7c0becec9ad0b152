"""Layers of low rank in a run: split before anything is scored, put together where that is cheaper.

`low_rank` says how a layer is split, and planning how many directions stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.expressions import leaves
from obc_onnx.errors import RequestError
from obc_onnx.graph.session import Session
from obc_onnx.low_rank.layers import find_dense
from obc_onnx.low_rank.moments import moments_of
from obc_onnx.low_rank.split import Halves, split
from obc_onnx.measuring.noise import Reference
from obc_onnx.planning.plan import slices_of
from obc_onnx.recover.bench import Bench
from obc_onnx.samples.placing import first_of
from obc_onnx.surgery.bypass import bypassed
from obc_onnx.verification.checks import Check, compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.coupling.model import Coupling, Pair
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.run.opened import Opened
    from obc_onnx.samples.samples import Samples

    Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LowRank:
    """A network in which layers are split, beside the one that it came from.

    Attributes:
        whole: Of the network as it came.
        halves: Of the layers that are split.
        coupling: Of the network with those.
        feed: Samples, where only a run tells shapes.
    """

    whole: Coupling
    halves: tuple[Halves, ...]
    coupling: Coupling
    feed: Feed | None

    @classmethod
    def of(
        cls, whole: Coupling, samples: Samples | None, plan: PruningPlan | None = None
    ) -> LowRank:
        """Split the layers that channels cannot narrow, or those that a plan names.

        Args:
            whole: Of the network.
            samples: Along whose directions; without any all inputs of a layer count alike.
            plan: Which layers; without one all that may be.
        Raises:
            RequestError: There is none, or the plan names another one.
        """
        layers = {layer.weight: layer for layer in find_dense(whole)}
        if not layers:
            raise RequestError(
                "`Budget.low_rank` finds no layer: each weight of this model is narrowed by "
                "channels on both sides, has several uses, or is none of a dense layer"
            )
        named = layers.keys() if plan is None else plan.low_rank.keys()
        for weight in named:
            if weight not in layers:
                raise RequestError(
                    f"the plan splits '{weight}', which is no weight of this model that may be: "
                    f"those are {', '.join(map(repr, layers))}"
                )
        asked = [layer for weight, layer in layers.items() if weight in named]
        moments = {} if samples is None else moments_of(whole, asked, samples)
        halves = tuple(
            Halves.of(whole, own, moments.get((own.node.inputs[own.entry], own.along)))
            for own in asked
        )
        feed = None if samples is None else first_of(samples)
        found = cls(whole, halves, split(whole, halves, feed), feed)
        if plan is not None and found.names != plan.low_rank:
            raise RequestError("the plan has other names for the factors of its layers of low rank")
        return found

    @property
    def names(self) -> dict[str, list[str]]:
        """What the factors of each weight are called, as a plan says it."""
        return {p.weight: [p.first_weight, p.second_weight] for p in self.coupling.pairs}

    def check(self, feed: Feed) -> Check:
        """Compare what both networks give."""
        reference = Reference.of_outputs(self.whole.graph, feed)
        found = Session(self.coupling.graph, optimize=False).run(feed)
        return compare("layers at full rank equal the original", found, reference)

    def put_into(self, opened: Opened) -> Opened:
        """Let what follows begin with the network with split layers."""
        samples, came = opened.samples, opened.came or opened.original
        bench = None if samples is None else Bench(self.coupling, samples)
        coupling = self.coupling
        return opened._replace(coupling=coupling, original=coupling, bench=bench, came=came)

    def settled(self, plan: PruningPlan) -> tuple[LowRank, PruningPlan, dict[str, str]]:
        """Put the layers together again that are no cheaper apart.

        Args:
            plan: For the network with split layers.
        Returns:
            Of the layers that stay split; the plan for that network; and for each group that it
            still has, by what it was called, what it is called now.
        """
        keep, left = (
            plan.keep(self.coupling),
            bypassed(self.coupling, plan.stand_ins(self.coupling)),
        )
        cheaper = {pair.weight for pair in self.coupling.pairs if left.extra_macs(pair, keep) < 0}
        halves = tuple(own for own in self.halves if own.layer.weight in cheaper)
        coupling = split(self.whole, halves, self.feed) if halves else self.whole
        found = replace(self, halves=halves, coupling=coupling)
        names = _renamed(self.coupling, coupling)
        groups = {names[own]: entry for own, entry in plan.groups.items() if own in names}
        plan = replace(plan, groups=groups, low_rank=found.names, initializers={}, merged={})
        left, kept = bypassed(coupling, plan.stand_ins(coupling)), plan.units(coupling)
        slices = slices_of(left, kept, left.merged(kept))
        return found, replace(plan, **slices), names

    def notes(self, plan: PruningPlan) -> list[str]:
        """Say what became of layers, one line each."""
        keep = plan.keep(self.coupling)
        left = bypassed(self.coupling, plan.stand_ins(self.coupling))
        return [_told(left, pair, keep) for pair in self.coupling.pairs]


def _told(coupling: Coupling, pair: Pair, keep: Mapping[Dim, Any]) -> str:
    (_, full, _), (_, left, _) = coupling.sides(pair, {}), coupling.sides(pair, keep)
    node = coupling.graph.producers[pair.second]
    return (
        f"{node.label} is two layers of rank {left}, of {full} at most: "
        f"{-coupling.extra_macs(pair, keep):,} MACs less than one between the same values"
    )


def _axes(coupling: Coupling, pairs: Mapping[str, Pair], name: str) -> tuple[Expr, ...]:
    """Return the axes of an initializer, which may be split: then those of its factors."""
    pair = pairs.get(name)
    if pair is None:
        return coupling.axes.get(name, ())
    found = list(coupling.axes[pair.first_weight])
    found[pair.writes] = coupling.axes[pair.second_weight][pair.writes]
    return tuple(found)


def _renamed(split_: Coupling, other: Coupling) -> dict[str, str]:
    """Say what groups are called where fewer layers are split; those that are gone are left out."""
    dims: dict[Dim, Dim] = {}
    pairs = {pair.weight: pair for pair in split_.pairs}
    for name in other.graph.initializers:
        axes = other.axes.get(name, ())
        for own, found in zip(axes, _axes(split_, pairs, name), strict=True):
            dims.update(zip(leaves(found), leaves(own), strict=True))
    names = {group.dim: group.name for group in other.groups}
    now = {group.name: names.get(dims.get(group.dim, group.dim)) for group in split_.groups}
    return {name: found for name, found in now.items() if found is not None}
