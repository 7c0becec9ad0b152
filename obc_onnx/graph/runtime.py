"""ONNX Runtime itself: its options, what it raises about a model, and one run of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obc_onnx.installation import no_onnx_runtime

try:
    import onnxruntime
    from onnxruntime import (  # an emptied folder can be imported, but lacks them
        InferenceSession,
        OrtValue,
        SessionOptions,
    )
except ImportError as error:
    raise no_onnx_runtime(error) from error

__all__ = [
    "CPU",
    "InferenceSession",
    "OrtValue",
    "SessionOptions",
    "available_providers",
    "load_refusals",
    "run_once",
    "run_refusals",
    "session_options",
    "why_refused",
]

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

CPU = "CPUExecutionProvider"

available_providers = onnxruntime.get_available_providers
"""Returns what models can be run with, the preferred one first."""
_FATAL_SEVERITY = 4
"""Errors come as exceptions; ONNX Runtime would print them on stderr too."""
_SPINNING = "session.intra_op.allow_spinning"
"""Whether threads wait for the next run by looking for it all the time."""
_UNPACKED = "session.disable_prepacking"
"""Whether weights stay as they are; laid out for a kernel they are there twice."""


def session_options(*, optimize: bool, spins: bool = True, packs: bool = True) -> SessionOptions:
    """Return the options of a session.

    Args:
        optimize: Whether ONNX Runtime may rewrite the graph.
        spins: Whether idle threads hold their cores.
        packs: Whether weights are laid out for kernels, and freed memory is kept.
    """
    options = SessionOptions()
    options.log_severity_level = _FATAL_SEVERITY
    options.add_session_config_entry(_SPINNING, str(int(spins)))
    options.add_session_config_entry(_UNPACKED, str(int(not packs)))
    options.enable_cpu_mem_arena = packs  # which takes up to twice of what a run needs
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return options


def load_refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises about a model, as opposed to bugs of ours."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
    )


def run_refusals() -> tuple[type[Exception], ...]:
    """What it raises about a feed too: inputs that are not fed, or of a type that cannot be."""
    return (*load_refusals(), ValueError, RuntimeError)


def why_refused(model: onnx.ModelProto) -> str | None:
    """Say why ONNX Runtime does not load a model, None where it does."""
    try:
        InferenceSession(
            model.SerializeToString(), session_options(optimize=False), providers=[CPU]
        )
    except load_refusals() as error:
        return str(error)
    return None


def run_once(model: bytes | Path, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Run a message or a file once, as it is written; `run_refusals` may come up.

    Returns:
        Each output by name.
    """
    session = InferenceSession(model, session_options(optimize=False), providers=[CPU])
    names = (output.name for output in session.get_outputs())
    return dict(zip(names, session.run(None, dict(feed)), strict=True))
