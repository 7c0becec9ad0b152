"""Group-OBS: what removing a unit costs once the weights that read the others make up for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn import functional

from obc_onnx.axes.expressions import mask
from obc_onnx.coupling.members import (
    Operands,
    along_axis,
    by_unit,
    left_of,
    member_of,
    owners_along,
)
from obc_onnx.ops.conv import conv
from obc_onnx.saliency.criterion import OF_MEMBERS, OF_SAMPLES, Criterion
from obc_onnx.saliency.reads import Watch, read_of, watch_reads
from obc_onnx.saliency.reduction import reduced, roles_of
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor, fx

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.ops.base.context import Role, Tap
    from obc_onnx.saliency.criterion import Saliency, Scene

_RIDGE = 1e-3
"""Added to the diagonal of second moments, as a share of its mean."""
_PLANE = 2
"""The dimensions of pictures."""


class GroupObs(Criterion):
    """S(unit) = sum over readers of tr(W_g [(H^-1)_gg]^-1 W_g'), H = X'X + lambda I.

    X are the patches that a reader multiplies with its weights W, g the columns of one unit. It is
    the squared change of the reader's output when the unit goes and all other columns are refitted.
    A reader whose patches are not formed here (grouped, transposed, padded by `auto_pad=SAME`, of
    other than one or two dimensions) counts with its diagonal of H alone: |W_g|^2 times the squares
    of what is read.

    Source: Hassibi and Stork, Second order derivatives for network pruning: Optimal Brain Surgeon,
    1992; for groups of columns Wang et al., SPA/OBSPA, arXiv 2403.18955.
    """

    name = "group-obs"
    needs_data = True
    uses = OF_SAMPLES | OF_MEMBERS

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Sum second moments over all samples, and invert them reader by reader."""
        coupling, arrays = scene.coupling, Operands(scene.coupling, keep)
        vectors: dict[tuple[Member, Dim], NDArray[np.float64]] = {}
        moments = watch_reads(
            scene,
            keep,
            lambda call, role, tap: _SecondMoments(
                tap.axis,
                *_geometry(call, coupling, role, tap),
                left_of(coupling, keep, role.node.inputs[tap.slot]),
            ),
        )
        for group in coupling.groups:
            for role in roles_of(group, scene.scoring):
                read = read_of(role)
                if read in moments and member_of(role)[0] in arrays:
                    weights = arrays[member_of(role)[0]]
                    value = _cost(coupling, group, role, weights, moments[read], keep)
                    key = (member_of(role), group.dim)
                    vectors[key] = vectors[key] + value if key in vectors else value
        return reduced(coupling, keep, scene.scoring, vectors)


def _geometry(
    call: fx.Node, coupling: Coupling, role: Role, tap: Tap
) -> tuple[dict[str, Any] | None, tuple[int, ...]]:
    """Say how patches are made, and the shape of their second moments.

    Returns:
        The numbers of a convolution; an empty mapping for a product, which has no patches; None for
        anything else, of which only the diagonal is kept.
    """
    shape = coupling.shapes[role.node.inputs[role.slot]]
    if call.target is conv:
        plain = call.kwargs["groups"] == 1 and len(shape) in (3, 4)
        explicit = str(call.kwargs["auto_pad"]) in ("NOTSET", "VALID")
        if plain and explicit:
            return {**call.kwargs, "kernel": shape[2:]}, (math.prod(shape[1:]),) * 2
    elif len(shape) == 2 and role.mixes:  # noqa: PLR2004 - a matrix
        return {}, (shape[role.axis],) * 2
    return None, (coupling.shapes[role.node.inputs[tap.slot]][tap.axis],)


class _SecondMoments(Watch):
    """X'X of the patches of a reader, or its diagonal; see `_geometry`."""

    def __init__(
        self,
        axis: int,
        geometry: dict[str, Any] | None,
        shape: tuple[int, ...],
        left: NDArray[np.bool_] | None,
    ) -> None:
        super().__init__(shape, left)
        self._axis, self._geometry = axis, geometry

    def numbers(self, x: Tensor, counted: Tensor | None) -> Tensor:  # noqa: ARG002
        """Multiply in float32 at least."""
        x = wide(x)
        if self._geometry:
            columns = _patches(x, self._geometry)
        else:
            columns = x.movedim(self._axis, -1).reshape(-1, x.shape[self._axis])
        return columns.square().sum(0) if self._geometry is None else columns.T @ columns


def _patches(x: Tensor, geometry: Mapping[str, Any]) -> Tensor:
    """Return what each output position of a convolution sees; shape [positions, C * kernel]."""
    kernel, pads = tuple(geometry["kernel"]), tuple(geometry["pads"])
    strides, dilations = tuple(geometry["strides"]), tuple(geometry["dilations"])
    rank = len(kernel)
    padded = functional.pad(
        x, [side for i in reversed(range(rank)) for side in (pads[i], pads[rank + i])]
    )
    if rank < _PLANE:
        padded = padded.unsqueeze(2)
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
    unfolded = functional.unfold(padded, kernel, dilations, 0, strides)
    return unfolded.movedim(1, -1).reshape(-1, unfolded.shape[1])


def _cost(
    coupling: Coupling,
    group: Group,
    role: Role,
    weights: NDArray[np.float64],
    moments: NDArray[np.float64],
    keep: Keep,
) -> NDArray[np.float64]:
    """Return the squared change of a reader's output for each unit that goes."""
    axis = coupling.axes[role.node.inputs[role.slot]][role.axis]
    if moments.ndim == 1 and role.tap is not None:
        read = coupling.axes[role.node.inputs[role.tap.slot]][role.tap.axis]
        squares = by_unit(axis, group.dim, along_axis(weights**2, role.axis))
        return squares * by_unit(read, group.dim, moments)
    columns = np.moveaxis(weights, role.axis, 0)
    columns = np.moveaxis(columns, 1, -1).reshape(len(moments), -1)  # the kernel beside the axis
    per_position = len(moments) // axis.size
    n_left = mask(axis, keep).sum() * per_position
    ridge = max(_RIDGE * np.trace(moments) / n_left, np.finfo(np.float64).tiny)
    inverse = np.linalg.inv(moments + ridge * np.eye(len(moments)))
    cost = np.zeros(group.size)
    for owners in owners_along(axis, group.dim):
        for unit in np.unique(owners[owners >= 0]):
            positions = np.flatnonzero(owners == unit)
            which = (positions[:, None] * per_position + np.arange(per_position)).reshape(-1)
            own, hessian = columns[which], np.linalg.inv(inverse[np.ix_(which, which)])
            cost[unit] += np.einsum("io,ij,jo->", own, hessian, own)
    return cost
