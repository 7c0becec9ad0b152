"""Sparse constants: dense while they are worked on, and sparse again in what is written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from obc_onnx.errors import ModelError
from obc_onnx.graph.operators import CONSTANT

if TYPE_CHECKING:
    from numpy.typing import NDArray


_ATTRIBUTE = "sparse_value"
_STILL_SPARSE = 0.5
"""Of the share of zeros that a sparse constant had: with fewer, it has been filled."""


def without_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose main graph has dense constants alone; the model itself where it has.

    Raises:
        ModelError: The indices of one do not fit its values or its shape.
    """
    if not sparse_constants(model):
        return model
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    graph = dense.graph
    graph.initializer.extend(_dense(t, t.values.name) for t in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for entry in node.attribute:
            if entry.name == _ATTRIBUTE:
                tensor = _dense(entry.sparse_tensor, node.output[0])
                entry.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return dense


def make_sparse_again(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Write constants sparse that were so, unless repair or training has filled them.

    Args:
        model: With dense constants; it is changed in place.
        original: What it was made from.
    """
    before = sparse_constants(original)
    if not before:
        return
    graph, dense, nodes = model.graph, [], []
    holders = {node.output[0]: node for node in original.graph.node if node.op_type == CONSTANT}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor) if tensor.name in before else None
        if array is None or _zeros(array) < _STILL_SPARSE * _empty(before[tensor.name]):
            dense.append(tensor)
        elif tensor.name in holders:
            node = onnx.NodeProto()
            node.CopyFrom(holders[tensor.name])
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute(_ATTRIBUTE, _sparse(array, tensor)))
            nodes.append(node)
        else:
            graph.sparse_initializer.append(_sparse(array, tensor))
    nodes += graph.node
    for field, found in ((graph.initializer, dense), (graph.node, nodes)):
        del field[:]
        field.extend(found)


def sparse_constants(model: onnx.ModelProto) -> dict[str, onnx.SparseTensorProto]:
    """Find the sparse constants of the main graph by name."""
    found = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.name == _ATTRIBUTE and node.op_type == CONSTANT:
                found[node.output[0]] = entry.sparse_tensor
    return found


def _zeros(array: NDArray[Any]) -> float:
    return 1 - int(np.count_nonzero(array)) / max(array.size, 1)


def _empty(sparse: onnx.SparseTensorProto) -> float:
    count, size = (int(math.prod(dims)) for dims in (sparse.values.dims, sparse.dims))
    return 1 - count / max(size, 1)


def _sparse(array: NDArray[Any], tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    """Leave zeros out; indices are linear."""
    places = np.flatnonzero(array)
    values = numpy_helper.from_array(array.reshape(-1)[places], tensor.name)
    values.doc_string = tensor.doc_string
    values.metadata_props.extend(tensor.metadata_props)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}.indices")
    return onnx.helper.make_sparse_tensor(values, indices, list(array.shape))


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """Fill in zeros.

    Args:
        sparse: Its indices are linear, shape [count], or one for each axis, shape [count, rank].
        name: What the dense tensor is called.
    """
    values, shape = numpy_helper.to_array(sparse.values), tuple(sparse.dims)
    indices = numpy_helper.to_array(sparse.indices)
    array = np.zeros(shape, values.dtype)
    try:
        if indices.ndim > 1:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        array.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise ModelError(
            f"sparse constant '{name}' of shape {shape}: its indices do not fit ({error})"
        ) from error
    tensor = numpy_helper.from_array(array, name)
    tensor.doc_string = sparse.values.doc_string
    tensor.metadata_props.extend(sparse.values.metadata_props)
    return tensor
