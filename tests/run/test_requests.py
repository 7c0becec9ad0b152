"""What contradicts itself is refused, in the same way from Python and from the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from small import chain, half_plan, invoke, saved

import obc_onnx
from obc_onnx import Budget, RequestError, Scores, Scoring, TrainingOptions

if TYPE_CHECKING:
    from pathlib import Path


def scores() -> Scores:
    return obc_onnx.score(chain())


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"budget": 0.5}, "`budget`"),
        ({"budget": Budget()}, "`budget`"),
        ({"criterion": "l2"}, "`criterion`"),
        ({"scoring": Scoring()}, "`scoring`"),
        ({"budget": 0.5, "criterion": "l1"}, "`budget`, `criterion`"),
    ],
)
def test_a_plan_leaves_nothing_to_decide(said: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=f"what goes is in `plan` already: leave out {named}$"):
        obc_onnx.compress(chain(), plan=half_plan(), **said)


def test_a_plan_leaves_nothing_to_score() -> None:
    with pytest.raises(RequestError, match=r"`plan` already: leave out `scores`$"):
        obc_onnx.compress(chain(), plan=half_plan(), scores=scores())


@pytest.mark.parametrize("call", [obc_onnx.compress, obc_onnx.make_plan])
@pytest.mark.parametrize("said", [{"criterion": "l2"}, {"scoring": Scoring(reduction="mean")}])
def test_scores_leave_nothing_to_score(call: Any, said: dict[str, Any]) -> None:
    with pytest.raises(
        RequestError, match=rf"is in `scores` already: leave out `{next(iter(said))}`"
    ):
        call(chain(), scores=scores(), **said)


def test_scores_alone_are_taken() -> None:
    plan = obc_onnx.make_plan(chain(), scores=scores(), budget=0.7)
    assert plan.criterion == "l2"


def test_nothing_is_resumed_without_a_folder() -> None:
    with pytest.raises(RequestError, match=r"`resume` goes on with a run: give its `run_dir`"):
        obc_onnx.compress(chain(), resume=True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"training": 1}, "fine-tuning needs samples: give `data`"),
        ({"recover": "stats"}, r"`recover='stats'` needs samples: give `data`, or use `recover='fuse'`"),
        ({"budget": Budget(max_drop=0.1)}, "`Budget.max_drop` is measured on samples: give `data`"),
    ],
)  # fmt: skip
def test_what_needs_samples_is_refused_without(said: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        obc_onnx.compress(chain(), **said)


def test_a_number_of_batches_is_no_number_of_samples() -> None:
    with pytest.raises(RequestError, match=r"`Scoring.batches` .* leave out `Scoring.samples`"):
        Scoring(samples=512, batches=4)
    assert Scoring(batches=4, batch_size=8).n_samples == 32
    assert Scoring().n_samples == 512


def test_seed_and_device_are_said_in_the_call_alone() -> None:
    assert not {"seed", "device"} & {field.name for field in fields(TrainingOptions)}


def test_the_seed_of_the_call_decides_the_order_of_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=pixels)
    options = TrainingOptions(epochs=1, batch_size=8, lr=0.05, validation=0.0)

    def trained(seed: int) -> bytes:
        found = obc_onnx.finetune(
            chain(), half_plan(), data=tmp_path / "samples.npz", training=options, seed=seed,
            recover="none", latency=False,
        )  # fmt: skip
        return bytes(found.model.SerializeToString())

    assert trained(7) == trained(7)
    assert trained(7) != trained(8)


def test_fine_tuning_trains(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"`training=0` trains nothing: give epochs, or use `apply`"
    ):
        obc_onnx.finetune(chain(), half_plan(), data=tmp_path, training=0)


def test_fine_tuning_is_that_of_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data, model = tmp_path / "samples.npz", saved(tmp_path)
    np.savez(data, x=rng.standard_normal((40, 3, 8, 8)).astype(np.float32))
    plan = obc_onnx.make_plan(model, data=data)
    (tmp_path / "plan.json").write_text(plan.to_json())
    result = obc_onnx.finetune(model, plan, data=data, training=2)
    assert len(result.report.epochs) > 2
    small = tmp_path / "small.onnx"
    options = ("--plan", tmp_path / "plan.json", "--data", data, "--epochs", "2")
    assert invoke("finetune", model, "-o", small, *options).exit_code == 0
    result.save(tmp_path / "python.onnx")
    assert small.read_bytes() == (tmp_path / "python.onnx").read_bytes()


def test_the_command_names_the_options_that_contradict_its_scores(tmp_path: Path) -> None:
    model, given = saved(tmp_path), tmp_path / "scores.npz"
    assert invoke("score", model, "-o", given).exit_code == 0
    target = ("-o", tmp_path / "plan.json", "--scores", given)
    result = invoke("plan", model, *target, "--criterion", "l1", "--preset", "paper")
    assert result.exit_code == 1
    assert "what units are worth is in --scores already: leave out --criterion, --preset" in (
        result.stderr
    )
    assert not (tmp_path / "plan.json").exists()
