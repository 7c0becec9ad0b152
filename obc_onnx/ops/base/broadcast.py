"""Axes under numpy broadcasting, shared by elementwise operators and products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.base.context import Tap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.context import CoupleContext
    from obc_onnx.ops.base.value import Value


def broadcast_axes(context: CoupleContext, operands: Sequence[Sequence[Expr]]) -> tuple[Expr, ...]:
    """Align operands at their last axis and tie what is not broadcast.

    Args:
        context: The node.
        operands: The axes of each operand.
    Returns:
        The axes of the result. Where an operand has size 1 the others set the axis.
    """
    rank = max(len(axes) for axes in operands)
    result = []
    for position in range(-rank, 0):
        present = [axes[position] for axes in operands if len(axes) >= -position]
        wide = [axis for axis in present if axis.size != 1]
        for other in wide[1:]:
            context.unify(wide[0], other)
        result.append(wide[0] if wide else present[0])
    return tuple(result)


def couple_parameters(context: CoupleContext, inputs: Sequence[Value], n_out: int) -> None:
    """Record operands that hold parameters: they act position by position along each axis."""
    if all(value.constant for value in inputs):
        return
    for slot, value in enumerate(inputs):
        if value.constant:
            lead = n_out - len(value.axes)
            for axis, expr in enumerate(value.axes):
                if expr.size > 1:
                    context.scales(slot, axis, Tap("parameter", slot, lead + axis))
