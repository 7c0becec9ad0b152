"""L2 magnitude: needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.runtime import compute_constants
from obc_onnx.saliency.criterion import Criterion
from obc_onnx.saliency.owners import owners_along

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes import Dim
    from obc_onnx.coupling import Coupling, Group, Keep
    from obc_onnx.saliency.criterion import Scene


class Magnitude(Criterion):
    """Euclidean norm of all weights that a unit owns, in every member of its group.

    Source: Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710, with the group sum
    of Fang et al., DepGraph, arXiv 2301.12900.
    """

    name = "l2"
    needs_data = False

    def score(self, scene: Scene, keep: Keep) -> dict[str, NDArray[np.float64]]:  # noqa: ARG002
        """Score from the weights alone; what was removed elsewhere does not matter."""
        arrays = _operands(scene.coupling)
        return {
            group.name: np.sqrt(_squares(scene.coupling, group, arrays))
            for group in scene.coupling.groups
        }


def _operands(coupling: Coupling) -> dict[str, NDArray[Any]]:
    """Return the weights in every role, also those that are computed from initializers."""
    arrays = dict(coupling.graph.initializers)
    operands = (role.node.inputs[role.slot] for group in coupling.groups for role in group.members)
    computed = [n for n in operands if n not in arrays and coupling.values[n].constant]
    return arrays | (compute_constants(coupling.graph, computed) if computed else {})


def _squares(
    coupling: Coupling, group: Group, arrays: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    total = np.zeros(group.size)
    seen = set()
    for role in group.members:
        operand = role.node.inputs[role.slot]
        if operand not in arrays or (operand, role.axis) in seen:
            continue
        seen.add((operand, role.axis))
        array = arrays[operand].astype(np.float64)
        others = tuple(axis for axis in range(array.ndim) if axis != role.axis)
        total += _by_unit(coupling, operand, role.axis, group.dim, (array**2).sum(axis=others))
    return total


def _by_unit(
    coupling: Coupling, operand: str, axis: int, dim: Dim, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    sums = np.zeros(dim.size)
    for owners in owners_along(coupling.axes[operand][axis], dim):
        owned = owners >= 0
        sums += np.bincount(owners[owned], values[owned], dim.size)
    return sums
