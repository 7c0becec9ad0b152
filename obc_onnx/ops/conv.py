"""Conv and ConvTranspose: dense, grouped, depthwise, with a multiplier, in 1, 2 and 3 dimensions.

A grouped convolution has `blocks x channels per block` on both sides, so both can shrink.
Layouts: Conv W is [out, in / group, *kernel]; ConvTranspose W is [in, out / group, *kernel].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from obc_onnx.axes.expressions import product
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.padding import explicit_pads, same_pads
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape

_BIAS = 2


class Conv(Rule):
    """Convolution: writes the blocks x channels of W's axis 0, reads its axis 1 in every block."""

    op_types = ("Conv",)
    ranks: ClassVar = {_BIAS: 1}
    bias_slot = _BIAS

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie input channels to blocks x W axis 1, and output channels to W axis 0."""
        x, w = context.value(0), context.value(1)
        out_channels, in_per_block = w.axes[:2]
        blocks = context.node.integer("group", 1)
        written: Expr = out_channels
        if blocks > 1:
            block, written = context.factored(out_channels, blocks, out_channels.size // blocks)
            context.unify(x.axes[1], product([block, in_per_block]))
            context.spell("group", block, scalar=True)
        else:
            context.unify(x.axes[1], in_per_block)
        bias = _couple_bias(context, out_channels)
        context.writes(1, 0, tap=Tap("output", 0, 1), mixes=[written], bias=bias)
        context.reads(1, 1, mixes=[in_per_block], tap=Tap("input", 0, 1))
        return [_output(context, x, w, out_channels)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's convolution; asymmetric pads are padded first."""
        return Call(conv, _geometry(context), context.given(0, 1, 2))

    def is_linear(self, node: Node) -> bool:  # noqa: ARG002
        """Say so: there is nothing else."""
        return True

    def halves(
        self,
        node: Node,
        slot: int,  # noqa: ARG002
        shape: Shape,
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Let the first pick positions, where a kernel is a point and nothing is padded."""
        rank = len(shape) - 2
        padded = node.text("auto_pad", "NOTSET") != "NOTSET" or any(explicit_pads(node, rank))
        if padded or node.integer("group", 1) > 1 or set(shape[2:]) - {1}:
            return None
        return node.attributes, {"kernel_shape": [1] * rank}

    def filters_of(self, node: Node, shape: Shape) -> NDArray[np.int64]:  # noqa: ARG002
        """Number the first axis."""
        return np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))

    def patches(self) -> Callable[..., Tensor]:
        """Cut the padded input into what each output element sees."""
        return conv_patches

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every output element takes one product per element of its filter."""
        return math.prod(outputs[0]) * math.prod(inputs[1][1:])


class ConvTranspose(Rule):
    """Transposed convolution: reads W's axis 0, writes its axis 1 in every block."""

    op_types = ("ConvTranspose",)
    ranks: ClassVar = {_BIAS: 1}
    bias_slot = _BIAS

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie input channels to W axis 0, and output channels to blocks x W axis 1."""
        x, w = context.value(0), context.value(1)
        in_channels, out_per_block = w.axes[:2]
        blocks = context.node.integer("group", 1)
        context.unify(x.axes[1], in_channels)
        read, out_channels = in_channels, out_per_block
        if blocks > 1:
            block, read = context.factored(in_channels, blocks, in_channels.size // blocks)
            out_channels = product([block, out_per_block])
            context.spell("group", block, scalar=True)
        bias = _couple_bias(context, out_channels)
        context.reads(1, 0, mixes=[read], tap=Tap("input", 0, 1))
        context.writes(1, 1, tap=Tap("output", 0, 1), mixes=[out_per_block], bias=bias)
        return [_output(context, x, w, out_channels)]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's transposed convolution and crop what `pads` takes off."""
        node, rank = context.node, context.rank(1) - 2
        constants = {
            **_geometry(context),
            "output_padding": node.integers("output_padding") or (0,) * rank,
            "output_shape": node.integers("output_shape"),
        }
        return Call(conv_transpose, constants, context.given(0, 1, 2))

    def is_linear(self, node: Node) -> bool:  # noqa: ARG002
        """Say so: there is nothing else."""
        return True

    def filters_of(self, node: Node, shape: Shape) -> NDArray[np.int64]:
        """Number the second axis in every block; inputs of a block lie one behind the other."""
        n_blocks = node.integer("group", 1)
        channels = np.arange(n_blocks * shape[1]).reshape(n_blocks, shape[1])
        rows = channels.repeat(shape[0] // n_blocks, axis=0)
        return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))

    def patches(self) -> Callable[..., Tensor]:
        """Spread the input by each element of a filter alone."""
        return conv_transpose_patches

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Every input element is spread by one product per element of its filter."""
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _geometry(context: ForwardContext) -> dict[str, Any]:
    """Read the attributes that both directions have."""
    node, rank = context.node, context.rank(1) - 2
    return {
        "strides": node.integers("strides") or (1,) * rank,
        "dilations": node.integers("dilations") or (1,) * rank,
        "groups": node.integer("group", 1),
        "pads": explicit_pads(node, rank),
        "auto_pad": node.text("auto_pad", "NOTSET"),
    }


def _couple_bias(context: CoupleContext, out_channels: Expr) -> int | None:
    bias = context.optional(_BIAS)
    if bias is None:
        return None
    context.unify(bias.axes[0], out_channels)
    return _BIAS


def _output(context: CoupleContext, x: Value, w: Value, out_channels: Expr) -> Value:
    context.freeze(x.axes[2:], "a spatial axis")
    context.freeze(w.axes[2:], "a kernel axis")
    spatial = [context.fixed(size, "a spatial axis") for size in context.shape()[2:]]
    return Value((x.axes[0], out_channels, *spatial))


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,
    pads: tuple[int, ...],
    auto_pad: str,
) -> Tensor:
    """Compute Conv. Source: the ONNX operator page of Conv."""
    from torch.nn import functional

    rank = len(strides)
    pads = _pads(x, w, strides, dilations, pads, auto_pad)
    begin, end = pads[:rank], pads[rank:]
    if begin != end or _skips(w, strides):
        x = _padded(x, pads)
        begin = (0,) * rank
    x, strides = _strided(x, w, strides)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return convolve(x, w, b, strides, begin, dilations, groups)


def _skips(w: Tensor, strides: tuple[int, ...]) -> bool:
    """Say whether a stride lies over an axis on which a filter has one tap."""
    return any(size == 1 < step for size, step in zip(w.shape[2:], strides, strict=True))


def _strided(x: Tensor, w: Tensor, strides: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Leave out of a padded input what strides skip where a filter has one tap; return the others.

    torch must not see such a stride: where oneDNN 3.12 computes the gradient of a 1x1 filter with
    fewer than 8 inputs, which lie channels last, its AVX2 kernel writes beyond its memory
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    if not _skips(w, strides):
        return x, strides
    pairs = list(zip(w.shape[2:], strides, strict=True))
    steps = [slice(None, None, step if size == 1 else 1) for size, step in pairs]
    return x[(slice(None), slice(None), *steps)], tuple(
        1 if size == 1 else step for size, step in pairs
    )


def _pads(
    x: Tensor,
    w: Tensor,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
) -> tuple[int, ...]:
    if not auto_pad.startswith("SAME"):
        return pads
    return same_pads(tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations, auto_pad)


def _padded(x: Tensor, pads: tuple[int, ...]) -> Tensor:
    from torch.nn import functional

    rank = len(pads) // 2
    sides = [side for i in reversed(range(rank)) for side in (pads[i], pads[rank + i])]
    return functional.pad(x, sides)


def conv_patches(
    x: Tensor,
    w: Tensor,
    *,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,  # noqa: ARG001 - which channels a filter meets is for the caller
    pads: tuple[int, ...],
    auto_pad: str,
) -> Tensor:
    """Lay out the input of `conv`, shape [batch, *output positions, channels, *kernel]; a view."""
    x = _padded(x, _pads(x, w, strides, dilations, pads, auto_pad))
    for i, size in enumerate(w.shape[2:]):
        reach = (size - 1) * dilations[i] + 1
        x = x.unfold(2 + i, reach, strides[i])[..., :: dilations[i]]
    return x.movedim(1, 1 + len(strides))


def conv_transpose_patches(x: Tensor, w: Tensor, **geometry: Any) -> Tensor:
    """Lay out the input of `conv_transpose`, shape [batch, *output positions, channels, taps]."""
    import torch

    kernel = w.shape[2:]
    taps = math.prod(kernel)
    alone = torch.eye(taps, dtype=x.dtype, device=x.device).reshape(1, taps, *kernel)
    own = {**geometry, "groups": x.shape[1]}
    spread = conv_transpose(x, alone.expand(x.shape[1], *alone.shape[1:]), **own)
    apart = spread.reshape(len(x), x.shape[1], taps, *spread.shape[2:])
    return apart.movedim((1, 2), (-2, -1))


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,
    pads: tuple[int, ...],
    output_padding: tuple[int, ...],
    output_shape: tuple[int, ...] | None,
    auto_pad: str,
) -> Tensor:
    """Compute ConvTranspose. Source: the ONNX operator page of ConvTranspose."""
    from torch.nn import functional

    rank = len(strides)
    full = _spread_sizes(x, w, strides, dilations, output_padding)
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = tuple(x.shape[2 + i] * strides[i] for i in range(rank))
    if output_shape is not None:
        total = [max(have - want, 0) for have, want in zip(full, output_shape, strict=True)]
        small = [amount // 2 for amount in total]
        large = [amount - half for amount, half in zip(total, small, strict=True)]
        pads = tuple([*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small])
    convolve = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[rank - 1]
    begin, end = pads[:rank], pads[rank:]
    beyond = [max(w - h, 0) for h, w in zip(full, output_shape or full, strict=True)]
    if any(beyond):  # what no element reaches holds the bias alone
        y = convolve(x, w, None, strides, 0, output_padding, groups, dilations)
        y = functional.pad(y, [side for more in reversed(beyond) for side in (0, more)])
        return y if b is None else y + b.reshape([-1] + [1] * rank)
    if begin == end:
        return convolve(x, w, b, strides, begin, output_padding, groups, dilations)
    y = convolve(x, w, b, strides, 0, output_padding, groups, dilations)
    for i in range(rank):
        y = y.narrow(2 + i, begin[i], full[i] - begin[i] - end[i])
    return y


def _spread_sizes(
    x: Tensor,
    w: Tensor,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    output_padding: tuple[int, ...],
) -> tuple[int, ...]:
    """Return the sizes of a ConvTranspose without pads."""
    return tuple(
        strides[i] * (x.shape[2 + i] - 1)
        + output_padding[i]
        + (w.shape[2 + i] - 1) * dilations[i]
        + 1
        for i in range(len(strides))
    )


RULES: tuple[Rule, ...] = (
    Conv(),
    ConvTranspose(),
)
