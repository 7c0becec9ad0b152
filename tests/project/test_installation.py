"""What works and what is said where ONNX Runtime, torch or an extra is missing, or not whole."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import archive, assert_refused, images, invoke, saved, written_into

import obc_onnx
from obc_onnx.errors import InstallationError
from obc_onnx.installation import why_no_torch

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(obc_onnx.__file__).parents[1]
CLAIM = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"


def emptied(packages: Path) -> None:
    """A folder of which pip has removed all files but those that other programs made."""
    (packages / "onnxruntime" / "capi").mkdir(parents=True)


def hollow(packages: Path) -> None:
    (packages / "onnxruntime").mkdir()
    (packages / "onnxruntime" / "__init__.py").touch()


def damaged(packages: Path) -> None:
    hollow(packages)
    broken = "raise ImportError('libonnxruntime.so: cannot open shared object file')\n"
    (packages / "onnxruntime" / "__init__.py").write_text(broken)


def missing(_packages: Path) -> None:
    pass


def claim(packages: Path, *names: str) -> None:
    """Let pip's records say that packages installed the folder."""
    for name in names:
        record = packages / f"{name}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(CLAIM.format(name=name))
        (record / "RECORD").write_text("onnxruntime/__init__.py,,\n")


def run_with(packages: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python on these packages and, but for ONNX Runtime, on those of this interpreter."""
    for folder in site.getsitepackages():
        for entry in Path(folder).iterdir():
            link = packages / entry.name
            if not entry.name.startswith("onnxruntime") and not link.exists():
                link.symlink_to(entry)
    path = os.pathsep.join([str(packages), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-S", *map(str, command)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages"


BREAKS = {
    "emptied": (emptied, (), ("InferenceSession", "pip install onnxruntime")),
    "hollow": (hollow, ("onnxruntime",), ("--force-reinstall --no-deps onnxruntime",)),
    "damaged": (
        damaged,
        ("onnxruntime", "onnxruntime-gpu"),
        ("libonnxruntime.so", "share one folder", "pip uninstall onnxruntime onnxruntime-gpu"),
    ),
    "missing": (missing, (), ("No module named 'onnxruntime'", "pip install onnxruntime")),
}


@pytest.mark.parametrize(("break_it", "names", "parts"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_onnx_runtime_ends_in_one_sentence_that_says_what_to_run(
    tmp_path: Path,
    packages: Path,
    break_it: Callable[[Path], None],
    names: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    break_it(packages)
    claim(packages, *names)
    done = run_with(packages, "-m", "obc_onnx", "inspect", saved(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ONNX Runtime cannot be imported (")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


@pytest.mark.parametrize("break_it", [missing, damaged])
def test_the_doctor_names_a_broken_onnx_runtime_beside_what_works(
    packages: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(packages)
    done = run_with(packages, "-m", "obc_onnx", "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "fault: ONNX Runtime cannot be imported (" in done.stdout
    assert " cpu" in done.stdout
    assert done.stdout.splitlines()[-1] == "models cannot be run"


def test_help_needs_no_onnx_runtime(packages: Path) -> None:
    done = run_with(packages, "-m", "obc_onnx", "compress", "--help")
    assert done.returncode == 0, done.stderr
    assert "--target-macs" in done.stdout


def test_from_python_it_is_an_error_of_the_package(packages: Path) -> None:
    code = (
        "import obc_onnx; from obc_onnx.errors import InstallationError\n"
        "try: obc_onnx.inspect\n"
        "except InstallationError as error: print(error)"
    )
    done = run_with(packages, "-c", code)
    assert done.stdout.startswith("ONNX Runtime cannot be imported"), done.stderr


@pytest.mark.parametrize("data", [True, False])
def test_repair_by_fusion_names_its_extra_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, data: bool
) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    given = ("--data", tmp_path / "none.npz") if data else ()
    command = ("compress", tmp_path / "none.onnx", "-o", tmp_path / "small.onnx", *given)
    assert_refused(invoke(*command, "--recover", "fuse"), "pip install 'obc-onnx[fuse]'")


def test_every_other_repair_does_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ot", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)
    data = archive(tmp_path, x=images())
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", "--data", data)
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "small.onnx" in written_into(tmp_path)


def test_from_python_fusion_raises_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(InstallationError, match="POT"):
        obc_onnx.compress("none.onnx", recover="fuse")


def run_without_torch(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process where torch cannot be imported."""
    code = "import sys; sys.modules['torch'] = None; from obc_onnx.cli.main import cli; cli()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_done(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert all(part in " ".join(done.stdout.split()) for part in parts), done.stdout


def test_what_needs_no_torch_runs_without_it_and_says_what_was_left_out(tmp_path: Path) -> None:
    model, plan, small = saved(tmp_path), tmp_path / "plan.json", tmp_path / "small.onnx"
    scores = tmp_path / "scores.npz"
    reason = "torch is not installed: run pip install torch"
    assert_done(run_without_torch("inspect", model), "MACs")
    assert_done(run_without_torch("score", model, "-o", scores))
    assert_done(run_without_torch("plan", model, "-o", plan))
    unrepaired = f"nothing was repaired: {reason}"
    made = run_without_torch("compress", model, "-o", small, "--json")
    assert_done(made, f"not compared: {reason}", unrepaired)
    assert_done(run_without_torch("verify", model, small, "--plan", plan, "--json"), reason)
    cut = ("apply", model, "--plan", plan, "-o", tmp_path / "cut.onnx", "--recover", "none")
    done = run_without_torch(*cut, "--json")
    assert_done(done, f"not compared: {reason}")
    assert unrepaired not in done.stdout
    assert (tmp_path / "cut.onnx").read_bytes() == small.read_bytes()


def test_a_plan_by_weights_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from obc_onnx.cli.main import cli\n"
        "cli(standalone_mode=False); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "plan", saved(tmp_path), "-o", tmp_path / "plan.json"]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "False"


def test_samples_are_measured_on_without_torch(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images())
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", "--data", data)
    done = run_without_torch(*command, "--criterion", "l2", "--recover", "none", "--json")
    assert_done(done, "torch is not installed")
    assert json.loads(done.stdout)["outputs"]


def test_scores_plans_and_repaired_results_from_elsewhere_are_used_without_torch(
    tmp_path: Path,
) -> None:
    model, data = saved(tmp_path), archive(tmp_path, x=images())
    small, plan, scores = (tmp_path / name for name in ("s.onnx", "p.json", "scores.npz"))
    assert invoke("score", model, "-o", scores, "--data", data).exit_code == 0
    made = invoke("compress", model, "-o", small, "--data", data, "--plan-out", plan)
    assert made.exit_code == 0, made.output
    assert_done(run_without_torch("verify", model, small, "--plan", plan), "not compared")
    by_scores = ("plan", model, "-o", tmp_path / "own.json", "--scores", scores, "--json")
    assert_done(run_without_torch(*by_scores), '"criterion": "jacobian"', '"ranking": "per-cost"')


NEEDS_TORCH = {
    "criterion": ("score", ("-o", "scores.npz"), "criterion 'jacobian' needs torch"),
    "repair": ("compress", ("-o", "s.onnx", "--criterion", "l2"), "--recover none leaves out"),
    "sweep": ("sweep", ("-o", "swept.d", "--criterion", "l2"), "repair with samples"),
    "sensitivity": ("sensitivity", (), "criterion 'jacobian' needs torch"),
    "training": ("compress", ("-o", "s.onnx", "--epochs", "1"), "fine-tuning needs torch"),
    "device": ("score", ("-o", "scores.npz", "--device", "cuda"), "device 'cuda' needs torch"),
    "twin": ("twin", ("--print-code",), "the twin needs torch"),
}


@pytest.mark.parametrize(("command", "options", "part"), NEEDS_TORCH.values(), ids=NEEDS_TORCH)
def test_what_needs_torch_says_so_in_one_sentence_and_what_to_run(
    tmp_path: Path, command: str, options: tuple[str, ...], part: str
) -> None:
    model, data = saved(tmp_path), archive(tmp_path, x=images())
    placed = [tmp_path / word if "." in word else word for word in options]
    given = () if command == "twin" else ("--data", data)
    done = run_without_torch(command, model, *placed, *given)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert part in done.stderr
    assert "torch is not installed: run pip install torch" in done.stderr


def test_a_torch_that_lacks_files_is_to_be_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert why_no_torch() == (
        "torch cannot be imported (libcudart.so: cannot open): run pip install --force-reinstall "
        "torch"
    )
