"""How closely two runs of the same computation have to agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.graph.node import is_float
from obc_onnx.graph.operators import ON_QUANTISED, QUANTISING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph


@dataclass(frozen=True)
class Precision:
    """What a float type allows.

    Attributes:
        tolerance: Largest accepted error, as a share of how much an output varies.
        epsilon: Distance from 1 to the next number.
    """

    tolerance: float
    epsilon: float


_PRECISIONS = {
    "float64": Precision(1e-9, 2.0**-52),
    "float32": Precision(1e-4, 2.0**-23),
    "float16": Precision(1e-2, 2.0**-10),
    "bfloat16": Precision(5e-2, 2.0**-7),
}
_QUANTISED = Precision(5e-2, 2.0**-7)
"""A sum that is off by one rounding may fall into the next step of a quantised activation."""
_TEXT = "OSU"
"""Kinds of arrays that hold strings, of which ONNX Runtime makes objects."""
_ROUNDINGS = 128
"""How many roundings of its largest value an output may be off by, however little it varies."""


def precision_of(graph: Graph) -> Precision:
    """Return the precision of the coarsest type that a graph computes with."""
    if is_quantised(graph):
        return _QUANTISED
    kinds = {array.dtype.name for array in graph.initializers.values() if is_float(array.dtype)}
    kinds |= {port.dtype.name for port in (*graph.inputs, *graph.outputs)}
    known = [_PRECISIONS[kind] for kind in kinds if kind in _PRECISIONS]
    return max(known, key=lambda found: found.tolerance, default=_PRECISIONS["float32"])


def epsilon_of(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number of a float type."""
    return _PRECISIONS[dtype.name].epsilon


def is_quantised(graph: Graph) -> bool:
    """Say whether a graph rounds activations to whole numbers."""
    return any(node.op_type in QUANTISING or ON_QUANTISED in node.op_type for node in graph.nodes)


def relative_error(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return max |found - reference| / RMS(reference); infinite where shapes or NaNs differ."""
    if found.shape != reference.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind in _TEXT:
        return 0.0 if np.array_equal(found, reference) else float("inf")
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    rms = float(np.sqrt(np.mean(reference**2)))
    with np.errstate(invalid="ignore"):
        error = float(np.max(np.abs(found - reference)))
    if not np.isfinite(error):
        return float("inf")
    return error / rms if rms > 0 else error


def allowed_error(reference: NDArray[Any], precision: Precision, axis: int | None = 0) -> float:
    """Return the largest accepted `relative_error`.

    An output that hardly varies, such as a large bias plus a little, would agree with anything to a
    share of its RMS. So the tolerance is a share of how much it varies from sample to sample, but
    never less than some roundings of its largest value.

    Args:
        reference: What an output should be.
        precision: Of the graph.
        axis: Along which it has samples; None where it has none.
    """
    if reference.size == 0 or not np.issubdtype(reference.dtype, np.floating):
        return 0.0
    wide = reference.astype(np.float64)
    rms = float(np.sqrt(np.mean(wide**2)))
    if rms == 0 or not np.isfinite(rms):
        return precision.tolerance
    several = axis is not None and _has_several(wide, axis)
    mean = wide.mean(axis=axis if several else None, keepdims=several)
    spread = float(np.sqrt(np.mean((wide - mean) ** 2)))
    rounding = _ROUNDINGS * precision.epsilon * float(np.abs(wide).max())
    return min(max(precision.tolerance * spread, rounding), precision.tolerance * rms) / rms


def is_vacuous(reference: NDArray[Any], allowed: float, axis: int | None = 0) -> bool:
    """Say whether every sample of a float output would pass for the mean of several.

    Args:
        reference: The output.
        allowed: The largest accepted `relative_error`.
        axis: That of the samples; None where there is none.
    """
    if axis is None or not np.issubdtype(reference.dtype, np.floating):
        return False
    if not _has_several(reference, axis):
        return False
    wide = reference.astype(np.float64)
    mean = np.broadcast_to(wide.mean(axis=axis, keepdims=True), wide.shape)
    return relative_error(mean, wide) <= allowed


def _has_several(array: NDArray[Any], axis: int) -> bool:
    return array.ndim > axis and array.shape[axis] > 1
