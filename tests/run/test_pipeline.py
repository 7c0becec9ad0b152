"""The library's three functions on small networks: what they promise about the result."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import CONTRIB, build
from small import (
    NORMED,
    OPEN,
    STATIC,
    TWO_INPUTS,
    UNKNOWN,
    archive,
    chain,
    classes,
    half_plan,
    images,
    saved,
)

import obc_onnx
from obc_onnx.errors import DivergedError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.elementwise import Unary
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.run.api import verify
from obc_onnx.saliency.jacobian import Jacobian
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.samples import Samples
from obc_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Keep
    from obc_onnx.saliency.criterion import Saliency, Scene


def samples_of(n: int = 40, *, labelled: bool = True) -> Samples:
    labels = classes(n) if labelled else None
    return Samples({"x": images(n)}, labels, {"x": np.dtype(np.float32)})


def run(model: onnx.ModelProto, **feed: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return list(Session(Graph.from_model(model)).run(feed).values())


@pytest.mark.parametrize(
    ("asked", "n_steps", "repaired"),
    [
        ({}, 2, True),
        ({"recover": "refit"}, 2, True),
        ({"recover": "none"}, 4, False),
        ({"recover": "stats"}, 4, False),
        ({"training": TrainingOptions(epochs=1)}, 4, False),
        ({"budget": Budget(0.5, steps=3)}, 3, True),
    ],
)
def test_later_steps_score_what_repair_makes_of_the_network(
    asked: dict[str, Any], n_steps: int, repaired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Scene, Keep]] = []

    def score(criterion: Jacobian, scene: Scene, keep: Keep) -> Saliency:
        seen.append((scene, keep))
        return scored(criterion, scene, keep)

    scored = Jacobian.score
    monkeypatch.setattr(Jacobian, "score", score)
    run = obc_onnx.compress if "training" in asked else obc_onnx.make_plan
    run(chain(), **{"data": samples_of(), "budget": 0.5, **asked})
    assert len(seen) == n_steps
    first, *later = (scene.coupling.graph.initializers for scene, _ in seen)
    assert later
    assert all(keep for _, keep in seen[1:])
    for arrays in later:
        changed = any(not np.array_equal(array, first[name]) for name, array in arrays.items())
        assert changed == repaired
    assert all(scene.scales is seen[0][0].scales for scene, _ in seen)


def test_a_model_in_memory_is_compressed_and_left_as_it_is() -> None:
    model = build(OPEN)
    before = model.SerializeToString()
    result = obc_onnx.compress(model, input_shape={"x": (2, 3, 8, 8)})
    assert model.SerializeToString() == before
    assert result.report.model == "model"
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.macs.after == result.plan.macs[1] <= result.plan.macs[0] / 2
    kept = {name: len(entry["kept"]) for name, entry in result.plan.groups.items()}
    assert {group.name: group.kept for group in result.report.groups} == kept


def test_a_file_a_model_and_a_graph_give_the_same_weights(tmp_path: Path) -> None:
    path = saved(tmp_path)
    sources = (path, str(path), chain(), Graph.load(path))
    results = [obc_onnx.compress(source).graph.initializers for source in sources]
    for found in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(found[name], array)


def test_saving_writes_the_model_and_the_plan_and_both_verify(tmp_path: Path) -> None:
    result = obc_onnx.compress(chain())
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    result.save(small)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    result.save(str(small), str(plan))
    assert onnx.load(small) == result.model
    assert small.stat().st_size == result.report.file_bytes.after
    assert PruningPlan.load(plan) == result.plan
    checks = verify(chain(), small, PruningPlan.load(plan), seed=7)
    assert all(check.passed for check in checks)


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(RequestError, match=half_plan().model_sha256[:12]):
        verify(build(NORMED), build(NORMED), half_plan())


def test_inspection_gives_groups_and_costs_without_pruning() -> None:
    found = obc_onnx.inspect(chain())
    assert {group.name: (group.size, group.kept) for group in found.groups} == {
        "a:0": (12, 12),
        "b:0": (20, 20),
    }
    assert found.macs == half_plan().macs[0]
    assert found.params == half_plan().params[0]
    assert json.loads(found.to_json())["sha256"] == half_plan().model_sha256


@pytest.mark.parametrize("criterion", ["l2", "jacobian"])
def test_equal_seeds_give_equal_bytes(criterion: str) -> None:
    first, again, other = (
        obc_onnx.compress(
            build(NORMED), data=samples_of(), criterion=criterion, training=2, seed=seed
        )
        for seed in (3, 3, 4)
    )
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert first.plan.to_json() == again.plan.to_json()
    assert first.model.SerializeToString() != other.model.SerializeToString()


def test_dynamic_axes_opset_and_metadata_are_kept() -> None:
    model = build(OPEN)
    model.metadata_props.add(key="classes", value="cat,dog")
    model.doc_string, model.domain, model.model_version = "what it is", "org.example", 7
    result = obc_onnx.compress(model, input_shape={"x": (2, 3, 8, 8)}).model
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert list(result.metadata_props) == list(model.metadata_props)
    assert list(result.opset_import) == list(model.opset_import)
    for name in ("doc_string", "domain", "model_version", "ir_version"):
        assert getattr(result, name) == getattr(model, name), name
    for shape in ((1, 3, 8, 8), (5, 3, 11, 6)):
        (y,) = run(result, x=np.ones(shape, np.float32))
        assert y.shape == (shape[0], 4)


def test_a_static_batch_is_scored_trained_and_measured_in_whole_batches() -> None:
    result = obc_onnx.compress(build(STATIC), data=samples_of(), training=1)
    (y,) = run(result.model, x=images(4))
    assert y.shape == (4, 4)
    assert result.report.accuracy.after is not None


def test_two_inputs_may_come_in_any_order(tmp_path: Path) -> None:
    left, right = images(40), images(40, seed=2)[:, :2]
    results = [
        obc_onnx.compress(
            build(TWO_INPUTS), data=archive(tmp_path, f"{next(iter(inputs))}.npz", **inputs),
            budget=0.7, training=1,
        )
        for inputs in ({"left": left, "right": right}, {"right": right, "left": left})
    ]  # fmt: skip
    models = [result.model.SerializeToString() for result in results]
    assert models[0] == models[1]
    (y,) = run(results[0].model, left=left[:3], right=right[:3])
    assert y.shape == (3, 4, 8, 8)


def test_there_is_no_accuracy_without_labels() -> None:
    report = obc_onnx.compress(chain(), data=samples_of(labelled=False)).report
    assert (report.accuracy.before, report.accuracy.after) == (None, None)


def test_accuracy_is_measured_on_the_held_out_samples_only() -> None:
    data = samples_of(40)
    options = DataOptions(data, holdout=0.25)
    report = obc_onnx.compress(chain(), data=options, budget=1.0, recover="none").report
    _, held = data.split(0.25)
    (logits,) = run(chain(), x=held.inputs["x"][:])
    expected = float((logits.argmax(-1) == held.labels).mean())
    assert report.accuracy.before == report.accuracy.after == expected
    assert report.held_out == len(held) == 10


def test_what_has_no_rule_stays_whole_and_the_rest_is_pruned() -> None:
    model = build(UNKNOWN)
    result = obc_onnx.compress(model, budget=0.6)
    report = result.report
    assert report.unknown == ["SampleOp 'q'"]
    assert report.criterion == "l2"
    assert {group.name for group in report.groups if group.kept < group.size} <= {"b:0", "c:0"}
    assert any("no rule" in frozen["reason"] for frozen in report.frozen)
    assert report.verification[-1].detail.startswith("not compared: ")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(result.graph.initializers["a"], weights["a"])
    assert report.macs.after is not None
    assert report.macs.after <= 0.6 * result.plan.macs[0]


def test_a_rule_of_ones_own_makes_an_operator_known() -> None:
    class Known(Unary):
        op_types = ("SampleOp",)
        domains = (CONTRIB,)

    found = obc_onnx.inspect(build(UNKNOWN), rules=DEFAULT_RULES.extended([Known()]))
    assert found.unknown == []
    assert {group.name for group in found.groups} == {"a:0", "b:0", "c:0"}


def test_notes_say_what_was_decided_for_want_of_data() -> None:
    assert any("no data was given" in note for note in obc_onnx.compress(chain()).report.notes)
    with_data = obc_onnx.compress(chain(), data=samples_of()).report
    assert not any("no data" in note for note in with_data.notes)
    assert with_data.criterion == "jacobian"


def test_repair_is_reported_and_can_be_left_out() -> None:
    data = samples_of(300)
    steps = obc_onnx.compress(build(NORMED), data=data).report.recovery
    repaired = steps[-1]
    assert repaired.kept == (repaired.after < repaired.before)
    assert obc_onnx.compress(build(NORMED), data=data, recover="none").report.recovery == []


def test_training_that_diverges_says_at_which_rate() -> None:
    options = TrainingOptions(epochs=5, lr=1e30)
    with pytest.raises(DivergedError, match=r"learning rate .*smaller `TrainingOptions.lr`"):
        obc_onnx.compress(chain(), data=samples_of(), training=options)


def test_a_budget_of_all_macs_gives_back_the_same_network() -> None:
    result = obc_onnx.compress(chain(), budget=Budget(1.0))
    assert result.report.macs.before == result.report.macs.after
    np.testing.assert_array_equal(run(result.model, x=images()), run(chain(), x=images()))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_of_the_analysis_does_not_matter(batch: int) -> None:
    found = obc_onnx.compress(chain(), input_shape={"x": (batch, 3, 8, 8)})
    assert found.plan == half_plan()
