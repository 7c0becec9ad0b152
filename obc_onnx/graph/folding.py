"""What one node gives for known inputs: its size first, then its numbers.

A node of some bytes may ask for terabytes, so nothing is computed of unknown or large size.
onnx's reference evaluator computes what it can. It lacks operators, and versions of others: those
are left to ONNX Runtime, and what neither computes is not folded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from obc_onnx.graph.malformed import FAULTS
from obc_onnx.graph.outline import KEPT_ELEMENTS, element_type
from obc_onnx.graph.runtime import run_once, run_refusals
from obc_onnx.graph.soundness import element_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Values = Mapping[str, NDArray[Any]]

_IR_VERSION = 10
"""Of the models of one node; ONNX Runtime knows it in every version that is taken."""


def fold(
    message: onnx.NodeProto, inputs: Values, opset: int, most_bytes: int
) -> dict[str, NDArray[Any]] | None:
    """Compute a node of the standard domain.

    Args:
        message: The node.
        inputs: What it reads, by name.
        opset: Of the model.
        most_bytes: What its outputs may take, all together.
    Returns:
        Its outputs by name; None where they are too large, of unknown size, or cannot be computed.
    """
    size = _bytes_given(_alone(message, inputs, opset))
    return None if size is None or size > most_bytes else computed(message, inputs, opset)


def computed(message: onnx.NodeProto, inputs: Values, opset: int) -> dict[str, NDArray[Any]] | None:
    """Compute a node of the standard domain that is known to give little.

    Args:
        message: The node.
        inputs: What it reads, by name.
        opset: Of the model.
    Returns:
        Its outputs by name; None where they cannot be computed.
    """
    names = [name for name in message.output if name]
    evaluator = {"": opset}
    values: Any
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(message, opsets=evaluator).run(names, dict(inputs))
    except FAULTS:  # what the evaluator cannot compute
        values = _run(_alone(message, inputs, opset), inputs)
    if values is None or not all(isinstance(v, (np.ndarray, np.generic)) for v in values):
        return None
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _run(model: onnx.ModelProto, inputs: Values) -> list[Any] | None:
    """Compute in ONNX Runtime; None where it refuses."""
    feed = {port.name: inputs[port.name] for port in model.graph.input}
    try:
        return list(run_once(model.SerializeToString(), feed).values())
    except run_refusals():
        return None


def _alone(message: onnx.NodeProto, inputs: Values, opset: int) -> onnx.ModelProto:
    """Make a model of one node; what may describe shapes is in it, other inputs are declared."""
    small = {n: array for n, array in inputs.items() if array.size <= KEPT_ELEMENTS}
    ports = [
        onnx.helper.make_tensor_value_info(name, element_type(array.dtype), array.shape)
        for name, array in inputs.items()
        if name not in small
    ]
    graph = onnx.helper.make_graph(
        [message],
        "node",
        ports,
        [onnx.ValueInfoProto(name=name) for name in message.output if name],
        [onnx.numpy_helper.from_array(array, name) for name, array in small.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _bytes_given(model: onnx.ModelProto) -> int | None:
    """Infer how many bytes a model gives; None where it does not say, or is inconsistent."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None
    total = 0
    for port in inferred.graph.output:
        kind = port.type.tensor_type
        sizes = [size.dim_value for size in kind.shape.dim if size.HasField("dim_value")]
        known = kind.HasField("shape") and len(sizes) == len(kind.shape.dim)
        if not known or kind.elem_type in {onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING}:
            return None
        total += element_bytes(kind.elem_type, math.prod(sizes))
    return total
