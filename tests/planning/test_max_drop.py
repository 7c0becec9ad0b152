"""The largest cut that is hardly worse: against brute force, on functions and on networks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import TO_THE_UNIT, analyse, build
from nets import draw_samples, model_of
from small import CHAIN, TWO_INPUTS, archive, assert_refused, half_plan, images, invoke, saved

from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import Distance, output_error
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.max_drop import GRID, DropMeter, find_plan
from obc_onnx.planning.scope import Limits, Scope
from obc_onnx.run.api import compress, make_plan
from obc_onnx.samples.options import DataOptions

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.samples.samples import Samples

NORMED = (
    "net (float[N,3,8,8] x) => (float[N,4] y)"
    "<float[12,3,3,3] a, float[12] scale, float[12] shift, float[12] mean, float[12] var,"
    " float[10,12,3,3] b, float[4,10] fc, float[4] fc_bias>"
    "{ p = Conv(x, a) q = BatchNormalization(p, scale, shift, mean, var) r = Relu(q)"
    "  s = Conv(r, b) t = Relu(s) u = GlobalAveragePool(t) v = Flatten(u)"
    "  y = Gemm<transB=1>(v, fc, fc_bias) }"
)


class Line:
    """Stands for a model: how much worse each share makes it, as a function."""

    def __init__(self, drops: Any, least: int = 0) -> None:
        self.drops, self.least, self.tried = drops, least, list[int]()

    def plan_of(self, share: float) -> PruningPlan:
        if share * GRID < self.least:
            raise InfeasibleTargetError("no further")
        initializers = {} if share == 1 else {"a": {"0": [0]}}
        return replace(half_plan(), targets={"macs": share}, initializers=initializers)

    def result_of(self, plan: PruningPlan) -> Any:
        return round(plan.targets["macs"] * GRID)

    def drop_of(self, graph: Any) -> float:
        self.tried.append(graph)
        return float(self.drops[graph])

    def search(self, max_drop: float) -> Any:
        return find_plan(self.plan_of, self.result_of, self.drop_of, max_drop)


@pytest.mark.parametrize("least", [0, 5, 40])
@pytest.mark.parametrize("place", range(1, GRID + 1))
def test_where_less_is_never_better_the_smallest_is_found_in_six_trials(
    place: int, least: int
) -> None:
    line = Line(np.where(np.arange(GRID + 1) >= place, 0.125, 0.25), least)
    found = line.search(0.125)
    assert found.share * GRID == max(place, least)
    assert found.plan.targets == {"macs": found.share}
    assert found.n_tried == len(line.tried) <= 6
    assert found.drop == (0.125 if found.share < 1 else 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_elsewhere_what_is_found_is_good_enough_and_the_next_target_is_not(seed: int) -> None:
    drops = np.random.default_rng(seed).random(GRID + 1)
    found = Line(drops).search(0.5)
    place = round(found.share * GRID)
    assert place == GRID or drops[place] <= 0.5
    assert place == 1 or drops[place - 1] > 0.5


def answered(model: Any, n_samples: int, seed: int) -> Samples:
    """Draw samples, and label them as the model would: then it is right about all."""
    graph = analyse(model).graph
    samples = draw_samples(graph, n_samples, seed)
    answers = Session(graph).run(samples.feed(slice(None)))["y"].argmax(axis=-1)
    return replace(samples, labels=answers.astype(np.int64))


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "agreement"])
@pytest.mark.parametrize("text", [CHAIN, NORMED], ids=["plain", "norms"])
def test_the_plan_is_the_one_that_brute_force_over_all_targets_finds(
    text: str, *, labelled: bool
) -> None:
    """The largest target below which all cuts, repaired as they are, agree with the original."""
    model, max_drop = build(text), 0.08
    samples = answered(model, 600, seed=0)
    given = samples if labelled else replace(samples, labels=None)
    options: dict[str, Any] = {"data": DataOptions(given, 0.25), "criterion": "l2"}
    options["recover_minutes"] = 0  # of 64 cuts, each would be refined
    _, held = samples.split(0.25)
    drops = {}
    for place in range(GRID, 0, -1):
        try:
            result = compress(
                model, budget=Budget(place / GRID, steps=1, scope=TO_THE_UNIT), **options
            )
        except InfeasibleTargetError:
            break
        drops[place] = 1 - (accuracy(result.graph, held) or 0.0)
    found = compress(model, budget=Budget(max_drop=max_drop, steps=1, scope=TO_THE_UNIT), **options)
    place = round(found.plan.targets["macs"] * GRID)
    assert drops[place] <= max_drop < drops.get(place - 1, np.inf)
    assert 1 < place < GRID, "otherwise nothing was looked for"
    good = {n for n, drop in drops.items() if drop <= max_drop}
    if good == set(range(min(good), GRID + 1)):
        assert place == min(good)
    again = compress(model, budget=Budget(place / GRID, steps=1, scope=TO_THE_UNIT), **options)
    assert again.plan == found.plan
    assert again.model.SerializeToString() == found.model.SerializeToString()
    notes = found.report.notes
    assert len(set(notes)) == len(notes), "each repair that was tried would say the same"
    kind = "accuracy" if labelled else "agreement with the original"
    assert f"as far as the {kind} on 150 held-out samples" in " ".join(found.report.notes)
    plan = make_plan(model, budget=Budget(max_drop=max_drop, steps=1, scope=TO_THE_UNIT), **options)
    assert plan == replace(found.plan, weights_sha256=None)


def test_a_model_without_classes_is_judged_by_the_error_of_its_outputs() -> None:
    model = build(TWO_INPUTS)
    graph, _, coupling = analyse(model)
    samples = draw_samples(graph, 40)
    _, held = samples.split(0.2)
    result = compress(model, data=samples, budget=Budget(max_drop=0.2, steps=1), criterion="l2")
    error = output_error(coupling, result.graph, held)
    assert 0 < error <= 0.2
    assert DropMeter(Distance(coupling, held)).drop(result.graph) == error
    assert "as far as the error of the outputs" in " ".join(result.report.notes)


def test_where_nothing_may_go_nothing_goes_and_limits_that_cut_too_much_are_refused() -> None:
    model = build(CHAIN)
    samples = answered(model, 200, seed=1)
    budget = Budget(max_drop=0.0, scope=Scope(limits={"*": Limits(min=1.0)}))
    whole = compress(model, data=samples, budget=budget, criterion="l2")
    assert whole.plan.initializers == {}
    narrow = Budget(max_drop=0.0, scope=Scope(limits={"a:0": Limits(max=1)}))
    with pytest.raises(InfeasibleTargetError, match="what the limits cut alone"):
        compress(model, data=samples, budget=narrow, criterion="l2")


def test_a_drop_and_a_target_contradict_each_other(tmp_path: Path) -> None:
    for name in ("macs", "params", "size"):
        with pytest.raises(RequestError, match="give it or targets"):
            Budget(max_drop=0.1, **{f"target_{name}": 0.5})
    data = ("--data", archive(tmp_path, x=images(40)), "--max-drop", "0.1")
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx")
    assert_refused(invoke(*command, *data, "--target-size", "0.5"), "give it or targets")
    assert_refused(invoke(*command, "--max-drop", "0.1"), "give --data")
    assert invoke(*command, *data, "--criterion", "l2").exit_code == 0


@pytest.mark.parametrize("drop", [float("inf"), float("nan"), -0.1])
def test_a_drop_is_a_number(drop: float) -> None:
    with pytest.raises(RequestError, match="max_drop` must be a number of at least 0"):
        Budget(max_drop=drop)


def test_a_drop_at_the_limit_is_allowed() -> None:
    from obc_onnx.planning.max_drop import find_plan

    plan = make_plan(model_of("dense"), budget=Budget(0.9))
    found = find_plan(lambda _: plan, lambda _: None, lambda _: 0.93 - 0.92, 0.01)  # type: ignore[arg-type,return-value]
    assert found.share == 1 / 64


def test_a_drop_is_one_from_the_original_that_sparse_learning_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from obc_onnx.run import compression
    from obc_onnx.training.options import TrainingOptions

    graph = analyse(model_of("norm")).graph
    samples = draw_samples(graph, 40, labelled=True)
    judged: list[Any] = []
    meter = compression.DropMeter
    monkeypatch.setattr(
        compression,
        "DropMeter",
        lambda distance, _metric: judged.append(distance.original) or meter(distance),
    )
    training = TrainingOptions(epochs=0, sparse_epochs=1, batch_size=8, lr=0.05)
    compress(graph, data=samples, budget=Budget(max_drop=0.9), training=training)
    (original,) = judged
    for name, array in graph.initializers.items():
        np.testing.assert_array_equal(original.graph.initializers[name], array)
