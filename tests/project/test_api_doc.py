"""docs/api.md is what its tool writes, and tells all that there is."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import pytest
from helpers import load_tool

import obc_onnx

if TYPE_CHECKING:
    from types import ModuleType

CALLS = [name for name in obc_onnx.__all__ if inspect.isfunction(getattr(obc_onnx, name))]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("document_api")


def section(page: str, name: str) -> str:
    found = re.search(rf"^### {name}$(.*?)(?=^##)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_the_page_is_what_the_tool_writes(tool: ModuleType) -> None:
    written = tool.PAGE.read_text(encoding="utf-8").splitlines()
    assert written == tool.page().splitlines(), "run `python tools/document_api.py`"


def test_the_page_names_all_that_is_public(tool: ModuleType) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    assert all(f"### {name}\n" in text or f"- `{name}`" in text for name in obc_onnx.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_is_described(name: str, tool: ModuleType) -> None:
    told = section(tool.PAGE.read_text(encoding="utf-8"), name)
    arguments = told.partition("**Arguments**")[2].partition("**R")[0]
    described = re.findall(r"^- `(\w+)`: ", arguments, re.MULTILINE)
    assert described == list(inspect.signature(getattr(obc_onnx, name)).parameters)


@pytest.mark.parametrize(
    "name",
    [
        "Augmentation",
        "Budget",
        "DataOptions",
        "EngineOptions",
        "ImageOptions",
        "Scope",
        "Scoring",
        "TrainingOptions",
    ],
)
def test_every_field_of_options_is_described(name: str, tool: ModuleType) -> None:
    told = section(tool.PAGE.read_text(encoding="utf-8"), name)
    described = re.findall(r"^- `(\w+)`: ", told.partition("**Fields**")[2], re.MULTILINE)
    assert set(described) >= set(inspect.signature(getattr(obc_onnx, name)).parameters)


def test_defaults_are_told_by_their_value(tool: ModuleType) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    assert "training: TrainingOptions | int = 20," in text
    assert "rules: RuleSet = DEFAULT_RULES," in text
    assert "images: ImageOptions = ImageOptions()," in text
