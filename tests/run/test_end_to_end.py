"""The main job on a real trained model: half of the MACs, nearly all of the accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import obc_onnx
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.samples.options import DataOptions
from obc_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_DROP = 0.02


def fashion(models: Path) -> DataOptions:
    """Return images to work with, and those that the models have not seen to measure on."""
    return DataOptions(models / "fashion-train.npz", evaluation=models / "fashion-test.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_resnet20", "fashion_mobilenet"])
def test_half_of_the_macs_cost_at_most_two_points(models: Path, name: str) -> None:
    result = obc_onnx.compress(
        models / f"{name}.onnx",
        data=fashion(models),
        budget=Budget(0.5, scope=Scope(round_to=8)),
        training=TrainingOptions(epochs=3, equivalent=True),
    )
    report = result.report
    assert report.macs.after <= 0.5 * report.macs.before
    assert report.accuracy.after >= report.accuracy.before - LARGEST_DROP


@pytest.mark.slow
def test_repair_wins_back_most_of_what_a_cut_loses(models: Path) -> None:
    accuracies = [
        obc_onnx.compress(
            models / "fashion_resnet20.onnx",
            data=fashion(models),
            recover=recover,
        ).report.accuracy
        for recover in ("none", "auto")
    ]
    cut, repaired = (accuracy.after for accuracy in accuracies)
    before = accuracies[0].before
    assert before - repaired < 0.25 * (before - cut)
