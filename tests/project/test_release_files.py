"""Files of a release say what the project says: versions, targets of make, what an image holds."""

from __future__ import annotations

import re
import tomllib

import pytest
from conftest import ROOT

from obc_onnx.version import __version__

WORKFLOW = ".github/workflows/test.yml"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", [WORKFLOW, "README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_targets_that_are_named_are_in_the_makefile(name: str) -> None:
    told = set(re.findall(r"(?:`|run: |^)make ([a-z][a-z-]*)", read(name), re.MULTILINE))
    assert told
    assert told <= targets()


def test_pythons_are_the_same_everywhere() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pattern = r"Programming Language :: Python :: (3\.\d+)"
    declared = re.findall(pattern, "\n".join(project["classifiers"]))
    lists = re.findall(r"python: \[(.*)\]", read(WORKFLOW))
    assert lists
    assert all(re.findall(r"3\.\d+", told) == declared for told in lists)
    assert project["requires-python"] == f">={declared[0]}"
    assert f"Python {declared[0]} or newer" in read("README.md")
    (image,) = re.findall(r"FROM python:(3\.\d+)", read("Dockerfile"))
    assert image in declared


def test_the_citation_is_of_this_version_and_licence() -> None:
    text = read("CITATION.cff")
    assert f"\nversion: {__version__}\n" in text
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert f"\nlicense: {project['license']}\n" in text


def test_an_image_gets_every_file_that_it_copies() -> None:
    let_in = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    copied = [
        name
        for line in re.findall(r"^COPY (.*) \S+$", read("Dockerfile"), re.MULTILINE)
        for name in line.split()
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert any((ROOT / name) in ROOT.glob(pattern) for pattern in let_in), name


def test_figures_of_the_tutorial_are_those_of_the_readme() -> None:
    rows = [line for line in read("docs/tutorial/vision.md").splitlines() if "times " in line]
    assert len(rows) == 2
    assert all(row in read("README.md").splitlines() for row in rows)


def test_figures_of_the_comparison_are_those_that_were_measured() -> None:
    measured = read("docs/recovery.md").partition("**fashion_resnet20_folded**")[2]
    table = measured.partition("\n\n**")[0]
    rows = {"onnxsim, l2": "onnxsim l2 | none", "onnxsim, wanda": "onnxsim wanda | none"}
    rows |= {"obc-onnx, l2, cut alone": "l2 | none", "obc-onnx, l2, refit": "l2 | refit"}
    rows |= {"obc-onnx, jacobian, refit": "jacobian | refit"}
    page = read("docs/explanation/comparison.md")
    for told, name in rows.items():
        (figures,) = re.findall(rf"^\| {re.escape(told)} \| (.*) \|$", page, re.MULTILINE)
        assert f"\n| {name} | {figures} |" in table, told
