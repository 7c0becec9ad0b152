"""Public architectures as two exporters write them; skipped where the folder of graphs is missing."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from conftest import ROOT
from helpers import TOLERANCE

if TYPE_CHECKING:
    from types import ModuleType

ZOO = Path(os.environ.get("OBC_ONNX_ZOO", ROOT.parent / "shared" / "zoo"))
"""Graphs without their large weights, and `fill.py`, which draws those from a seed."""
SMALL = "test_"
"""Architectures of this name are small enough for every run."""
N_PLANS = 3


def load(path: Path) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def parameters() -> list[Any]:
    names = sorted(path.stem for path in ZOO.glob("*.onnx"))
    if not names:
        reason = f"there are no graphs in {ZOO}; OBC_ONNX_ZOO may name another folder"
        return [pytest.param("none", marks=pytest.mark.skip(reason=reason))]
    return [
        pytest.param(name, marks=() if name.startswith(SMALL) else pytest.mark.slow)
        for name in names
    ]


@pytest.mark.parametrize("name", parameters())
def test_an_architecture_prunes_exactly_and_reaches_half_of_its_macs(
    name: str, tmp_path: Path
) -> None:
    """Or the refusal names what holds it, and `Scope.allow_inexact` is what helps."""
    model = load(ZOO / "fill.py").fill(onnx.load(ZOO / f"{name}.onnx"))
    path = tmp_path / f"{name}.onnx"
    onnx.save(model, path)
    row = load(ROOT / "tools" / "check_models.py").check(path, N_PLANS)
    assert row.error < TOLERANCE
    assert row.effect > 100 * TOLERANCE or row.n_units < 100
    if row.macs_share is None:
        assert "`Scope.allow_inexact`" in row.note
    else:
        assert row.macs_share <= 0.5
