"""Operators that ONNX Runtime's optimizer fuses others into."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obc_onnx.ops.rule import Rule

RULES: tuple[Rule, ...] = ()
