"""Models above the size of one protobuf message: every command, and what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import assert_close, load_tool
from small import archive, invoke, written_into

import obc_onnx.graph.model as graph_module
from obc_onnx.errors import ModelError
from obc_onnx.graph.external import bytes_of, files_of
from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SHAPE = ("--input-shape", "tokens:2x6")
VOCABULARY = 100
LIMIT = 2**31
NEEDED_BYTES = 12 * 2**30


def data_of(folder: Path, name: str) -> list[Path]:
    return list(folder.glob(f"{name}-*.data"))


def bytes_at(path: Path) -> int:
    return bytes_of(files_of(path))


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A decoder whose weights lie beside it."""
    tool, path = load_tool("make_decoder"), tmp_path / "model.onnx"
    tool.write(path, tool.Decoder(layers=1, width=128, vocabulary=VOCABULARY), seed=0)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, (20, 6))
    return archive(tmp_path, tokens=drawn)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no weights fit into a message, and nothing ask for such a message."""

    def refuse(_graph: Graph) -> onnx.ModelProto:
        raise AssertionError("a model above the limit was made one message")

    monkeypatch.setattr(graph_module, "MAX_PROTOBUF_BYTES", 1000)
    monkeypatch.setattr(Graph, "to_model", refuse)


def done(*command: object) -> Result:
    result = invoke(*map(str, command), "-q")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result


def run_file(path: Path) -> dict[str, np.ndarray]:
    """Run a file as any program would, by its path."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"tokens": np.arange(12).reshape(2, 6)}
    return {"logits": session.run(None, feed)[0]}


def test_the_decoder_is_valid_and_its_axes_are_open(decoder: Path) -> None:
    onnx.checker.check_model(decoder, full_check=True)
    (port,) = Graph.load(decoder).inputs
    assert port.shape == ("batch", "sequence")
    assert run_file(decoder)["logits"].shape == (2, 6, VOCABULARY)


@pytest.mark.usefixtures("limit")
def test_it_is_inspected(decoder: Path) -> None:
    found = json.loads(done("inspect", decoder, *SHAPE, "--json").stdout)
    assert {group["name"] for group in found["groups"]} >= {"layer0.gated.gate.weight:1"}
    assert found["params"] == sum(np.prod(s) for s in load_shapes(decoder)) + 3  # three scalars


def load_shapes(path: Path) -> list[tuple[int, ...]]:
    model = onnx.load(path, load_external_data=False)
    return [tuple(t.dims) for t in model.graph.initializer if t.external_data]


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("with_data", [False, True])
def test_it_is_compressed_verified_and_compressed_again_by_its_plan(
    decoder: Path, tokens: Path, *, with_data: bool
) -> None:
    small, plan, again = (decoder.with_name(n) for n in ("small.onnx", "plan.json", "again.onnx"))
    more = ("--data", tokens) if with_data else SHAPE
    report = done("compress", decoder, "-o", small, "--plan-out", plan, *more, "--json").stdout
    done("verify", decoder, small, "--plan", plan, *SHAPE)
    done("apply", decoder, "-o", again, "--plan", plan, *more)
    files = written_into(decoder.parent)
    for name in ("small.onnx", "again.onnx"):
        assert files_of(decoder.with_name(name))[1:] == data_of(decoder.parent, name)
    ((small_data,), (again_data,)) = (data_of(decoder.parent, n) for n in (small.name, again.name))
    assert again_data.read_bytes() == small_data.read_bytes()
    assert json.loads(report)["file_bytes"] == {
        "before": bytes_at(decoder),
        "after": bytes_at(small),
    }
    assert len(files["small.onnx"]) < 20_000
    onnx.checker.check_model(small, full_check=True)
    assert np.isfinite(run_file(small)["logits"]).all()


def test_two_files_hold_what_one_does(decoder: Path, request: pytest.FixtureRequest) -> None:
    one, two = decoder.with_name("one.onnx"), decoder.with_name("two.onnx")
    done("compress", decoder, "-o", one, *SHAPE)
    request.getfixturevalue("limit")
    done("compress", decoder, "-o", two, *SHAPE)
    assert not data_of(decoder.parent, "one.onnx")
    (data,) = data_of(decoder.parent, "two.onnx")
    assert data.stat().st_size > 0
    assert_close(run_file(two), run_file(one), 0.0)
    left, right = Graph.load(one).initializers, Graph.load(two).initializers
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(right[name], array)


@pytest.mark.usefixtures("limit")
def test_scores_a_plan_and_the_twin_are_made(decoder: Path, tokens: Path) -> None:
    folder = decoder.parent
    done("score", decoder, "-o", folder / "scores.npz", "--data", tokens)
    done("plan", decoder, "-o", folder / "plan.json", "--scores", folder / "scores.npz", *SHAPE)
    done("twin", decoder, "-o", folder / "twin.pt2", *SHAPE)
    assert (folder / "twin.pt2").stat().st_size > bytes_at(decoder) // 2


@pytest.mark.usefixtures("limit")
def test_a_failure_while_weights_are_written_leaves_both_files(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, before = Graph.load(decoder), written_into(decoder.parent)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", fail)
    with pytest.raises(ModelError, match="No space left on device"):
        graph.save(decoder)
    assert written_into(decoder.parent) == before


def test_the_tool_refuses_a_width_that_makes_no_heads(tmp_path: Path) -> None:
    tool = load_tool("make_decoder")
    command = [sys.executable, tool.__file__, tmp_path / "m.onnx", "--width", "100"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no multiple of 64" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_decoder_above_the_limit_is_compressed_and_verified(tmp_path: Path) -> None:
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < NEEDED_BYTES:
        pytest.skip("needs 12 GiB of memory")
    tool, model = load_tool("make_decoder"), tmp_path / "model.onnx"
    tool.write(model, tool.Decoder(layers=8, width=2048, vocabulary=32_000), seed=0)
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    shape = ("--input-shape", "tokens:1x6")
    done("compress", model, "-o", small, "--plan-out", plan, *shape, "--target-macs", "0.95")
    assert LIMIT < bytes_at(small) < bytes_at(model)
    done("verify", model, small, "--plan", plan, *shape)
