"""Trained public models, end to end: the command compresses each, or says in a sentence why not."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from helpers import load_tool, public_model

from obc_onnx.cli.main import cli
from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from click.testing import Result

ALLOWED = 0.7
LARGEST_ERROR = 0.7
"""Of a share of the variance: a third of the MACs less, and nothing trained."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("try_public_models")


def compressed(tool: ModuleType, name: str, folder: Path) -> tuple[Path, Result]:
    """Run the command on what the tool draws."""
    path = public_model(name)
    trial = next(trial for trial in tool.TRIALS if fnmatch(name, trial.pattern))
    data, small = folder / "data.npz", folder / "small.onnx"
    np.savez(data, **tool.feed(Graph.load(path), trial))
    command = ["compress", str(path), "-o", str(small), "--data", str(data), "--json"]
    command += ["--target-macs", str(ALLOWED), *trial.options]
    return small, CliRunner().invoke(cli, command)


def ports(session: onnxruntime.InferenceSession) -> list[tuple[str, str, list[int | str]]]:
    return [(p.name, p.type, p.shape) for p in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "silero-vad/silero_vad_16k_sequence.onnx",
        "silero-vad/silero_vad_openvino_16k.onnx",
        "silero-vad/silero_vad_half.onnx",
        "silero-vad/silero_vad_16k_op15.onnx",
        "rapidocr-onnxruntime/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx",
    ],
)
def test_a_public_model_gets_smaller_and_stays_what_it_is(
    tool: ModuleType, tmp_path: Path, name: str
) -> None:
    small, run = compressed(tool, name, tmp_path)
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["macs"]["after"] <= ALLOWED * report["macs"]["before"]
    assert all(output["error"] < LARGEST_ERROR for output in report["outputs"])
    assert not [check for check in report["verification"] if check["doubt"]]
    before, after = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (public_model(name), small)
    )
    assert ports(before) == ports(after)
    onnx.checker.check_model(str(small), full_check=True)


@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_op18_ifless.onnx"])
def test_a_public_model_whose_weights_lie_in_branches_is_refused(
    tool: ModuleType, tmp_path: Path, name: str
) -> None:
    small, run = compressed(tool, f"silero-vad/{name}", tmp_path)
    assert run.exit_code == 1
    said = "Error: the model has no MACs to save; weights inside of subgraphs stay as they are: If"
    assert run.output.startswith(said)
    assert not small.exists()


def test_the_twin_of_a_detector_is_compared_inside_where_it_sees_nothing() -> None:
    """A detector of text gives 0 for noise, but for rounding."""
    path = public_model("rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx")
    command = ["twin", str(path), "--print-code", "--input-shape", "x:2x3x96x96"]
    run = CliRunner().invoke(cli, command)
    assert run.exit_code == 0, run.output
    assert "output 'sigmoid_0.tmp_0' is mostly rounding, so that what follows" in run.stderr
