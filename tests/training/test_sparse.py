"""Sparse learning: the pull on weak units by hand, and what it does to a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import analyse
from nets import NETS, draw_inputs, draw_samples, model_of, sine_loss

from obc_onnx.axes.expressions import units_of
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.errors import RequestError
from obc_onnx.planning.budget import Budget
from obc_onnx.run.api import compress, verify
from obc_onnx.surgery.cut import Cut
from obc_onnx.training.options import Training, TrainingOptions
from obc_onnx.training.sparse import GroupPenalty
from obc_onnx.training.stage import sparsify

if TYPE_CHECKING:
    import torch

    from obc_onnx.graph.model import Graph
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.training.course import Epoch


class Whole:
    """A network with a gradient on every weight."""

    def __init__(self, net: str, **options: Any) -> None:
        self.graph, _, self.coupling = analyse(model_of(net))
        self.student = EquivalentTwin(Cut(self.coupling, {}, self.graph), recombine=False).eval()
        training = Training(TrainingOptions(epochs=1, **options), 0, "cpu")
        self.penalty = GroupPenalty(self.student, self.coupling, training)
        self.own = {k: p for k, p in self.student.twin.named_parameters() if p.requires_grad}
        sine_loss(self.student(*draw_inputs(self.graph, 4))).backward()
        self.before = {key: p.grad.clone() for key, p in self.own.items()}

    def pulls(self) -> dict[str, torch.Tensor]:
        self.penalty.add_gradients()
        return {key: p.grad - self.before[key] for key, p in self.own.items()}


def gamma(saliency: np.ndarray) -> np.ndarray:
    return 16 ** ((saliency.max() - saliency) / (saliency.max() - saliency.min()))


def test_a_chain_is_pulled_as_the_source_says() -> None:
    """Weights [o, i] of the "norm" net: conv w1, its norm, conv w2 behind it."""
    whole = Whole("norm", sparse_reg=0.01)
    w1, w2, scale = (whole.own[key].detach().numpy() for key in ("w1", "w2", "scale"))
    members = [(w1**2).sum((1, 2, 3)), (w2**2).sum((0, 2, 3)), scale**2]
    inner = gamma(np.sqrt(np.mean(members, 0)))
    fc = whole.own["fc"].detach().numpy()
    outer = gamma(np.sqrt(np.mean([(w2**2).sum((1, 2, 3)), (fc**2).sum(0)], 0)))
    pulls = whole.pulls()
    np.testing.assert_allclose(
        pulls["w1"], 0.01 * inner[:, None, None, None] * w1, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(pulls["scale"], 0.01 * inner * scale, rtol=1e-4, atol=1e-6)
    both = inner[None, :, None, None] + outer[:, None, None, None]
    np.testing.assert_allclose(pulls["w2"], 0.01 * both * w2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pulls["fc"], 0.01 * outer[None] * fc, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_weights_of_groups_are_pulled_and_biases_are_not(net: str) -> None:
    whole = Whole(net, sparse_reg=1.0)
    pulls = whole.pulls()
    contracted = {
        role.node.inputs[role.slot]
        for group in whole.coupling.groups
        for role in group.members
        if role.kind != "scales" or role.bias is not None
    }
    for key, pull in pulls.items():
        share = pull / whole.own[key].detach()
        if key in contracted:
            inside = share[whole.own[key] != 0]
            assert inside.min() > -1e-6
            assert inside.max() < 16 * whole.own[key].ndim * (1 + 1e-6)
        else:
            assert (pull == 0).all(), key
    assert any((pull != 0).any() for pull in pulls.values())


def test_rows_of_the_jacobian_decide_who_is_weak() -> None:
    whole = Whole("dense", sparse_reg=0.01, sparse_by="jacobian")
    group = next(g for g in whole.coupling.groups if g.name.startswith("w1:0"))
    rows = []
    for name, grad in whole.before.items():
        for axis, expr in enumerate(whole.coupling.axes[name]):
            if expr is group.dim and name != "b1":
                product = (whole.own[name].detach() * grad).numpy()
                others = tuple(i for i in range(product.ndim) if i != axis)
                rows.append(product.sum(others))
                if (name, axis) == ("w1", 0):
                    rows[-1] += (whole.own["b1"].detach() * whole.before["b1"]).numpy()
    assert len(rows) == 2
    expected = gamma(np.sqrt(np.mean(np.square(rows), 0)))
    weight = whole.own["w1"].detach()
    pull = whole.pulls()["w1"] / weight
    found = pull.amax(tuple(range(1, pull.ndim)))
    np.testing.assert_allclose(found, 0.01 * expected, rtol=1e-5)


def norms(coupling: Any, graph: Any) -> np.ndarray:
    """Return the norms of the units of the first group, sorted, over the largest."""
    group = coupling.groups[0]
    total = np.zeros(group.size)
    for role in group.members:
        name = role.node.inputs[role.slot]
        array = graph.initializers[name]
        for unit in units_of(coupling.axes[name][role.axis], group.dim):
            total[unit] += (array.take(unit, role.axis) ** 2).sum()
    return np.sort(np.sqrt(total)) / np.sqrt(total.max())


@pytest.mark.parametrize("by", ["magnitude", "jacobian"])
def test_weak_units_shrink_and_the_model_keeps_its_shape(by: str) -> None:
    graph, _, coupling = analyse(model_of("norm"))
    samples = draw_samples(graph, 40, labelled=True)
    usual = {"epochs": 0, "sparse_epochs": 20, "batch_size": 8, "lr": 0.02, "sparse_by": by}

    def learned(strength: float) -> tuple[Graph, list[Epoch]]:
        options = TrainingOptions(**usual, sparse_reg=strength)
        return sparsify(coupling, samples, Training(options, 0, "cpu"))

    pulled, epochs = learned(0.05)
    free, _ = learned(0.0)
    assert len(epochs) == 20
    assert pulled.sha256 == graph.sha256
    assert norms(coupling, pulled)[:2].sum() < 0.7 * norms(coupling, free)[:2].sum()
    assert {n: a.shape for n, a in pulled.initializers.items()} == {
        n: a.shape for n, a in graph.initializers.items()
    }


def test_a_model_is_learned_sparse_cut_tuned_and_verified() -> None:
    graph = analyse(model_of("norm")).graph
    samples = draw_samples(graph, 40, labelled=True)
    training = TrainingOptions(epochs=2, sparse_epochs=2, batch_size=8, lr=0.02)
    result = compress(graph, data=samples, budget=Budget(0.7), training=training)
    assert len(result.report.sparse_epochs) == 2
    assert len(result.report.epochs) > 1
    assert result.plan.model_sha256 == graph.sha256
    assert all(check.passed for check in verify(graph, result.model, result.plan))
    only = compress(
        graph,
        data=samples,
        budget=Budget(0.7),
        training=TrainingOptions(epochs=0, sparse_epochs=2, batch_size=8, lr=0.02),
        recover="none",
    )
    assert not only.report.epochs
    assert all(check.passed for check in verify(graph, only.model, only.plan))


def test_a_plan_that_is_there_leaves_nothing_to_learn_for() -> None:
    graph = analyse(model_of("norm")).graph
    samples = draw_samples(graph, 40, labelled=True)
    plan: PruningPlan = compress(graph, data=samples).plan
    with pytest.raises(RequestError, match=r"leave `TrainingOptions.sparse_epochs` out"):
        compress(graph, data=samples, plan=plan, training=TrainingOptions(1, sparse_epochs=1))


def test_halves_are_refused() -> None:
    with pytest.raises(RequestError, match="float16"):
        TrainingOptions(epochs=1, sparse_epochs=1, precision="float16")
