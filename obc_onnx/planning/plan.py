"""Which units stay, written down.

A plan is plain data: a person can read it, edit it and apply it again, and check the surgery with
numpy alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.branches.find import stand_ins_of
from obc_onnx.errors import RequestError
from obc_onnx.planning.costs import COSTS, Latency, share_of
from obc_onnx.planning.plan_file import FORMAT, read, written
from obc_onnx.surgery.bypass import bypassed, without_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.latency.predictor import Predictor


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay.

    Attributes:
        model_sha256: Of the model that the plan is for.
        criterion: What scored the units.
        ranking: How units of different groups were compared.
        targets: For each cost by name, what may be left: a share in (0, 1], or a number above 1.
        macs: Before and after.
        params: Before and after.
        groups: For each group by name, its `size` and the `kept` units; or how many to `keep`,
            which `filled` makes units of.
        initializers: For each initializer that is written and shrinks, for each axis, the kept
            indices.
        copies: What written initializers are copies of: a vector that the original holds once is
            cut apart where layers keep other units, or where repair or training made them differ.
        merged: Under which name copies are written that stayed equal.
        round_to: Of how many channels widths that shrank are a multiple.
        weights_sha256: Digest of the written weights, where repair or training changed them.
        profile_sha256: Of the profile that told times, where there was one.
        stripped: Whether what does nothing went first: all this is said of what that left.
        latency: Nanoseconds of one run before and after, as that profile tells them.
        branches: For each sum that loses an operand (its first output), the operand that goes with
            all that it alone was computed from.
        low_rank: For each initializer that is written as a product, what its factors are called,
            the one that is multiplied first before the other.
        spans: For each other value that goes so, the value that is read in its place.
    """

    model_sha256: str
    criterion: str
    ranking: str
    targets: dict[str, float]
    seed: int
    macs: tuple[int, int]
    params: tuple[int, int]
    groups: dict[str, dict[str, Any]]
    initializers: dict[str, dict[str, list[int]]]
    copies: dict[str, str]
    merged: dict[str, str] = field(default_factory=dict)
    weights_sha256: str | None = None
    round_to: int | None = None
    profile_sha256: str | None = None
    latency: tuple[int, int] | None = None
    stripped: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    low_rank: dict[str, list[str]] = field(default_factory=dict)
    spans: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """Write as JSON with sorted keys: equal plans give equal bytes."""
        return written(asdict(self))

    @property
    def open_groups(self) -> list[str]:
        """The groups of which it is said how many units stay, and not which."""
        return [name for name, entry in self.groups.items() if "kept" not in entry]

    def stand_ins(self, coupling: Coupling) -> dict[str, str]:
        """Return what is read in the place of each value that goes with a branch or a span.

        Raises:
            RequestError: The plan names one that the model does not have.
        """
        return stand_ins_of(coupling, self.branches, self.spans)

    def check_model(self, sha256: str, name: str) -> None:
        """Check that the plan is for a model.

        Raises:
            RequestError: It is for another one.
        """
        if sha256 != self.model_sha256:
            raise RequestError(
                f"the plan is for a model with sha256 {self.model_sha256[:12]}..., "
                f"but '{name}' has {sha256[:12]}..."
            )

    def filled(
        self, coupling: Coupling, saliency: Mapping[str, NDArray[np.float64]], criterion: str
    ) -> PruningPlan:
        """Return the plan with the units that are worth most, where it says how many stay.

        Args:
            coupling: Of the model.
            saliency: Of every unit.
            criterion: What it is by.
        Raises:
            RequestError: A group is not in the model, is narrower, or has no saliency.
        """
        groups = dict(self.groups)
        for name in self.open_groups:
            group, width = self._group(coupling, name), groups[name]["keep"]
            if not 0 < width <= group.size:
                raise RequestError(
                    f"the plan keeps {width} units of '{name}', which has {group.size}"
                )
            if name not in saliency:
                raise RequestError(
                    f"the plan says how many units of '{name}' stay and not which, and criterion "
                    f"'{criterion}' says nothing of them: list them as 'kept'"
                )
            best = np.argsort(-saliency[name], kind="stable")[:width]
            groups[name] = {"size": group.size, "kept": np.sort(best).tolist()}
        return replace(self, groups=groups, criterion=criterion)

    def recounted(self, coupling: Coupling, predictor: Predictor | None = None) -> PruningPlan:
        """Return the plan as its groups say, which a person may have edited, before any repair.

        Where that was so, no target stands that it misses: what it leaves is its own target then.

        Args:
            coupling: Of the model.
            predictor: What tells milliseconds; without it the plan goes without any.
        Raises:
            RequestError: It names a group or a unit that the model does not have, or was made from
                another profile.
        """
        keep, edited = self.units(coupling), self.is_edited(coupling)
        left = bypassed(coupling, self.stand_ins(coupling))
        own = self.profile_sha256
        if predictor is not None and own not in (None, predictor.profile_sha256):
            raise RequestError(
                f"the plan was made from a profile with sha256 {own[:12]}..., but `costs` has "
                f"{predictor.profile_sha256[:12]}..."
            )
        plan = replace(
            self,
            latency=None,
            groups={
                name: {"size": coupling.by_name[name].size, "kept": entry["kept"]}
                for name, entry in self.groups.items()
                if name in left.by_name
            },
            targets=self._targets(coupling, keep, predictor) if edited else self.targets,
            round_to=None if edited else self.round_to,
            macs=(coupling.macs({}), left.macs(keep)),
            params=(coupling.params({}), left.params(keep)),
            weights_sha256=None,
            **slices_of(left, keep, left.merged(keep)),
        )
        return plan if predictor is None else plan.timed(coupling, predictor)

    def timed(self, coupling: Coupling, predictor: Predictor) -> PruningPlan:
        """Return the plan with the times that a profile tells."""
        full = Latency(coupling, predictor=predictor).full
        left = Latency(bypassed(coupling, self.stand_ins(coupling)), predictor=predictor)
        times = (full, left.total(self.units(coupling)))
        return replace(self, latency=times, profile_sha256=predictor.profile_sha256)

    def is_edited(self, coupling: Coupling) -> bool:
        """Say whether a person has changed what stays, or what follows from that."""
        keep, left = self.units(coupling), bypassed(coupling, self.stand_ins(coupling))
        counted = self.macs[1] == left.macs(keep)
        return not counted or self._contradicted(coupling, keep) is not None

    def _targets(
        self, coupling: Coupling, keep: Keep, predictor: Predictor | None
    ) -> dict[str, float]:
        """Return the targets that still hold, and what is left where one does not.

        A target of time goes without a profile, which alone tells whether it holds.
        """
        told = {
            name: target
            for name, target in self.targets.items()
            if predictor is not None or not COSTS[name].is_timed
        }
        found, gone = dict[str, float](), self.stand_ins(coupling)
        for name, target in told.items():
            cost = COSTS[name](coupling, splits=True, predictor=predictor)
            left = (cost.on(bypassed(coupling, gone)) if gone else cost).total(keep)
            found[name] = target if left <= share_of(target, cost.full) * cost.full else left
        return found

    def _contradicted(self, coupling: Coupling, keep: Keep) -> str | None:
        """Name an initializer whose indices do not follow from the groups."""
        follow = kept_indices(bypassed(coupling, self.stand_ins(coupling)), keep)
        for name in sorted(follow.keys() | self.initializers.keys()):
            if follow.get(name) != self.initializers.get(name) and name not in self.merged:
                return name
        return None

    def written_as(self, coupling: Coupling, result: Graph) -> PruningPlan:
        """Return the plan with the copies that a result has: repair and training may split some.

        Args:
            coupling: Of the original.
            result: What is written.
        """
        left = bypassed(coupling, self.stand_ins(coupling))
        slices = slices_of(left, self.units(coupling), result.merged)
        return replace(self, params=(self.params[0], result.params), **slices)

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan file.

        Raises:
            RequestError: It is missing, or not a plan of this format.
        """
        fields = read(path)
        try:
            plan = cls(**fields)
        except TypeError as error:
            raise RequestError(f"plan '{path}' lacks fields or has unknown ones") from error
        latency = None if plan.latency is None else _pair(plan.latency)
        return replace(plan, macs=_pair(plan.macs), params=_pair(plan.params), latency=latency)

    def keep(self, coupling: Coupling) -> Keep:
        """Say which units of each dim stay.

        Raises:
            RequestError: The plan names a group or a unit that the model does not have, or its
                initializers do not follow from its groups.
        """
        keep = self.units(coupling)
        copies = bypassed(coupling, self.stand_ins(coupling)).graph.copies
        for name, other in self.merged.items():
            if name not in copies or copies[name] != copies.get(other, other):
                raise RequestError(f"the plan merges '{name}' and '{other}', which are no copies")
        contradicted = self._contradicted(coupling, keep)
        if contradicted is not None:
            raise RequestError(
                f"the plan's indices of initializer '{contradicted}' do not follow from its "
                f"groups: where it was edited, apply it, and take the plan of the result"
            )
        return keep

    def units(self, coupling: Coupling) -> Keep:
        """Say which units of each dim stay, whatever is said of initializers.

        Raises:
            RequestError: The plan names a group or a unit that the model does not have.
        """
        keep: dict[Dim, NDArray[np.bool_]] = {}
        for name, entry in self.groups.items():
            group = self._group(coupling, name)
            if "kept" not in entry:
                raise RequestError(
                    f"the plan says how many units of '{name}' stay and not which: apply it, and "
                    f"take the plan of the result"
                )
            units = np.asarray(entry["kept"], np.int64)
            if units.size == 0 or units.min() < 0 or units.max() >= group.size:
                raise RequestError(f"the plan keeps no units, or none that exist, of '{name}'")
            if units.size < group.size:
                keep[group.dim] = np.isin(np.arange(group.size), units)
        return dict(without_gone(bypassed(coupling, self.stand_ins(coupling)), keep))

    def _group(self, coupling: Coupling, name: str) -> Group:
        group = coupling.by_name.get(name)
        if group is None or group.size != self.groups[name].get("size", group.size):
            raise RequestError(f"the plan's group '{name}' is not in this model")
        return group


def kept_indices(coupling: Coupling, keep: Keep) -> dict[str, dict[str, list[int]]]:
    """List what stays of every initializer that shrinks, as a plan holds it."""
    return {
        name: {str(axis): positions.tolist() for axis, positions in axes.items()}
        for name, axes in coupling.kept_positions(keep).items()
    }


def slices_of(coupling: Coupling, keep: Keep, merged: Mapping[str, str]) -> dict[str, Any]:
    """Say what is written, as a plan holds it.

    Args:
        coupling: Of the original.
        keep: What stays.
        merged: Under which name copies are written that stay equal.
    Returns:
        Its fields `initializers`, `copies` and `merged`.
    """
    kept, copies = kept_indices(coupling, keep), coupling.graph.copies
    return {
        "initializers": {name: axes for name, axes in kept.items() if name not in merged},
        "copies": {name: origin for name, origin in copies.items() if name not in merged},
        "merged": dict(merged),
    }


def _pair(counts: Sequence[int]) -> tuple[int, int]:
    before, after = counts
    return before, after
