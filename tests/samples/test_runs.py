"""Samples that come run by run: from code of a user, and as Polygraphy saves them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import build
from small import invoke

from obc_onnx.errors import DataError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.samples.read import load_samples
from obc_onnx.samples.runs import joined

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "net (float[N,6] x, float[2,N,4] s, float k) => (float[N,5] y) <float[6,8] a, float[4,8] b, float[8,5] c>"
    "{ t = ReduceMean <axes = [0], keepdims = 0> (s) u = MatMul(t, b) h = MatMul(x, a) v = Add(h, u)"
    " r = Relu(v) w = MatMul(r, c) y = Mul(w, k) }"
)
RUNS = """
import numpy as np

def runs():
    rng = np.random.default_rng(0)
    for _ in range(5):
        yield {
            "x": rng.standard_normal((4, 6)).astype(np.float32),
            "s": rng.standard_normal((2, 4, 4)).astype(np.float32),
            "k": np.array(2, np.float32),
        }
"""
LOADER = RUNS.replace("runs", "load_data")
READER = f"""{RUNS}
from onnxruntime.quantization import CalibrationDataReader

class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = runs()

    def get_next(self):
        return next(self.left, None)
"""


def expected() -> dict[str, np.ndarray]:
    scope: dict[str, Any] = {}
    exec(RUNS, scope)
    runs = list(scope["runs"]())
    x, s = (
        np.concatenate([run[name] for run in runs], axis) for name, axis in (("x", 0), ("s", 1))
    )
    return {"x": x, "s": s, "k": np.float32(2)}


def fed(source: str | Path) -> dict[str, np.ndarray]:
    samples = load_samples(source, Graph.from_model(build(TEXT)), named={"x": 0, "s": 1, "k": None})
    assert len(samples) == 20
    return samples.feed(slice(0, 20))


@pytest.mark.parametrize(
    ("code", "name"),
    [(LOADER, ""), (LOADER, ":load_data"), (RUNS, ":runs"), (READER, ":Reader")],
)
def test_code_gives_one_run_after_the_other(code: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(code)
    found = fed(f"{tmp_path / 'own.py'}{name}")
    for value, array in expected().items():
        np.testing.assert_array_equal(found[value], array)


def saved(array: np.ndarray) -> dict[str, str]:
    file = io.BytesIO()
    np.save(file, array)
    return {"array": base64.b64encode(file.getvalue()).decode(), "polygraphy_class": "ndarray"}


def test_polygraphys_inputs_are_read(tmp_path: Path) -> None:
    if find_spec("polygraphy") is None:
        pytest.skip("polygraphy is not installed")
    (tmp_path / "loader.py").write_text(LOADER)
    onnx.save(build(TEXT), tmp_path / "model.onnx")
    program = "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; sys.exit(main())"
    for target in ("inputs.json", "inputs"):
        command = [sys.executable, "-c", program, "run", "model.onnx", "--onnxrt"]
        command += ["--data-loader-script", "loader.py", "--save-inputs", target]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        found = fed(tmp_path / target)
        for value, array in expected().items():
            np.testing.assert_array_equal(found[value], array)


def test_compress_takes_code(tmp_path: Path) -> None:
    onnx.save(build(TEXT), tmp_path / "model.onnx")
    (tmp_path / "own.py").write_text(LOADER.replace("(5)", "(20)"))
    files = (tmp_path / "model.onnx", "-o", tmp_path / "small.onnx")
    axes = ("--batch-axis", "x:0", "--batch-axis", "s:1", "--batch-axis", "k:none")
    done = invoke(
        "compress",
        *files,
        "--data",
        f"{tmp_path / 'own.py'}:load_data",
        *axes,
        "--recover-minutes",
        "0",
    )
    assert done.exit_code == 0, done.output
    assert "fed: 'x'" in done.output
    lost = invoke(
        "compress",
        files[0],
        "-o",
        tmp_path / "own.py",
        "--force",
        "--data",
        f"{tmp_path / 'own.py'}",
    )
    assert "would be destroyed" in lost.stderr


def test_labels_come_with_the_runs(tmp_path: Path) -> None:
    text = "net (float[N,6] x) => (float[N,5] y) <float[6,8] a, float[8,5] c> { h = MatMul(x, a) r = Relu(h) y = MatMul(r, c) }"
    (tmp_path / "own.py").write_text(
        "import numpy as np\ndef load_data():\n    for i in range(5):\n"
        "        yield {'x': np.full((2, 6), i, np.float32), 'labels': np.array([i, 0])}\n"
    )
    samples = load_samples(tmp_path / "own.py", Graph.from_model(build(text)))
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, [0, 0, 1, 0, 2, 0, 3, 0, 4, 0])


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("x = 1", RequestError, "has no function 'load_data'"),
        ("def load_data():\n    return 3", DataError, "gives int: it has to give an iterable"),
        ("def load_data():\n    yield 3", DataError, "run 0 of .* is int, and no dict"),
        ("def load_data():\n    yield from ()", DataError, "holds no runs"),
    ],
)
def test_other_code_is_refused(
    code: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(error, match=message):
        fed(tmp_path / "own.py")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("no json", "is not a JSON file"),
        ("[3]", "does not hold inputs as Polygraphy saves them"),
        ('[{"x": [1, 2]}]', "'x' of data .* is no array as Polygraphy saves it"),
        ('[{"x": {"array": "???"}}]', "is not an array that numpy can read"),
        ('[{"x": {"array": "AAAA"}}]', "is not an array that numpy can read"),
        ("[" * 100_000, "is not a JSON file"),
    ],
)
def test_damaged_json_is_told(held: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(held)
    with pytest.raises(DataError, match=message):
        fed(tmp_path / "inputs.json")


def test_an_array_that_claims_too_much_is_told(tmp_path: Path) -> None:
    whole = base64.b64decode(saved(np.zeros((4, 6), np.float32))["array"])
    cut = base64.b64encode(whole.replace(b"(4, 6)", b"(9, 6)")).decode()
    (tmp_path / "inputs.json").write_text(json.dumps([{"x": {"array": cut}}]))
    with pytest.raises(DataError, match="claims to hold 216 bytes"):
        fed(tmp_path / "inputs.json")


def test_runs_that_do_not_go_together_are_told() -> None:
    one, other = np.zeros((2, 6)), np.zeros((2, 7))
    with pytest.raises(DataError, match=r"run 1 of it has 'x' of shape \(2, 7\)"):
        joined([{"x": one}, {"x": other}], {"x": 0}, "it")
    with pytest.raises(DataError, match="run 1 of it holds 'y', and the first 'x'"):
        joined([{"x": one}, {"y": one}], {"x": 0}, "it")


def test_what_is_given_once_and_differs_has_a_run_for_each() -> None:
    found = joined([{"k": np.float32(1)}, {"k": np.float32(2)}], {"k": None}, "it")
    np.testing.assert_array_equal(found["k"], [1, 2])
