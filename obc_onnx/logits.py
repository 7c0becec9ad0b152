"""Class logits of classifiers, also of those that end in a Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from obc_onnx.node import CLASSES_RANK

if TYPE_CHECKING:
    from collections.abc import Container

    from torch import Tensor

    from obc_onnx.graph import Graph
    from obc_onnx.node import Node

_OF_ONE_AXIS = 13
"""The opset since which a Softmax looks at one axis, and not at all that follow."""
_KEEPS_AXES = frozenset({"Cast", "Identity"})
_PASSES_ON = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})


def ends_in_softmax(graph: Graph) -> bool:
    """Say whether the first output holds probabilities: a Softmax, then nothing but layout."""
    return _softmax_behind(graph, _PASSES_ON) is not None


def class_axis(graph: Graph) -> int | None:
    """Say along which axis of the first output the classes lie.

    Returns:
        The last one of [samples, classes], or that of the Softmax that gives the output; None where
        nothing tells, as for the logits of a picture's pixels.
    """
    port = graph.outputs[0]
    if port.shape is None or len(port.shape) == CLASSES_RANK:
        return -1
    node = _softmax_behind(graph, _KEEPS_AXES)
    if node is None:
        return None
    if node.opset >= _OF_ONE_AXIS:
        return node.integer("axis", -1)
    last = node.integer("axis", 1) in (-1, len(port.shape) - 1)
    return -1 if last else None


def _softmax_behind(graph: Graph, passed: Container[str]) -> Node | None:
    """Go back from the first output through some operators to a Softmax, None where none is."""
    node = graph.producers.get(graph.outputs[0].name)
    while node is not None and node.op_type in passed:
        node = graph.producers.get(node.inputs[0])
    return node if node is not None and node.op_type == "Softmax" else None


def logits_of(output: Tensor, *, probabilities: bool) -> Tensor:
    """Return class logits from a first output, shape [batch, classes].

    The logarithm of probabilities are logits of the same classes: a softmax gives them back.
    """
    if not probabilities:
        return output
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()
