"""Taps: identities on the twin's values that read scores off one backward pass.

For an operand that a node is linear in, the inner product of a unit's weights with their gradient
equals a sum over positions of value times gradient: of the output for what the unit writes, bias
included, of the input through this consumer only for what it reads. So no
weight gradient is ever computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from obc_onnx.axes.expressions import Dim, Product, leaves
from obc_onnx.coupling.members import Member, bias_of, member_of, owners_along
from obc_onnx.ops.base.context import Tap
from obc_onnx.saliency.objective import check_loss
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.reduction import counts
from obc_onnx.twin.probes import alias_of, calls_of, has_place, insert, insert_beside
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.branches.find import Branch
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.ops.base.context import Role
    from obc_onnx.twin.module import TorchTwin
    from obc_onnx.twin.probes import Place

    Scored = tuple[Member, Dim] | Branch


@dataclass(frozen=True)
class Projection:
    """Sums positions along an axis into units of one dim.

    Attributes:
        samples: The axis along which samples lie one after the other; 0 where none does.
    """

    member: Member
    dim: Dim
    axis: int
    owners: tuple[Tensor, ...]
    samples: int = 0

    def project(self, along: Tensor) -> Tensor:
        """Sum positions, shape [batch, positions], into units, shape [batch, n_units]."""
        batch = len(along)
        units = along.new_zeros(batch, self.dim.size + 1)
        for owners in self.owners:  # -1, the last column, collects what has no owner
            units.index_add_(1, owners % units.shape[1], along)
        return units[:, :-1]


@dataclass(frozen=True)
class Gate:
    """Sums all positions of what a branch adds to its stand-in: the change with a factor in front.

    Attributes:
        samples: The axis along which samples lie one after the other; 0 where none does.
    """

    branch: Branch
    samples: int = 0

    @property
    def place(self) -> tuple[str, str]:
        """The value that the branch gives, and what stands in for it."""
        return self.branch.value, self.branch.stand_in


class Taps:
    """Taps on every member of every group of a twin, and on branches.

    Args:
        twin: Of the graph, or of its masked form, on the device; it is changed in place, and its
            weights are frozen.
        coupling: Of the graph.
        device: Where the twin runs.
        scoring: Which members count.
        branches: Those that are tapped.
    """

    def __init__(
        self,
        twin: TorchTwin,
        coupling: Coupling,
        device: torch.device | str = "cpu",
        scoring: Scoring = Scoring(),  # noqa: B008 - frozen
        branches: Sequence[Branch] = (),
    ) -> None:
        self.twin = twin.to(device).eval().requires_grad_(False)  # noqa: FBT003
        self.coupling, self.scoring = coupling, scoring
        self.device = device
        self.per_sample = True
        self._n_samples = 1
        self._rows: dict[Scored, Tensor] = {}
        self._products: Tensor | None = None
        self._calls = calls_of(self.twin)
        roles = coupling.roles
        self._shown = {(r.node.key, r.slot, r.axis) for r in roles if r.tap is not None}
        self._biases = {(r.node.key, r.bias) for r in roles if r.bias is not None}
        places = self._places()
        gates = [self._gate(branch) for branch in branches]
        self.sizes: dict[Scored, int] = {gate.branch: 1 for gate in gates}
        self.sizes |= {_scored(p): p.dim.size for own in places.values() for p in own}
        insert(self.twin, {place: _Tap(self, own) for place, own in places.items()})
        insert_beside(self.twin, {gate.place: _GateTap(self, gate) for gate in gates})

    def rows(self, inputs: list[Tensor], loss: Any) -> dict[Scored, Tensor]:
        """Run forward and backward once.

        Args:
            inputs: The graph's inputs in order.
            loss: A function from the tuple of outputs to a scalar, the sum over samples.
        Returns:
            For each member and dim, the inner product of every unit's weights with the loss
            gradient, shape [batch, n_units]; for each branch that of what it adds, [batch, 1]. The
            batch is 1 where `per_sample` is False.
        Raises:
            DataError: The loss is not finite.
        """
        self._rows = {}
        names = [port.name for port in self.coupling.graph.inputs]
        batch_axes = self.coupling.graph.batch_axes
        self._n_samples = batch_axes.count(dict(zip(names, inputs, strict=True)))
        value = check_loss(loss(self.twin(*inputs)))
        if value.requires_grad:  # nothing does where there is no group
            value.backward()  # type: ignore[no-untyped-call]
        rows, self._rows = self._rows, {}
        return rows

    def _places(self) -> dict[Place, list[Projection]]:
        wanted: dict[Place, list[Projection]] = {}
        dims = {group.dim for group in self.coupling.groups}
        for role in self.coupling.roles:
            operand = role.node.inputs[role.slot]
            own = dict.fromkeys(leaves(self.coupling.axes[operand][role.axis]))
            met = [dim for dim in own if dim in dims and counts(role, dim, self.scoring)]
            for tap in self._taps_of(role) if met else ():
                place = (role.node.key, tap.at, tap.slot)
                if found := self._projections(role, tap, met):  # what is shown may lack the dim
                    wanted.setdefault(place, []).extend(found)
        return wanted

    def _taps_of(self, role: Role) -> list[Tap]:
        """Return what shows a role: a tensor, or where none does the weight itself and its bias.

        A weight has one gradient for all samples, so that those go one by one.
        """
        node = role.node
        if role.tap is not None:
            return [role.tap]
        if (node.key, role.slot, role.axis) in self._shown or (node.key, role.slot) in self._biases:
            return []
        bias = bias_of(self.coupling, role)
        taps = [Tap("input", role.slot, role.axis)]
        taps += [] if bias is None or role.bias is None else [Tap("input", role.bias, bias[1])]
        return [
            tap
            for tap in taps
            if self.coupling.values[node.inputs[tap.slot]].constant
            and has_place(self._calls[node.key], tap.slot)
        ]

    def _projections(self, role: Role, tap: Tap, dims: list[Dim]) -> list[Projection]:
        name = role.node.inputs[tap.slot] if tap.at == "input" else role.node.outputs[0]
        axes = self.coupling.axes[name]
        along = (i for i, axis in enumerate(axes) if _is_batch(axis, self.coupling.batch))
        samples = next(along, None)
        self.per_sample &= samples is not None
        return [
            Projection(
                member=member_of(role),
                dim=dim,
                axis=tap.axis,
                owners=tuple(
                    torch.from_numpy(owners).to(self.device)
                    for owners in owners_along(axes[tap.axis], dim)
                ),
                samples=samples or 0,
            )
            for dim in dims
            if dim in leaves(axes[tap.axis])
        ]

    def _gate(self, branch: Branch) -> Gate:
        along = enumerate(self.coupling.axes[branch.value])
        samples = next((i for i, axis in along if _is_batch(axis, self.coupling.batch)), None)
        self.per_sample &= samples is not None
        return Gate(branch, samples or 0)

    def collect(self, value: Tensor, gradient: Tensor, projections: list[Projection]) -> None:
        """Add what one tap saw to the rows of its members."""
        first = projections[0].samples
        product = self._by_sample(value, gradient, first)
        order = [first, *(axis for axis in range(value.ndim) if axis != first)]
        sums: dict[int, Tensor] = {}
        for projection in projections:
            axis = order.index(projection.axis % value.ndim)
            if axis not in sums:
                sums[axis] = _sum_around(product, axis)
            self._add(_scored(projection), projection.project(sums[axis]))

    def collect_gate(self, added: Tensor, gradient: Tensor, gate: Gate) -> None:
        """Set the row of a branch from what it adds to its stand-in."""
        product = self._by_sample(added, gradient, gate.samples)
        self._add(gate.branch, product.flatten(1).sum(1, keepdim=True))

    def _add(self, key: Scored, found: Tensor) -> None:
        self._rows[key] = self._rows[key] + found if key in self._rows else found

    def _by_sample(self, value: Tensor, gradient: Tensor, first: int) -> Tensor:
        """Multiply, shape [batch, n, ...]; `first` is the axis of samples, which comes first."""
        product = self._product(value, gradient).movedim(first, 0)
        batch = self._n_samples if self.per_sample else 1
        return product.reshape(batch, -1, *product.shape[1:])

    def _product(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Multiply in float32 at least; what is returned holds until the next call.

        The memory of all products is the same: to get fresh pages takes longer than to multiply.
        """
        value, gradient, size = wide(value), wide(gradient), value.numel()
        held = self._products
        if held is None or len(held) < size or held.dtype != value.dtype:
            held = self._products = value.new_empty(size)
        return torch.mul(value, gradient, out=held[:size].view(value.shape))


def _scored(seen: Projection) -> Scored:
    return seen.member, seen.dim


def _sum_around(product: Tensor, axis: int) -> Tensor:
    """Sum over all axes but samples and one; shape [batch, positions].

    Args:
        product: Shape [batch, n, ...], where batch and n together are the first axis of a tensor.
        axis: Which axis of that tensor stays; where it is the first, the batch is 1.
    """
    others = [i for i in range(1, product.ndim) if i != axis + 1]
    return product.sum(others) if others else product


class _Tap(nn.Module):
    """An identity that hands its value and the gradient of it to the rows."""

    def __init__(self, taps: Taps, projections: list[Projection]) -> None:
        super().__init__()
        self._taps = [taps]  # in a list, so that torch does not register the twin inside itself
        self._projections = projections

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return an alias of `x` of its own, broadcast with `others`, with a hook on it.

        Whole numbers, as those of a quantised table, have no gradient.
        """
        if not x.is_floating_point():
            return x
        if others:
            x = torch.broadcast_tensors(x, *others)[0]  # type: ignore[no-untyped-call]
        alias = alias_of(x)
        seen = [alias.detach()]

        def collect(gradient: Tensor) -> None:
            value = seen.pop()  # so that it is freed now, and not at the end of the pass
            self._taps[0].collect(value, gradient, self._projections)

        alias.register_hook(collect)  # type: ignore[no-untyped-call]
        return alias


class _GateTap(nn.Module):
    """An identity that hands what a branch adds, and the gradient of it, to the rows."""

    def __init__(self, taps: Taps, gate: Gate) -> None:
        super().__init__()
        self._taps = [taps]  # in a list, as in `_Tap`
        self._gate = gate

    def forward(self, value: Tensor, stand_in: Tensor) -> Tensor:
        """Return an alias of `value` with a hook on it."""
        alias = alias_of(value)
        seen = [alias.detach(), stand_in.detach()]

        def collect(gradient: Tensor) -> None:
            other, full = wide(seen.pop()), wide(seen.pop())
            self._taps[0].collect_gate(full - other, gradient, self._gate)

        alias.register_hook(collect)  # type: ignore[no-untyped-call]
        return alias


def _is_batch(axis: Expr, batch: Expr | None) -> bool:
    """Say whether samples lie one after the other along an axis."""
    if batch is None or axis == batch:
        return batch is not None
    leading = batch.factors if isinstance(batch, Product) else (batch,)
    return isinstance(axis, Product) and axis.factors[: len(leading)] == leading
