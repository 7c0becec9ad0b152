"""Saliency by brute force: weight gradients, one sample and one unit at a time, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from nets import Case, with_grads
from torch.func import functional_call

from obc_onnx.axes.expressions import Dim, leaves, mask
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.twin.build import build_twin
from obc_onnx.twin.tensors import parameter_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, fx

    Loss = Callable[[tuple[Tensor, ...]], Tensor]
    Rows = dict[tuple[tuple[str, int], Dim], Tensor]


def twin_of(case: Case) -> fx.GraphModule:
    return build_twin(case.graph, case.shapes, DEFAULT_RULES)


def operands_of(case: Case) -> dict[tuple[str, int], set[tuple[str, int]]]:
    """For each member, the axes along which its unit lies: its own, and that of its bias."""
    members: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for role in case.coupling.roles:
        names = role.node.inputs
        member = (names[role.slot], role.axis)
        if member[0] not in case.graph.initializers:
            continue
        owned = members.setdefault(member, {member})
        if role.bias is not None and names[role.bias] in case.graph.initializers:
            n_axes = case.graph.initializers[names[role.bias]].ndim
            behind = len(case.coupling.axes[member[0]]) - role.axis  # a norm lays out both alike
            owned.add((names[role.bias], n_axes - (behind if role.kind == "scales" else 1)))
    return members


def products_by_sample(
    case: Case, inputs: list[Tensor], loss: Loss, *, whole: bool = False
) -> list[dict[str, Tensor]]:
    """Weight times its gradient, element by element, from a backward pass for every sample.

    With `whole` one pass takes all samples, in double whatever the model is in.
    """
    twin = twin_of(case).double() if whole else twin_of(case)
    weights = with_grads(dict(twin.named_parameters()))
    found = []
    for i in range(1 if whole else len(inputs[0])):
        fed = inputs if whole else [x[i : i + 1] for x in inputs]
        value = loss(functional_call(twin, weights, tuple(fed)))
        grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        pairs = zip(weights.items(), grads, strict=True)
        found.append(
            {n: (w * (torch.zeros_like(w) if g is None else g)).detach() for (n, w), g in pairs}
        )
    return found


def along(case: Case, products: dict[str, Tensor], place: tuple[str, int], dim: Dim) -> Tensor:
    """Sum the products of the positions that go when one unit goes, for every unit."""
    name, axis = place
    product = products[parameter_name(name)].movedim(axis, 0)
    sums = []
    for unit in range(dim.size):
        others = {dim: np.arange(dim.size) != unit}
        gone = ~mask(case.coupling.axes[name][axis], others)
        sums.append(product[torch.from_numpy(gone)].sum())
    return torch.stack(sums)


def brute_force(case: Case, inputs: list[Tensor], loss: Loss, *, whole: bool = False) -> Rows:
    by_sample = products_by_sample(case, inputs, loss, whole=whole)
    dims = {group.dim for group in case.coupling.groups}
    rows: Rows = {}
    for member, places in operands_of(case).items():
        if any(parameter_name(name) not in by_sample[0] for name, _ in places):
            continue  # what never learns, such as a scale of quantised weights
        for dim in dims.intersection(leaves(case.coupling.axes[member[0]][member[1]])):
            rows[member, dim] = torch.stack(
                [
                    sum((along(case, p, place, dim) for place in places), torch.zeros(()))
                    for p in by_sample
                ]
            )
    return rows
