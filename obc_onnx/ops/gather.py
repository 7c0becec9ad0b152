"""Gather: picks positions of one axis by constant or computed indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.ops.context import Tap
from obc_onnx.ops.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.value import Value, apply

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes import Expr
    from obc_onnx.ops.context import CoupleContext, ForwardContext

_TABLE_RANK = 2


class Gather(FreeOfMacs):
    """Pick positions of one axis: a permutation, one slice of many, or rows of a table."""

    op_types = ("Gather",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Take constant positions of the axis, freeze it for any others; pass the rest through."""
        data, indices = context.value(0), context.value(1)
        axis = context.node.integer("axis", 0) % len(data.axes)
        if data.numbers is not None:
            numbers = apply(
                lambda known, picked: np.take(known, picked, axis, mode="wrap"),
                data.numbers,
                context.numbers(1),
            )
        else:
            numbers = None
        picked = self._picked(context, data.axes[axis], indices)
        if picked is None:
            context.freeze([data.axes[axis]], "the gathered axis")
        if data.constant and not indices.constant:
            self._couple_table(context, data, axis, len(indices.axes))
        inserted = indices.axes if picked is None else (picked,)
        return [Value((*data.axes[:axis], *inserted, *data.axes[axis + 1 :]), numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Index with an integer tensor; negative positions count from the end."""
        return Call(gather, {"axis": context.node.integer("axis", 0)}, (0, 1))

    def _picked(self, context: CoupleContext, axis: Expr, indices: Value) -> Expr | None:
        """Return the axis of constant positions, which surgery can number anew."""
        written = context.arrays[1] is not None and len(indices.axes) == 1
        if not written or context.system.is_open(axis) or 0 in (axis.size, *indices.shape):
            return None
        picked = context.integers(1)
        return None if picked is None else context.pick(1, axis, picked)

    def _couple_table(
        self, context: CoupleContext, table: Value, axis: int, n_inserted: int
    ) -> None:
        """Record the other axes of a table of weights: each makes an axis of the output."""
        for i, expr in enumerate(table.axes):
            if i != axis and expr.size > 1:
                out_axis = i if i < axis else i + n_inserted - 1
                mixes = [expr] if len(table.axes) == _TABLE_RANK else []
                context.writes(0, i, tap=Tap("output", 0, out_axis), mixes=mixes)


def gather(data: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """Compute Gather. Source: the ONNX operator page of Gather."""
    axis %= data.ndim
    index = indices.to(data.device).long()
    flat = data.index_select(axis, index.reshape(-1) % data.shape[axis])
    return flat.reshape((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))


RULES: tuple[Rule, ...] = (Gather(),)
