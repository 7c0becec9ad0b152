"""Compress deployed ONNX models. See `obc_onnx.compress` and `obc_onnx.inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obc_onnx.version import __version__

if TYPE_CHECKING:
    from obc_onnx.pipeline import compress, inspect
    from obc_onnx.result import Result

_FROM_PIPELINE = ("Result", "compress", "inspect")


def __getattr__(name: str) -> Any:
    """Load the pipeline on first use: importing the package stays cheap."""
    if name in _FROM_PIPELINE:
        from obc_onnx import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'obc_onnx' has no attribute '{name}'")


__all__ = ["Result", "__version__", "compress", "inspect"]
