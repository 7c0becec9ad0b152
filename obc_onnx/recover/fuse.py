"""Repair without data: fusion of units by optimal transport, or what batch norms tell.

The units that go are not dropped but added to those that stay and are most like them. A unit's
features are its weights in every member of its group, brought to length 1. The plan T that carries
the mass of all units to the kept ones at the least cost, columns scaled to 1, then stands for the
selection: producers become T W, consumers W T^T.

Where a group has batch norms, filters that were added up would not fit them. There producers are
cut, and consumers make up by least squares for what is gone, wherever a norm tells its moments.

Source: Theus et al., Towards Meta-Pruning via Optimal Transport (Intra-Fusion), arXiv 2402.07839,
with every group of the coupling in place of one chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.members import member_of, operands, owners_along
from obc_onnx.equivalent.network import EquivalentTwin, Start, find_parametrised
from obc_onnx.equivalent.starts import find_readers, start_from
from obc_onnx.recover.norm_moments import norm_moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Group
    from obc_onnx.graph.model import Graph
    from obc_onnx.surgery.cut import Cut

    Numbers = NDArray[np.float64]


def fuse(cut: Cut, *, merges: bool = True) -> Graph:
    """Repair every group that is cut, wherever its weights are dense.

    Args:
        cut: The cut graph; what is not dense is taken from it.
        merges: Whether groups without batch norms are fused, too.
    """
    coupling, keep = cut.coupling, cut.keep
    arrays = operands(coupling, {})
    plans = {
        group.dim: torch.from_numpy(transport(features(coupling, group, arrays), keep[group.dim]))
        for group in coupling.groups
        if merges and group.dim in keep and not _is_normed(coupling, group)
    }
    readers = find_readers(coupling, keep)
    start = start_from(coupling, keep, readers, norm_moments(coupling, readers))
    matrices = {place: dict(own) for place, own in start.matrices.items()}
    for name, axes in find_parametrised(coupling, keep).items():
        for axis, dims in axes.items():
            for dim in dims & set(leaves(coupling.axes[name][axis])) & plans.keys():
                matrices.setdefault((name, axis), {})[dim] = plans[dim].float()
    return EquivalentTwin(cut, start=Start(matrices, start.weights)).fold(cut.pruned)


def _is_normed(coupling: Coupling, group: Group) -> bool:
    return any(coupling.rules.channel_norm(role.node) is not None for role in group.members)


def features(coupling: Coupling, group: Group, arrays: dict[str, Numbers]) -> Numbers:
    """Gather the weights of each unit, shape [units, weights], each row of length 1."""
    columns = []
    for name, axis in dict.fromkeys(member_of(role) for role in group.members):
        if name not in arrays:
            continue
        owners = owners_along(coupling.axes[name][axis], group.dim)[0]
        moved = np.moveaxis(arrays[name], axis, 0)
        order = np.argsort(owners, kind="stable")
        order = order[owners[order] >= 0]
        counts = np.bincount(owners[owners >= 0], minlength=group.size)
        if counts.min() == counts.max() > 0:
            columns.append(moved[order].reshape(group.size, -1))
    found: Numbers = np.concatenate(columns, 1) if columns else np.eye(group.size)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(lengths > 0, lengths, 1.0)


def transport(found: Numbers, kept: NDArray[np.bool_]) -> Numbers:
    """Plan where the mass of each unit goes, shape [kept, units]; columns add up to 1.

    Args:
        found: Features, shape [units, weights].
        kept: Which units stay.
    """
    import ot  # takes a second, which no other repair should wait for

    cost = ot.dist(found, found[kept], metric="cityblock")
    units, targets = cost.shape
    plan: Numbers = ot.emd(np.full(units, 1 / units), np.full(targets, 1 / targets), cost)
    totals: Numbers = plan.sum(1, keepdims=True)
    return (plan / totals).T
