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
from torch import fx, nn

from obc_onnx.axes import Dim, Product, leaves
from obc_onnx.errors import DataError
from obc_onnx.saliency.owners import owners_along
from obc_onnx.tensors import module_name

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes import Expr
    from obc_onnx.coupling import Coupling
    from obc_onnx.ops.context import Role, Tap

Member = tuple[str, int]
"""An operand and its axis: all uses of one weight share a member, so they add up."""


@dataclass(frozen=True)
class _Projection:
    """Sums positions along an axis into units of one dim."""

    member: Member
    dim: Dim
    axis: int
    owners: tuple[Tensor, ...]


class Taps:
    """Taps on every member of every group of a twin.

    Args:
        twin: Of the graph, or of its masked form; it is changed in place, and its weights are
            frozen.
        coupling: Of the graph.
        device: Where the twin runs.
    """

    def __init__(
        self, twin: fx.GraphModule, coupling: Coupling, device: torch.device | str = "cpu"
    ) -> None:
        self.twin = twin.to(device).eval().requires_grad_(False)  # noqa: FBT003
        self.coupling = coupling
        self.device = device
        self.per_sample = True
        self._n_samples = 1
        self._rows: dict[tuple[Member, Dim], Tensor] = {}
        self._place()

    def rows(self, inputs: list[Tensor], loss: Any) -> dict[tuple[Member, Dim], Tensor]:
        """Run forward and backward once.

        Args:
            inputs: The graph's inputs in order.
            loss: A function from the tuple of outputs to a scalar, the sum over samples.
        Returns:
            For each member and dim, the inner product of every unit's weights with the loss
            gradient, shape [batch, n_units]; [1, n_units] where `per_sample` is False.
        Raises:
            DataError: The loss is not finite.
        """
        self._rows = {}
        self._n_samples = len(inputs[0])
        value = loss(self.twin(*inputs))
        if not torch.isfinite(value):
            raise DataError(
                f"the loss of the scoring pass is {value.item()}, which is not finite: some sample "
                f"drives the model out of its range"
            )
        if value.requires_grad:  # nothing does where there is no group
            value.backward()
        rows, self._rows = self._rows, {}
        return rows

    def _place(self) -> None:
        wanted: dict[tuple[str, str, int], list[_Projection]] = {}
        dims = {group.dim for group in self.coupling.groups}
        for role in self.coupling.roles:
            operand = role.node.inputs[role.slot]
            if role.tap is not None and not dims.isdisjoint(
                leaves(self.coupling.axes[operand][role.axis])
            ):
                place = (role.node.key, role.tap.at, role.tap.slot)
                wanted.setdefault(place, []).extend(self._projections(role, role.tap, dims))
        nodes = {node.meta["onnx"]: node for node in self.twin.graph.nodes if "onnx" in node.meta}
        for i, ((key, at, slot), projections) in enumerate(wanted.items()):
            name = module_name(f"tap {i}")
            self.twin.add_submodule(name, _Tap(self, projections))
            node = nodes.get((key, 0), nodes[key, None])
            _insert(self.twin.graph, nodes[key, None], node, at, slot, name)
        self.twin.recompile()

    def _projections(self, role: Role, tap: Tap, dims: set[Dim]) -> list[_Projection]:
        node = role.node
        name = node.inputs[tap.slot] if tap.at == "input" else node.outputs[0]
        axes = self.coupling.axes[name]
        self.per_sample &= _is_batch(axes[0], self.coupling.batch)
        operand = node.inputs[role.slot]
        own = dict.fromkeys(leaves(self.coupling.axes[operand][role.axis]))
        return [
            _Projection(
                member=(operand, role.axis),
                dim=dim,
                axis=tap.axis,
                owners=tuple(
                    torch.from_numpy(owners).to(self.device)
                    for owners in owners_along(axes[tap.axis], dim)
                ),
            )
            for dim in own
            if dim in dims
        ]

    def collect(self, value: Tensor, gradient: Tensor, projections: list[_Projection]) -> None:
        """Add what one tap saw to the rows of its members."""
        kind = torch.promote_types(value.dtype, torch.float32)
        product = value.to(kind) * gradient.to(kind)
        batch = self._n_samples if self.per_sample else 1
        for projection in projections:
            flat = product.movedim(projection.axis, -1)
            along = flat.reshape(batch, -1, flat.shape[-1]).sum(1)
            units = along.new_zeros(batch, projection.dim.size + 1)
            for owners in projection.owners:  # -1, the last column, collects what has no owner
                units.index_add_(1, owners % units.shape[1], along)
            key = (projection.member, projection.dim)
            found = units[:, :-1]
            self._rows[key] = self._rows[key] + found if key in self._rows else found


class _Tap(nn.Module):
    """An identity that hands its value and the gradient of it to the rows."""

    def __init__(self, taps: Taps, projections: list[_Projection]) -> None:
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
        alias = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        value = alias.detach()
        alias.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._taps[0].collect(value, gradient, self._projections)
        )
        return alias


def _insert(graph: fx.Graph, call: fx.Node, output: fx.Node, at: str, slot: int, name: str) -> None:
    """Put a tap module into the twin's graph."""
    if at == "output":
        with graph.inserting_after(output):
            tap = graph.call_module(name, (output,))
        output.replace_all_uses_with(tap, delete_user_cb=lambda user: user is not tap)
        return
    place = call.meta["slots"].index(slot)
    operand = call.args[place]
    others = [a for i, a in enumerate(call.args) if i != place and isinstance(a, fx.Node)]
    with graph.inserting_before(call):
        tap = graph.call_module(name, (operand, *(others if at == "parameter" else ())))
    call.update_arg(place, tap)


def _is_batch(axis: Expr, batch: Expr | None) -> bool:
    """Say whether samples lie one after the other along an axis."""
    if batch is None or axis == batch:
        return batch is not None
    leading = batch.factors if isinstance(batch, Product) else (batch,)
    return isinstance(axis, Product) and axis.factors[: len(leading)] == leading
