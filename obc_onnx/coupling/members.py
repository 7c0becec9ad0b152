"""Members of groups: which there are, which units own the positions of their axes, and their sum.

A member is an operand and one of its axes. All uses of one weight share a member.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import leaves, mask, units_along
from obc_onnx.graph.session import compute_constants

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.ops.base.context import Role

    Vectors = Mapping[tuple["Member", Dim], NDArray[np.float64]]

Member = tuple[str, int]
"""An operand and its axis."""


def member_of(role: Role) -> Member:
    """Return the member that a role belongs to."""
    return role.node.inputs[role.slot], role.axis


def bias_of(coupling: Coupling, role: Role) -> Member | None:
    """Return the bias that a role has, and its axis along which the units lie.

    A bias of a product has them last; that of a norm is laid out as its scale.
    """
    if role.bias is None:
        return None
    bias = role.node.inputs[role.bias]
    n_axes = len(coupling.axes[bias])
    behind = len(coupling.axes[role.node.inputs[role.slot]]) - role.axis
    return bias, n_axes - behind if role.kind == "scales" else n_axes - 1


def owners_along(expr: Expr, dim: Dim) -> list[NDArray[np.int64]]:
    """Say which units of `dim` own each position of an axis, a unit once for each position.

    A product that names `dim` twice gives positions (i, j) to both units; (i, i) goes with unit i
    and counts once.

    Returns:
        Arrays of shape [expr.size] with a unit's index, or -1 where there is none.
    """
    found: list[NDArray[np.int64]] = []
    for owners in units_along(expr, dim):
        fresh = owners.copy()
        for earlier in found:
            fresh[owners == earlier] = -1
        found.append(fresh)
    return found


def by_unit(expr: Expr, dim: Dim, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum numbers along an axis, shape [expr.size], into units, shape [dim.size]."""
    sums = np.zeros(dim.size)
    for owners in owners_along(expr, dim):
        owned = owners >= 0
        sums += np.bincount(owners[owned], values[owned], dim.size)
    return sums


def along_axis(array: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Sum over every axis but one."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    return np.asarray(array.sum(axis=others))


class Operands(Mapping[str, "NDArray[np.float64]"]):
    """The weights in every role as real numbers, with zeros where a unit was removed.

    Weights that are computed from initializers count too. Of integers whose scale a later node has,
    what lies above the zero point is returned. Each look makes an array of its own, which may be
    written into: all weights in float64 at once would take twice the size of the model.

    Args:
        coupling: Of the network.
        keep: For each dim that lost units, which units are left.
    """

    def __init__(self, coupling: Coupling, keep: Keep) -> None:
        self._coupling, self._keep = coupling, keep
        self._roles = {
            member_of(role)[0]: role for group in coupling.groups for role in group.members
        }
        self._arrays = _constants(coupling, self._roles)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """Return one weight."""
        real = self._arrays[name].astype(np.float64)
        real = _real(self._coupling, self._roles[name], real)
        left = left_of(self._coupling, self._keep, name)
        if left is not None:
            real *= left
        return real

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a weight."""
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Count the weights."""
        return len(self._arrays)


def left_of(coupling: Coupling, keep: Keep, name: str) -> NDArray[np.bool_] | None:
    """Return which positions of a tensor belong to units that are left.

    Returns:
        A mask that broadcasts, of size 1 along axes that lose nothing; None where all is left.
    """
    axes = coupling.axes[name]
    cut = [i for i, expr in enumerate(axes) if not keep.keys().isdisjoint(leaves(expr))]
    if not cut:
        return None
    left = np.ones([axes[i].size if i in cut else 1 for i in range(len(axes))], np.bool_)
    for i in cut:
        left &= mask(axes[i], keep).reshape([-1 if axis == i else 1 for axis in range(len(axes))])
    return left


def _real(coupling: Coupling, role: Role, array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what stored integers stand for."""
    node, rule = role.node, coupling.rules.find(role.node)
    quantised = None if rule is None else rule.quantisation(node, role.slot)
    if quantised is None:
        return array
    slots = [s for s in (quantised.zero, quantised.scale) if s is not None and node.has_input(s)]
    numbers = _constants(coupling, [node.inputs[slot] for slot in slots])
    for slot in slots:
        number = numbers.get(node.inputs[slot], np.zeros(0)).astype(np.float64)
        if number.size == 0:
            continue  # it is computed as the model runs
        if number.ndim == 1 and number.size > 1:
            number = np.moveaxis(number.reshape(-1, *[1] * (array.ndim - 1)), 0, quantised.axis)
        array = array - number if slot == quantised.zero else array * number
    return array


def _constants(coupling: Coupling, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the values that do not depend on the inputs."""
    graph = coupling.graph
    computed = [n for n in names if n not in graph.initializers and coupling.values[n].constant]
    arrays = compute_constants(graph, computed) if computed else {}
    return arrays | {n: graph.initializers[n] for n in names if n in graph.initializers}
