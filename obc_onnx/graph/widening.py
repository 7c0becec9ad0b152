"""A model in bfloat16 as one in float32, for a runtime without code for most operators in it.

Every bfloat16 number is one of float32, so that weights stay what they are. What is computed is no
longer rounded on the way: it is what a runtime with bfloat16 comes near to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, TensorProto, numpy_helper

from obc_onnx.graph.outline import Outline

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

_KIND = TensorProto.BFLOAT16
BFLOAT16 = "bfloat16"
"""What numpy calls the extension type."""
_NAMING = frozenset({"dtype", "output_dtype", "to"})
"""Attributes that name an element type."""


def in_brain_floats(outline: Outline) -> bool:
    """Say whether a model holds, takes, gives or makes bfloat16."""
    if any(array.dtype.name == BFLOAT16 for array in outline.weights.values()):
        return True
    graphs = list(_graphs(outline.model.graph))
    held = any(tensor.data_type == _KIND for graph in graphs for tensor in graph.initializer)
    ports = (port for graph in graphs for port in (*graph.input, *graph.output))
    taken = any(port.type.tensor_type.elem_type == _KIND for port in ports)
    attributes = (entry for graph in graphs for node in graph.node for entry in node.attribute)
    return held or taken or any(_names(e) or e.t.data_type == _KIND for e in attributes)


def widened(outline: Outline) -> Outline:
    """Return a model that computes in float32 what it computes in bfloat16.

    Args:
        outline: The model; it is changed.
    Returns:
        The model with inputs, outputs and weights in float32 where they were in bfloat16.
    """
    for graph in _graphs(outline.model.graph):
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == _KIND:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for entry in node.attribute:
                if _names(entry):
                    entry.i = TensorProto.FLOAT
                if entry.type == AttributeProto.TENSOR:
                    _widen(entry.t)
    wide = {
        name: array.astype(np.float32) if array.dtype.name == BFLOAT16 else array
        for name, array in outline.weights.items()
    }
    return Outline(outline.model, wide)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs, however deep."""
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            inner = [entry.g] if entry.type == AttributeProto.GRAPH else entry.graphs
            for own in inner:
                yield from _graphs(own)


def _names(entry: onnx.AttributeProto) -> bool:
    return entry.name in _NAMING and entry.type == AttributeProto.INT and entry.i == _KIND


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _KIND:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
