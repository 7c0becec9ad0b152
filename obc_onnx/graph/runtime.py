"""ONNX Runtime itself: its options, what it raises about a model, and one run of a message."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from obc_onnx.errors import RequestError
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
    "custom_op_libraries",
    "data_type_of",
    "is_taken",
    "lacks_code",
    "load_refusals",
    "optimization_level",
    "output_types",
    "register_custom_ops",
    "run_once",
    "run_refusals",
    "runtime_version",
    "session_options",
    "signatures",
    "why_refused",
]

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

CPU = "CPUExecutionProvider"

_FATAL_SEVERITY = 4
"""Errors come as exceptions; ONNX Runtime would print them on stderr too."""
_SPINNING = "session.intra_op.allow_spinning"
"""Whether threads wait for the next run by looking for it all the time."""
_UNPACKED = "session.disable_prepacking"
"""Whether weights stay as they are; laid out for a kernel they are there twice."""
_NOT_REGISTERED = "is not a registered function/op"
"""What ONNX Runtime says of an operator outside of the standard that it does not know."""
_LIBRARIES: list[str] = []
"""Files with more operators: a process loads each of them once, and keeps it."""


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
    for library in _LIBRARIES:
        options.register_custom_ops_library(library)
    options.graph_optimization_level = optimization_level("all" if optimize else "none")
    return options


def register_custom_ops(path: str | Path) -> None:
    """Let ONNX Runtime take the operators of a library, in all later sessions of this process.

    Args:
        path: A shared library that ONNX Runtime's `register_custom_ops_library` loads.
    Raises:
        RequestError: It does not load it.
    """
    library = str(path)
    if library in _LIBRARIES:
        return
    try:
        SessionOptions().register_custom_ops_library(library)
    except load_refusals() as error:
        raise RequestError(
            f"ONNX Runtime cannot load '{library}' as a library of operators: {error}"
        ) from error
    _LIBRARIES.append(library)


def custom_op_libraries() -> tuple[str, ...]:
    """Return the libraries that are registered."""
    return tuple(_LIBRARIES)


@cache
def signatures() -> frozenset[tuple[str, str]]:
    """Return the operators that ONNX Runtime has a signature of, by domain and name.

    Those of libraries are not among them.
    """
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return frozenset((schema.domain, schema.name) for schema in state.get_all_operator_schema())


def is_taken(model: onnx.ModelProto) -> bool:
    """Say whether ONNX Runtime knows all operators of a model, and has code for them.

    What else may stop a model from being loaded does not count.
    """
    state = onnxruntime.capi.onnxruntime_pybind11_state
    options = session_options(optimize=False)
    try:
        InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except (state.NotImplemented, state.InvalidGraph):
        return False
    except load_refusals() as error:
        return _NOT_REGISTERED not in str(error)
    return True


def output_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return ONNX's numbers for the element types of outputs; `load_refusals` may come up.

    Returns:
        By name; 0 for what is no tensor.
    """
    options = session_options(optimize=False)
    session = InferenceSession(model.SerializeToString(), options, providers=[CPU])
    return {output.name: data_type_of(output.type) for output in session.get_outputs()}


def data_type_of(kind: str) -> int:
    """Read ONNX Runtime's way to write a type, as in "tensor(float16)"; 0 for what is no tensor."""
    name = kind.removeprefix("tensor(").removesuffix(")").upper()
    return int(dict(TensorProto.DataType.items()).get(name, 0))


def optimization_level(name: str) -> Any:
    """Return how far ONNX Runtime rewrites a graph: "none", "basic", "extended" or "all"."""
    levels = onnxruntime.GraphOptimizationLevel
    return {
        "none": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[name]


def runtime_version() -> str:
    """Return the version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def available_providers() -> list[str]:
    """List what models can be run with, the preferred one first."""
    return list(onnxruntime.get_available_providers())


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


def lacks_code(error: Exception) -> bool:
    """Say whether ONNX Runtime refused a model since it has no code for an element type."""
    return isinstance(error, onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented)


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
