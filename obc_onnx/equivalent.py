"""Equivalent pruning as a re-parametrisation of weights.

The paper puts a linear compressor C behind every producer and a decompressor D in front of every
consumer, trains all of it and merges. The same function with the same gradients is had in weight
space: W' = C W D and b' = C b, computed once per step, so the network runs at its pruned width
while every original weight still learns.

C acts on written axes and D on read axes of dense weights; D has no bias, since zero padding would
not pass through it. Depthwise weights, norms and other parameters are sliced. The members of a
residual stream share the kept set and not the matrices.

Source: Chen et al., Optimal Brain Connection, arXiv 2508.05521, equivalent pruning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.func import functional_call

from obc_onnx.axes import Dim, leaves
from obc_onnx.axis_maps import AxisMap, Mix, make_map
from obc_onnx.errors import InvariantError
from obc_onnx.graph import is_float
from obc_onnx.twin import build_twin, parameter_name, to_tensor, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obc_onnx.coupling import Coupling, Keep
    from obc_onnx.graph import Graph
    from obc_onnx.ops.context import Role


class EquivalentTwin(nn.Module):
    """The twin of a pruned graph whose dense weights are made from the original ones.

    Args:
        coupling: Of the original graph.
        keep: The units that stay.
        pruned: The original graph without the other units.
    """

    def __init__(self, coupling: Coupling, keep: Keep, pruned: Graph) -> None:
        super().__init__()
        self.twin: fx.GraphModule = build_twin(pruned, coupling.shapes, coupling.rules)
        self.full = nn.ParameterList()
        self.maps = nn.ModuleList()
        self._targets: list[tuple[str, int, tuple[tuple[int, int], ...]]] = []
        parametrised = _find_parametrised(coupling, keep)
        for name, axes in parametrised.items():
            self._add(coupling, keep, name, axes)
        own = dict(self.twin.named_parameters())
        for target, _, _ in self._targets:
            own[target].requires_grad_(False)  # noqa: FBT003 - torch names it so

    def _add(
        self, coupling: Coupling, keep: Keep, name: str, mixable: dict[int, frozenset[Dim]]
    ) -> None:
        """Re-parametrise one weight, and the biases that belong to its written axis."""
        array = coupling.graph.initializers[name]
        weight = to_tensor(array)
        written = _written_role(coupling, name)
        biases = _biases(coupling, name)
        shared: dict[Dim, Any] = {}
        placed = []
        for axis, expr in enumerate(coupling.axes[name]):
            reuse = shared if biases and written is not None and axis == written.axis else None
            dims = mixable.get(axis, frozenset())
            placed.append((axis, self._keep_map(make_map(expr, keep, dims, weight.dtype, reuse))))
        self._register(name, weight, placed)
        if written is None or written.axis not in mixable:
            return
        for bias in biases:
            expr = coupling.axes[bias][-1]
            made = make_map(expr, keep, mixable[written.axis], weight.dtype, shared)
            last = len(coupling.axes[bias]) - 1
            tensor = to_tensor(coupling.graph.initializers[bias])
            self._register(bias, tensor, [(last, self._keep_map(made))])

    def _keep_map(self, made: AxisMap) -> int:
        self.maps.append(made)
        return len(self.maps) - 1

    def _register(self, name: str, tensor: Tensor, placed: list[tuple[int, int]]) -> None:
        self.full.append(nn.Parameter(tensor))
        self._targets.append((parameter_name(name), len(self.full) - 1, tuple(placed)))

    def effective_weights(self) -> dict[str, Tensor]:
        """Compute W' = C W D for every re-parametrised weight, by parameter name of the twin."""
        weights = {}
        for target, index, placed in self._targets:
            value: Tensor = self.full[index]
            for axis, i in placed:
                value = self.maps[i](value, axis)
            weights[target] = value
        return weights

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the pruned network with the weights of this step."""
        outputs: tuple[Tensor, ...] = functional_call(self.twin, self.effective_weights(), inputs)
        return outputs

    def matrices(self) -> Iterator[nn.Parameter]:
        """Yield compressors and decompressors; they have a learning rate of their own."""
        return (module.matrix for module in self.maps.modules() if isinstance(module, Mix))

    def weights(self) -> Iterator[nn.Parameter]:
        """Yield every other parameter that learns."""
        matrices = {id(matrix) for matrix in self.matrices()}
        return (p for p in self.parameters() if p.requires_grad and id(p) not in matrices)

    def fold(self, pruned: Graph) -> Graph:
        """Write the weights of the trained network back into its graph.

        Args:
            pruned: The graph that this was made from.
        Returns:
            A plain pruned graph that computes the same in evaluation mode.
        """
        state = dict(self.twin.named_parameters())
        for target, value in self.effective_weights().items():
            if state[target].shape != value.shape:
                raise InvariantError(f"folding '{target}' gives {tuple(value.shape)}")
            state[target].data.copy_(value.detach())
        return pruned.edit(weights_of(self.twin, pruned))


def _find_parametrised(coupling: Coupling, keep: Keep) -> dict[str, dict[int, frozenset[Dim]]]:
    """Find the weights that get matrices: for each axis, the dims that are recombined.

    Every use of an initializer has to allow it: a weight that is also used otherwise, or whose bias
    serves another weight too, is sliced.
    """
    roles: dict[str, list[Role]] = {}
    for role in coupling.roles:
        roles.setdefault(role.node.inputs[role.slot], []).append(role)
    found = {}
    for name, array in coupling.graph.initializers.items():
        if name not in roles or not is_float(array.dtype) or array.size == 1:
            continue
        axes = {}
        for axis, expr in enumerate(coupling.axes[name]):
            allowed = _allowed(coupling, roles[name], axis) & set(keep)
            if allowed & set(leaves(expr)):
                axes[axis] = frozenset(allowed)
        if axes:
            found[name] = axes
    return found


def _allowed(coupling: Coupling, roles: list[Role], axis: int) -> set[Dim]:
    """Return the dims of an axis that every use of the operand lets recombine."""
    name = roles[0].node.inputs[roles[0].slot]
    own = [role for role in roles if role.axis == axis and role.kind != "scales"]
    users = {(node.key, slot) for node, slot in coupling.graph.consumers[name]}
    if {(role.node.key, role.slot) for role in own} != users:
        return set()
    if any(role.kind == "writes" and not _bias_follows(coupling, name, role) for role in own):
        return set()
    sets = [{dim for expr in role.mixes for dim in leaves(expr)} for role in own]
    return set.intersection(*sets)


def _bias_follows(coupling: Coupling, name: str, role: Role) -> bool:
    """Say whether the bias of a writing weight can be compressed with it."""
    if role.bias is None:
        return not role.node.has_input(_BIAS_SLOT)
    bias = role.node.inputs[role.bias]
    if bias not in coupling.graph.initializers or any(
        axis.size > 1 for axis in coupling.axes[bias][:-1]
    ):
        return False
    repeated = len(set(leaves(coupling.axes[name][role.axis]))) < len(
        list(leaves(coupling.axes[name][role.axis]))
    )
    return not repeated and all(
        slot == role.bias and node.inputs[role.slot] == name
        for node, slot in coupling.graph.consumers[bias]
    )


_BIAS_SLOT = 2
"""Where every operator with a writing weight takes its bias."""


def _written_role(coupling: Coupling, name: str) -> Role | None:
    return next(
        (
            role
            for role in coupling.roles
            if role.kind == "writes" and role.node.inputs[role.slot] == name
        ),
        None,
    )


def _biases(coupling: Coupling, name: str) -> list[str]:
    """List the biases that go with a weight, each once."""
    return list(
        dict.fromkeys(
            role.node.inputs[role.bias]
            for role in coupling.roles
            if role.kind == "writes"
            and role.bias is not None
            and role.node.inputs[role.slot] == name
        )
    )
