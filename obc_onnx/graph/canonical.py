"""Bring an imported model into the one form that the rest of the package expects.

1. Every Constant node is an initializer of the same name, unless it holds strings.
2. Small integers that are computed from constants alone (the amounts of a Pad, the bounds of a
   Slice, as some exporters write them) are initializers too. Constants that a caller may override
   do not count as such.
3. Weights that are computed from others by a norm or a contraction (weight standardisation, merged
   adapters) are initializers too: their channels could not be removed exactly otherwise.
4. Weights that a Transpose alone reads are stored as it lays them out, under their own name.
5. A vector that several layers use is copied for each but the first, see `copies`. What is written
   has equal copies merged again.
6. Recurrent layers do without initial states that are zeros: one tensor for all would tie them.
7. Nodes are in topological order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from obc_onnx.graph.constants import (
    drop_zero_states,
    fold_numbers,
    fold_statistics,
    fold_transposes,
    replace,
)
from obc_onnx.graph.copies import give_copies
from obc_onnx.graph.export import FIRST_IR_WITH_DEFAULTS
from obc_onnx.graph.importing import imported
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.node_lists import drop_detached
from obc_onnx.graph.operators import CONSTANT

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

G_LOGGER.severity = G_LOGGER.ERROR

_CONSTANT_ATTRIBUTES = (
    "value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
)


def canonical(model: onnx.ModelProto) -> tuple[gs.Graph, dict[str, str]]:
    """Import a model whose local functions are inlined, and bring it into canonical form.

    Returns:
        The graph, and for each copy of a vector the initializer that it is a copy of.
    """
    surgeon = imported(model)
    _forget_types(surgeon)
    _lift_constants(surgeon)
    surgeon.toposort()
    return surgeon, settle(surgeon, model)


def settle(surgeon: gs.Graph, model: onnx.ModelProto) -> dict[str, str]:
    """Bring what is constant into canonical form, in place; surgery may leave more of it.

    Args:
        surgeon: What to change.
        model: What it was imported from, with its weights or without.
    Returns:
        For each copy of a vector that is made, the initializer that it is a copy of.
    """
    listed = {port.name for port in model.graph.input}
    defaults = listed if model.ir_version >= FIRST_IR_WITH_DEFAULTS else set()
    fold_numbers(surgeon, defaults)
    fold_statistics(surgeon, defaults)
    fold_transposes(surgeon, defaults)
    drop_zero_states(surgeon, defaults)
    _drop_trailing(surgeon)
    return give_copies(surgeon, listed)


def _drop_trailing(surgeon: gs.Graph) -> None:
    """Drop input slots at the end that nothing is given to: ONNX Runtime reads some of those."""
    for scope in (surgeon, *surgeon.subgraphs(recursive=True)):
        for node in scope.nodes:
            while node.inputs and node.inputs[-1].is_empty():
                node.inputs.pop()


def _forget_types(surgeon: gs.Graph) -> None:
    """Drop the types of values that are no tensors: a copy would take them for tensors."""
    for scope in (surgeon, *surgeon.subgraphs(recursive=True)):
        for tensor in scope.tensors().values():
            if isinstance(tensor, gs.Variable) and tensor.type != "tensor_type":
                tensor.dtype = None


def _lift_constants(surgeon: gs.Graph) -> None:
    """Turn Constant nodes into initializers of the same name."""
    for node in list(surgeon.nodes):
        if node.op != CONSTANT or domain_of(node.domain):
            continue
        name = next((key for key in _CONSTANT_ATTRIBUTES if key in node.attrs), None)
        # strings stay nodes, and freeze what they touch
        if name is not None and not (name == "value" and node.attrs[name].dtype == object):
            replace(node, _constant_array(name, node.attrs[name]))
    drop_detached(surgeon)


def _constant_array(attribute: str, value: Any) -> NDArray[Any]:
    if attribute == "value":
        return np.asarray(value.values)
    return np.asarray(value, dtype=np.float32 if "float" in attribute else np.int64)
