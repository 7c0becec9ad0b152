"""Operators that onnx is not to see: those that it does not know, and those that it fails on.

ONNX Runtime's optimizer fuses norms into LayerNormalization whatever the opset, and into an
operator of its own without a domain. onnx refuses such a model; ONNX Runtime takes it. Plugins of
other runtimes have no domain either, or one of which the model does not say the version. And some
operators of the standard end the process when onnx infers their shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from obc_onnx.graph.nested import all_nodes
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.operators import FUSED_NORMS, READING_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_DOMAIN = "ai.onnxruntime"
"""Where they are put for onnx, which does not look into domains that it does not know."""


def without_foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that onnx can check; the model itself where it can already."""
    versions = {domain_of(entry.domain): entry.version for entry in model.opset_import}
    local = {(domain_of(function.domain), function.name) for function in model.functions}
    return _apart(model, lambda node: _is_foreign(node, versions, local))


def inferable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that onnx can infer shapes of; the model itself where it can already.

    Outputs of operators that it cannot infer have no known shape there.
    """
    return _apart(without_foreign(model), _reads_unknown)


def inferred_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return ONNX's numbers for the element types of values, as far as onnx can tell.

    Args:
        model: An outline, with weights as inputs.
    """
    graph = onnx.shape_inference.infer_shapes(inferable(model)).graph
    ports = (*graph.input, *graph.value_info, *graph.output)
    kinds = {port.name: port.type.tensor_type.elem_type for port in ports}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: int(kind) for name, kind in kinds.items() if kind}


def _apart(model: onnx.ModelProto, is_chosen: Callable[[onnx.NodeProto], bool]) -> onnx.ModelProto:
    """Copy a model where some nodes are chosen, with those in a domain of their own."""
    if not any(map(is_chosen, all_nodes(model.graph))):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in all_nodes(copy.graph):
        if is_chosen(node):
            node.domain = _DOMAIN
    if all(entry.domain != _DOMAIN for entry in copy.opset_import):
        copy.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return copy


def _reads_unknown(node: onnx.NodeProto) -> bool:
    return (domain_of(node.domain), node.op_type) in READING_UNKNOWN


def _is_foreign(
    node: onnx.NodeProto, versions: Mapping[str, int], local: Collection[tuple[str, str]]
) -> bool:
    domain = domain_of(node.domain)
    if (domain, node.op_type) in local:
        return False
    if domain:
        return domain not in versions
    if not onnx.defs.has(node.op_type):
        return True
    newer = versions.get("", 0) < onnx.defs.get_schema(node.op_type).since_version
    return node.op_type in FUSED_NORMS and newer
