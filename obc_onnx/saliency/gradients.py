"""Criteria made of the gradients of single weights, at the cost of training steps or more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.members import along_axis, bias_of, by_unit, member_of
from obc_onnx.saliency.criterion import OF_LOSS, OF_MEMBERS, OF_SAMPLES
from obc_onnx.saliency.losses import LossCriterion
from obc_onnx.saliency.objective import check_loss, make_objective
from obc_onnx.saliency.reduction import reduced, roles_of
from obc_onnx.saliency.sweep import Sweep, masked_twin
from obc_onnx.twin.probes import alias_of, calls_of, has_place, insert
from obc_onnx.twin.processes import add_up

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Keep
    from obc_onnx.saliency.criterion import Saliency, Scene
    from obc_onnx.twin.probes import Place


class Taylor(LossCriterion):
    """Sum of |w . mean gradient| over all weights of a unit, biases and norms included.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771,
    equation 3 without the square, weight by weight, as peers compute it.
    """

    name = "taylor"
    needs_data = True
    uses = OF_SAMPLES | OF_LOSS | OF_MEMBERS
    averages = True

    def score_by_loss(self, scene: Scene, keep: Keep) -> Saliency:
        """Sum the gradient over all samples first."""
        gradients = Gradients(scene, keep)
        totals = gradients.sums(squared=False)
        n_samples = len(scene.data())
        return gradients.reduced({name: sum_.abs() / n_samples for name, sum_ in totals.items()})


class Fisher(LossCriterion):
    """Half the sum of w^2 times its squared gradients: a diagonal Hessian, as Fisher has it.

    Rows are those of samples or of batches, all of them; those of samples take a pass each. A model
    of static batch has one row for each of its own batches.

    Source: LeCun et al., Optimal Brain Damage, 1989, with the empirical Fisher matrix in place of
    the Hessian, as in Theis et al., Faster gaze prediction with dense networks, arXiv 1801.05787.
    """

    name = "fisher"
    needs_data = True
    uses = OF_SAMPLES | OF_LOSS | OF_MEMBERS | {"rows"}

    def score_by_loss(self, scene: Scene, keep: Keep) -> Saliency:
        """Sum the squared gradients of all rows."""
        gradients = Gradients(scene, keep)
        totals = gradients.sums(squared=True)
        return gradients.reduced({name: total / 2 for name, total in totals.items()})


class Gradients:
    """Operands that play a role times their gradients, by element, as the nodes see them."""

    def __init__(self, scene: Scene, keep: Keep) -> None:
        self.scene, self._keep = scene, keep
        self._graph, self._twin = masked_twin(scene, keep)
        self._found: dict[str, Tensor] = {}
        probes = self._probes()
        self._operands = sorted({probe.operand for probe in probes.values()})
        insert(self._twin, probes)

    def sums(self, *, squared: bool) -> dict[str, Tensor]:
        """Return for each operand the sum of the products of all rows, or of their squares."""
        objective = make_objective(self.scene)

        def run(inputs: list[Tensor], which: slice) -> dict[str, Tensor]:
            self._found = {}
            loss = check_loss(objective(self._twin(*inputs), which))
            if loss.requires_grad:  # nothing does where there is no group
                loss.backward()  # type: ignore[no-untyped-call]
            return self._found

        sweep = Sweep(self.scene, self._graph, run, one_by_one=squared)
        totals = self._zeros()
        for results, n_samples in sweep.rows():
            for name in totals:
                for row in _rows(results, name, n_samples if sweep.by_batch and squared else 0):
                    totals[name] += row.square() if squared else row
        return add_up(totals)

    def reduced(self, products: dict[str, Tensor]) -> Saliency:
        """Sum numbers of single weights into units, with biases, and bring members together."""
        coupling, scoring = self.scene.coupling, self.scene.scoring
        arrays = {name: product.cpu().numpy() for name, product in products.items()}
        vectors: dict[tuple[Member, Dim], NDArray[np.float64]] = {}
        for group in coupling.groups:
            places: dict[Member, dict[Member, None]] = {}
            for role in roles_of(group, scoring):
                own = places.setdefault(member_of(role), {member_of(role): None})
                bias = bias_of(coupling, role)
                if bias is not None:
                    own[bias] = None
            for member, along in places.items():
                found = [
                    by_unit(coupling.axes[name][axis], group.dim, along_axis(arrays[name], axis))
                    for name, axis in along
                    if name in arrays and group.dim in leaves(coupling.axes[name][axis])
                ]
                if found:
                    vectors[member, group.dim] = np.sum(found, axis=0)
        return reduced(coupling, self._keep, scoring, vectors)

    def _zeros(self) -> dict[str, Tensor]:
        """Return zeros for each operand, which stand where a process had no samples."""
        shapes, device = self.scene.coupling.shapes, self.scene.device
        return {
            name: torch.zeros(shapes[name], dtype=torch.float64, device=device)
            for name in self._operands
        }

    def see(self, operand: str, value: Tensor, gradient: Tensor) -> None:
        """Take one use of an operand; several add up, and some of them may be masked."""
        own = value.double() * gradient.double()
        self._found[operand] = self._found[operand] + own if operand in self._found else own

    def _probes(self) -> dict[Place, _Watch]:
        coupling, scoring = self.scene.coupling, self.scene.scoring
        probes: dict[Place, _Watch] = {}
        calls = calls_of(self._twin)
        for group in coupling.groups:
            for role in roles_of(group, scoring):
                for slot in (role.slot,) if role.bias is None else (role.slot, role.bias):
                    operand = role.node.inputs[slot]
                    constant = coupling.values[operand].constant
                    if constant and has_place(calls[role.node.key], slot):
                        probes[role.node.key, "input", slot] = _Watch(self, operand)
        return probes


class _Watch(nn.Module):
    """An identity that hands the gradient of an operand on."""

    def __init__(self, gradients: Gradients, operand: str) -> None:
        super().__init__()
        self._gradients, self.operand = [gradients], operand  # in a list: no submodule of itself

    def forward(self, x: Tensor) -> Tensor:
        """Return an alias of `x` of its own, with a hook on it."""
        if not x.is_floating_point():
            return x
        alias = alias_of(x)
        value = alias.detach()
        alias.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._gradients[0].see(self.operand, value, gradient)
        )
        return alias


def _rows(results: list[dict[str, Tensor]], name: str, n_samples: int) -> list[Tensor]:
    """Return the products of one operand, or that of the mean loss over a batch."""
    found = [result[name] for result in results if name in result]
    return [torch.stack(found).sum(0) / n_samples] if n_samples and found else found
