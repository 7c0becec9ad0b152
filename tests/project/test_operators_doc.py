"""docs/operators.md is what its tool writes, and every operator of onnx is in a state on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from helpers import load_tool

from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("document_operators")


def test_the_page_is_what_the_tool_writes(tool: ModuleType) -> None:
    written = tool.PAGE.read_text(encoding="utf-8").splitlines()
    if not any(f"onnx {onnx.__version__} " in line for line in written):
        pytest.skip("the page was written from another version of onnx, which lists other opsets")
    assert written == tool.page().splitlines(), "run `python tools/document_operators.py`"


def test_every_operator_of_onnx_is_known_or_frozen_on_purpose(tool: ModuleType) -> None:
    assert not {key for key in tool.versions() if tool.rule_of(key) is None}


def test_every_reason_reads_as_a_part_of_a_sentence(tool: ModuleType) -> None:
    rules = {tool.rule_of(key) for key in DEFAULT_RULES.operators}
    reasons = [rule.why for rule in rules if isinstance(rule, Frozen)]
    assert reasons
    assert all(reason and reason[0].islower() and reason[-1].isalpha() for reason in reasons)


def test_the_columns_tell_operators_apart(tool: ModuleType) -> None:
    seen = tool.observe()
    assert tool.cells(tool.rule_of(("", "Conv")), seen["", "Conv"]) == (
        "couples", "yes", "yes", "yes",
    )  # fmt: skip
    assert tool.cells(tool.rule_of(("", "ReduceMean")), seen["", "ReduceMean"]) == (
        "couples", "no: mean", "yes", "no",
    )  # fmt: skip
    assert tool.cells(tool.rule_of(("", "If")), seen["", "If"]) == (
        "frozen on purpose: a subgraph", "-", "yes", "no",
    )  # fmt: skip
    assert tool.cells(None, tool.Observed()) == ("unknown", "-", "-", "-")
