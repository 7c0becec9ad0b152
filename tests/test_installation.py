"""What is said where ONNX Runtime or an extra is not installed, or not whole."""

from __future__ import annotations

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
