"""Where results are written: never over what is read, and over other files only with --force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
from helpers import build
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from small import CHAIN, OLD, archive, assert_refused, classes, images, invoke, saved, written_into

if TYPE_CHECKING:
    from collections.abc import Callable

BRANCHES = (
    "net (float[N,3,8,8] x, bool c) => (float[N,4,8,8] y) <float[5,3,1,1] a, float[4,5,1,1] b>"
    "{ p = Conv(x, a) q = Conv(p, b)"
    "  y = If (c) <then_branch = t () => (float[N,4,8,8] u)"
    "              { k = Constant<value = float[1] {2.0}>() u = Mul(q, k) },"
    "              else_branch = f () => (float[N,4,8,8] v) { v = Neg(q) }> }"
)


class Files(NamedTuple):
    """A model whose weights lie beside it, and all else that a command may read."""

    model: Path
    data: Path
    plan: Path
    scores: Path


def externally(model: onnx.ModelProto, path: Path, location: str) -> Path:
    """Write a model with its weights, those of attributes too, in another file."""
    options = {"save_as_external_data": True, "location": location, "size_threshold": 0}
    onnx.save(model, path, **options, convert_attribute=True)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(
        externally(build(CHAIN), tmp_path / "model.onnx", "weights.bin"),
        archive(tmp_path, x=images(), labels=classes()),
        tmp_path / "plan.json",
        tmp_path / "scores.npz",
    )
    assert invoke("plan", found.model, "-o", found.plan).exit_code == 0
    assert invoke("score", found.model, "-o", found.scores).exit_code == 0
    return found


def writers(files: Files, target: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes, onto one target."""
    spare = files.model.with_name("spare")
    data, plan = ("--data", files.data), ("--plan", files.plan)
    return {
        "compress": ("compress", files.model, "-o", target, *data),
        "its plan": ("compress", files.model, "-o", spare, "--plan-out", target, *data),
        "apply": ("apply", files.model, "-o", target, *plan, *data),
        "finetune": ("finetune", files.model, "-o", target, *plan, *data),
        "score": ("score", files.model, "-o", target, *data),
        "plan": ("plan", files.model, "-o", target, *data),
        "twin": ("twin", files.model, "-o", target),
        "sensitivity": ("sensitivity", files.model, "--plot", target, *data),
    }


WRITERS = ("compress", "its plan", "apply", "finetune", "score", "plan", "twin", "sensitivity")


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        (writer, name)
        for writer in WRITERS
        for name in ("model.onnx", "weights.bin", "data.npz")
        if (writer, name) != ("twin", "data.npz")  # it reads no data
    ],
)
def test_no_command_writes_over_what_it_reads(files: Files, writer: str, name: str) -> None:
    before = written_into(files.model.parent)
    command = writers(files, files.model.with_name(name))[writer]
    assert_refused(invoke(*command, "--force"), name, "is read")
    assert written_into(files.model.parent) == before


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "data.npz"])
def test_links_to_what_is_read_are_followed(
    files: Files, name: str, link: Callable[[Path, Path], None]
) -> None:
    before = {path: path.read_bytes() for path in files.model.parent.iterdir()}
    target = files.model.with_name("innocent.onnx")
    link(target, files.model.with_name(name))
    assert_refused(invoke(*writers(files, target)["compress"], "--force"), "innocent", name)
    assert {path: path.read_bytes() for path in before} == before


def test_weights_of_subgraphs_belong_to_the_model(tmp_path: Path) -> None:
    model = build(BRANCHES)
    branch = next(entry.g for entry in model.graph.node[2].attribute if entry.g.name == "t")
    held = branch.node[0].attribute[0].t
    held.CopyFrom(numpy_helper.from_array(np.float32([2.0])))
    set_external_data(held, "inner.bin")
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    before = written_into(tmp_path)
    assert before.keys() == {"model.onnx", "inner.bin"}
    result = invoke("compress", path, "-o", tmp_path / "inner.bin", "--force")
    assert_refused(result, "inner.bin", "is read")
    assert written_into(tmp_path) == before


def test_all_files_of_a_folder_of_samples_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    np.save(folder / "x.npy", images())
    result = invoke(
        "compress", saved(tmp_path), "-o", folder / "x.npy", "--data", folder, "--force"
    )
    assert_refused(result, "x.npy", "is read")
    done = invoke("compress", saved(tmp_path), "-o", folder / "small.onnx", "--data", folder)
    assert done.exit_code == 0, "a new file in it harms none"


def test_scores_a_config_and_functions_are_kept(files: Files, tmp_path: Path) -> None:
    config, losses = tmp_path / "limits.toml", tmp_path / "losses.py"
    config.write_text("[a]\nmin = 3")
    losses.write_text("def f(outputs, labels):\n    return outputs['y'].sum(1)\n")
    before = written_into(tmp_path)
    for target, command in (
        (files.scores, ("plan", files.model, "--scores", files.scores)),
        (files.plan, ("apply", files.model, "--plan", files.plan)),
        (config, ("compress", files.model, "--config", config)),
        (losses, ("score", files.model, "--data", files.data, "--loss", f"{losses}:f")),
    ):
        assert_refused(invoke(*command, "-o", target, "--force"), target, "is read")
    assert written_into(tmp_path) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_another_file_is_replaced_only_with_force(files: Files, writer: str) -> None:
    target = files.model.with_name("target")
    target.write_bytes(OLD)
    command = writers(files, target)[writer]
    if writer == "finetune":
        command = (*command, "--epochs", "1")
    assert_refused(invoke(*command), target, "exists", "--force")
    assert target.read_bytes() == OLD
    result = invoke(*command, "--force")
    assert result.exit_code == 0, result.output
    assert target.read_bytes() != OLD


def test_a_new_plan_replaces_the_old_one_with_force_alone(files: Files, tmp_path: Path) -> None:
    command = ("apply", files.model, "--plan", files.plan, "-o", tmp_path / "small.onnx")
    assert_refused(invoke(*command, "--plan-out", files.plan), "plan.json", "exists")
    assert invoke(*command, "--plan-out", files.plan, "--force").exit_code == 0


def test_two_results_do_not_share_a_file(files: Files, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    result = invoke("compress", files.model, "-o", small, "--plan-out", small)
    assert_refused(result, small, "is named twice")


def test_models_with_equal_messages_and_other_weights_are_told_apart(
    files: Files, tmp_path: Path
) -> None:
    """A plan and scores are for one model, wherever its weights lie."""
    weights = tmp_path / "weights.bin"
    message = files.model.read_bytes()
    other = bytearray(weights.read_bytes())
    other[0] ^= 1
    weights.write_bytes(other)
    assert files.model.read_bytes() == message
    small = tmp_path / "small.onnx"
    for command in (
        ("apply", files.model, "--plan", files.plan, "-o", small),
        ("compress", files.model, "--scores", files.scores, "-o", small),
    ):
        assert_refused(invoke(*command), "sha256")


def test_a_run_goes_on_only_with_the_same_weights(files: Files, tmp_path: Path) -> None:
    training = ("--data", files.data, "--epochs", "1", "--run-dir", tmp_path / "run")
    assert invoke("compress", files.model, "-o", tmp_path / "one.onnx", *training).exit_code == 0
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    command = ("compress", files.model, "-o", tmp_path / "two.onnx", *training, "--resume")
    assert_refused(invoke(*command), "another model")


def test_one_file_of_weights_may_hold_more_than_the_model_uses(tmp_path: Path) -> None:
    """What a model is made of are whole files: their other parts count too."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(n, 1, ["n", k]) for n, k in (("x", 4), ("y", 3))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = externally(model, tmp_path / "model.onnx", "weights.bin")
    before = invoke("inspect", path, "--json").stdout
    with (tmp_path / "weights.bin").open("ab") as file:
        file.write(b"more")
    assert '"sha256"' in before
    assert invoke("inspect", path, "--json").stdout != before
