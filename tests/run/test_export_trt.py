"""What is written for TensorRT: it runs as far as a machine without a GPU allows."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from helpers import build
from onnx import helper
from plugin_graphs import ROWS, plugin_model
from small import invoke

from obc_onnx import compress, export_trt
from obc_onnx.errors import DataError, RequestError
from obc_onnx.tensorrt.flags import FLAGS

NET = (
    "net (float[N,3,8,8] x) => (float[N,5] y, float[N,4,8,8] z)"
    "<float[16,3,3,3] a, float[4,16,1,1] b, float[16,5] c>"
    "{ h = Conv <pads = [1,1,1,1]> (x, a) r = Relu(h) z = Conv(r, b)"
    " m = ReduceMean <axes = [2,3], keepdims = 0> (r) y = MatMul(m, c) }"
)
GONE = {"--fp16", "--bf16", "--int8", "--fp8", "--best", "--calib", "--layerPrecisions"}
"""Options of trtexec that version 11 lacks."""


class Exported(NamedTuple):
    folder: Path
    original: Path
    result: Path


def samples(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, 8, 8)).astype(np.float32)


def exported(folder: Path, text: str = NET, **options: object) -> Exported:
    """Compress a model, and export it into a folder whose name has a space."""
    original, result = folder / "the model.onnx", folder / "small.onnx"
    onnx.save(build(text), original)
    np.savez(folder / "data.npz", x=samples())
    compress(original, budget=0.5, latency=False).save(result)
    export_trt(original, result, folder / "trt", data=folder / "data.npz", **options)
    return Exported(folder / "trt", original, result)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("a folder"))


def tool(folder: Path, name: str, code: str) -> dict[str, str]:
    """Put a program on the path, and return the environment that finds it."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    python = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": python}


def built(ready: Exported, version: int, folder: Path, *arguments: str) -> dict[str, str]:
    """Run a script with a trtexec that prints what it is given; return the options."""
    code = "import sys, os; print(os.getcwd(), *sys.argv[1:], sep='\\n')"
    script = ready.folder / f"build_trt{version}.sh"
    env = tool(folder, "trtexec", code)
    done = subprocess.run(
        [script, *arguments], env=env, capture_output=True, text=True, check=True, cwd=folder
    )
    where, *given = done.stdout.splitlines()
    assert Path(where) == ready.folder
    return {name: value for name, _, value in (option.partition("=") for option in given)}


@pytest.mark.parametrize("version", [10, 11])
def test_trtexec_is_given_options_of_its_version(
    version: int, ready: Exported, tmp_path: Path
) -> None:
    options = built(ready, version, tmp_path / "bin")
    assert set(options) == {flag.name for flag in FLAGS if version in flag.versions}
    assert GONE.isdisjoint(options)
    assert ("--stronglyTyped" in options) == (version == 10)
    assert Path(options["--onnx"]) == ready.result
    assert options["--minShapes"] == "x:1x3x8x8"
    assert options["--optShapes"] == options["--shapes"] == "x:8x3x8x8"
    assert options["--maxShapes"] == "x:16x3x8x8"


def test_another_model_may_be_built(ready: Exported, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "half.onnx").write_bytes(b"")
    options = built(ready, 11, tmp_path / "bin", "half.onnx")
    assert Path(options["--onnx"]) == tmp_path / "bin" / "half.onnx"
    assert options["--saveEngine"] == "half.trt11.plan"


def test_references_are_what_onnx_runtime_gives_for_the_inputs(
    ready: Exported, tmp_path: Path
) -> None:
    options = built(ready, 11, tmp_path / "bin")
    name, file = options["--loadInputs"].split(":")
    x = np.fromfile(ready.folder / file, np.float32).reshape(8, 3, 8, 8)
    known = {row.tobytes() for row in samples()}
    assert all(row.tobytes() in known for row in x)
    session = onnxruntime.InferenceSession(ready.result)
    found = dict(part.split(":") for part in options["--loadRefOutputs"].split(","))
    assert list(found) == ["y", "z"]
    for output, array in zip(found, session.run(list(found), {name: x}), strict=True):
        stored = np.fromfile(ready.folder / found[output], np.float32)
        np.testing.assert_allclose(stored, array.ravel(), rtol=1e-4, atol=1e-6)
    assert options["--accuracyAlgorithm"] == "cos"
    assert float(options["--accuracyThreshold"]) > 0


def test_the_loader_yields_runs_of_the_samples(ready: Exported) -> None:
    runs = list(runpy.run_path(str(ready.folder / "loader.py"))["load_data"]())
    assert [run["x"].shape for run in runs] == [(8, 3, 8, 8)] * 6
    assert len({row.tobytes() for run in runs for row in run["x"]}) == 48


def quantised(ready: Exported, target: Path) -> Path:
    """Let ONNX Runtime quantise a result by the reader that was written."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from calibration import Calibration\n"
        "from onnxruntime.quantization import quantize_static\n"
        "quantize_static(sys.argv[2], sys.argv[3], Calibration(), per_channel=True)"
    )
    subprocess.run([sys.executable, "-c", code, ready.folder, ready.result, target], check=True)
    return target


def test_onnx_runtime_quantises_on_the_samples(ready: Exported, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(quantised(ready, tmp_path / "int8.onnx"))
    (y,) = session.run(["y"], {"x": samples(8)})
    (expected,) = onnxruntime.InferenceSession(ready.result).run(["y"], {"x": samples(8)})
    assert np.corrcoef(y.ravel(), expected.ravel())[0, 1] > 0.98


def accuracy_of(model: Path, held: dict[str, np.ndarray]) -> float:
    """Run a classifier in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model)
    pixels = held["input"].astype(np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return float((logits.argmax(1) == held["labels"]).mean())


def test_what_was_pruned_and_then_quantised_is_nearly_as_accurate(tmp_path: Path) -> None:
    """In this order: cut and repaired in float, quantised from what was written, measured."""
    original, result = ROOT / "models" / "fashion_resnet20.onnx", tmp_path / "small.onnx"
    few, held = tmp_path / "few.npz", dict(np.load(ROOT / "models" / "fashion-test.npz"))
    training = np.load(ROOT / "models" / "fashion-train.npz")
    np.savez(few, **{name: training[name][:320] for name in training})
    compress(original, data=few, budget=0.7, recover_minutes=0, latency=False).save(result)
    export_trt(original, result, tmp_path / "trt", data=few)
    made = Exported(tmp_path / "trt", original, result)
    whole = quantised(made._replace(result=original), tmp_path / "whole.int8.onnx")
    found = [original, result, whole, quantised(made, tmp_path / "small.int8.onnx")]
    before, pruned, coded, both = (accuracy_of(model, held) for model in found)
    assert before > 0.93
    assert pruned > before - 0.03
    assert coded > before - 0.01
    assert both > pruned - 0.015


POLYGRAPHY = (
    "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; sys.exit(main())"
)


def polygraphy(
    ready: Exported, folder: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    if find_spec("polygraphy") is None:
        pytest.skip("polygraphy is not installed")
    env = tool(folder, "polygraphy", POLYGRAPHY)
    return subprocess.run(
        [ready.folder / "compare_onnxruntime.sh", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_polygraphy_compares_both_models(ready: Exported, tmp_path: Path) -> None:
    done = polygraphy(ready, tmp_path / "bin")
    assert done.returncode == 0, done.stdout + done.stderr


def test_polygraphy_finds_a_model_that_is_worse(ready: Exported, tmp_path: Path) -> None:
    wrong = onnx.load(ready.result)
    for tensor in wrong.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array[::-1].copy(), tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    done = polygraphy(ready, tmp_path / "bin", tmp_path / "wrong.onnx")
    assert done.returncode != 0
    assert "FAILED" in done.stdout


def test_scripts_are_sound_and_name_files_that_are_there(ready: Exported) -> None:
    for script in ready.folder.glob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)
        words = shlex.split(script.read_text(), comments=True)
        own = {word for word in words if word.endswith((".npz", ".py"))}
        assert all((ready.folder / word).exists() for word in own), own


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_modelopt_is_called_on_the_result(kind: str, ready: Exported, tmp_path: Path) -> None:
    env = tool(tmp_path / "bin", "python", "import sys; print(*sys.argv[1:], sep='\\n')")
    script = ready.folder / f"quantise_{kind}.sh"
    done = subprocess.run([script], env=env, capture_output=True, text=True, check=True)
    given = done.stdout.splitlines()
    assert given[:2] == ["-m", f"modelopt.onnx.{'autocast' if kind == 'fp16' else 'quantization'}"]
    assert Path(given[given.index("--onnx_path") + 1]) == ready.result
    assert given[given.index("--output_path") + 1] == f"small.{kind}.onnx"


def test_equal_requests_give_equal_bytes(ready: Exported, tmp_path: Path) -> None:
    again = exported(tmp_path)
    for file in ready.folder.iterdir():
        if file.suffix in {".npz", ".bin", ".py", ".sh"}:
            assert file.read_bytes() == (again.folder / file.name).read_bytes(), file.name


def test_a_batch_that_is_written_inside_stays(tmp_path: Path) -> None:
    ready = exported(tmp_path, NET.replace("N,", "2,"))
    options = built(ready, 11, tmp_path / "bin")
    assert "--minShapes" not in options
    runs = list(runpy.run_path(str(ready.folder / "loader.py"))["load_data"]())
    assert runs[0]["x"].shape == (2, 3, 8, 8)


def test_names_that_trtexec_would_take_apart_are_quoted(tmp_path: Path) -> None:
    model = build(NET)
    model.graph.input[0].name = model.graph.node[0].input[0] = "in:0"
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **{"in:0": samples()})
    compress(tmp_path / "model.onnx", budget=0.5, latency=False).save(tmp_path / "small.onnx")
    files = (tmp_path / "model.onnx", tmp_path / "small.onnx", tmp_path / "trt")
    export_trt(*files, data=tmp_path / "data.npz")
    options = built(Exported(files[2], files[0], files[1]), 10, tmp_path / "bin")
    assert options["--minShapes"] == "'in:0':1x3x8x8"
    assert options["--loadInputs"] == "'in:0':input0_in_0.bin"


def test_of_a_model_with_plugins_all_but_references_is_written(tmp_path: Path) -> None:
    row = ROWS["in the middle"]
    onnx.save(plugin_model(row), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=samples())
    compress(tmp_path / "model.onnx", budget=0.5, latency=False).save(tmp_path / "small.onnx")
    files = (tmp_path / "model.onnx", tmp_path / "small.onnx", tmp_path / "trt")
    export_trt(*files, data=tmp_path / "data.npz")
    options = built(Exported(files[2], files[0], files[1]), 11, tmp_path / "bin")
    assert options["--loadInputs"] == "x:input0_x.bin"
    assert "--loadRefOutputs" not in options
    assert "--accuracyThreshold" not in options
    assert not (files[2] / "compare_onnxruntime.sh").exists()
    script = (files[2] / "compare_tensorrt.sh").read_text()
    assert "--onnxrt" not in script
    assert "../model.onnx --trt" in script


def test_the_command_names_what_it_has_written(ready: Exported, tmp_path: Path) -> None:
    data = ready.original.parent / "data.npz"
    files = (ready.original, ready.result, "-o", tmp_path / "trt", "--data", data)
    found = invoke("export-trt", *files, "--batches", "1,4,4", "--samples", "16", "--json")
    written = {Path(path) for path in json.loads(found.stdout)["files"]}
    assert written == set((tmp_path / "trt").iterdir())
    with np.load(tmp_path / "trt" / "samples.npz") as stored:
        assert stored["x"].shape == (16, 3, 8, 8)
    wrong = invoke("export-trt", *files, "--batches", "1,4")
    assert wrong.exit_code == 2
    assert "MIN,OPT,MAX" in wrong.stderr


def test_what_does_not_fit_is_refused(ready: Exported, tmp_path: Path) -> None:
    data = ready.original.parent / "data.npz"
    with pytest.raises(RequestError, match=r"loader.py' exists|samples.npz' exists"):
        export_trt(ready.original, ready.result, ready.folder, data=data)
    with pytest.raises(RequestError, match="is read, and would be destroyed"):
        export_trt(
            ready.original,
            ready.result,
            ready.folder,
            data=ready.folder / "samples.npz",
            batches=(1, 1, 1),
            force=True,
        )
    with pytest.raises(RequestError, match=r"`batches` have to be above 0 and to grow"):
        export_trt(ready.original, ready.result, tmp_path / "a", data=data, batches=(4, 2, 8))
    with pytest.raises(DataError, match="a run takes 64 samples, but there are 48"):
        export_trt(ready.original, ready.result, tmp_path / "a", data=data, batches=(1, 64, 64))
    other = build(NET)
    other.graph.output.append(helper.make_tensor_value_info("r", 1, ["N", 16, 8, 8]))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(RequestError, match="not two of one: outputs are 'y', 'z' before"):
        export_trt(ready.original, tmp_path / "other.onnx", tmp_path / "a", data=data)
    assert not (tmp_path / "a").exists()
