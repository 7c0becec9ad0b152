"""Equivalent pruning as a re-parametrisation of weights.

The paper puts a linear compressor C behind every producer and a decompressor D in front of every
consumer, trains all of it and merges. The same function with the same gradients is had in weight
space: W' = C W D and b' = C b, computed before a pass, or once for several of a step, so the
network runs at its pruned width while every original weight still learns.

C acts on written axes and D on read axes of dense weights; D has no bias, since zero padding would
not pass through it. Depthwise weights, norms and other parameters are sliced. The members of a
residual stream share the kept set and not the matrices.

What learns follows from the roles: weights of contractions, norms, biases, and constants along
channels that some weight writes. So the scaling of an input and anchors stay as they are.

Source: Chen et al., Optimal Brain Connection, arXiv 2508.05521, equivalent pruning.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from obc_onnx.axes.expressions import Dim, leaves, mask
from obc_onnx.equivalent.maps import AxisMap, Mix, make_map
from obc_onnx.errors import InvariantError
from obc_onnx.graph.node import is_float
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.tensors import initializer_name, parameter_name, to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.context import Role
    from obc_onnx.surgery.cut import Cut
    from obc_onnx.twin.module import TorchTwin


@dataclass(frozen=True)
class Start:
    """Where training starts, other than from the cut network.

    Attributes:
        matrices: For an axis of a weight, the matrices of its dims, each of shape [kept, full].
        weights: What stands for initializers of the original, at their full size.
    """

    matrices: Mapping[tuple[str, int], Mapping[Dim, Tensor]]
    weights: Mapping[str, NDArray[Any]]


class EquivalentTwin(nn.Module):
    """The twin of a pruned graph whose dense weights are made from the original ones.

    Args:
        cut: The pruned graph, and the original.
        recombine: Whether there are compressors and decompressors; otherwise all is sliced.
        start: Where they start from, and what weights they act on; None is the selection of what
            is kept. The original's weights then have those of `pruned` in the place of what is
            kept, so that training starts from what repair has made of them.
    """

    def __init__(
        self,
        cut: Cut,
        *,
        recombine: bool = True,
        start: Start | None = None,
    ) -> None:
        super().__init__()
        coupling, keep = cut.coupling, cut.keep
        parametrised = find_parametrised(coupling, keep) if recombine else {}
        self._start = start or Start({}, _embedded(cut, parametrised))
        self.twin: TorchTwin = derived_twin(cut.pruned, coupling)
        self.full = nn.ParameterList()
        self.maps = nn.ModuleList()
        self._targets: list[tuple[str, int, tuple[tuple[int, int], ...]]] = []
        self._held: dict[str, Tensor] | None = None
        for name, axes in parametrised.items():
            self._add(coupling, keep, name, axes)
        learned = _find_learned(coupling)
        self._contracted = _find_contracted(coupling)
        copies = {target for target, _, _ in self._targets}
        self._place(coupling, keep, copies)
        for key, parameter in self.twin.named_parameters():
            parameter.requires_grad_(key not in copies and initializer_name(key) in learned)

    def _own(self) -> dict[str, Tensor]:
        """List what the twin holds by name; of an axis cut to one unit a bias is a buffer."""
        return {**dict(self.twin.named_parameters()), **dict(self.twin.named_buffers())}

    def _add(
        self, coupling: Coupling, keep: Keep, name: str, mixable: dict[int, frozenset[Dim]]
    ) -> None:
        """Re-parametrise one weight, and the biases that belong to its written axes."""
        weight = self._full(coupling, name)
        placed = []
        exprs = coupling.axes[name]
        for axis in _cheapest_order(exprs, keep, mixable):
            expr, dims = exprs[axis], mixable.get(axis, frozenset())
            biases = _biases(coupling, name, axis) if dims else []
            shared: dict[Dim, Mix] | None = {} if biases else None
            starts = self._start.matrices.get((name, axis))
            made = make_map(expr, keep, dims, weight.dtype, shared, starts)
            placed.append((axis, self._keep_map(made)))
            for bias in biases:
                tensor = self._full(coupling, bias)
                made = make_map(coupling.axes[bias][-1], keep, dims, tensor.dtype, shared)
                self._register(bias, tensor, [(tensor.ndim - 1, self._keep_map(made))])
        self._register(name, weight, placed)

    def _place(self, coupling: Coupling, keep: Keep, copies: set[str]) -> None:
        """Put what the start gives for weights that are not made again into the twin itself."""
        own = self._own()
        for name, array in self._start.weights.items():
            key = parameter_name(name)
            if key not in copies:
                own[key].data.copy_(to_tensor(array[_kept(coupling, keep, name)]))

    def _full(self, coupling: Coupling, name: str) -> Tensor:
        return to_tensor(self._start.weights.get(name, coupling.graph.initializers[name]))

    def _keep_map(self, made: AxisMap) -> int:
        self.maps.append(made)
        return len(self.maps) - 1

    def _register(self, name: str, tensor: Tensor, placed: list[tuple[int, int]]) -> None:
        self.full.append(nn.Parameter(tensor))
        self._targets.append((parameter_name(name), len(self.full) - 1, tuple(placed)))

    def effective_weights(self) -> dict[str, Tensor]:
        """Compute W' = C W D for every re-parametrised weight, by parameter name of the twin.

        Never in half precision: products of products would be rounded once more each.
        """
        weights = {}
        for target, index, placed in self._targets:
            value: Tensor = self.full[index]
            with torch.autocast(value.device.type, enabled=False):
                for axis, i in placed:
                    value = self.maps[i](value, axis)
            weights[target] = value
        return weights

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the pruned network with the weights that are held, or of this moment."""
        weights = self.effective_weights() if self._held is None else self._held
        outputs: tuple[Tensor, ...] = functional_call(self.twin, weights, inputs)
        return outputs

    @contextmanager
    def hold_weights(self) -> Iterator[None]:
        """Compute W' = C W D once for all passes in the block.

        They add up gradients of W', which reach C, W and D at the end of the block.
        """
        made = self.effective_weights()
        held = {t: w.detach().requires_grad_(w.requires_grad) for t, w in made.items()}
        self._held = held
        try:
            yield
        finally:
            self._held = None
        reached = {t: leaf.grad for t, leaf in held.items() if leaf.grad is not None}
        if reached:
            torch.autograd.backward([made[t] for t in reached], list(reached.values()))

    def matrices(self) -> Iterator[nn.Parameter]:
        """Yield compressors and decompressors; they have a learning rate of their own."""
        return (module.matrix for module in self.maps.modules() if isinstance(module, Mix))

    def weights(self) -> Iterator[nn.Parameter]:
        """Yield every other parameter that learns."""
        matrices = {id(matrix) for matrix in self.matrices()}
        return (p for p in self.parameters() if p.requires_grad and id(p) not in matrices)

    def decayed(self) -> Iterator[nn.Parameter]:
        """Yield those of the weights that shrink: operands of contractions, without biases."""
        own = {t: self.full[i] for t, i, _ in self._targets}
        for key, parameter in {**dict(self.twin.named_parameters()), **own}.items():
            if parameter.requires_grad and initializer_name(key) in self._contracted:
                yield parameter

    def finite(self) -> dict[str, bool]:
        """Say of every initializer of the twin whether all its numbers are finite."""
        values = {**self._own(), **self.effective_weights()}
        return {initializer_name(key): bool(v.isfinite().all()) for key, v in values.items()}

    def fold(self, pruned: Graph) -> Graph:
        """Write the weights of the trained network back into its graph.

        Args:
            pruned: The graph that this was made from.
        Returns:
            A plain pruned graph that computes the same in evaluation mode.
        """
        state = self._own()
        for target, value in self.effective_weights().items():
            if state[target].shape != value.shape:
                raise InvariantError(f"folding '{target}' gives {tuple(value.shape)}")
            state[target].data.copy_(value.detach())
        return self.twin.write_to(pruned)


def _kept(coupling: Coupling, keep: Keep, name: str) -> tuple[NDArray[np.int64], ...]:
    """Return the index of what stays of an initializer."""
    return np.ix_(*(np.flatnonzero(mask(expr, keep)) for expr in coupling.axes[name]))


def _embedded(
    cut: Cut, parametrised: Mapping[str, Mapping[int, frozenset[Dim]]]
) -> dict[str, NDArray[Any]]:
    """Put re-parametrised weights of a cut graph into the original's, where they differ."""
    coupling, found = cut.coupling, {}
    biases = {
        bias
        for name, axes in parametrised.items()
        for axis in axes
        for bias in _biases(coupling, name, axis)
    }
    for name in [*parametrised, *sorted(biases)]:
        array, own = coupling.graph.initializers[name], cut.pruned.initializers[name]
        kept = _kept(coupling, cut.keep, name)
        if array[kept].tobytes() != own.tobytes():
            found[name] = array.copy()
            found[name][kept] = own
    return found


def _cheapest_order(
    exprs: Sequence[Expr], keep: Keep, mixable: Mapping[int, frozenset[Dim]]
) -> list[int]:
    """Order the axes of a weight so that mapping them takes the fewest multiplications.

    With n units of which k stay, mapping axis a before b multiplies k_a n_a n_b + k_a n_b k_b
    times; over k_a k_b n_a n_b that is 1 / k_b + 1 / n_a, so 1 / n - 1 / k sorts the axes.
    Selecting multiplies nothing, and goes first.
    """

    def key(axis: int) -> float:
        if axis not in mixable:
            return -math.inf
        kept = mask(exprs[axis], keep)
        return 1 / kept.size - 1 / int(kept.sum())

    return sorted(range(len(exprs)), key=key)


def _find_learned(coupling: Coupling) -> set[str]:
    """Find the initializers that learn; one that is an output, or also serves otherwise, does not.

    Position by position, a constant learns along channels that some weight writes only: anything
    else, such as the mean of an input or the place of a cell, is a fact and not a weight.
    """
    written = {
        dim
        for role in coupling.roles
        if role.kind == "writes"
        for dim in leaves(coupling.axes[role.node.inputs[role.slot]][role.axis])
    }
    learned: set[str] = set()
    uses: dict[tuple[str, str], bool] = {}
    for role in coupling.roles:
        operand = role.node.inputs[role.slot]
        use = (role.node.key, operand)
        at_output = role.tap is not None and role.tap.at == "output"
        if role.kind != "scales" or role.bias is not None or at_output:
            slots = (role.slot,) if role.bias is None else (role.slot, role.bias)
            uses |= {(role.node.key, role.node.inputs[slot]): True for slot in slots}
        else:
            along = leaves(coupling.axes[operand][role.axis])
            uses[use] = uses.get(use, False) or not written.isdisjoint(along)
    for (_, operand), learns in uses.items():
        if learns:
            learned.update(coupling.sources(operand))
    stays = [port.name for port in coupling.graph.outputs]
    stays += [operand for (_, operand), learns in uses.items() if not learns]
    return learned.difference(*(coupling.sources(name) for name in stays))


def _find_contracted(coupling: Coupling) -> set[str]:
    found = (
        coupling.sources(role.node.inputs[role.slot])
        for role in coupling.roles
        if role.kind != "scales"
    )
    return set().union(*found)


def find_parametrised(coupling: Coupling, keep: Keep) -> dict[str, dict[int, frozenset[Dim]]]:
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
        return role.tap is not None  # where something else is added, no output shows the product
    bias = role.node.inputs[role.bias]
    if bias not in coupling.graph.initializers or any(
        axis.size > 1 for axis in coupling.axes[bias][:-1]
    ):
        return False
    dims = list(leaves(coupling.axes[name][role.axis]))
    followers = {
        (other.node.key, other.bias)
        for other in coupling.roles
        if other.kind == "writes" and other.axis == role.axis
        if other.node.inputs[other.slot] == name
    }
    users = {(node.key, slot) for node, slot in coupling.graph.consumers[bias]}
    return len(set(dims)) == len(dims) and users <= followers


def _biases(coupling: Coupling, name: str, axis: int) -> list[str]:
    """List the biases that go with a written axis of a weight, each once."""
    return list(
        dict.fromkeys(
            role.node.inputs[role.bias]
            for role in coupling.roles
            if role.kind == "writes" and role.bias is not None
            if role.node.inputs[role.slot] == name and role.axis == axis
        )
    )
