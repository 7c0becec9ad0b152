"""Operators that ONNX Runtime writes into the standard domain, where onnx does not know them.

Its optimizer fuses norms into LayerNormalization whatever the opset, and into an operator of its
own without a domain. onnx refuses such a model; ONNX Runtime takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from obc_onnx.graph.operators import FUSED_NORMS

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOMAIN = "ai.onnxruntime"
"""Where they are put for onnx, which does not look into domains that it does not know."""


def without_foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that onnx can check and infer shapes of; the model itself where it can already.

    Such operators are in a domain of their own there, so that their outputs have no known shape.
    """
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    if not any(_is_foreign(node, opset) for node in all_nodes(model.graph)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in all_nodes(copy.graph):
        if _is_foreign(node, opset):
            node.domain = _DOMAIN
    copy.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return copy


def _is_foreign(node: onnx.NodeProto, opset: int) -> bool:
    if node.domain or node.op_type not in FUSED_NORMS:
        return False
    return (
        not onnx.defs.has(node.op_type) or opset < onnx.defs.get_schema(node.op_type).since_version
    )


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)
