"""Operators that onnx is not to see: those that it does not know, and those that it fails on.

ONNX Runtime's optimizer fuses norms into LayerNormalization whatever the opset, and into an
operator of its own without a domain. onnx refuses such a model; ONNX Runtime takes it. And some
operators of the standard end the process when onnx infers their shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from obc_onnx.graph.nested import all_nodes
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.operators import FUSED_NORMS, READING_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

_DOMAIN = "ai.onnxruntime"
"""Where they are put for onnx, which does not look into domains that it does not know."""


def without_foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that onnx can check; the model itself where it can already."""
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    return _apart(model, lambda node: _is_foreign(node, opset))


def inferable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that onnx can infer shapes of; the model itself where it can already.

    Outputs of operators that it cannot infer have no known shape there.
    """
    return _apart(without_foreign(model), _reads_unknown)


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


def _is_foreign(node: onnx.NodeProto, opset: int) -> bool:
    if node.domain or node.op_type not in FUSED_NORMS:
        return False
    return (
        not onnx.defs.has(node.op_type) or opset < onnx.defs.get_schema(node.op_type).since_version
    )
