"""Sparse learning: before anything is cut, units that matter little are made to matter less.

After each backward pass the gradient of every weight of a unit grows by `reg * gamma * w`, where
gamma goes from 1 for the most salient unit of a group to `_LARGEST` for the least. So weak units
shrink, and cutting them costs less.

Source: Fang et al., DepGraph, arXiv 2301.12900, equation 5, with the strength as their code has it,
`2 ** (4 * (s_max - s) / (s_max - s_min))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.members import bias_of, member_of, owners_along
from obc_onnx.twin.tensors import parameter_name

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Coupling, Group
    from obc_onnx.equivalent.network import EquivalentTwin
    from obc_onnx.training.options import SparseName, Training

_LARGEST = 16.0
_DECAY = 0.99
"""Per step, of the running mean of squared rows: gamma should not jump with single batches."""


@dataclass(frozen=True)
class _Axis:
    """An axis of a parameter whose positions belong to units.

    Attributes:
        places: For each time that the dim occurs, the positions that have an owner, and the owners.
    """

    parameter: nn.Parameter
    axis: int
    places: tuple[tuple[Tensor, Tensor], ...]

    def sums(self, values: Tensor, n_units: int) -> Tensor:
        """Sum numbers of the parameter's shape into units, shape [n_units]."""
        others = [i for i in range(values.ndim) if i != self.axis]
        along = values.sum(others) if others else values
        found = along.new_zeros(n_units)
        for positions, units in self.places:
            found.index_add_(0, units, along[positions])
        return found

    def spread(self, values: Tensor) -> Tensor:
        """Give each position what its owners have, shaped to broadcast over the parameter."""
        found = values.new_zeros(self.parameter.shape[self.axis])
        for positions, units in self.places:
            found.index_add_(0, positions, values[units])
        return found.reshape([-1 if i == self.axis else 1 for i in range(self.parameter.ndim)])


@dataclass(frozen=True)
class _Member:
    """A weight along a group, and the bias that counts with it in a row of the Jacobian."""

    weight: _Axis
    bias: _Axis | None


class GroupPenalty(nn.Module):
    """Adds the pull on every group to the gradients, biases excluded.

    Args:
        student: The whole network; nothing is cut yet.
        coupling: Its groups.
        training: The strength, and what makes a unit salient: "magnitude" is the root of the mean
            squared norm of its members, as in the source; "jacobian" that of the mean over members
            of (w . dL/dw)^2, averaged over the steps, which the gradients of training give freely.
    """

    def __init__(self, student: EquivalentTwin, coupling: Coupling, training: Training) -> None:
        super().__init__()
        self._strength = training.options.sparse_reg
        self._by: SparseName = training.options.sparse_by
        device = torch.device(training.device)
        own = dict(student.twin.named_parameters())
        learned = {key: p for key, p in own.items() if p.requires_grad}
        found = [(group, _members(coupling, group, learned, device)) for group in coupling.groups]
        self._groups = [members for _, members in found if members]
        for i, group in enumerate(group for group, members in found if members):
            self.register_buffer(f"saliency_{i}", torch.zeros(group.size, device=device))

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Change the gradients in place, after the backward pass and before the step."""
        pulls = []
        for i, members in enumerate(self._groups):
            saliency = self._saliency(i, members)
            low, high = saliency.aminmax()
            if high > low:
                gamma = self._strength * _LARGEST ** ((high - saliency) / (high - low))
                pulls += [(member.weight, gamma) for member in members]
        for axis, gamma in pulls:  # when every row has been read
            if axis.parameter.grad is not None:
                axis.parameter.grad.addcmul_(axis.spread(gamma), axis.parameter)

    def _saliency(self, i: int, members: list[_Member]) -> Tensor:
        """Return how much each unit of a group matters; any scale will do."""
        held: Tensor = getattr(self, f"saliency_{i}")
        n_units = len(held)
        if self._by == "magnitude":
            squares = [m.weight.sums(m.weight.parameter.square(), n_units) for m in members]
            held.copy_(torch.stack(squares).mean(0))
        else:
            rows = torch.stack([_row(member, n_units) for member in members])
            held.lerp_(rows.square().mean(0), 1 - _DECAY)
        return held.sqrt()


def _row(member: _Member, n_units: int) -> Tensor:
    """Return the inner product of each unit's weights with their gradients."""
    axes = [axis for axis in (member.weight, member.bias) if axis is not None]
    found = axes[0].parameter.new_zeros(n_units)
    for axis in axes:
        if axis.parameter.grad is not None:
            found += axis.sums(axis.parameter * axis.parameter.grad, n_units)
    return found


def _members(
    coupling: Coupling, group: Group, learned: dict[str, nn.Parameter], device: torch.device
) -> list[_Member]:
    """Find the weights of contractions along a group, and the scales of its norms."""
    found: dict[Member, _Member] = {}
    for role in group.members:
        if role.kind == "scales" and role.bias is None:
            continue  # a bias, or another constant that is added
        weight = _axis(coupling, group, member_of(role), learned, device)
        bias = bias_of(coupling, role)
        if weight is not None:
            other = None if bias is None else _axis(coupling, group, bias, learned, device)
            found.setdefault(member_of(role), _Member(weight, other))
    return list(found.values())


def _axis(
    coupling: Coupling,
    group: Group,
    member: Member,
    learned: dict[str, nn.Parameter],
    device: torch.device,
) -> _Axis | None:
    name, axis = member
    parameter, expr = learned.get(parameter_name(name)), coupling.axes[name][axis]
    if parameter is None or group.dim not in leaves(expr):
        return None
    places = []
    for owners in owners_along(expr, group.dim):
        units = torch.from_numpy(owners).to(device)
        positions = (units >= 0).nonzero().reshape(-1)
        places.append((positions, units[positions]))
    return _Axis(parameter, axis % parameter.ndim, tuple(places))
