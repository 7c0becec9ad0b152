"""The command line where all is well: help, text, JSON, files, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import build
from onnx import numpy_helper
from small import CHAIN, archive, classes, images, invoke, saved

from obc_onnx import __version__
from obc_onnx.planning.plan import PruningPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    Tamper = Callable[[onnx.ModelProto], None]

COMMANDS = ("inspect", "compress", "verify")
MACS = 64 * 12 * 27 + 36 * 20 * 12 * 9 + 20 * 4
"""Of `CHAIN`: 8x8 positions, then 6x6 without padding, then the classifier."""
PARAMS = 12 * 27 + 12 + 20 * 12 * 9 + 20 + 4 * 20 + 4
HELP_SECONDS = 0.3
CHECKS = {
    "pruned equals masked original",
    "initializers as planned",
    "weights as written",
    "graph as planned",
    "same description",
    "same interface",
    "ONNX checker",
    "strict shape inference",
    "ONNX Runtime runs it",
    "MACs within the target",
    "twin equals ONNX Runtime",
}
HEAVY = "sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'onnxruntime', 'onnx'})"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert "--input-shape" in result.stdout
    assert command in invoke("--help").stdout


def test_programs_find_all_commands_in_one_place() -> None:
    from obc_onnx.cli import cli

    assert set(COMMANDS) < set(cli.commands)


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").stdout == f"obc-onnx, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from obc_onnx.cli.main import cli\n"
        f"cli({arguments}, standalone_mode=False)\n"
        f"print({HEAVY}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stderr == "[]\n"


def test_help_is_there_at_once() -> None:
    script = Path(sys.executable).with_name("obc-onnx")
    if not script.exists():
        pytest.skip("the package is not installed, so there is no console script")
    resource = pytest.importorskip("resource", reason="only there does a child's time tell")
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([script, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < HELP_SECONDS


def test_inspect_shows_groups_and_what_is_frozen(tmp_path: Path) -> None:
    result = invoke("inspect", saved(tmp_path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 groups, 32 units" in result.stdout
    assert "graph output 'y'\n      fc:0(4)\n" in result.stdout
    assert "a:0" not in result.stdout
    whole = invoke("inspect", tmp_path / "model.onnx", "-v").stdout
    assert "Conv 'r': b axis 1 reads = a:0(12)" in whole
    assert "fc:0(4)   frozen: graph output 'y'" in whole


def test_inspect_prints_one_json_object(tmp_path: Path) -> None:
    path = saved(tmp_path)
    result = invoke("inspect", path, "--json", "--input-shape", "x:1x3x8x8")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["model"], found["macs"], found["params"]) == (str(path), MACS, PARAMS)
    assert {group["name"]: group["size"] for group in found["groups"]} == {"a:0": 12, "b:0": 20}
    assert {frozen["where"] for frozen in found["frozen"]} == {"a:1", "fc:0"}
    assert found["unknown"] == []
    assert found["seconds"].keys() == {"load", "shapes", "coupling"}


def test_compress_shows_what_changed_and_writes_both_files(tmp_path: Path) -> None:
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    result = invoke("compress", saved(tmp_path), "-o", small, "--plan-out", plan)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"wrote {small} and {plan}; next: ")
    assert all(word in result.stdout for word in ("MACs", "params", "file bytes", *CHECKS))
    assert f"{MACS:,}" in result.stdout
    assert "accuracy" not in result.stdout, "there are no labels"
    onnx.checker.check_model(small, full_check=True)
    assert PruningPlan.load(plan).macs[0] == MACS


def compressed_report(folder: Path, *options: str) -> dict[str, Any]:
    """Compress with data, and read what was printed."""
    data = archive(folder, x=images(40), labels=classes(40))
    command = ("compress", saved(folder), "-o", folder / "small.onnx", "--data", data, "--json")
    result = invoke(*command, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    return dict(json.loads(result.stdout))


def test_compress_prints_one_json_object_with_everything_measured(tmp_path: Path) -> None:
    report = compressed_report(tmp_path, "--epochs", "2", "--batch-size", "8", "--latency")
    before_after = {name: (report[name]["before"], report[name]["after"]) for name in ("macs",
        "params", "file_bytes", "accuracy", "latency_ms")}  # fmt: skip
    assert before_after["macs"][0] == MACS
    assert before_after["macs"][1] <= MACS / 2
    assert before_after["params"][0] == PARAMS
    model, small = tmp_path / "model.onnx", tmp_path / "small.onnx"
    assert before_after["file_bytes"] == (model.stat().st_size, small.stat().st_size)
    assert all(0 <= share <= 1 for share in before_after["accuracy"])
    assert all(value > 0 for value in before_after["latency_ms"])
    assert {group["name"] for group in report["groups"]} == {"a:0", "b:0"}
    assert all(0 < group["kept"] <= group["size"] for group in report["groups"])
    assert {frozen["where"] for frozen in report["frozen"]} == {"a:1", "fc:0"}
    assert [epoch["number"] for epoch in report["epochs"]] == [0, 1, 2]


def test_the_json_names_every_check_with_its_error_and_every_stage(tmp_path: Path) -> None:
    report = compressed_report(tmp_path, "--epochs", "1")
    checks = {check["name"]: check for check in report["verification"]}
    assert checks.keys() == CHECKS | {"folded equals trained network"}
    assert all(check["passed"] for check in checks.values())
    masked = checks["pruned equals masked original"]
    assert 0 <= masked["error"] <= masked["tolerance"] <= 1e-4
    stages = {"load", "shapes", "coupling", "score and plan", "cut", "verify", "fine-tune"}
    assert report["seconds"].keys() >= stages
    assert all(seconds >= 0 for seconds in report["seconds"].values())


@pytest.mark.parametrize(
    ("asked", "told"), [((), 1), (("--loss", "ce"), 0), (("--equivalent",), 0)]
)
def test_the_report_says_where_compressors_did_not_learn(
    tmp_path: Path, asked: tuple[str, ...], told: int
) -> None:
    report = compressed_report(tmp_path, "--epochs", "1", *asked)
    assert sum(note.startswith("sliced weights were trained") for note in report["notes"]) == told


def test_the_json_says_nothing_of_accuracy_without_labels(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images())
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", "--data", data)
    report = json.loads(invoke(*command, "--no-latency", "--json").stdout)
    assert report["accuracy"] == {"before": None, "after": None}
    assert report["latency_ms"] == {"before": None, "after": None}


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, what `compress` made of it, and the plan."""
    model, small, plan = saved(tmp_path), tmp_path / "small.onnx", tmp_path / "plan.json"
    assert invoke("compress", model, "-o", small, "--plan-out", plan).exit_code == 0
    return model, small, plan


def test_verify_accepts_what_compress_wrote(three: tuple[Path, Path, Path]) -> None:
    model, small, plan = three
    result = invoke("verify", model, small, "--plan", plan, "--seed", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "FAILED" not in result.stdout
    assert all(name in result.stdout for name in CHECKS)


def test_verify_prints_one_json_object(three: tuple[Path, Path, Path]) -> None:
    model, small, plan = three
    result = invoke("verify", model, small, "--plan", plan, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    names = {check["name"] for check in json.loads(result.stdout)["verification"]}
    assert names == {*CHECKS, "file computes what was checked"}


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    def tamper(model: onnx.ModelProto) -> None:
        found = tensor(model, name)
        found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), name))

    return tamper


def other_pads(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[:] = [0, 0, 2, 2]


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 16


def other_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Tanh"


def another_node(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Relu", input=["y"], output=["unused"], name="extra")
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "unused"


def static_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


TAMPERS: dict[str, tuple[Tamper, str]] = {
    "a weight of another shape": (with_array("fc", lambda w: w[:, :-1]), "'fc' has shape"),
    "weights that are not finite": (with_array("fc", lambda w: w * np.nan), "'y' is not finite"),
    "an attribute": (other_pads, "Conv 'p' differs"),
    "an opset": (other_opset, "graph as planned"),
    "an operator": (other_operator, "Tanh 'q' differs"),
    "a node": (another_node, "8 nodes, planned 7"),
    "a batch that became static": (static_batch, "same interface"),
    "an input of another name": (other_input, "same interface"),
}


@pytest.mark.parametrize(("tamper", "part"), TAMPERS.values(), ids=TAMPERS.keys())
def test_verify_names_the_check_that_a_changed_model_fails(
    tamper: Tamper, part: str, three: tuple[Path, Path, Path]
) -> None:
    model, small, plan = three
    changed = onnx.load(small)
    tamper(changed)
    onnx.save(changed, small)
    result = invoke("verify", model, small, "--plan", plan)
    assert result.exit_code == 3, result.output
    assert "FAILED" in result.stdout
    assert result.stderr.startswith("Error: ")
    assert part in result.stderr
    assert result.stderr.count("\n") == 1


def test_verify_refuses_a_model_cut_by_another_plan(
    three: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, small, _ = three
    other = tmp_path / "other.json"
    made = ("-o", tmp_path / "o.onnx", "--plan-out", other, "--target-macs", "0.8")
    assert invoke("compress", model, *made).exit_code == 0
    result = invoke("verify", model, small, "--plan", other)
    assert result.exit_code == 3
    assert "initializers as planned" in result.stderr


def test_equal_seeds_write_equal_files(tmp_path: Path) -> None:
    model = saved(tmp_path)
    data = archive(tmp_path, x=images(), labels=classes())
    written = []
    for _ in range(2):
        small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
        options = ("--force", "--plan-out", plan, "--data", data, "--epochs", "2", "--seed", "5")
        result = invoke("compress", model, "-o", small, "--equivalent", *options)
        assert result.exit_code == 0
        written.append((small.read_bytes(), plan.read_bytes()))
    assert written[0] == written[1]


def test_a_model_that_names_its_input_with_a_colon_takes_a_shape(tmp_path: Path) -> None:
    text = CHAIN.replace("] x)", "] x0)").replace("(x,", "(x0,")
    model = build(text)
    model.graph.input[0].name = model.graph.node[0].input[0] = "image:0"
    onnx.save(model, tmp_path / "colon.onnx")
    result = invoke("inspect", tmp_path / "colon.onnx", "--input-shape", "image:0:2x3x8x8")
    assert result.exit_code == 0, result.output
