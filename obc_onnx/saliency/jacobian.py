"""The Jacobian criterion, at the cost of one backward pass without weight gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from obc_onnx.coupling.members import member_of
from obc_onnx.saliency.criterion import COUPLED, OF_LOSS, OF_MEMBERS, OF_SAMPLES
from obc_onnx.saliency.losses import LossCriterion
from obc_onnx.saliency.objective import make_objective
from obc_onnx.saliency.reduction import reduced, reduced_gates
from obc_onnx.saliency.sweep import Sweep, masked_twin
from obc_onnx.saliency.taps import Taps
from obc_onnx.twin.processes import add_up

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.branches.find import Branch
    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.saliency.criterion import Saliency, Scene
    from obc_onnx.saliency.options import Scoring

    Scored = tuple[Member, Dim] | Branch
    Rows = dict[Scored, Tensor]


class Jacobian(LossCriterion):
    """S(unit) = sum over members m, sum over rows n, of (w_m . dL_n/dw_m)^2.

    The squared first-order change of the loss when the unit's weights vanish; interactions between
    the weights of one member are kept. A row is that of one sample, or of the mean over a batch.

    S(branch) is the same with the gradient of one factor g = 1 of what the branch adds in the place
    of w_m . dL_n/dw_m, once for each member of a usual unit. For where all positions of a layer go
    with the scale of one weight, each of the weights in a branch has that product.

    Source: Chen et al., Optimal Brain Connection, arXiv 2508.05521, equation of the criterion; the
    paper's rows are those of batches. With the reduction "coupled" the members of a group are added
    before they are squared, as in Liu et al., Group Fisher Pruning, arXiv 2108.00708.
    """

    name = "jacobian"
    needs_data = True
    uses = OF_SAMPLES | OF_LOSS | OF_MEMBERS | {"rows", COUPLED}
    scores_branches = True

    def score_by_loss(self, scene: Scene, keep: Keep) -> Saliency:
        """Score with removed units masked, which gives the rows of the pruned network.

        Where a norm takes statistics over a group, masking is not removing, and rows differ.
        """
        totals = {key: total.cpu().numpy() for key, total in accumulate(scene, keep).items()}
        vectors = {key: own for key, own in totals.items() if isinstance(key, tuple)}
        found = reduced(scene.coupling, keep, scene.scoring, vectors)
        gates = {own.name: totals[own] for own in scene.branches}
        return found | reduced_gates(scene.coupling, scene.scoring, gates)


class GroupTaylor(LossCriterion):
    """S(unit) = sum over batches n of (w_g . dL_n/dw_g)^2, all weights of the unit in one product.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771,
    equation 8 with the set of all weights that go together; the gradients are those of batches.
    """

    name = "taylor-group"
    needs_data = True
    uses = OF_SAMPLES | OF_LOSS | {"normalizer", "depthwise"}
    averages = True
    scores_branches = True

    def score_by_loss(self, scene: Scene, keep: Keep) -> Saliency:
        """Score as the Jacobian criterion does with coupled rows of batches."""
        scoring = replace(scene.scoring, rows="batch", reduction="coupled")
        return Jacobian().score_by_loss(replace(scene, scoring=scoring), keep)


def accumulate(scene: Scene, keep: Keep) -> Rows:
    """Sum squared rows over all samples, and over all processes.

    Returns:
        For each member and dim, shape [n_units], float64; for each branch shape [1]. With coupled
        rows one of the members of each group holds the sum of all.
    Raises:
        DataError: There are no samples, or the loss is not finite.
        RequestError: No output can be differentiated.
    """
    coupling, scoring = scene.coupling, scene.scoring
    objective = make_objective(scene)
    graph, twin = masked_twin(scene, keep)
    taps = Taps(twin, coupling, scene.device, scoring, scene.branches)
    sweep = Sweep(
        scene,
        graph,
        lambda inputs, which: taps.rows(inputs, lambda outputs: objective(outputs, which)),
        one_by_one=not taps.per_sample,
    )
    targets = _targets(coupling, taps.sizes, scoring)
    totals = {
        targets[key]: torch.zeros(size, dtype=torch.float64, device=scene.device)
        for key, size in taps.sizes.items()
    }
    for results, n_samples in sweep.rows():
        found = [_brought_together(rows, targets) for rows in results]
        for target in totals:
            rows = [own[target] for own in found if target in own]
            if sweep.by_batch and rows:
                rows = [sum((row.sum(0) for row in rows), torch.zeros(())) / n_samples]
            for row in rows:
                totals[target] += row.square().sum(0) if row.ndim > 1 else row.square()
    return add_up(totals)


def _targets(
    coupling: Coupling, sizes: dict[Scored, int], scoring: Scoring
) -> dict[Scored, Scored]:
    """Say for each member which one its rows are added to before they are squared."""
    if scoring.reduction != "coupled":
        return {key: key for key in sizes}
    firsts: dict[Scored, Scored] = {key: key for key in sizes if not isinstance(key, tuple)}
    for group in coupling.groups:
        members = [(member_of(role), group.dim) for role in group.members]
        own = [key for key in dict.fromkeys(members) if key in sizes]
        firsts |= dict.fromkeys(own, own[0]) if own else {}
    return firsts


def _brought_together(rows: Rows, targets: dict[Scored, Scored]) -> Rows:
    found: Rows = {}
    for key, row in rows.items():
        target = targets[key]
        found[target] = found[target] + row.double() if target in found else row.double()
    return found
