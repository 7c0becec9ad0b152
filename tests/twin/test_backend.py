"""ONNX's own node tests on the twin: whatever ONNX Runtime passes, or a reason why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import load_tool

if TYPE_CHECKING:
    from types import ModuleType

REASONS = {
"a constant of strings", "a sequence or an optional",
    "a step of training", "a value that is no tensor of numbers",
    "an encoded image", "features whose weights are attributes", "frequencies", "random numbers",
    "scores that a subgraph may change", "text",
}  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("backend_score")


@pytest.mark.filterwarnings("ignore")  # numpy and torch warn of infinities that tests are about
def test_the_twin_passes_what_onnx_runtime_passes(tool: ModuleType) -> None:
    rows = list(tool.score(tool.load_tests()))
    judged = [row for row in rows if row.runtime]
    assert len(judged) > 1000
    failed = {row.name: row.detail for row in judged if row.twin == "failed"}
    assert not failed
    passed = [row for row in judged if row.twin == "passed"]
    assert len(passed) > 0.9 * len(judged)
    assert {row.detail for row in rows if row.twin == "excluded"} <= REASONS


def test_a_difference_is_seen(tool: ModuleType) -> None:
    (test,) = [test for test in tool.load_tests(["test_relu"]) if test.name == "test_relu"]
    ((_, expected),) = tool.samples(test)
    (name,) = expected
    y = expected[name]
    assert not tool.difference({name: y}, expected, test)
    assert tool.difference({name: y.astype(np.float64)}, expected, test)
    assert tool.difference({name: y[:1]}, expected, test)
    assert tool.difference({name: y + 0.01}, expected, test) == f"'{name}': other values"
