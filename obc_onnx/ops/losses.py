"""What a model is trained by, as part of a graph: classes are compared with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obc_onnx.ops.base.rule import Call
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.base.context import ForwardContext
    from obc_onnx.ops.base.rule import Rule

_IGNORES_NOTHING = -(2**31)
"""No class: the default where a node names none to ignore."""


class Losses(Frozen):
    """Inputs are scores [batch, classes, ...], labels [batch, ...], and a weight of each class."""

    op_types = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    why = "a training loss"

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's nll_loss."""
        node = context.node
        constants: dict[str, Any] = {
            "reduction": node.text("reduction", "mean"),
            "ignored": node.integer("ignore_index", _IGNORES_NOTHING),
        }
        slots = context.given(0, 1, 2)
        if node.op_type == "NegativeLogLikelihoodLoss":
            return Call(likelihood_loss, constants, slots)
        function = cross_entropy_loss if len(node.outputs) == 1 else cross_entropy
        return Call(function, constants, slots)


def likelihood_loss(
    x: Tensor, labels: Tensor, weight: Tensor | None = None, *, reduction: str, ignored: int
) -> Tensor:
    """Compute NegativeLogLikelihoodLoss. Source: its ONNX operator page."""
    from torch.nn import functional

    return functional.nll_loss(x, labels.long(), weight, ignore_index=ignored, reduction=reduction)


def cross_entropy_loss(
    x: Tensor, labels: Tensor, weight: Tensor | None = None, *, reduction: str, ignored: int
) -> Tensor:
    """Compute the loss of SoftmaxCrossEntropyLoss."""
    return cross_entropy(x, labels, weight, reduction=reduction, ignored=ignored)[0]


def cross_entropy(
    x: Tensor, labels: Tensor, weight: Tensor | None = None, *, reduction: str, ignored: int
) -> tuple[Tensor, Tensor]:
    """Compute SoftmaxCrossEntropyLoss: the loss, and the logarithms of all probabilities."""
    logs = x.log_softmax(1)
    return likelihood_loss(logs, labels, weight, reduction=reduction, ignored=ignored), logs


RULES: tuple[Rule, ...] = (Losses(),)
