"""Decompressors that start from least squares: what is kept stands in for what is gone.

For a group's activations h, kept units S and removed units P, h_P ~ B h_S + c with
B = Cov(h_P, h_S) (Cov(h_S, h_S) + lambda I)^-1. The decompressor D = [I; B] then gives a reading
weight W D, and W_P c goes into its bias; where there is none, c is 0 and B that of second moments.
So training starts from a repaired network instead of a sliced one. Moments are those of the
original network, of one reader at a time.

Sources: the least squares is the compensation of CORP; its use as the start of the trained pair of
Chen et al., Optimal Brain Connection, arXiv 2508.05521, is this project's own.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.members import member_of, owners_along
from obc_onnx.equivalent.network import Start, find_parametrised
from obc_onnx.saliency.reads import Watch, read_of, watch_reads
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor, fx

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.ops.base.context import Role, Tap
    from obc_onnx.saliency.criterion import Scene
    from obc_onnx.saliency.reads import Read

    Numbers = NDArray[np.float64]

_RIDGE = 1e-3
"""Added to the diagonal of a covariance, as a share of its mean."""
_ROUNDING = 1e-9
"""At least, as a share of the mean square: the covariance of constant units is rounding alone."""


def channel_start(scene: Scene, keep: Keep) -> Start:
    """Measure second moments on the samples of a scene, and solve for every reading weight.

    Args:
        scene: The original, and samples; labels are not used.
        keep: The units that stay.
    """
    readers = find_readers(scene.coupling, keep)

    def watch(_: fx.Node, role: Role, tap: Tap) -> Watch:
        read = read_of(role)
        positions = readers[read].positions.values() if read in readers else ()
        return _Moments(tap.axis, list(positions))

    totals = watch_reads(scene, {}, watch)
    moments: dict[tuple[Read, Dim], Numbers] = {}
    for read, reader in readers.items():
        start = 0
        for dim, positions in reader.positions.items():
            size = len(positions) + 1
            own = totals[read][start : start + size**2]
            moments[read, dim] = own.reshape(size, size)
            start += size**2
    return start_from(scene.coupling, keep, readers, moments)


def start_from(
    coupling: Coupling,
    keep: Keep,
    readers: Mapping[Read, Reader],
    moments: Mapping[tuple[Read, Dim], Numbers],
) -> Start:
    """Solve for every reading weight.

    Args:
        coupling: Of the original.
        keep: The units that stay.
        readers: From `find_readers`.
        moments: Of what a reader is given along a dim: products of all its units and of a one,
            shape [units + 1, units + 1]. Where they are not known, the weight is sliced.
    """
    matrices: dict[tuple[str, int], dict[Dim, Tensor]] = {}
    weights: dict[str, Numbers] = {}
    for (read, dim), own in moments.items():
        role = readers[read].role
        bias, name = _bias_beside(coupling, role), role.node.inputs[role.slot]
        matrix, constants = _solve(own, keep[dim], centred=bias is not None)
        matrices.setdefault((name, role.axis), {})[dim] = torch.from_numpy(matrix).float()
        if bias is not None:
            array = weights.get(bias[0], coupling.graph.initializers[bias[0]])
            weights[bias[0]] = array + _shift(coupling, role, dim, constants, bias[1])
    graph = coupling.graph
    kinds = {name: graph.initializers[name].dtype for name in weights}
    return Start(matrices, {name: array.astype(kinds[name]) for name, array in weights.items()})


class Reader(NamedTuple):
    """A weight that gets a decompressor, and where the units of each dim lie in what it reads.

    Attributes:
        positions: By dim, shape [units, times].
    """

    role: Role
    positions: Mapping[Dim, NDArray[np.int64]]


def find_readers(coupling: Coupling, keep: Keep) -> dict[Read, Reader]:
    """Find the weights that get a decompressor, by what they read."""
    parametrised = find_parametrised(coupling, keep)
    found = {}
    for role in coupling.roles:
        read, axes = read_of(role), parametrised.get(role.node.inputs[role.slot], {})
        if read is None or role.tap is None or role.axis not in axes:
            continue
        expr = coupling.axes[role.node.inputs[role.tap.slot]][role.tap.axis]
        along = {dim: _positions(expr, dim) for dim in leaves(expr) if dim in axes[role.axis]}
        found[read] = Reader(role, {dim: p for dim, p in along.items() if p is not None})
    uses = Counter(member_of(reader.role) for reader in found.values())
    # one matrix cannot fit what two nodes read
    return {read: reader for read, reader in found.items() if uses[member_of(reader.role)] == 1}


def _positions(expr: Expr, dim: Dim) -> NDArray[np.int64] | None:
    """Return the positions of each unit along an axis, shape [units, times]; None if uneven."""
    owners = owners_along(expr, dim)
    counts = np.bincount(owners[0][owners[0] >= 0], minlength=dim.size)
    if len(owners) > 1 or counts.min() == 0 or counts.min() != counts.max():
        return None
    order = np.argsort(owners[0], kind="stable")
    return order[owners[0][order] >= 0].reshape(dim.size, -1)


class _Moments(Watch):
    """Second moments of units and a one, shape [units + 1, units + 1], of several dims in a row."""

    def __init__(self, axis: int, blocks: list[NDArray[np.int64]]) -> None:
        super().__init__((sum((len(positions) + 1) ** 2 for positions in blocks),))
        self._axis, self._blocks = axis, blocks

    def numbers(self, x: Tensor, counted: Tensor | None) -> Tensor:
        """Multiply in float32 at least; the one of what does not count is a 0."""
        x = wide(x)
        ones = torch.ones_like(x) if counted is None else counted.to(x).expand_as(x)
        parts = [self.total.new_zeros(0)]
        for positions in self._blocks:
            places = torch.from_numpy(positions).to(x.device)
            units, there = (self._rows(value, places) for value in (x, ones))
            rows = torch.cat([units, there[:, :1]], 1)
            parts.append((rows.T @ rows).double().flatten())
        return torch.cat(parts)

    def _rows(self, x: Tensor, places: Tensor) -> Tensor:
        """Lay out the units at some places, shape [rows, units]."""
        rows = x.movedim(self._axis, -1)[..., places].movedim(-2, -1)
        return rows.reshape(-1, len(places))


def _solve(moments: Numbers, kept: NDArray[np.bool_], *, centred: bool) -> tuple[Numbers, Numbers]:
    """Return the transpose of D, shape [kept, full], and c with zeros for what is kept."""
    count = max(moments[-1, -1], 1.0)
    mean = moments[-1, :-1] / count if centred else np.zeros(len(kept))
    cov = moments[:-1, :-1] / count - np.outer(mean, mean)
    inner = cov[np.ix_(kept, kept)]
    power = np.trace(moments[:-1, :-1][np.ix_(kept, kept)]) / count
    ridge = max(_RIDGE * np.trace(inner), _ROUNDING * power) / len(inner)
    ridge = max(ridge, np.finfo(np.float64).tiny)
    solved = np.linalg.solve(inner + ridge * np.eye(len(inner)), cov[np.ix_(kept, ~kept)])
    matrix = np.eye(len(kept))[kept]
    matrix[:, ~kept] = solved
    constants = np.zeros(len(kept))
    constants[~kept] = mean[~kept] - mean[kept] @ solved
    return matrix, constants


def _bias_beside(coupling: Coupling, role: Role) -> tuple[str, int] | None:
    """Return the bias of a reader, and the axis of its weight that lies along it."""
    node, graph = role.node, coupling.graph
    for other in coupling.roles:
        own = other.node.key == node.key and other.slot == role.slot
        if not own or other.kind != "writes" or other.bias is None:
            continue
        bias = node.inputs[other.bias]
        rule = coupling.rules.find(node)
        plain = rule is not None and not rule.is_scaled(node)
        # in blocks, the outputs are not those along the weight's axis
        along = coupling.shapes[node.inputs[role.slot]][other.axis]
        flat = bias in graph.initializers and graph.initializers[bias].shape == (along,)
        if plain and flat and len(graph.consumers[bias]) == 1 and not graph.escapes(bias):
            return bias, other.axis
    return None


def _shift(coupling: Coupling, role: Role, dim: Dim, constants: Numbers, written: int) -> Numbers:
    """Return what the constants of removed units add to each output of a reader."""
    name = role.node.inputs[role.slot]
    weight = coupling.graph.initializers[name].astype(np.float64)
    (owners,) = owners_along(coupling.axes[name][role.axis], dim)
    along = np.where(owners >= 0, constants[owners], 0.0)
    shape = [-1 if axis == role.axis else 1 for axis in range(weight.ndim)]
    others = tuple(axis for axis in range(weight.ndim) if axis != written)
    return np.asarray((weight * along.reshape(shape)).sum(others))
