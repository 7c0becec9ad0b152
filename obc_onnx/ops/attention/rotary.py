"""RotaryEmbedding, of the standard and of ONNX Runtime.

Features of a head are rotated in pairs: i with i + half, or 2 i with 2 i + 1. A pair is one unit,
and the position of the caches of cosines and sines that belongs to it goes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import join, product
from obc_onnx.errors import ModelError, UnsupportedOperatorError
from obc_onnx.ops.attention.attend import PACKED_RANK, pack, unpack
from obc_onnx.ops.attention.standard import tie_heads
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class RotaryEmbedding(FreeOfMacs):
    """Rotate pairs of features: X, cosines, sines and positions."""

    op_types = ("RotaryEmbedding",)
    cosines, sines, positions = 1, 2, 3

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the first features of every head to two halves, or to a half times a pair."""
        x, cosines, sines = (context.value(slot) for slot in (0, self.cosines, self.sines))
        half = cosines.axes[-1]
        context.unify(half, sines.axes[-1])
        rotated = self._rotated(context, half)
        heads, width = self._heads(context, x, rotated)
        rest = context.system.dim(width - rotated.size)
        tie_heads(context, x, heads, join([rotated, rest]))
        positions = context.optional(self.positions)
        looked_up = () if positions is None else positions.axes
        for axes in (cosines.axes[:-1], sines.axes[:-1], looked_up, (x.axes[0], x.axes[-2])):
            context.freeze(axes, "a position")
        context.spell("num_heads", heads, scalar=True)
        if context.node.integer("rotary_embedding_dim", 0):
            context.spell("rotary_embedding_dim", rotated, scalar=True)
        return [Value(x.axes)]

    def forward(self, context: ForwardContext) -> Call:
        """Rotate as many features as the caches say."""
        node = context.node
        constants = {
            "n_heads": node.integer("num_heads", 0),
            "interleaved": node.flag("interleaved", default=False),
        }
        return Call(rotary_embedding, constants, context.given(0, 1, 2, 3))

    @staticmethod
    def _rotated(context: CoupleContext, half: Expr) -> Expr:
        if context.node.flag("interleaved", default=False):
            return product([half, context.fixed(2, "a pair")])
        return join([half, half])

    @staticmethod
    def _heads(context: CoupleContext, x: Value, rotated: Expr) -> tuple[Expr, int]:
        """Return the heads and the width of each; by default all of a head is rotated."""
        if len(x.axes) != PACKED_RANK:
            return x.axes[1], x.shape[3]
        size = x.shape[2]
        n_heads = context.node.integer("num_heads", 0) or size // rotated.size
        if n_heads < 1 or size % n_heads:
            raise ModelError(
                f"{context.node.label} cannot split {size} numbers into {n_heads} heads"
            )
        return context.system.dim(n_heads), size // n_heads


class ContribRotaryEmbedding(RotaryEmbedding):
    """ONNX Runtime's form: X, positions or that of the first token, cosines and sines."""

    domains = ("com.microsoft",)
    cosines, sines, positions = 2, 3, 1

    def forward(self, context: ForwardContext) -> Call:
        """Rotate as many features as the caches say."""
        if context.node.number("scale", 1.0) != 1.0:
            raise UnsupportedOperatorError(f"{context.node.label}: the twin knows no scale")
        call = super().forward(context)
        return Call(contrib_rotary_embedding, call.constants, call.inputs)


def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    *,
    n_heads: int,
    interleaved: bool,
) -> Tensor:
    """Compute RotaryEmbedding. Source: the ONNX operator page of RotaryEmbedding.

    Args:
        x: Shape [batch, heads, positions, width], or [batch, positions, heads x width].
        cosines: Shape [batch, positions, half], or [largest position, half] with `positions`.
        sines: Likewise.
        positions: Rows of the caches, shape [batch, positions].
        n_heads: Heads of a packed `x`; 0 where all of a head is rotated.
        interleaved: Whether the features of a pair lie side by side, and not in two halves.
    """
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    if x.ndim == PACKED_RANK:
        heads = unpack(x, n_heads or x.shape[2] // (2 * cosines.shape[-1]))
        return pack(rotate(heads, cosines, sines, interleaved=interleaved))
    return rotate(x, cosines, sines, interleaved=interleaved)


def contrib_rotary_embedding(
    x: Tensor,
    positions: Tensor,
    cosines: Tensor,
    sines: Tensor,
    *,
    n_heads: int,
    interleaved: bool,
) -> Tensor:
    """Compute RotaryEmbedding of ONNX Runtime, whose `positions` may be that of the first token."""
    import torch

    if positions.ndim == 1:
        n_positions = x.shape[-2]
        row = positions + torch.arange(n_positions, device=x.device)
        positions = row.expand(x.shape[0], n_positions)
    return rotary_embedding(x, cosines, sines, positions, n_heads=n_heads, interleaved=interleaved)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs of the first features; the others stay.

    Args:
        x: Shape [batch, heads, positions, width].
        cosines: Shape [batch, positions, half], where half is the number of pairs.
        sines: Likewise.
        interleaved: Whether the features of a pair lie side by side, and not in two halves.
    """
    import torch

    half = cosines.shape[-1]
    head, rest = x[..., : 2 * half], x[..., 2 * half :]
    pairs = head.reshape(*head.shape[:-1], *((half, 2) if interleaved else (2, half)))
    along = -1 if interleaved else -2
    first, second = pairs.unbind(along)
    cosines, sines = cosines[:, None], sines[:, None]
    turned = [cosines * first - sines * second, sines * first + cosines * second]
    return torch.cat([torch.stack(turned, along).flatten(-2), rest], -1)


RULES: tuple[Rule, ...] = (
    ContribRotaryEmbedding(),
    RotaryEmbedding(),
)
