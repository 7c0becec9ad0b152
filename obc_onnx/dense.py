"""Write sparse constants out as dense ones: what computes with weights wants all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, numpy_helper

from obc_onnx.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


def without_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without sparse constants; the model itself where it has none.

    Raises:
        ModelError: The indices of one do not fit its values or its shape.
    """
    if not any(_has_sparse(graph) for graph in _graphs(model.graph)):
        return model
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    for graph in _graphs(dense.graph):
        graph.initializer.extend(
            _dense(tensor, tensor.values.name) for tensor in graph.sparse_initializer
        )
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.SPARSE_TENSOR:
                    tensor = _dense(attribute.sparse_tensor, node.output[0])
                    attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return dense


def sparse_constants(model: onnx.ModelProto) -> list[str]:
    """Name the sparse constants of a model, subgraphs included."""
    names: list[str] = []
    for graph in _graphs(model.graph):
        names += [tensor.values.name for tensor in graph.sparse_initializer]
        names += [node.output[0] for node in graph.node if _is_sparse(node)]
    return names


def _has_sparse(graph: onnx.GraphProto) -> bool:
    return bool(graph.sparse_initializer) or any(map(_is_sparse, graph.node))


def _is_sparse(node: onnx.NodeProto) -> bool:
    return any(entry.type == AttributeProto.SPARSE_TENSOR for entry in node.attribute)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer or inner.sparse_initializer:
                    yield from _graphs(inner)


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
