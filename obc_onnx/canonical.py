"""Bring an imported model into the one form that the rest of the package expects, and write it.

1. Every Constant node is an initializer of the same name, unless it holds strings.
2. Small integers that are computed from constants alone (the amounts of a Pad, the bounds of a
   Slice, as some exporters write them) are initializers too. Constants that a caller may override
   do not count as such.
3. Weights that are computed from others by a norm or a contraction (weight standardisation, merged
   adapters) are initializers too: their channels could not be removed exactly otherwise.
4. Weights that a Transpose alone reads are stored as it lays them out, under their own name.
5. A vector that several nodes use is copied for each but the first, also through Identity. Equal
   vectors, such as biases of zeros, are merged by exporters, which would tie layers together that
   have nothing else in common.
6. Recurrent layers do without initial states that are zeros: one tensor for all would tie them.
7. Nodes are in topological order.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from obc_onnx.folding import (
    drop_zero_states,
    fold_numbers,
    fold_statistics,
    fold_transposes,
    replace,
)
from obc_onnx.node import domain_of, holds_weights

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
_SEVERAL = 2
FIRST_IR_WITH_DEFAULTS = 4
"""Before it every initializer has to be listed as an input; since then that makes it a default."""


def canonical(model: onnx.ModelProto) -> tuple[gs.Graph, dict[str, str]]:
    """Import a model whose local functions are inlined, and bring it into canonical form.

    Returns:
        The graph, and for each copy of a vector the initializer that it is a copy of.
    """
    surgeon = gs.import_onnx(model)
    _forget_types(surgeon)
    _lift_constants(surgeon)
    surgeon.toposort()
    listed = {port.name for port in model.graph.input}
    defaults = listed if model.ir_version >= FIRST_IR_WITH_DEFAULTS else set()
    fold_numbers(surgeon, defaults)
    fold_statistics(surgeon, defaults)
    fold_transposes(surgeon, defaults)
    drop_zero_states(surgeon, defaults)
    return surgeon, _give_copies(surgeon, listed)


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
            replace(surgeon, node, _constant_array(name, node.attrs[name]))


def _constant_array(attribute: str, value: Any) -> NDArray[Any]:
    if attribute == "value":
        return np.asarray(value.values)
    return np.asarray(value, dtype=np.float32 if "float" in attribute else np.int64)


def _give_copies(surgeon: gs.Graph, listed: Collection[str]) -> dict[str, str]:
    """Let every node have its own copy of a vector of weights, but not of one that callers may set.

    Returns:
        What each copy is a copy of.
    """
    copies = _lift_identities(surgeon, listed)
    taken = set(surgeon.tensors())
    for subgraph in surgeon.subgraphs(recursive=True):
        taken.update(subgraph.tensors())
    users: dict[str, list[gs.Node]] = {}
    for node in surgeon.nodes:
        for name in dict.fromkeys(tensor.name for tensor in node.inputs):
            users.setdefault(name, []).append(node)
    for name, tensor in surgeon.tensors().items():
        if len(users.get(name, ())) < _SEVERAL or name in listed or not _is_vector(tensor):
            continue
        for node in users[name][1:]:
            key = next(output.name for output in node.outputs if output.name)
            copy = gs.Constant(_fresh(f"{name}.{key}", taken), tensor.values)
            copies[copy.name] = copies.get(name, name)
            for slot, used in enumerate(node.inputs):
                if used is tensor:
                    node.inputs[slot] = copy
    return copies


def _lift_identities(surgeon: gs.Graph, listed: Collection[str]) -> dict[str, str]:
    """Make the Identity of a vector of weights a copy of it."""
    outputs = {tensor.name for tensor in surgeon.outputs}
    copies: dict[str, str] = {}
    for node in list(surgeon.nodes):
        if node.op != "Identity" or domain_of(node.domain):
            continue
        source, target = node.inputs[0], node.outputs[0].name
        if source.name not in listed and target not in outputs and _is_vector(source):
            copies[target] = copies.get(source.name, source.name)
            replace(surgeon, node, source.values)
    return copies


def _is_vector(tensor: gs.Tensor) -> bool:
    """Say whether a constant holds numbers of weights along one axis."""
    if not isinstance(tensor, gs.Constant) or isinstance(tensor.dtype, int):
        return False
    lengths = [size for size in tensor.shape if size != 1]
    return len(lengths) == 1 and holds_weights(np.dtype(tensor.dtype))


def _fresh(base: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    numbered = (f"{base}.{number}" for number in itertools.count(1))
    name = next(name for name in itertools.chain([base], numbered) if name not in taken)
    taken.add(name)
    return name


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
    if model.ir_version < FIRST_IR_WITH_DEFAULTS:
        graph.input.extend(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            for name, tensor in tensors.items()
            if name not in listed
        )
