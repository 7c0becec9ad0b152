"""Criteria that compare the filters of one layer with each other; they need no data."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.coupling.members import Operands, member_of, owners_along
from obc_onnx.saliency.criterion import Criterion
from obc_onnx.saliency.reduction import reduced, roles_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.coupling.model import Keep
    from obc_onnx.saliency.criterion import Saliency, Scene

    Numbers = NDArray[np.float64]


class _Compared(Criterion):
    """The base: what writes a unit is its filter, and is compared with those that are left."""

    needs_data = False

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Compare what writes the units of a group; what only reads them has no filters."""
        coupling, arrays, vectors = scene.coupling, Operands(scene.coupling, keep), {}
        for group in coupling.groups:
            left = keep.get(group.dim, np.ones(group.size, np.bool_))
            for role in roles_of(group, scene.scoring):
                name, axis = member_of(role)
                if role.kind == "writes" and name in arrays:
                    filters = filters_of(coupling.axes[name][axis], group.dim, arrays[name], axis)
                    values = np.zeros(group.size)
                    values[left] = self.compare(filters[left])
                    vectors[(name, axis), group.dim] = values
        return reduced(coupling, keep, scene.scoring, vectors)

    @abstractmethod
    def compare(self, filters: Numbers) -> Numbers:
        """Score filters, shape [n, weights], against each other; shape [n]."""


class Fpgm(_Compared):
    """Sum of the distances to all other filters: what is near them all can be replaced by them.

    Source: He et al., Filter Pruning via Geometric Median, arXiv 1811.00250, equation 4.
    """

    name = "fpgm"

    def compare(self, filters: Numbers) -> Numbers:
        """Sum Euclidean distances."""
        squares = np.einsum("ij,ij->i", filters, filters)
        distances = squares[:, None] + squares[None] - 2 * filters @ filters.T
        return np.asarray(np.sqrt(np.maximum(distances, 0)).sum(1))


class Whc(_Compared):
    """Norm, times the norms of the others weighted by how little they point the same way.

    Source: Chen et al., WHC: Weighted Hybrid Criterion for Filter Pruning, arXiv 2302.08185,
    equation 5: |F_i| sum_j |F_j| (1 - |cos(F_i, F_j)|).
    """

    name = "whc"

    def compare(self, filters: Numbers) -> Numbers:
        """Weight the norms of all others."""
        norms = np.linalg.norm(filters, axis=1)
        products = np.abs(filters @ filters.T)
        np.fill_diagonal(products, norms**2)
        return np.asarray((norms[:, None] * norms[None] - products).sum(1))


def filters_of(expr: Expr, dim: Dim, array: Numbers, axis: int) -> Numbers:
    """Gather all weights of each unit along an axis; shape [n_units, weights], zeros where fewer.

    Args:
        expr: The axis.
        dim: Whose units are meant.
        array: The weights.
        axis: Which axis it is.
    """
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    places: list[list[int]] = [[] for _ in range(dim.size)]
    for owners in owners_along(expr, dim):
        for place, owner in enumerate(owners):
            if owner >= 0:
                places[owner].append(place)
    widest = max(map(len, places))
    filters = np.zeros((dim.size, widest, rows.shape[1]))
    for unit, own in enumerate(places):
        filters[unit, : len(own)] = rows[own]
    return filters.reshape(dim.size, -1)
