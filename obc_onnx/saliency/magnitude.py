"""Criteria that need no data: norms of weights, scales of batch norms, and chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.coupling.members import along_axis, by_unit, member_of, operands
from obc_onnx.saliency.criterion import Criterion
from obc_onnx.saliency.reduction import reduced, roles_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Keep
    from obc_onnx.saliency.criterion import Saliency, Scene

    Numbers = NDArray[np.float64]


class Random(Criterion):
    """Uniform numbers: what any other criterion has to beat."""

    name = "random"
    needs_data = False
    uses = frozenset()

    def score(self, scene: Scene, keep: Keep) -> Saliency:  # noqa: ARG002
        """Draw from the seed; the same unit has the same number whatever is left."""
        rng = np.random.default_rng(scene.seed)
        return {group.name: rng.random(group.size) for group in scene.coupling.groups}


class L1(Criterion):
    """Sum of the absolute values of all weights that a unit owns, member by member.

    Source: Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710, with the groups of
    Fang et al., DepGraph, arXiv 2301.12900: the reduction "sum" or "mean" is theirs.
    """

    name = "l1"
    needs_data = False

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Score from the weights that are left."""
        return reduced(scene.coupling, keep, scene.scoring, _sums(scene, keep, np.abs))


class L2(Criterion):
    """Euclidean norm of all weights that a unit owns, in every member of its group.

    Other reductions than the sum come before the root: "mean" gives the root of the mean square.

    Source: as `L1`.
    """

    name = "l2"
    needs_data = False

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Score from the weights that are left."""
        squares = _sums(scene, keep, np.square)
        return reduced(scene.coupling, keep, scene.scoring, squares, root=True)


class Lamp(Criterion):
    """Squared norm over the squared norms of all units that are left and no smaller.

    So the largest unit of each group has 1, and no group can be emptied before another.

    Source: Lee et al., Layer-Adaptive Sparsity for the Magnitude-Based Pruning, arXiv 2010.07611,
    equation 4, with units in place of single weights.
    """

    name = "lamp"
    needs_data = False

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Compare the units of each group that are left."""
        squares = reduced(scene.coupling, keep, scene.scoring, _sums(scene, keep, np.square))
        dims = {group.name: group.dim for group in scene.coupling.groups}
        return {name: _shares(own, keep.get(dims[name])) for name, own in squares.items()}


class NormScale(Criterion):
    """Absolute scale of the batch norms along a unit.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming,
    arXiv 1708.06519.
    """

    name = "bn-scale"
    needs_data = False

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Score from BatchNormalization nodes; groups without any have no score."""
        vectors = _sums(scene, keep, np.abs, of_norms=True)
        return reduced(scene.coupling, keep, scene.scoring, vectors)


def _sums(
    scene: Scene,
    keep: Keep,
    function: Callable[[Numbers], Numbers],
    *,
    of_norms: bool = False,
) -> dict[tuple[Member, Dim], Numbers]:
    """Sum a function of the weights into units, for every member, or those of batch norms."""
    rules = scene.coupling.rules
    arrays = operands(scene.coupling, keep)
    found = {}
    for group in scene.coupling.groups:
        for role in roles_of(group, scene.scoring):
            name, axis = member_of(role)
            counts = not of_norms or rules.channel_norm(role.node) is not None
            if name in arrays and counts:
                values = along_axis(function(arrays[name]), axis)
                expr = scene.coupling.axes[name][axis]
                found[(name, axis), group.dim] = by_unit(expr, group.dim, values)
    return found


def _shares(squares: Numbers, left: NDArray[np.bool_] | None) -> Numbers:
    """Divide by the sum of all that are left and no smaller."""
    counted = squares if left is None else np.where(left, squares, 0.0)
    order = np.argsort(-counted, kind="stable")
    rest = np.empty_like(squares)
    rest[order] = np.cumsum(counted[order])
    return np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
