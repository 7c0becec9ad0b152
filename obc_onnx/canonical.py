"""Bring an imported model into the one form that the rest of the package expects, and write it.

1. Every Constant node is an initializer of the same name, unless it holds strings.
2. Small integers that are computed from constants alone (the amounts of a Pad, the bounds of a
   Slice, as some exporters write them) are initializers too. Constants that a caller may override
   do not count as such.
3. Nodes are in topological order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from obc_onnx.node import domain_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

G_LOGGER.severity = G_LOGGER.ERROR

_CONSTANT_ATTRIBUTES = (
    "value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
)
_FOLDED = frozenset({
    "Abs", "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather",
    "Identity", "Max", "Min", "Mul", "Neg", "Range", "Reshape", "Shape", "Size", "Slice",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that shape arithmetic consists of; all are deterministic."""
_MAX_FOLDED_ELEMENTS = 1024
_FIRST_IR_WITH_DEFAULTS = 4
"""Before it every initializer has to be listed as an input; since then that makes it a default."""


def canonical(model: onnx.ModelProto) -> gs.Graph:
    """Import a model whose local functions are inlined, and bring it into canonical form."""
    surgeon = gs.import_onnx(model)
    _forget_types(surgeon)
    _lift_constants(surgeon)
    surgeon.toposort()
    defaults = {port.name for port in model.graph.input}
    _fold_integers(surgeon, defaults if model.ir_version >= _FIRST_IR_WITH_DEFAULTS else ())
    return surgeon


def export(surgeon: gs.Graph, original: onnx.ModelProto) -> onnx.ModelProto:
    """Write a model in canonical form, with all that describes the one it was imported from."""
    _encode(surgeon)
    model: onnx.ModelProto = gs.export_onnx(surgeon, do_type_check=False)
    _restore_model(model, original)
    _restore_ports(model, original)
    notes = {next(filter(None, node.output), ""): node for node in original.graph.node}
    for node in model.graph.node:
        note = notes.get(next(filter(None, node.output), ""))
        if note is not None:
            node.doc_string = note.doc_string
            node.metadata_props.extend(note.metadata_props)
    return model


def _forget_types(surgeon: gs.Graph) -> None:
    """Drop the types of values that are no tensors: a copy would take them for tensors."""
    for scope in (surgeon, *surgeon.subgraphs(recursive=True)):
        for tensor in scope.tensors().values():
            if isinstance(tensor, gs.Variable) and tensor.type != "tensor_type":
                tensor.dtype = None


def _lift_constants(surgeon: gs.Graph) -> None:
    """Turn Constant nodes into initializers of the same name."""
    outputs = {tensor.name for tensor in surgeon.outputs}
    for node in list(surgeon.nodes):
        if node.op != "Constant" or domain_of(node.domain) or node.outputs[0].name in outputs:
            continue
        name = next((key for key in _CONSTANT_ATTRIBUTES if key in node.attrs), None)
        # sparse values and strings stay nodes, and freeze what they touch
        if name is not None and not (name == "value" and node.attrs[name].dtype == object):
            _replace(surgeon, node, _constant_array(name, node.attrs[name]))


def _constant_array(attribute: str, value: Any) -> NDArray[Any]:
    if attribute == "value":
        return np.asarray(value.values)
    return np.asarray(value, dtype=np.float32 if "float" in attribute else np.int64)


def _replace(surgeon: gs.Graph, node: gs.Node, array: NDArray[Any]) -> None:
    output = node.outputs[0]
    node.outputs.clear()
    node.inputs.clear()
    output.to_constant(array)
    surgeon.nodes.remove(node)


def _fold_integers(surgeon: gs.Graph, overridable: Collection[str]) -> None:
    outputs = {tensor.name for tensor in surgeon.outputs}
    for node in list(surgeon.nodes):
        if node.op not in _FOLDED or domain_of(node.domain) or node.outputs[0].name in outputs:
            continue
        if any(tensor.name in overridable for tensor in node.inputs):
            continue
        if all(_is_small_integer(tensor) for tensor in node.inputs):
            array = _evaluate(node, surgeon.opset)
            if np.issubdtype(array.dtype, np.integer) and array.size <= _MAX_FOLDED_ELEMENTS:
                _replace(surgeon, node, array)


def _is_small_integer(tensor: gs.Tensor) -> bool:
    return (
        isinstance(tensor, gs.Constant)
        and np.prod(tensor.shape) <= _MAX_FOLDED_ELEMENTS
        and not isinstance(tensor.dtype, int)  # graphsurgeon's word for types that numpy lacks
        and np.issubdtype(tensor.dtype, np.integer)
    )


def _evaluate(node: gs.Node, opset: int) -> NDArray[Any]:
    proto = OnnxExporter.export_node(node)
    evaluator = ReferenceEvaluator(proto, opsets={"": opset})
    (array,) = evaluator.run(None, {tensor.name: tensor.values for tensor in node.inputs})
    return np.asarray(array)


def _encode(surgeon: gs.Graph) -> None:
    """Let onnx write arrays of strings and of types that numpy lacks: graphsurgeon cannot."""
    attributes = [value for node in surgeon.nodes for value in node.attrs.values()]
    for tensor in (*surgeon.tensors().values(), *attributes):
        if isinstance(tensor, gs.Constant) and tensor.values.dtype.kind in "OV":
            tensor.values = LazyValues(onnx.numpy_helper.from_array(tensor.values, tensor.name))


def _restore_model(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Put back what graphsurgeon does not carry of a model."""
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    model.doc_string, model.domain = original.doc_string, original.domain
    model.producer_name = original.producer_name
    model.producer_version = original.producer_version
    model.model_version = original.model_version
    del model.opset_import[:]
    model.opset_import.extend(original.opset_import)
    del model.graph.metadata_props[:]
    model.graph.metadata_props.extend(original.graph.metadata_props)
    del model.graph.quantization_annotation[:]
    model.graph.quantization_annotation.extend(original.graph.quantization_annotation)


def _restore_ports(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Put back inputs and outputs, and the initializers that are listed among the inputs.

    One that no node uses any more keeps its value: without it, its input would have to be fed.
    """
    graph = model.graph
    for field_name in ("input", "output"):
        ports = getattr(graph, field_name)
        del ports[:]
        ports.extend(getattr(original.graph, field_name))
    del graph.value_info[:]
    listed = {port.name for port in graph.input}
    written = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        tensor
        for tensor in original.graph.initializer
        if tensor.name in listed and tensor.name not in written
    )
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for port in graph.input:
        if port.name in tensors:
            del port.type.tensor_type.shape.dim[:]
            for size in tensors[port.name].dims:
                port.type.tensor_type.shape.dim.add(dim_value=size)
    if model.ir_version < _FIRST_IR_WITH_DEFAULTS:
        graph.input.extend(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            for name, tensor in tensors.items()
            if name not in listed
        )
