"""Kits: written here, timed where only ONNX Runtime is, read back, and each damage one sentence.

Scripts run in a shell whose Python finds neither this package nor what it needs besides NumPy.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import analyse
from small import CHAIN, NORMED, STATIC, assert_refused, invoke, saved

from obc_onnx.graph.model import Graph
from obc_onnx.latency.designs import keep_of
from obc_onnx.latency.profile import Profile
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Callable

STAND_IN = Path(__file__).parents[1] / "engines" / "stand_in.py"
STEADY = """
import itertools, time
ticks = itertools.count()
time.perf_counter = lambda: next(ticks) / 64
"""
"""What makes every run of a script take as long, and a second pass after 64 looks at the clock."""


def written(folder: Path, text: str = CHAIN, *options: str) -> Path:
    kit = folder / "kit"
    command = ("profile", saved(folder, text), "--kit", kit, "--designs", "4", "--round-to", "4")
    result = invoke(*command, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [
        str(kit / "time_onnxruntime.py"),
        str(kit / "time_trtexec.sh"),
    ]
    assert f"wrote {kit}; next: obc-onnx profile " in result.stderr
    return kit


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with those alone that ONNX Runtime needs."""
    folder = tmp_path_factory.mktemp("packages")
    for module in (np, onnxruntime):
        package = Path(str(module.__file__)).parent
        (folder / package.name).symlink_to(package)
        for more in package.parent.glob(f"{package.name}.libs"):
            (folder / more.name).symlink_to(more)
    return folder


def timed(kit: Path, packages: Path, *options: str, steady: bool = True) -> None:
    """Run the script for ONNX Runtime in a shell, with a clock that ticks evenly."""
    code = f"import runpy, sys; sys.path.insert(0, {str(packages)!r}); {'exec(sys.argv.pop(1)); ' if steady else ''}"
    code += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    more = [STEADY] if steady else []
    python = [sys.executable, "-I", "-S", "-c", code, *more]
    command = shlex.join([*python, str(kit / "time_onnxruntime.py"), *options])
    shell = ["sh", "-c", command]
    done = subprocess.run(
        shell, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def timed_by_trtexec(kit: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} {STAND_IN}"
    return subprocess.run(
        ["sh", str(kit / "time_trtexec.sh")],
        env={**os.environ, "TRTEXEC": program, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def read(folder: Path, *options: str) -> Any:
    command = ("profile", folder / "model.onnx", "--from", folder / "kit")
    return invoke(*command, "-o", folder / "costs.json", "--force", *options)


def test_a_bare_python_has_nothing_of_this_package(bare: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(bare)!r}); import onnxruntime, obc_onnx"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert "No module named 'obc_onnx'" in done.stderr


def test_there_and_back_and_planned_from_twice(tmp_path: Path, bare: Path) -> None:
    kit = written(tmp_path)
    timed(kit, bare, "--threads", "1", steady=False)
    shutil.move(kit, tmp_path / "moved")  # to another machine and back
    shutil.move(tmp_path / "moved", kit)
    result = read(tmp_path)
    assert result.exit_code == 0, result.output
    found = Profile.load(tmp_path / "costs.json")
    assert found.engine.given == {"threads": 1}
    assert (found.engine.engine, found.version) == ("onnxruntime", onnxruntime.__version__)
    assert (found.round_to, found.seed, found.shapes) == (4, 0, {"x": [1, 3, 8, 8]})
    nodes = {node for timing in found.timings for layer in timing.layers for node in layer.nodes}
    assert nodes == set("pqrstuy")
    first = (tmp_path / "costs.json").read_bytes()
    assert read(tmp_path).exit_code == 0
    assert (tmp_path / "costs.json").read_bytes() == first
    plans = []
    for name in ("a.json", "b.json"):
        command = ("plan", tmp_path / "model.onnx", "--costs", tmp_path / "costs.json")
        options = ("--target-latency", "0.9", "-o", tmp_path / name)
        planned = invoke(*command, *options)
        assert planned.exit_code == 0, planned.output
        plans.append((tmp_path / name).read_bytes())
    assert plans[0] == plans[1]


def test_a_kit_has_the_designs_of_a_profile_and_times_are_those_of_its_clock(
    tmp_path: Path, bare: Path
) -> None:
    """The oracles are the designs that a profile by the sizes of files has, and a clock of ours."""
    kit = written(tmp_path)
    command = ("profile", tmp_path / "model.onnx", "-o", tmp_path / "local.json", "--designs", "4")
    engine = ("--engine", "command", "--engine-command", "sh -c 'wc -c < {model}'")
    assert invoke(*command, "--round-to", "4", *engine).exit_code == 0
    local = Profile.load(tmp_path / "local.json")
    timed(kit, bare)
    assert read(tmp_path).exit_code == 0
    found = Profile.load(tmp_path / "costs.json")
    assert [one.widths for one in found.timings] == [one.widths for one in local.timings]
    assert {(one.ms, one.ratio, one.spread) for one in found.timings} == {(15.625, 1.0, 0.0)}
    of = analyse(Graph.load(tmp_path / "model.onnx")).coupling
    for place, timing in enumerate(found.timings):
        cut = remove_units(of, keep_of(of, timing.widths)).initializers
        there = onnx.load(kit / f"design{place:02}.onnx").graph.initializer
        assert {one.name: tuple(one.dims) for one in there} == {n: a.shape for n, a in cut.items()}


@pytest.mark.parametrize(("text", "shapes"), [(CHAIN, "x:1x3x8x8"), (STATIC, "")])
def test_trtexec_there_and_back(text: str, shapes: str, tmp_path: Path) -> None:
    """The stand-in refuses a static model with shapes, as trtexec does, and an open one without."""
    kit = written(tmp_path, text)
    assert ("--optShapes" in (kit / "time_trtexec.sh").read_text()) == bool(shapes)
    done = timed_by_trtexec(kit)
    assert done.returncode == 0, done.stderr
    result = read(tmp_path, "--engine", "trtexec")
    assert result.exit_code == 0, result.output
    found = Profile.load(tmp_path / "costs.json")
    assert (found.version, found.device) == ("10.13.0", "NVIDIA Stand-In")
    assert found.engine.command == f"{sys.executable} {STAND_IN}"
    rows = [
        json.loads((kit / "trtexec" / "02" / f"{side}{turn}.json").read_text())
        for side in ("before", "after")
        for turn in (1, 2, 3)
    ]
    medians = np.reshape([np.median([row["computeMs"] for row in one]) for one in rows], (2, 3))
    timing = found.timings[2]
    assert timing.ms == pytest.approx(np.median(medians[1]), rel=1e-5)
    assert timing.ratio == pytest.approx(np.median(medians[1] / medians[0]), rel=1e-5)
    assert [layer.nodes for layer in timing.layers] == [("p", "q"), ("r", "s"), *zip("tuy")]


@pytest.mark.parametrize("fault", ["build", "killed"])
def test_a_script_that_fails_leaves_a_kit_that_is_half_written(fault: str, tmp_path: Path) -> None:
    done = timed_by_trtexec(written(tmp_path), STAND_IN_FAULT=fault)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("trtexec failed: see trtexec/00/build.log")
    said = read(tmp_path, "--engine", "trtexec")
    assert_refused(said, "is half written", "'time_trtexec.sh' did not come to its end")


def changed(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


@pytest.fixture(scope="module")
def timed_kit(tmp_path_factory: pytest.TempPathFactory, bare: Path) -> Path:
    folder = tmp_path_factory.mktemp("timed")
    timed(written(folder), bare)
    return folder


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("kit.json", Path.unlink, "is no kit: it has no 'kit.json'"),
        ("kit.json", lambda path: path.write_text("{"), "cannot be read as JSON"),
        ("kit.json", changed(lambda c: c.update(format=9)), "is not of a kit of format 1"),
        ("kit.json", changed(lambda c: c.pop("seed")), "is not of a kit of format 1"),
        (
            "kit.json",
            changed(lambda c: c["designs"][1].update({"a:0": 4})),
            "are of another 'kit.json' than the one there",
        ),
        ("design02.onnx", Path.unlink, "design02.onnx' is missing or was changed"),
        (
            "design02.onnx",
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "design02.onnx' is missing or was changed",
        ),
        ("onnxruntime", shutil.rmtree, "has no times of onnxruntime: run 'time_onnxruntime.py'"),
        ("onnxruntime/times.json", Path.unlink, "onnxruntime' is half written"),
        (
            "onnxruntime/times.json",
            lambda path: path.write_text(path.read_text()[:-9]),
            "cannot be read as JSON",
        ),
        (
            "onnxruntime/times.json",
            changed(lambda c: c["files"].update({"design01.onnx": "0"})),
            "are of another 'design01.onnx'",
        ),
        (
            "onnxruntime/times.json",
            changed(lambda c: c["races"][1]["after"].pop()),
            "is not what the script of a kit writes",
        ),
        (
            "onnxruntime/times.json",
            changed(lambda c: c["races"].pop()),
            "is not what the script of a kit writes",
        ),
        (
            "onnxruntime/times.json",
            changed(lambda c: c.pop("version")),
            "is not what the script of a kit writes",
        ),
        ("onnxruntime/design03.trace.json", Path.unlink, "is no trace of ONNX Runtime's profiler"),
        (
            "onnxruntime/design03.trace.json",
            lambda path: path.write_text(path.read_text()[:99]),
            "is no trace of ONNX Runtime's profiler",
        ),
    ],
)
def test_a_damaged_kit_is_refused(
    name: str, damage: Callable[[Path], Any], said: str, timed_kit: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(timed_kit, folder)
    damage(folder / "kit" / name)
    assert_refused(read(folder), said)
    assert not (folder / "costs.json").exists()


def test_a_kit_of_another_model_is_refused(timed_kit: Path, tmp_path: Path) -> None:
    command = ("profile", saved(tmp_path, NORMED), "--from", timed_kit / "kit")
    assert_refused(invoke(*command, "-o", tmp_path / "c.json"), "of a model with sha256")


def test_refusals_of_the_command(timed_kit: Path, tmp_path: Path) -> None:
    model = timed_kit / "model.onnx"
    kit, target = ("--from", timed_kit / "kit"), ("-o", tmp_path / "c.json")
    assert_refused(invoke("profile", model, *kit), "Missing option '-o'", code=2)
    assert_refused(invoke("profile", model, *kit, *target, "--seed", "1"), "leave --seed out")
    assert_refused(invoke("profile", model, *kit, *target, "--threads", "1"), "leave --threads out")
    assert_refused(
        invoke("profile", model, *kit, *target, "--engine", "trtexec"),
        "has no times of trtexec: run 'time_trtexec.sh'",
        "there are those of onnxruntime: name it with --engine",
    )
    assert_refused(
        invoke("profile", model, *kit, *target, "--engine", "openvino"), "onnxruntime or trtexec"
    )
    assert_refused(invoke("profile", model, *kit, "--kit", tmp_path / "k"), "give one of them")
    assert_refused(invoke("profile", model, "--kit", timed_kit / "kit"), "is not empty")
    new = ("--kit", tmp_path / "k")
    assert_refused(invoke("profile", model, *new, "--threads", "1"), "leave --threads out")
    assert_refused(invoke("profile", model, *new, *target), "leave --output out")
    assert_refused(invoke("profile", model, "--kit", tmp_path / "no" / "k"), "does not exist")
    assert not list(tmp_path.iterdir())
