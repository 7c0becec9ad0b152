"""What is installed: the source archive and the wheel, in an environment without the source tree."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from helpers import load_tool
from small import archive, classes, images, saved

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = ("obc_onnx", "pyproject.toml", "README.md", "LICENSE", "requirements*.txt")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
IMPORT_ALL = """
import pkgutil, sys, obc_onnx
assert obc_onnx.__file__.startswith(sys.argv[1]), obc_onnx.__file__
names = [m.name for m in pkgutil.walk_packages(obc_onnx.__path__, "obc_onnx.")]
for name in names:
    if name not in {"obc_onnx.__main__", "obc_onnx.olive_pass"}:  # what runs, and what needs Olive
        __import__(name)
for name in obc_onnx.__all__:
    assert getattr(obc_onnx, name) is not None
print(len(names))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program without what points to the source tree; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(hook: str, source: Path, target: Path) -> Path:
    """Run a hook of the build backend; return the archive."""
    name = run(sys.executable, "-c", BUILD.format(hook=hook), target, cwd=source).splitlines()[-1]
    return target / name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from what it holds."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    copy.mkdir()
    for pattern in SOURCES:
        for path in ROOT.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, copy / path.name)
            else:
                shutil.copy(path, copy)
    source = build("build_sdist", copy, folder)
    with tarfile.open(source) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return source, build("build_wheel", unpacked, folder)


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, which borrows what the package depends on."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", built[1], cwd=folder.parent)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def files_of_the_package() -> set[str]:
    paths = (ROOT / "obc_onnx").rglob("*")
    kept = (path for path in paths if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in kept}


def test_the_wheel_and_the_source_archive_hold_every_file_of_the_package(
    built: tuple[Path, Path],
) -> None:
    source, wheel = built
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()
    with tarfile.open(source) as opened:
        members = {name.partition("/")[2] for name in opened.getnames()}
    assert files_of_the_package() <= members
    assert {"LICENSE", "requirements.txt", "requirements-onnxruntime.txt"} <= members


def test_the_wheel_asks_for_what_the_requirement_files_list(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        lines = opened.read(name).decode().splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]
    declared = load_tool("floors").declared()
    fuse = next(line for line in declared if line.startswith("POT"))
    assert f'{fuse}; extra == "fuse"' in asked
    always = {line.partition(";")[0].strip() for line in asked if "extra ==" not in line}
    assert always == {line.partition(";")[0] for line in declared} - {fuse}
    assert "Requires-Python: >=3.11" in lines


def test_an_installed_wheel_imports_every_module_and_every_public_name(
    installed: Path, tmp_path: Path
) -> None:
    printed = run(installed / "bin" / "python", "-c", IMPORT_ALL, installed, cwd=tmp_path)
    modules = [name for name in files_of_the_package() if name.endswith(".py")]
    assert int(printed) == len(modules) - 1  # `obc_onnx` itself is not among those walked


def test_an_installed_wheel_runs_its_commands(installed: Path, tmp_path: Path) -> None:
    program = installed / "bin" / "obc-onnx"
    model, data = saved(tmp_path), archive(tmp_path, x=images(), labels=classes())
    assert "compress" in run(program, "--help", cwd=tmp_path)
    assert run(program, "--version", cwd=tmp_path).startswith("obc-onnx, version ")
    assert "2 groups, 32 units" in run(program, "inspect", model, cwd=tmp_path)
    for name, more in (("bare.onnx", ()), ("repaired.onnx", ("--data", data))):
        run(program, "compress", model, "-o", name, *more, cwd=tmp_path)
        assert (tmp_path / name).stat().st_size < model.stat().st_size


def test_the_floors_are_the_bounds_and_pins_cover_the_rest() -> None:
    tool = load_tool("floors")
    floors = tool.floors()
    assert "onnx==1.20" in floors
    assert any(line.startswith("onnxruntime-gpu==1.20;") for line in floors)
    assert not any(">=" in line or line.startswith("torch=") for line in floors)
    pins = tool.pins()
    assert {"torch", *tool.TEST_TOOLS} <= pins.keys()
    missing = {line.partition("==")[0] for line in floors} - pins.keys()
    assert not missing, "what `make` installs is pinned"
