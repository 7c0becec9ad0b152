"""Facts about the models in `models/`: what their pages state, and what every stage promises."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT
from helpers import TOLERANCE, analyse, make_feed, relative_error, run_onnx, run_twin

from obc_onnx.graph.model import Graph
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.planning.search import search_plan
from obc_onnx.run.inspection import inspect
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.magnitude import L2
from obc_onnx.samples.read import load_samples
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.samples.samples import Samples

MODELS = ROOT / "models"
SAMPLE = MODELS / "fashion-test.npz"
"""Test images, which the models have not seen."""
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx")) or [
    pytest.param("none", marks=pytest.mark.skip(reason=f"there are no models in {MODELS}"))
]
each_model = pytest.mark.parametrize("name", NAMES)


def page(name: str) -> str:
    return (MODELS / f"{name}.md").read_text(encoding="utf-8")


def stated(name: str, pattern: str) -> str:
    """Read one fact off a model's page."""
    found = re.search(pattern, page(name))
    assert found, f"the page of {name} does not match {pattern}"
    return found[1]


def path_of(name: str) -> Path:
    return MODELS / f"{name}.onnx"


@each_model
def test_the_file_is_the_one_that_its_page_describes(name: str) -> None:
    content = path_of(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == stated(name, r"SHA-256 \| `([0-9a-f]{64})`")
    assert Graph.load(path_of(name)).sha256 == hashlib.sha256(content).hexdigest()
    assert f"{len(content):,}" == stated(name, r"file size \| ([\d,]+) bytes")


@each_model
def test_the_accuracy_is_the_stated_one_within_two_points(name: str) -> None:
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is missing")
    graph = Graph.load(path_of(name))
    samples: Samples = load_samples(SAMPLE, graph)
    measured = accuracy(graph, samples)
    assert measured is not None
    assert abs(100 * measured - float(stated(name, r"test accuracy \| ([\d.]+) %"))) <= 2.0


@each_model
def test_the_coupling_is_found_in_under_50_ms(name: str) -> None:
    assert min(inspect(path_of(name)).seconds["coupling"] for _ in range(3)) < 0.05


@each_model
def test_every_operator_has_a_rule_and_most_channels_are_free(name: str) -> None:
    found = inspect(path_of(name))
    assert found.unknown == []
    assert all(group.inexact is None for group in found.groups)
    assert {frozen["reason"] for frozen in found.frozen} <= {
        "graph input 'input'",
        "graph output 'logits'",
    }


@each_model
@pytest.mark.parametrize("share", [0.75, 0.4, 0.15])
def test_the_pruned_model_equals_the_masked_one(name: str, share: float) -> None:
    coupling = analyse(Graph.load(path_of(name))).coupling
    scene = Scene(coupling)
    budget = Budget(share, scope=Scope(round_to=4 if share < 0.5 else 1))
    plan = search_plan(coupling, lambda left: L2().score(scene, left.keep), budget, "l2", 0)
    keep = plan.keep(coupling)
    assert keep
    assert plan.macs[1] <= share * plan.macs[0]
    feed = make_feed(coupling.graph, np.random.default_rng(0), batch=4)
    feed["input"] = 128 + 64 * feed["input"]
    pruned = run_onnx(remove_units(coupling, keep), feed)["logits"]
    masked = run_onnx(mask_reads(coupling, keep), feed)["logits"]
    assert np.isfinite(masked).all()
    assert masked.std() > 0
    assert relative_error(pruned, masked) < TOLERANCE


@each_model
def test_the_twin_equals_onnx_runtime(name: str) -> None:
    graph, shapes, _ = analyse(Graph.load(path_of(name)))
    feed = make_feed(graph, np.random.default_rng(1), batch=8)
    if SAMPLE.exists():
        feed = load_samples(SAMPLE, graph).feed(slice(0, 8))
    found = run_twin(graph, shapes, feed)["logits"]
    assert relative_error(found, run_onnx(graph, feed)["logits"]) < TOLERANCE
