"""onnx's shape inference, kept from following the numbers of long vectors.

Where a shape is computed, its numbers have to be followed through the nodes, which onnx calls data
propagation. It takes every vector for such numbers, and makes a message of each of its elements:
2^31 of them, where a file of some bytes asks for a Range. So what can be inferred without comes
first, and then nodes that follow numbers are left out where they read a vector that is long, or may
be. What is open then is looked at node by node, see `computed_sizes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import defs

from obc_onnx.graph.computed_sizes import completed, detail
from obc_onnx.graph.nested import subgraphs
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.operators import DROPS_AXES, MAKES_VECTORS, PADDING
from obc_onnx.graph.outline import KEPT_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Shapes = dict[str, tuple[int, ...]]
    Ports = dict[str, onnx.ValueInfoProto]

_SEVERAL = 2
"""A value of as many axes is no vector, whose numbers would be followed."""


def infer_sizes(model: onnx.ModelProto) -> Shapes:
    """Find the shapes of values that nodes compute, as far as onnx can tell.

    Args:
        model: With concrete inputs; its weights may be inputs.
    Raises:
        InferenceError: onnx finds the model inconsistent.
    """
    # onnx copies all that it knows for each subgraph, and dies in nodes behind a size below 0
    if any(True for node in model.graph.node for _ in subgraphs(node)) or _takes_away(model):
        return completed(model, (), _declared(model))
    kinds = _inferred(model, follows=False)
    known = _declared(model) | _concrete(kinds.values())
    if not _unknown(model, known):
        return known
    aside = _reads_long(model, known, _may_be_long(model, kinds, known))
    for name, port in _inferred(_without(model, kinds, aside), follows=True).items():
        if name not in kinds or detail(port.type) > detail(kinds[name].type):
            kinds[name] = port
    return completed(model, kinds.values(), known | _concrete(kinds.values()))


def _takes_away(model: onnx.ModelProto) -> bool:
    """Say whether amounts of padding may be below 0, which takes positions away."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == PADDING:
            amounts = [number for attribute in node.attribute for number in attribute.ints]
            if len(node.input) > 1 and node.input[1] not in held:
                return True
            if len(node.input) > 1:
                amounts += onnx.numpy_helper.to_array(held[node.input[1]]).reshape(-1).tolist()
            if min(amounts, default=0) < 0:
                return True
    return False


def _inferred(model: onnx.ModelProto, *, follows: bool) -> Ports:
    """Infer what can be said of values that nodes compute; `follows` says whether numbers are."""
    graph = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=follows
    ).graph
    return {port.name: port for port in (*graph.value_info, *graph.output)}


def _rank(port: onnx.ValueInfoProto) -> int:
    """Return the number of axes; 1 where it is not known."""
    kind = port.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else 1


def _declared(model: onnx.ModelProto) -> Shapes:
    held = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return _concrete(model.graph.input) | held


def _concrete(ports: Iterable[onnx.ValueInfoProto]) -> Shapes:
    kinds = ((port.name, port.type.tensor_type) for port in ports)
    return {
        name: tuple(dim.dim_value for dim in kind.shape.dim)
        for name, kind in kinds
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    }


def _unknown(model: onnx.ModelProto, known: Shapes) -> bool:
    return any(name and name not in known for node in model.graph.node for name in node.output)


def _may_be_long(model: onnx.ModelProto, kinds: Ports, known: Shapes) -> set[str]:
    """Name values of unknown size that may be long vectors.

    Such are those that a node makes of a length that is computed, and all that follows from them or
    from a vector that is long.
    """
    found: set[str] = set()
    for node in model.graph.node:
        if _makes_vector(node, known) or any(n in found or _is_long(n, known) for n in node.input):
            found.update(name for name in node.output if name not in known)
    return {name for name in found if name not in kinds or _rank(kinds[name]) < _SEVERAL}


def _makes_vector(node: onnx.NodeProto, known: Shapes) -> bool:
    """Say whether a node may give a vector that is longer than all that it reads."""
    if domain_of(node.domain):
        return False
    slot = MAKES_VECTORS.get(node.op_type)
    if slot is not None:
        sizes = known.get(node.input[slot], (1,)) if slot < len(node.input) else (1,)
        return sizes in {(), (1,)}
    return node.op_type.startswith(DROPS_AXES)


def _is_long(name: str, known: Shapes) -> bool:
    shape = known.get(name, ())
    return len(shape) == 1 and shape[0] > KEPT_ELEMENTS


def _reads_long(model: onnx.ModelProto, known: Shapes, doubtful: set[str]) -> set[str]:
    """Name the first outputs of nodes that would follow the numbers of a long vector."""
    versions = {domain_of(entry.domain): entry.version for entry in model.opset_import}
    return {
        node.output[0]
        for node in model.graph.node
        if any(name in doubtful or _is_long(name, known) for name in node.input)
        and _follows_numbers(node, versions)
    }


def _follows_numbers(node: onnx.NodeProto, versions: Mapping[str, int]) -> bool:
    domain = domain_of(node.domain)
    if not defs.has(node.op_type, domain):
        return False
    schema = defs.get_schema(node.op_type, versions.get(domain, 1), domain)
    return bool(schema.has_data_propagation_function)


def _without(model: onnx.ModelProto, kinds: Ports, aside: set[str]) -> onnx.ModelProto:
    """Copy a model without some nodes: what they compute are inputs, as far as it is known."""
    if not aside:
        return model
    own = onnx.ModelProto()
    own.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.output[0] in aside]
    names = (name for node in nodes for name in node.output)
    own.graph.input.extend(kinds[name] for name in names if name in kinds)
    kept = [node for node in own.graph.node if node.output[0] not in aside]
    del own.graph.node[:]
    own.graph.node.extend(kept)
    return own
