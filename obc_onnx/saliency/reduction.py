"""One score for each unit, made of what the members of its group give."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.members import member_of
from obc_onnx.errors import DataError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.ops.base.context import Role
    from obc_onnx.saliency.criterion import Saliency
    from obc_onnx.saliency.options import Reduction, Scoring

    Vectors = Mapping[tuple[Member, Dim], NDArray[np.float64]]


_REDUCE: dict[Reduction, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "sum": lambda rows: np.asarray(rows.sum(0)),
    "coupled": lambda rows: np.asarray(rows.sum(0)),
    "mean": lambda rows: np.asarray(rows.mean(0)),
    "max": lambda rows: np.asarray(rows.max(0)),
    "first": lambda rows: rows[0],
}


def roles_of(group: Group, scoring: Scoring) -> Iterator[Role]:
    """Yield the roles in a group that count."""
    return (role for role in group.members if counts(role, group.dim, scoring))


def counts(role: Role, dim: Dim, scoring: Scoring) -> bool:
    """Say whether a role counts: one that writes each channel from itself may be left out."""
    mixed = {leaf for expr in role.mixes for leaf in leaves(expr)}
    return scoring.depthwise or role.kind != "writes" or not role.mixes or dim in mixed


def reduced(
    coupling: Coupling, keep: Keep, scoring: Scoring, vectors: Vectors, *, root: bool = False
) -> Saliency:
    """Make one score of what each member of a group gives its units, and normalise it.

    Args:
        coupling: The groups.
        keep: The units that are left.
        scoring: How. "coupled" adds, as "sum" does: only a criterion with rows can add those.
        vectors: For each member and dim, shape [n_units]; members without any are passed over,
            and groups without such members.
        root: Whether the square root is taken of what the members come to.
    Raises:
        DataError: The score of a unit that is left is not finite.
        RequestError: No group has a member that counts.
    """
    found = {}
    for group in coupling.groups:
        members = dict.fromkeys(member_of(role) for role in group.members)
        own = [vectors[m, group.dim] for m in members if (m, group.dim) in vectors]
        if not own:
            continue
        score = _REDUCE[scoring.reduction](np.stack(own))
        score = np.sqrt(score) if root else score
        left = keep.get(group.dim, np.ones(group.size, np.bool_))
        divisor = _divisor(coupling, group, scoring, score[left])
        found[group.name] = np.asarray(score / divisor if divisor else score, np.float64)
        if not np.isfinite(found[group.name][left]).all():
            unit = int(np.flatnonzero(left & ~np.isfinite(found[group.name]))[0])
            raise DataError(
                f"the score of unit {unit} of group '{group.name}' is {found[group.name][unit]}: "
                f"some sample drives the model or its gradients out of their range; leave it out, "
                f"or use a criterion that needs no data"
            )
    if coupling.groups and not found:
        raise RequestError("the criterion says nothing of any group: use another one")
    return found


def reduced_gates(
    coupling: Coupling, scoring: Scoring, gates: Mapping[str, NDArray[np.float64]]
) -> Saliency:
    """Bring what gates of branches give onto the scale of units.

    A unit counts once for each weight that it meets: three times between two convolutions with a
    norm in between. A gate is one factor, which stands for as many.

    Args:
        coupling: The groups.
        scoring: How members come together.
        gates: For each branch by name the sum of squared rows, shape [1].
    Raises:
        DataError: One is not finite.
    """
    met = (len({member_of(r) for r in roles_of(group, scoring)}) for group in coupling.groups)
    usual = max(median_low([*met] or [1]), 1)
    coupled = scoring.reduction == "coupled"  # rows were added before they were squared
    found = {}
    for name, own in gates.items():
        if not np.isfinite(own).all():
            raise DataError(
                f"the score of branch '{name}' is {own[0]}: some sample drives the model or its "
                f"gradients out of their range; leave it out"
            )
        alike = np.stack([own] * usual)
        found[name] = own * usual**2 if coupled else _REDUCE[scoring.reduction](alike)
    return found


def _divisor(
    coupling: Coupling, group: Group, scoring: Scoring, left: NDArray[np.float64]
) -> float:
    if scoring.normalizer == "parameters":
        members = dict.fromkeys(member_of(role) for role in roles_of(group, scoring))
        shapes = [coupling.shapes[name] for name, _ in members]
        return float(sum(np.prod(shape) for shape in shapes)) / group.size
    statistics = {"none": 1.0, "mean": left.mean(), "max": left.max(), "sum": left.sum()}
    return float(statistics[scoring.normalizer])
