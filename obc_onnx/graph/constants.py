"""Compute what an imported graph computes from constants alone, where the analysis needs it known.

Only what is needed is folded: everything else stays as it is in the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from obc_onnx.graph.export import message_of
from obc_onnx.graph.folding import fold
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.node_lists import detach, drop_detached
from obc_onnx.graph.operators import (
    ACROSS_POSITIONS,
    INITIAL_STATES,
    RANDOM,
    REARRANGING,
    SHAPE_ARITHMETIC,
)
from obc_onnx.graph.soundness import most_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    Values = dict[str, NDArray[Any]]

_MAX_NUMBERS = 1024
_NUMBER_BYTES = 8
_MOST_GROWTH = 2
"""Weights that are folded may not take more than this many times the space of their sources."""


def fold_numbers(surgeon: gs.Graph, overridable: Collection[str]) -> None:
    """Compute small integers, such as the amounts of a Pad, that depend on constants alone.

    Args:
        surgeon: The graph, in topological order; it is changed in place.
        overridable: Initializers that a caller may set, which are no constants.
    """
    outputs = {tensor.name for tensor in surgeon.outputs}
    for node in list(surgeon.nodes):
        if node.op not in SHAPE_ARITHMETIC or domain_of(node.domain):
            continue
        if node.outputs[0].name in outputs or any(t.name in overridable for t in node.inputs):
            continue
        if all(_is_small_integer(tensor) for tensor in node.inputs):
            inputs = {tensor.name: tensor.values for tensor in node.inputs}
            found = _folded(node, inputs, surgeon.opset, _MAX_NUMBERS * _NUMBER_BYTES)
            array = None if found is None else found[node.outputs[0].name]
            if array is not None and np.issubdtype(array.dtype, np.integer):
                replace(node, array)
    drop_detached(surgeon)


def fold_statistics(surgeon: gs.Graph, overridable: Collection[str]) -> None:
    """Compute weights that come out of a norm or a contraction of others, and what follows them.

    Args:
        surgeon: The graph, in topological order; it is changed in place.
        overridable: Initializers that a caller may set, which are no constants.
    """
    values: Values = {
        name: tensor.values
        for name, tensor in surgeon.tensors().items()
        if isinstance(tensor, gs.Constant) and name not in overridable
    }
    makers = _constant_nodes(surgeon, values)
    if not any(node.op in ACROSS_POSITIONS for node in makers):
        return
    outputs = {tensor.name for tensor in surgeon.outputs}
    most = most_bytes(sum(array.nbytes for array in values.values()))
    folded: set[str] = set()
    for node in makers:
        follows = any(tensor.name in folded for tensor in node.inputs)
        names = [tensor.name for tensor in node.outputs if tensor.name]
        if outputs.isdisjoint(names) and (follows or node.op in ACROSS_POSITIONS):
            if not _compute(node, values, surgeon.opset, most):
                continue
            before = sum(values[tensor.name].nbytes for tensor in node.inputs if tensor.name)
            if sum(values[name].nbytes for name in names) <= _MOST_GROWTH * before:
                folded.update(names)
    for node in makers:
        if any(tensor.name in folded for tensor in node.outputs):
            replace(node, *(values.get(tensor.name) for tensor in node.outputs))
    stays = escaping(surgeon)
    for node in reversed(makers):  # what only served the others
        for tensor in list(node.outputs):
            _detach_idle(tensor, stays)
    drop_detached(surgeon)


def fold_transposes(surgeon: gs.Graph, overridable: Collection[str]) -> None:
    """Store weights as the nodes behind a Transpose want them, where nothing else reads them.

    Exporters that fold no constants write a fully connected layer so. The name stays.

    Args:
        surgeon: The graph; it is changed in place.
        overridable: Initializers that a caller may set, which are no constants.
    """
    outputs = escaping(surgeon)
    for node in list(surgeon.nodes):
        if node.op != "Transpose" or domain_of(node.domain):
            continue
        weight, value = node.inputs[0], node.outputs[0]
        if value.name in outputs or not _is_private_weight(weight, outputs, overridable):
            continue
        weight.values = np.ascontiguousarray(weight.values.transpose(node.attrs.get("perm")))
        node.inputs.clear()
        for user in list(value.outputs):
            for slot, tensor in enumerate(user.inputs):
                if tensor is value:
                    user.inputs[slot] = weight
        node.outputs.clear()
    drop_detached(surgeon)


def _is_private_weight(
    tensor: gs.Tensor, outputs: Collection[str], overridable: Collection[str]
) -> bool:
    """Say whether a value is a constant of floats that one node reads and nobody else."""
    return (
        isinstance(tensor, gs.Constant)
        and _holds(tensor, np.floating)
        and len(tensor.outputs) == 1
        and tensor.name not in outputs
        and tensor.name not in overridable
    )


def drop_zero_states(surgeon: gs.Graph, overridable: Collection[str]) -> None:
    """Leave out the initial states of recurrent layers that are zeros, as the operators take then.

    One tensor of zeros for all layers, as exporters make it, would tie their units together.

    Args:
        surgeon: The graph; it is changed in place.
        overridable: Initializers that a caller may set, which may become something else.
    """
    outputs = escaping(surgeon)
    for node in list(surgeon.nodes):
        if domain_of(node.domain):
            continue
        for slot in INITIAL_STATES.get(node.op, ()):
            state = node.inputs[slot] if slot < len(node.inputs) else gs.Variable.empty()
            if state.name and _is_zero(state, overridable):
                node.inputs[slot] = gs.Variable.empty()
                _detach_idle(state, outputs)
    drop_detached(surgeon)


def _is_zero(tensor: gs.Tensor, overridable: Collection[str]) -> bool:
    """Say whether a value holds zeros, whatever its shape turns out to be."""
    if isinstance(tensor, gs.Constant):
        return tensor.name not in overridable and not np.any(tensor.values)
    if len(tensor.inputs) != 1 or domain_of(tensor.inputs[0].domain):
        return False
    node = tensor.inputs[0]
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return value is None or not np.any(value.values)
    if node.op == "Concat":
        return all(_is_zero(part, overridable) for part in node.inputs)
    return node.op in REARRANGING and _is_zero(node.inputs[0], overridable)


def _detach_idle(tensor: gs.Tensor, outputs: Collection[str]) -> None:
    """Detach the nodes that only served a value which nothing uses any more."""
    released = [tensor]
    while released:
        for node in list(released.pop().inputs):
            idle = not any(output.outputs or output.name in outputs for output in node.outputs)
            if idle:
                released.extend(node.inputs)
                detach(node)


def escaping(surgeon: gs.Graph) -> set[str]:
    """Name the values that are outputs, or that subgraphs know: their names have to stay."""
    inner = (name for graph in surgeon.subgraphs(recursive=True) for name in graph.tensors())
    return {tensor.name for tensor in surgeon.outputs}.union(inner)


def replace(node: gs.Node, *arrays: NDArray[Any] | None) -> None:
    """Turn the outputs of a node into initializers of the same names, and detach it."""
    outputs = list(node.outputs)
    detach(node)
    for output, array in zip(outputs, arrays, strict=True):
        if array is not None:
            output.to_constant(array)


def _constant_nodes(surgeon: gs.Graph, values: Values) -> list[gs.Node]:
    """List the nodes that depend on constants alone and always give the same."""
    known, found = set(values), []
    for node in surgeon.nodes:
        plain = not domain_of(node.domain) and node.op not in RANDOM and node.inputs
        nested = any(isinstance(value, gs.Graph) for value in node.attrs.values())
        if plain and not nested and all(not t.name or t.name in known for t in node.inputs):
            known.update(tensor.name for tensor in node.outputs)
            found.append(node)
    return found


def _compute(node: gs.Node, values: Values, opset: int, most: int) -> bool:
    """Compute what a node gives, and first what it needs.

    Args:
        node: It depends on constants alone.
        values: What is known; more is added.
        opset: Of the model.
        most: Bytes that all values may take.
    Returns:
        Whether that was possible.
    """
    waiting = [node]
    left = most - sum(array.nbytes for array in values.values())
    while waiting:
        top = waiting[-1]
        unknown = [t for t in top.inputs if t.name and t.name not in values]
        if unknown:
            waiting += [tensor.inputs[0] for tensor in unknown]
            continue
        inputs = {tensor.name: values[tensor.name] for tensor in top.inputs if tensor.name}
        found = _folded(top, inputs, opset, left)
        if found is None:
            return False
        values.update(found)
        left -= sum(array.nbytes for array in found.values())
        waiting.pop()
    return True


def _folded(node: gs.Node, inputs: Values, opset: int, most: int) -> Values | None:
    return fold(message_of(node), inputs, opset, most)


def _is_small_integer(tensor: gs.Tensor) -> bool:
    return (
        isinstance(tensor, gs.Constant)
        and np.prod(tensor.shape) <= _MAX_NUMBERS
        and _holds(tensor, np.integer)
    )


def _holds(tensor: gs.Constant, kind: Any) -> bool:
    lacking = isinstance(tensor.dtype, int)  # graphsurgeon's word for types that numpy lacks
    return not lacking and np.issubdtype(tensor.dtype, kind)
