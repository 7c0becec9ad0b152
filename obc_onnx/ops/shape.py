"""Shape arithmetic: Shape reads sizes, Gather picks them (and rows of tables)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.context import Size, Value
from obc_onnx.ops.rule import Call, FreeOfMacs

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.context import CoupleContext, ForwardContext


class Shape(FreeOfMacs):
    """The sizes of a tensor, as integers."""

    op_types = ("Shape",)
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Give the sizes as numbers that follow their axes."""
        x = context.value(0)
        start, end = context.node.integer("start", 0), context.node.attributes.get("end")
        axes = x.axes[slice(start, None if end is None else int(end))]
        return [Value((context.fixed(len(axes), "the output"),), tuple(Size(a) for a in axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Return the sizes as an int64 tensor on the host."""
        end = context.node.attributes.get("end")
        span = (context.node.integer("start", 0), None if end is None else int(end))
        return Call(shape, {"span": span})


class Gather(FreeOfMacs):
    """Pick positions of one axis."""

    op_types = ("Gather",)
    carries_numbers = True

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pick numbers; on other data freeze the axis and pass the others through."""
        data, indices = context.value(0), context.value(1)
        axis = context.node.integer("axis", 0) % max(len(data.axes), 1)
        picked = context.integers(1)
        numbers = None
        if data.numbers is not None and picked is not None:
            numbers = tuple(data.numbers[i] for i in picked)
        else:
            context.freeze_sizes(data)
            context.freeze_sizes(indices)
        context.freeze([data.axes[axis]], "the gathered axis")
        axes = (*data.axes[:axis], *indices.axes, *data.axes[axis + 1 :])
        return [Value(axes, numbers)]

    def forward(self, context: ForwardContext) -> Call:
        """Index with an integer tensor; negative positions count from the end."""
        return Call(gather, {"axis": context.node.integer("axis", 0)}, (0, 1))


def shape(x: Tensor, *, span: tuple[int, int | None]) -> Tensor:
    """Return sizes start..end of a tensor, shape [n], int64."""
    import torch

    return torch.tensor(x.shape[slice(*span)], dtype=torch.int64)


def gather(data: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """Compute Gather. Source: the ONNX operator page of Gather."""
    axis %= data.ndim
    index = indices.to(data.device).long()
    flat = data.index_select(axis, index.reshape(-1) % data.shape[axis])
    return flat.reshape((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))
