"""MatMulNBits: a product with weights of a few bits, quantised in blocks of their inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import product
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_A, _B, _SCALES, _ZEROS, _ORDER, _BIAS = range(6)
_BYTE = 8


class MatMulNBits(Rule):
    """y = a b' + bias, where b is [n, blocks, bytes of a block], packed.

    A block of the contracted axis shares a scale and some bytes, so it goes as a whole. What b
    stores for 0 is no 0 in bits, and its scales are: so they stand for b in every role.
    """

    op_types = ("MatMulNBits",)
    domains = ("com.microsoft",)
    held = (_SCALES, _ZEROS)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Write the contracted axis as blocks x positions of a block, and tie the rest to b."""
        a, b = context.value(_A), context.value(_B)
        node, contracted = context.node, len(a.axes) - 1
        n, blocks, stored = b.axes
        context.freeze([stored], "numbers that share a byte or a scale")
        whole = a.axes[-1].size == blocks.size * node.integer("block_size", 0)
        if not whole or node.has_input(_ORDER) or node.integer("weight_prepacked", 0):
            context.freeze([n, blocks, a.axes[-1]], "weights in another layout")
        if whole:
            position = context.fixed(a.axes[-1].size // blocks.size, "numbers that share a scale")
            context.unify(a.axes[-1], product([blocks, position]))
        for slot in (_SCALES, _ZEROS):
            _couple_beside(context, slot, n, blocks)
        context.spell("K", a.axes[-1], scalar=True)
        context.spell("N", n, scalar=True)
        bias = context.optional(_BIAS)
        if bias is not None:
            context.unify(bias.axes[0], n)
        shown = bias is None or bias.constant
        tap = Tap("output", 0, contracted) if shown else None
        context.writes(_SCALES, 0, tap=tap, bias=None if bias is None else _BIAS)
        read = len(context.value(_SCALES).axes) - 1
        context.reads(_SCALES, read, tap=Tap("input", _A, contracted))
        return [Value((*a.axes[:-1], n))]

    def forward(self, context: ForwardContext) -> Call:
        """Unpack the weights, and multiply."""
        node = context.node
        if node.has_input(_ORDER) or node.integer("weight_prepacked", 0):
            raise UnsupportedOperatorError(f"{node.label}: the twin knows no order of the weights")
        constants = {
            "bits": node.integer("bits", 4),
            "block_size": node.integer("block_size", 0),
        }
        return Call(matmul_blocks, constants, context.given(_A, _B, _SCALES, _ZEROS, _BIAS))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every output element takes one product per contracted position."""
        return math.prod(outputs[0]) * inputs[_A][-1]


def _couple_beside(context: CoupleContext, slot: int, n: Expr, blocks: Expr) -> None:
    """Tie scales or zero points, [n, blocks] or flat; zero points that share bytes stay."""
    value = context.optional(slot)
    if value is None:
        return
    along = blocks
    n_stored = math.prod(value.shape) // n.size
    if n_stored != blocks.size:
        context.freeze([blocks], "zero points that share a byte")
        along = context.fixed(n_stored, "zero points that share a byte")
    if len(value.axes) == 1:
        context.unify(value.axes[0], product([n, along]))
    else:
        context.unify(value.axes[0], n)
        context.unify(value.axes[1], along)


def matmul_blocks(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    order: None = None,  # noqa: ARG001
    bias: Tensor | None = None,
    *,
    bits: int,
    block_size: int,
) -> Tensor:
    """Compute MatMulNBits of ONNX Runtime; without zero points the middle of the range is 0.

    Args:
        a: Shape [..., k].
        b: Shape [n, blocks, block_size * bits / 8], the first number in the lowest bits.
        scales: Shape [n, blocks], or flat.
        zeros: Packed along blocks as b is, or floats in the shape of `scales`.
        order: Always None.
        bias: Shape [n].
        bits: Of each number.
        block_size: How many numbers share a scale.
    """
    import torch

    n, blocks = b.shape[:2]
    whole = _unpacked(b, bits)[..., :block_size].to(scales.dtype)
    if zeros is None:
        zero = torch.full_like(scales, 1 << (bits - 1))
    elif zeros.is_floating_point():
        zero = zeros
    else:
        zero = _unpacked(zeros.reshape(n, -1), bits)[:, :blocks].to(scales.dtype)
    weights = (whole - zero.reshape(n, blocks, 1)) * scales.reshape(n, blocks, 1)
    y = a @ weights.reshape(n, -1)[:, : a.shape[-1]].T
    return y if bias is None else y + bias


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Unpack numbers of a few bits along the last axis, lowest bits first."""
    import torch

    shifts = torch.arange(0, _BYTE, bits, device=packed.device, dtype=torch.int32)
    numbers = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return numbers.flatten(-2)


RULES: tuple[Rule, ...] = (MatMulNBits(),)
