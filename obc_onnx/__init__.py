"""Compress deployed ONNX models. See `obc_onnx.compress` and `obc_onnx.inspect`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from obc_onnx.version import __version__

if TYPE_CHECKING:
    from obc_onnx.report.result import Result
    from obc_onnx.run.api import (
        apply,
        compress,
        inspect,
        make_plan,
        measure_sensitivity,
        score,
        verify,
    )

_DEFINED_IN = {
    "Result": "report.result",
    "apply": "run.api",
    "compress": "run.api",
    "inspect": "run.api",
    "make_plan": "run.api",
    "measure_sensitivity": "run.api",
    "score": "run.api",
    "verify": "run.api",
}


def __getattr__(name: str) -> Any:
    """Load a name on first use: importing the package stays cheap."""
    if name in _DEFINED_IN:
        return getattr(import_module(f"obc_onnx.{_DEFINED_IN[name]}"), name)
    raise AttributeError(f"module 'obc_onnx' has no attribute '{name}'")


__all__ = [
    "Result",
    "__version__",
    "apply",
    "compress",
    "inspect",
    "make_plan",
    "measure_sensitivity",
    "score",
    "verify",
]
