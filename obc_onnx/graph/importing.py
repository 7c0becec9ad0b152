"""Import a message into onnx-graphsurgeon, in a time that grows with the message.

graphsurgeon hands every graph inside of a node a copy of all names outside of it, so that a
thousand of them take a million steps. Here a graph inside is given the values that it uses.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues

from obc_onnx.graph.nested import outer_names
from obc_onnx.graph.outline import without_weights

if TYPE_CHECKING:
    from collections.abc import Container


def imported(model: onnx.ModelProto) -> gs.Graph:
    """Import a model; its weights are read where they are, when somebody asks for them."""
    if not any(_is_graph(entry) for node in model.graph.node for entry in node.attribute):
        return gs.import_onnx(model)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    surgeon = gs.import_onnx(_flat(model, held))
    known = surgeon.tensors()
    for name, tensor in held.items():
        if name in known:
            known[name].values = LazyValues(tensor)
        else:
            known[name] = OnnxImporter.import_tensor(tensor)
    for node, message in zip(surgeon.nodes, model.graph.node, strict=True):
        own = node.attrs
        node.attrs = OrderedDict()
        for entry in message.attribute:
            if _is_graph(entry):
                node.attrs[entry.name] = _graph_of(entry, known, surgeon)
            elif entry.name in own:
                node.attrs[entry.name] = own[entry.name]
    return surgeon


def _is_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.type == onnx.AttributeProto.GRAPH


def _flat(model: onnx.ModelProto, held: Container[str]) -> onnx.ModelProto:
    """Copy a model without graphs inside of nodes, and with initializers that hold nothing."""
    flat = without_weights(model, held)
    for node in flat.graph.node:
        own = [entry for entry in node.attribute if not _is_graph(entry)]
        del node.attribute[:]
        node.attribute.extend(own)
    for tensor in model.graph.initializer:
        flat.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return flat


def _graph_of(
    attribute: onnx.AttributeProto, known: dict[str, gs.Tensor], surgeon: gs.Graph
) -> gs.Graph:
    """Import the graph that an attribute holds."""
    used = OrderedDict((name, known[name]) for name in outer_names(attribute.g) if name in known)
    return OnnxImporter.import_graph(
        attribute.g, used, opset=surgeon.opset, import_domains=surgeon.import_domains
    )
