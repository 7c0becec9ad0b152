"""What training goes towards: losses by formula and by the user, and blended samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import one_channel
from nets import model_of
from torch.nn import functional
from training.test_finetune import Task
from training.test_training import options

from obc_onnx.errors import RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.training.loss import Labels, TrainingLoss
from obc_onnx.training.mixing import mix
from obc_onnx.training.options import TrainingOptions, parse_loss

if TYPE_CHECKING:
    from pathlib import Path


# Losses.


def test_losses_are_read_with_their_weights() -> None:
    assert parse_loss("kd:0.25,ce") == (("kd", 0.25), ("ce", 1.0))
    assert parse_loss("some/loss.py:f,mse:2") == (("some/loss.py:f", 1.0), ("mse", 2.0))
    assert parse_loss("loss.py:f:0.5") == (("loss.py:f", 0.5),)


@pytest.mark.parametrize("text", ["kd:x", "kd:-1", "kd:0", "", "kd:nan"])
def test_a_loss_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        TrainingOptions(epochs=1, loss=parse_loss(text))


def test_distances_by_formula() -> None:
    rng = np.random.default_rng(0)
    y, t = (torch.from_numpy(v) for v in rng.standard_normal((2, 6, 4)))
    graph = Graph.from_model(model_of("dense"))
    expected = {
        "mse": (((y - t) ** 2).mean() / 4.0).log1p(),
        "smooth-l1": functional.smooth_l1_loss(y / 2, t / 2).log1p(),
        "cosine": 1 - ((y * t).sum(1) / y.norm(dim=1) / t.norm(dim=1)).mean(),
    }
    for name, value in expected.items():
        scales = one_channel("y", (4,), 4.0)
        loss = TrainingLoss(options(loss=((name, 3.0),)), graph, scales, labelled=False)
        assert loss([y], [t], None).item() == pytest.approx(3 * value.item(), rel=1e-9)


def test_blended_labels_count_by_their_share() -> None:
    y = torch.randn(5, 4)
    own, other = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 0, 2, 3])
    graph = Graph.from_model(model_of("dense"))
    loss = TrainingLoss(options(loss=(("ce", 1.0),), label_smoothing=0.1), graph, {}, labelled=True)
    expected = 0.3 * functional.cross_entropy(y, own, label_smoothing=0.1)
    expected += 0.7 * functional.cross_entropy(y, other, label_smoothing=0.1)
    found = loss([y], [y], Labels(own, other, 0.3))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_of_the_user_is_trained_towards(tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text(
        "def far(outputs, targets, labels):\n"
        "    assert labels is None\n"
        "    return (outputs['y'] - targets['y'] - 3).square().flatten(1).mean(1)\n"
    )
    task = Task("dense")
    task.train(epochs=30, loss=((f"{path}:far", 1.0),), lr=0.02)
    feed = task.samples.feed(slice(0, None))
    with torch.no_grad():
        found = task.student(torch.from_numpy(feed["x"]))[0].mean()
    target = task.teacher().outputs(np.arange(len(task.samples)), feed)[0].mean()
    assert found - target > 1.0


def test_labels_that_are_missing_are_named() -> None:
    with pytest.raises(
        RequestError, match=r"'ce' of `TrainingOptions.loss` needs data with labels"
    ):
        Task("dense").train(loss=(("ce", 1.0),))


# Blending.


def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((6, 3, 8, 8)).astype(np.float32)}


def test_mixup_adds_another_sample_with_the_rest_of_the_share() -> None:
    feed = pictures()
    blended, others, share = mix(feed, options(mixup=0.4), np.random.default_rng(1))
    assert 0 <= share <= 1
    expected = feed["x"] * share + feed["x"][others] * (1 - share)
    np.testing.assert_allclose(blended["x"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_cutmix_puts_a_patch_of_another_picture_in(last: bool) -> None:
    feed = pictures()
    own = np.moveaxis(feed["x"], 1, 3).copy() if last else feed["x"]
    seen = set()
    for seed in range(8):
        blended, others, share = mix({"x": own}, options(cutmix=1.0), np.random.default_rng(seed))
        axis = 3 if last else 1
        from_other = (blended["x"] != own).all(axis)
        moved = np.array([others[i] != i for i in range(6)])
        assert (blended["x"] == np.where(np.expand_dims(from_other, axis), own[others], own)).all()
        for place in np.flatnonzero(moved):
            assert from_other[place].mean() == pytest.approx(1 - share, abs=1e-9)
        seen.add(round(share, 3))
    assert len(seen) > 2


def test_nothing_is_blended_where_nothing_is_asked_for() -> None:
    feed = pictures()
    blended, others, share = mix(feed, options(), np.random.default_rng(0))
    assert blended is feed
    assert others is None
    assert share == 1.0


def test_training_on_changed_samples_is_repeatable() -> None:
    made = []
    for workers in (0, 2):
        task = Task("dense", 20, labelled=True)
        augmentation = Augmentation(crop=1, flip=True)
        task.train(augmentation=augmentation, workers=workers, mixup=0.2, cutmix=0.2)
        made.append(task.folded_bytes())
    assert made[0] == made[1]
