"""Class logits of classifiers, also of those that end in a Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph import Graph

_PASSES_ON = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})


def ends_in_softmax(graph: Graph) -> bool:
    """Say whether the first output holds probabilities: a Softmax, then nothing but layout."""
    node = graph.producers.get(graph.outputs[0].name)
    while node is not None and node.op_type in _PASSES_ON:
        node = graph.producers.get(node.inputs[0])
    return node is not None and node.op_type == "Softmax"


def logits_of(output: Tensor, *, probabilities: bool) -> Tensor:
    """Return class logits from a first output, shape [batch, classes].

    The logarithm of probabilities are logits of the same classes: a softmax gives them back.
    """
    if not probabilities:
        return output
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()
