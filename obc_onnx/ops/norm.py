"""BatchNormalization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.context import Tap
from obc_onnx.ops.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.context import CoupleContext, ForwardContext


class BatchNormalization(FreeOfMacs):
    """Per-channel normalisation with stored statistics; inputs X, scale, B, mean, var."""

    op_types = ("BatchNormalization",)
    held = (3, 4)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie scale, bias, mean and variance to axis 1 of X."""
        x = context.value(0)
        if context.node.integer("training_mode", 0) or len(context.node.outputs) > 1:
            others = [axis for i, axis in enumerate(x.axes) if i != 1]
            context.freeze(others, "the statistics of this run")
        for slot in range(1, 5):
            context.unify(x.axes[1], context.value(slot).axes[0])
        context.scales(1, 0, Tap("output", 0, 1))
        statistic = Value((context.value(3).axes[0],))
        return [x, *([statistic] * (len(context.node.outputs) - 1))]

    def forward(self, context: ForwardContext) -> Call:
        """Use stored statistics in evaluation mode, and update them in training mode."""
        node = context.node
        if len(node.outputs) > 1:
            raise UnsupportedOperatorError(f"{node.label}: the twin computes its first output only")
        constants = {
            "epsilon": node.number("epsilon", 1e-5),
            "momentum": node.number("momentum", 0.9),
        }
        return Call(batch_norm, constants, context.given(0, 1, 2, 3, 4), trains=True)


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float,
    momentum: float,
    training: bool,
) -> Tensor:
    """Compute BatchNormalization. ONNX keeps `momentum` of the old statistics, torch 1 - that."""
    from torch.nn import functional

    return functional.batch_norm(x, mean, var, scale, bias, training, 1.0 - momentum, epsilon)


RULES: tuple[Rule, ...] = (BatchNormalization(),)
