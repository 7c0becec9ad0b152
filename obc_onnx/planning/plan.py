"""Which units stay, written down.

A plan is plain data: a person can read it, edit it and apply it again, and check the surgery with
numpy alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.files import check_regular
from obc_onnx.planning.costs import COSTS, Latency
from obc_onnx.saliency.options import RANKINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.latency.predictor import Predictor

FORMAT = 2
"""Version of the plan file; another one is refused."""


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
        groups: For each group by name, its size and the kept units.
        initializers: For each initializer that is written and shrinks, for each axis, the kept
            indices.
        copies: What written initializers are copies of: a vector that the original holds once is
            cut apart where layers keep other units, or where repair or training made them differ.
        merged: Under which name copies are written that stayed equal.
        round_to: Of how many channels widths that shrank are a multiple.
        weights_sha256: Digest of the written weights, where repair or training changed them.
        profile_sha256: Of the profile that told times, where there was one.
        latency: Nanoseconds of one run before and after, as that profile tells them.
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
    format: int = FORMAT

    def to_json(self) -> str:
        """Write as JSON with sorted keys: equal plans give equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

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

    def recounted(self, coupling: Coupling, predictor: Predictor | None = None) -> PruningPlan:
        """Return the plan as its groups say, which a person may have edited, before any repair.

        Args:
            coupling: Of the model.
            predictor: What tells milliseconds; without it the plan goes without any.
        Raises:
            RequestError: It names a group or a unit that the model does not have, or was made from
                another profile.
        """
        keep = self._keep(coupling)
        if predictor is not None:
            if self.profile_sha256 not in (None, predictor.profile_sha256):
                raise RequestError(
                    f"the plan was made from a profile with sha256 {self.profile_sha256[:12]}..., "
                    f"but `costs` has {predictor.profile_sha256[:12]}..."
                )
            return self.recounted(coupling).timed(coupling, keep, predictor)
        return replace(
            self,
            latency=None,
            macs=(coupling.macs({}), coupling.macs(keep)),
            params=(coupling.params({}), coupling.params(keep)),
            weights_sha256=None,
            **slices_of(coupling, keep, coupling.merged(keep)),
        )

    def timed(self, coupling: Coupling, keep: Keep, predictor: Predictor) -> PruningPlan:
        """Return the plan with the times that a profile tells."""
        cost = Latency(coupling, predictor=predictor)
        times = (cost.full, cost.total(keep))
        return replace(self, latency=times, profile_sha256=predictor.profile_sha256)

    def written_as(self, coupling: Coupling, result: Graph) -> PruningPlan:
        """Return the plan with the copies that a result has: repair and training may split some.

        Args:
            coupling: Of the original.
            result: What is written.
        """
        slices = slices_of(coupling, self._keep(coupling), result.merged)
        return replace(self, params=(self.params[0], result.params), **slices)

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan file.

        Raises:
            RequestError: It is missing, or not a plan of this format.
        """
        check_regular(Path(path), "plan", RequestError)
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"plan '{path}' cannot be read as JSON") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise RequestError(f"'{path}' is not a plan of format {FORMAT}")
        try:
            plan = cls(**fields)
        except TypeError as error:
            raise RequestError(f"plan '{path}' lacks fields or has unknown ones") from error
        for name, holds in _FIELDS.items():
            if not holds(getattr(plan, name)):
                raise RequestError(f"plan '{path}' has a '{name}' that is not of a plan")
        latency = None if plan.latency is None else _pair(plan.latency)
        return replace(plan, macs=_pair(plan.macs), params=_pair(plan.params), latency=latency)

    def keep(self, coupling: Coupling) -> Keep:
        """Say which units of each dim stay.

        Raises:
            RequestError: The plan names a group or a unit that the model does not have, or its
                initializers do not follow from its groups.
        """
        keep = self._keep(coupling)
        copies = coupling.graph.copies
        for name, written in self.merged.items():
            if name not in copies or copies[name] != copies.get(written, written):
                raise RequestError(f"the plan merges '{name}' and '{written}', which are no copies")
        follow = kept_indices(coupling, keep)
        for name in sorted(follow.keys() | self.initializers.keys()):
            if follow.get(name) != self.initializers.get(name) and name not in self.merged:
                raise RequestError(
                    f"the plan's indices of initializer '{name}' do not follow from its groups"
                )
        return keep

    def _keep(self, coupling: Coupling) -> Keep:
        keep: dict[Dim, NDArray[np.bool_]] = {}
        for name, entry in self.groups.items():
            group = coupling.by_name.get(name)
            units = np.asarray(entry["kept"], np.int64)
            if group is None or group.size != entry["size"]:
                raise RequestError(f"the plan's group '{name}' is not in this model")
            if units.size == 0 or units.min() < 0 or units.max() >= group.size:
                raise RequestError(f"the plan keeps no units, or none that exist, of '{name}'")
            if units.size < group.size:
                keep[group.dim] = np.isin(np.arange(group.size), units)
        return keep


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


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT


def _are_counts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == _PAIR and all(map(_is_count, value))


def _are_indices(value: Any) -> bool:
    increasing = isinstance(value, list) and all(map(_is_count, value))
    return increasing and all(first < second for first, second in pairwise(value))


def _are_groups(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and entry.keys() == {"size", "kept"}
        and _is_count(entry["size"])
        and _are_indices(entry["kept"])
        for entry in value.values()
    )


def _are_slices(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(axes, dict)
        and all(axis.isdecimal() and _are_indices(kept) for axis, kept in axes.items())
        for axes in value.values()
    )


def _are_targets(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in COSTS and type(target) in (int, float) and 0 < target < _LARGEST_COUNT
        for name, target in value.items()
    )


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


_LARGEST_COUNT = 2**63
_PAIR = 2
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model_sha256": lambda value: isinstance(value, str),
    "criterion": lambda value: isinstance(value, str),
    "ranking": lambda value: value in RANKINGS,
    "targets": _are_targets,
    "seed": _is_count,
    "macs": _are_counts,
    "params": _are_counts,
    "groups": _are_groups,
    "initializers": _are_slices,
    "copies": _are_names,
    "merged": _are_names,
    "weights_sha256": _is_text_or_none,
    "profile_sha256": _is_text_or_none,
    "latency": lambda value: value is None or _are_counts(value),
    "round_to": lambda value: value is None or _is_count(value),
}
"""What a plan file has to hold, since people may have edited it."""
