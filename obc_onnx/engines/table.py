"""Engines by name, each in a module that is loaded on demand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obc_onnx.engines.engine import Engine
    from obc_onnx.engines.options import EngineOptions

ENGINES = {
    "onnxruntime": ("onnx_runtime", "OnnxRuntime"),
    "openvino": ("open_vino", "OpenVino"),
    "trtexec": ("trtexec", "Trtexec"),
    "command": ("command", "Command"),
}
"""The module and the class of each."""


def make_engine(options: EngineOptions) -> Engine:
    """Return the engine that was asked for.

    Raises:
        InstallationError: Its package is not installed.
    """
    module, name = ENGINES[options.engine]
    made: Engine = getattr(importlib.import_module(f"obc_onnx.engines.{module}"), name)(options)
    return made
