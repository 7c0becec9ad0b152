"""Bring an imported model into the one form that the rest of the package expects.

1. Every Constant node is an initializer of the same name.
2. Small integers that are computed from constants alone (the amounts of a Pad, the bounds of a
   Slice, as some exporters write them) are initializers too.
3. Nodes are in topological order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

G_LOGGER.severity = G_LOGGER.ERROR

_CONSTANT_ATTRIBUTES = (
    "value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
    "value_string",
    "value_strings",
)
_FOLDED = frozenset({
    "Abs", "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather",
    "Identity", "Max", "Min", "Mul", "Neg", "Range", "Reshape", "Shape", "Size", "Slice",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that shape arithmetic consists of; all are deterministic."""
_MAX_FOLDED_ELEMENTS = 1024


def canonical(model: onnx.ModelProto) -> gs.Graph:
    """Import a model whose local functions are inlined, and bring it into canonical form."""
    surgeon = gs.import_onnx(model)
    _lift_constants(surgeon)
    surgeon.toposort()
    _fold_integers(surgeon)
    return surgeon


def domain_of(name: str | None) -> str:
    """Return the one name of an operator domain: the standard one has three spellings."""
    return "" if name in {None, "ai.onnx"} else str(name)


def _lift_constants(surgeon: gs.Graph) -> None:
    """Turn Constant nodes into initializers of the same name."""
    outputs = {tensor.name for tensor in surgeon.outputs}
    for node in list(surgeon.nodes):
        if node.op != "Constant" or domain_of(node.domain) or node.outputs[0].name in outputs:
            continue
        name = next((key for key in _CONSTANT_ATTRIBUTES if key in node.attrs), None)
        if name is not None:  # a sparse_value stays a node, and freezes what it touches
            _replace(surgeon, node, _constant_array(name, node.attrs[name]))


def _constant_array(attribute: str, value: Any) -> NDArray[Any]:
    if attribute == "value":
        return np.asarray(value.values)
    if attribute.startswith("value_string"):
        return np.asarray(value, dtype=object)
    return np.asarray(value, dtype=np.float32 if "float" in attribute else np.int64)


def _replace(surgeon: gs.Graph, node: gs.Node, array: NDArray[Any]) -> None:
    output = node.outputs[0]
    node.outputs.clear()
    node.inputs.clear()
    output.to_constant(array)
    surgeon.nodes.remove(node)


def _fold_integers(surgeon: gs.Graph) -> None:
    outputs = {tensor.name for tensor in surgeon.outputs}
    for node in list(surgeon.nodes):
        if node.op not in _FOLDED or domain_of(node.domain) or node.outputs[0].name in outputs:
            continue
        if all(_is_small_integer(tensor) for tensor in node.inputs):
            array = _evaluate(node, surgeon.opset)
            if np.issubdtype(array.dtype, np.integer) and array.size <= _MAX_FOLDED_ELEMENTS:
                _replace(surgeon, node, array)


def _is_small_integer(tensor: gs.Tensor) -> bool:
    return (
        isinstance(tensor, gs.Constant)
        and np.prod(tensor.shape) <= _MAX_FOLDED_ELEMENTS
        and np.issubdtype(tensor.dtype, np.integer)
    )


def _evaluate(node: gs.Node, opset: int) -> NDArray[Any]:
    proto = OnnxExporter.export_node(node)
    evaluator = ReferenceEvaluator(proto, opsets={"": opset})
    (array,) = evaluator.run(None, {tensor.name: tensor.values for tensor in node.inputs})
    return np.asarray(array)
