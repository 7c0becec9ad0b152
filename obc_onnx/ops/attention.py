"""Attention as one operator, of the standard and of ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obc_onnx.ops.rule import Rule

RULES: tuple[Rule, ...] = ()
