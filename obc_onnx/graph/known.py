"""Which nodes ONNX Runtime knows: an operator that onnx does not define is looked up, or tried.

ONNX Runtime has signatures of operators that it has no code for, such as those of its TensorRT
provider, and a node may have attributes that the signature lacks. So where a model with such
operators is refused, each of them is tried alone.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from obc_onnx.graph.foreign import inferred_types
from obc_onnx.graph.nested import all_nodes, subgraphs
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.outline import outlined
from obc_onnx.graph.runtime import custom_op_libraries, is_taken, signatures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Key = tuple[str, str]


def unknown_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """List the nodes of the main graph that ONNX Runtime does not know, or that hold such ones.

    A node whose operator onnx defines counts as known: where ONNX Runtime refuses it, the model
    breaks the standard, or is newer than what is installed, and that is for it to say.

    Args:
        model: Whose local functions are inlined.
    """
    others = {_key(node): node for node in all_nodes(model.graph) if _key(node) not in _standard()}
    unknown = {key for key in others if not _may_be_known(key)}
    tried = {key: node for key, node in others.items() if key not in unknown}
    if tried and (unknown or not is_taken(outlined(model))):
        types = inferred_types(outlined(model))
        unknown |= {k for k, node in tried.items() if not is_taken(_alone(node, model, types))}
    if not unknown:
        return []
    return [n for n in model.graph.node if any(_key(own) in unknown for own in _with_inner(n))]


@cache
def _standard() -> frozenset[Key]:
    """Return the operators that onnx defines, of whatever version, by domain and name."""
    schemas = onnx.defs.get_all_schemas_with_history()
    return frozenset((domain_of(schema.domain), schema.name) for schema in schemas)


def _key(node: onnx.NodeProto) -> Key:
    return domain_of(node.domain), node.op_type


def _may_be_known(key: Key) -> bool:
    """Say whether ONNX Runtime has a signature of an operator, or a library may hold it."""
    return key in signatures() or (bool(key[0]) and bool(custom_op_libraries()))


def _with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for graph in subgraphs(node):
        yield from all_nodes(graph)


def _alone(
    node: onnx.NodeProto, model: onnx.ModelProto, types: Mapping[str, int]
) -> onnx.ModelProto:
    """Make a model of one node; what it reads is taken for floats where no type is known."""
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    names = dict.fromkeys(filter(None, node.input))
    kinds = {name: types.get(name, TensorProto.FLOAT) for name in names}
    imports = {domain_of(entry.domain): entry.version for entry in model.opset_import}
    imports.setdefault(domain_of(node.domain), 1)
    return onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=[helper.make_opsetid(*entry) for entry in imports.items()],
        graph=helper.make_graph(
            [alone],
            "node",
            [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        ),
    )
