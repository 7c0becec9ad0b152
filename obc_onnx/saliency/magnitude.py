"""L2 magnitude: needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.saliency.criterion import Criterion
from obc_onnx.saliency.owners import owners_along

if TYPE_CHECKING:
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
        return {
            group.name: np.sqrt(_squares(scene.coupling, group)) for group in scene.coupling.groups
        }


def _squares(coupling: Coupling, group: Group) -> NDArray[np.float64]:
    total = np.zeros(group.size)
    seen = set()
    for role in group.members:
        operand = role.node.inputs[role.slot]
        if operand not in coupling.graph.initializers or (operand, role.axis) in seen:
            continue
        seen.add((operand, role.axis))
        array = coupling.graph.initializers[operand].astype(np.float64)
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
