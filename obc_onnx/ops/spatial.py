"""Operators that move spatial positions to channels and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from obc_onnx.axes.expressions import product
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class _Blocks(FreeOfMacs):
    """Channels that are block rows x block columns x channels, or channels first."""

    def _channels(self, context: CoupleContext, rows: Expr, columns: Expr, channels: Expr) -> Expr:
        context.freeze([rows, columns], "a block of positions")
        first = context.node.text("mode", "DCR") == "CRD"
        return product([channels, rows, columns] if first else [rows, columns, channels])

    def _constants(self, node: Node) -> dict[str, Any]:
        return {
            "blocksize": node.integer("blocksize", 1),
            "channels_first": node.text("mode", "DCR") == "CRD",
        }


class DepthToSpace(_Blocks):
    """Move blocks of channels to positions, as in a pixel shuffle."""

    op_types = ("DepthToSpace",)
    effects: ClassVar = {"DepthToSpace": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Factor the channels; rows of a block go behind the height, columns behind the width."""
        batch, depth, height, width = context.value(0).axes
        size = context.node.integer("blocksize", 1)
        rows, columns = context.system.dim(size), context.system.dim(size)
        channels = context.system.dim(context.shape()[1])
        context.unify(depth, self._channels(context, rows, columns, channels))
        return [Value((batch, channels, product([height, rows]), product([width, columns])))]

    def forward(self, context: ForwardContext) -> Call:
        """Reshape, permute and reshape."""
        return Call(depth_to_space, self._constants(context.node))


class SpaceToDepth(_Blocks):
    """Move blocks of positions to channels."""

    op_types = ("SpaceToDepth",)
    effects: ClassVar = {"SpaceToDepth": Effect.MOVES}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Factor height and width; the rows and columns of a block go to the channels."""
        batch, channels, *spatial = context.value(0).axes
        size = context.node.integer("blocksize", 1)
        (height, rows), (width, columns) = (_cut_blocks(context, axis, size) for axis in spatial)
        depth = self._channels(context, rows, columns, channels)
        return [Value((batch, depth, height, width))]

    def forward(self, context: ForwardContext) -> Call:
        """Reshape, permute and reshape."""
        return Call(space_to_depth, self._constants(context.node))


def _cut_blocks(context: CoupleContext, axis: Expr, size: int) -> tuple[Expr, Expr]:
    """Write an axis as blocks x positions in a block."""
    if context.system.is_open(axis):
        context.freeze([axis], "an open axis with blocks")
        blocks = context.fixed(axis.size // size, "an open axis with blocks")
        return blocks, context.system.dim(size)
    blocks, within = context.factored(axis, axis.size // size, size)
    return blocks, within


def depth_to_space(x: Tensor, *, blocksize: int, channels_first: bool) -> Tensor:
    """Compute DepthToSpace. Source: the ONNX operator page of DepthToSpace."""
    n, n_channels, height, width = x.shape
    left = n_channels // blocksize**2
    split = (left, blocksize, blocksize) if channels_first else (blocksize, blocksize, left)
    order = (0, 1, 4, 2, 5, 3) if channels_first else (0, 3, 4, 1, 5, 2)
    y = x.reshape(n, *split, height, width).permute(order)
    return y.reshape(n, y.shape[1], height * blocksize, width * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int, channels_first: bool) -> Tensor:
    """Compute SpaceToDepth. Source: the ONNX operator page of SpaceToDepth."""
    n, n_channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    order = (0, 1, 3, 5, 2, 4) if channels_first else (0, 3, 5, 1, 2, 4)
    y = x.reshape(n, n_channels, rows, blocksize, columns, blocksize).permute(order)
    return y.reshape(n, n_channels * blocksize**2, rows, columns)


RULES: tuple[Rule, ...] = (DepthToSpace(), SpaceToDepth())
