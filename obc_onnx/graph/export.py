"""Write a graph in canonical form, with all that describes the model that it was imported from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues

from obc_onnx.graph.nested import subgraphs
from obc_onnx.graph.node import domain_of, holds_weights
from obc_onnx.graph.operators import CONSTANT
from obc_onnx.graph.outline import element_type, without_weights

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

FIRST_IR_WITH_DEFAULTS = 4
"""Before it every initializer has to be listed as an input; since then that makes it a default."""
_CONTENT = frozenset({"node", "initializer", "sparse_initializer", "value_info"})
"""Fields of a graph that are what it computes; all others describe it."""
_CARRIED = frozenset({"input", "output", "name", "op_type", "domain", "attribute"})
"""Fields of a node that graphsurgeon carries."""


def export(
    skeleton: onnx.ModelProto,
    arrays: Mapping[str, NDArray[Any]],
    original: onnx.ModelProto,
    copies: Mapping[str, str],
    merged: Mapping[str, str],
    left_out: Container[str] = (),
) -> onnx.ModelProto:
    """Write a model.

    Args:
        skeleton: All but its initializers, see `Structure`.
        arrays: What those hold, by name.
        original: What it was imported from.
        copies: What copies of initializers are copies of.
        merged: Under which name some copies are written, where an equal initializer is.
        left_out: Initializers that are described as if they were there, and are not.
    """
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    stored = {name: array for name, array in arrays.items() if name not in merged}
    for name, array in stored.items():
        if name not in left_out:
            _write(array, model.graph.initializer.add(name=name))
    for node in model.graph.node if merged else ():
        node.input[:] = [merged.get(name, name) for name in node.input]
    restore_notes(model.graph.initializer, original, copies)
    _restore_ports(model, stored, original)
    return model


def _write(array: NDArray[Any], tensor: onnx.TensorProto) -> None:
    """Fill a tensor, of which the name stays."""
    if array.dtype.kind in "OV":  # strings, and types that numpy lacks
        tensor.MergeFrom(onnx.numpy_helper.from_array(array))
        return
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.tobytes()


def restore_notes(
    tensors: Iterable[onnx.TensorProto], original: onnx.ModelProto, copies: Mapping[str, str]
) -> None:
    """Put back what is said of constants; `copies` says what copies are copies of."""
    notes = dict(tensor_notes(original.graph))
    for tensor in tensors:
        note = notes.get(copies.get(tensor.name, tensor.name))
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
        if note is not None:
            tensor.MergeFrom(note)


def described(model: onnx.ModelProto, names: Container[str]) -> onnx.ModelProto:
    """Copy a model, but for the data of initializers of some names: what is said of them stays."""
    bare = without_weights(model, names)
    for tensor in model.graph.initializer:
        if tensor.name in names and (tensor.doc_string or tensor.metadata_props):
            bare.graph.initializer.add(name=tensor.name).MergeFrom(_note(tensor))
    return bare


def export_nodes(surgeon: gs.Graph, original: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Write the nodes alone, as `export` does."""
    _encode(surgeon)
    nodes = [message_of(node) for node in surgeon.nodes]
    _restore_nodes(nodes, original)
    return nodes


def message_of(node: gs.Node) -> onnx.NodeProto:
    """Write a node; graphsurgeon cannot tell the type of a list that is empty."""
    bare = {name: value for name, value in node.attrs.items() if not _is_empty(value)}
    copy = node if len(bare) == len(node.attrs) else node.copy()
    copy.attrs = bare
    message: onnx.NodeProto = OnnxExporter.export_node(copy)
    known = onnx.defs.has(node.op, domain_of(node.domain))
    declared = onnx.defs.get_schema(node.op, domain_of(node.domain)).attributes if known else {}
    for name in node.attrs.keys() - bare.keys():
        kind = str(declared[name].type).rpartition(".")[2] if name in declared else "INTS"
        message.attribute.append(onnx.AttributeProto(name=name, type=kind))
    return message


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not value


def header_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return all that describes a model, without what it computes and what can be inferred."""
    described = {f.name: v for f, v in model.graph.ListFields() if f.name not in _CONTENT}
    others = {f.name: v for f, v in model.ListFields() if f.name not in {"graph", "functions"}}
    return onnx.ModelProto(**others, graph=onnx.GraphProto(**described))


def kept_aside(model: onnx.ModelProto, held: Collection[str]) -> list[onnx.TensorProto]:
    """List the constants of a model that stay as they are, though no node of its own uses them.

    Such are those that only subgraphs use, those that nothing uses, and those that are inputs too:
    without its value, such an input would have to be fed.

    Args:
        model: As it was imported.
        held: Names of the constants that its graph has.
    """
    graph = model.graph
    inner = used_inside(graph)
    own = {name for node in graph.node for name in node.input}
    own |= {port.name for port in graph.output}
    listed = {port.name for port in graph.input}
    found = [t for t in graph.initializer if t.name in inner | listed or t.name not in own]
    for node in graph.node:
        if node.op_type == CONSTANT and node.output[0] in inner:
            found += [
                _named(entry.t, node.output[0]) for entry in node.attribute if entry.name == "value"
            ]
    return [tensor for tensor in found if tensor.name not in held]


def inner_weights(node: onnx.NodeProto) -> int:
    """Count the elements of the weights that the subgraphs of a node hold, single numbers aside."""
    total = 0
    for graph in subgraphs(node):
        held = [*graph.initializer, *(t.values for t in graph.sparse_initializer)]
        for inner in graph.node:
            if inner.op_type == CONSTANT:
                held += [entry.t for entry in inner.attribute if entry.HasField("t")]
            total += inner_weights(inner)
        sizes = [math.prod(t.dims) for t in held if is_weight(t)]
        total += sum(size for size in sizes if size > 1)
    return total


def is_weight(tensor: onnx.TensorProto) -> bool:
    """Say whether a constant is of a type that holds weights."""
    return holds_weights(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def used_inside(graph: onnx.GraphProto) -> set[str]:
    """Name what subgraphs use, their own values included."""
    return {n for node in graph.node for own in subgraphs(node) for n in _used(own)}


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _used(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that nodes and outputs use, in subgraphs too."""
    for node in graph.node:
        yield from node.input
        for subgraph in subgraphs(node):
            yield from _used(subgraph)
    yield from (port.name for port in graph.output)


def _encode(surgeon: gs.Graph) -> None:
    """Let onnx write attributes of strings and of types that numpy lacks: graphsurgeon cannot."""
    for tensor in (value for node in surgeon.nodes for value in node.attrs.values()):
        if isinstance(tensor, gs.Constant) and tensor.values.dtype.kind in "OV":
            tensor.values = LazyValues(onnx.numpy_helper.from_array(tensor.values, tensor.name))


def _restore_nodes(nodes: Any, original: onnx.ModelProto) -> None:
    """Put back what graphsurgeon does not carry of nodes, and their subgraphs as they were."""
    sources = {first_output(node): node for node in original.graph.node}
    for node in nodes:
        source = sources.get(first_output(node))
        if source is None:
            continue
        others = {f.name: v for f, v in source.ListFields() if f.name not in _CARRIED}
        node.MergeFrom(onnx.NodeProto(**others))
        whole = {entry.name: entry for entry in source.attribute if entry.HasField("g")}
        for entry in node.attribute:
            if entry.name in whole:
                entry.CopyFrom(whole[entry.name])


def first_output(node: onnx.NodeProto) -> str:
    """Return what `Node.key` is."""
    return next(filter(None, node.output), "")


def tensor_notes(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield what is said of constants: by their tensors, or by the nodes that hold them."""
    sparse = [tensor.values for tensor in graph.sparse_initializer]
    for tensor in (*graph.initializer, *sparse):
        yield tensor.name, _note(tensor)
    for node in graph.node:
        if node.op_type == CONSTANT:
            note = _note(node)
            for entry in node.attribute:
                note.MergeFrom(_note(entry.t))
                note.MergeFrom(_note(entry.sparse_tensor.values))
            yield node.output[0], note


def _note(holder: onnx.TensorProto | onnx.NodeProto) -> onnx.TensorProto:
    note = onnx.TensorProto(metadata_props=holder.metadata_props)
    if holder.doc_string:
        note.doc_string = holder.doc_string
    return note


def _restore_ports(
    model: onnx.ModelProto, stored: Mapping[str, NDArray[Any]], original: onnx.ModelProto
) -> None:
    """Put back constants that no node of its own uses, and fit inputs that list initializers."""
    graph = model.graph
    listed = {port.name for port in original.graph.input}
    aside = kept_aside(original, stored.keys())
    graph.initializer.extend(aside)
    kinds = {name: (element_type(array.dtype), array.shape) for name, array in stored.items()}
    kinds |= {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in aside}
    for port in graph.input:
        if port.name in kinds:
            del port.type.tensor_type.shape.dim[:]
            for size in kinds[port.name][1]:
                port.type.tensor_type.shape.dim.add(dim_value=size)
    if model.ir_version < FIRST_IR_WITH_DEFAULTS:
        graph.input.extend(
            onnx.helper.make_tensor_value_info(name, *kind)
            for name, kind in kinds.items()
            if name not in listed
        )
