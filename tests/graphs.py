"""Convolutional nets made of random blocks; a recipe says which, and hypothesis shrinks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st
from net_builder import MOST_CHANNELS, MOST_ROWS, N_CLASSES, Feature, Net

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

    Step = tuple[str, int, int]
    Recipe = Sequence[Step]


def conv(net: Net, x: Feature, b: int) -> Feature:
    return net.conv(x, 2 + b, kernel=1 + 2 * (b % 2), stride=1 + (b == 5))


def residual(net: Net, x: Feature, b: int) -> Feature:
    inner = net.same("Relu", net.conv(x, 2 + b, 3))
    return net.same("Add", net.conv(inner, x.channels), x.name)


def add(net: Net, x: Feature, b: int) -> Feature:
    other = net.fitting(x, b)
    if other.channels != x.channels:
        other = net.conv(other, x.channels)
    return net.same("Add", x, other.name)


def concat_with_itself(net: Net, x: Feature, b: int) -> Feature:
    return net.joined(*[x] * (2 + b % 2))


def concat(net: Net, x: Feature, b: int) -> Feature:
    return net.joined(net.fitting(x, b), x)


def dense(net: Net, x: Feature, b: int) -> Feature:
    first = net.joined(x, net.conv(x, 2 + b % 3))
    return net.joined(first, net.same("Relu", net.conv(first, 2 + b % 3, 3)))


def squeeze_excite(net: Net, x: Feature, b: int) -> Feature:
    pooled = Feature(net.node("GlobalAveragePool", x.name), x.channels, 1)
    hidden = net.same("Relu", net.conv(pooled, 2 + b % 3))
    gate = net.same("Sigmoid", net.conv(hidden, x.channels))
    return net.same("Mul", x, gate.name)


def gate_without_axes(net: Net, x: Feature, b: int) -> Feature:
    mean = net.node("ReduceMean", x.name, axes=[2, -1], keepdims=b % 2)
    flat = net.node("Squeeze", mean, net.sizes(-1, 2)) if b % 2 else mean
    gate = net.node("Sigmoid", net.node("MatMul", flat, net.weight(x.channels, x.channels)))
    return net.same("Mul", x, net.node("Unsqueeze", gate, net.sizes(2, 3)))


def depthwise(net: Net, x: Feature, b: int) -> Feature:
    return net.conv(x, x.channels * (1 + b % 2), 3, blocks=x.channels)


def grouped(net: Net, x: Feature, b: int) -> Feature:
    blocks = _divisor(x.channels, b)
    return net.conv(x, blocks * (1 + b % 3), 3, blocks=blocks)


def padded_shortcut(net: Net, x: Feature, b: int) -> Feature:
    before, after = 1 + b % 3, 2 + b % 2
    bounds = (
        net.sizes(0, 0),
        net.sizes(2**63 - 1, 2**63 - 1),
        net.sizes(2, 3),
        net.sizes(2, 2),
    )
    small = net.node("Slice", x.name, *bounds)
    padded = net.node("Pad", small, net.sizes(0, before, 0, 0, 0, after, 0, 0))
    main = net.conv(x, x.channels + before + after, 3, stride=2)
    return net.same("Add", main, padded)


def pad_channels(net: Net, x: Feature, b: int) -> Feature:
    pads = net.sizes(0, b % 3, 0, 0, 0, b % 4, 0, 0)
    return Feature(net.node("Pad", x.name, pads), x.channels + b % 3 + b % 4, x.rows)


def shared_weight(net: Net, x: Feature, b: int) -> Feature:
    w = net.weight(x.channels, x.channels, 1, 1)
    first = net.same("Conv", x, w)
    second = net.same("Conv", net.same("Relu", first), w)
    return net.same("Add", first, second.name) if b % 2 else net.joined(second, x)


def shuffle(net: Net, x: Feature, b: int) -> Feature:
    blocks = _divisor(x.channels, b)
    inner = x.channels // blocks
    to = net.sizes(0 if b % 2 else -1, blocks, inner, x.rows, x.rows)
    apart = net.node("Reshape", x.name, to)
    swapped = net.node("Transpose", apart, perm=[0, 2, 1, 3, 4])
    back = net.sizes(-1 if b % 2 else 0, x.channels, x.rows, x.rows)
    return Feature(net.node("Reshape", swapped, back), x.channels, x.rows)


def split(net: Net, x: Feature, b: int) -> Feature:
    first = 1 + b % (x.channels - 1)
    sizes = net.sizes(first, x.channels - first)
    head = net.node("Split", x.name, sizes, n=2, axis=1)
    tail = Feature(head[:-1] + "1", x.channels - first, x.rows)
    return net.joined(net.same("Relu", tail), Feature(head, first, x.rows))


def shuffle_and_split(net: Net, x: Feature, b: int) -> Feature:
    return split(net, shuffle(net, x, b), b)


def slice_channels(net: Net, x: Feature, b: int) -> Feature:
    start = b % (x.channels - 1)
    name = net.node("Slice", x.name, net.sizes(start), net.sizes(x.channels), net.sizes(1))
    return Feature(name, x.channels - start, x.rows)


def batch_norm(net: Net, x: Feature, b: int) -> Feature:
    kinds = ("scale", "bias", "mean", "var")
    return net.same("BatchNormalization", x, *(net.weight(x.channels, kind=k) for k in kinds))


def prelu(net: Net, x: Feature, b: int) -> Feature:
    return net.same("PRelu", x, net.weight(x.channels, 1, 1))


def scale_and_shift(net: Net, x: Feature, b: int) -> Feature:
    scaled = net.same("Mul", x, net.weight(1, x.channels, 1, 1))
    return net.same("Add", scaled, net.weight(x.channels, 1, 1))


def pool(net: Net, x: Feature, b: int) -> Feature:
    op_type = ("MaxPool", "AveragePool")[b % 2]
    name = net.node(op_type, x.name, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return Feature(name, x.channels, -(-x.rows // 2))


def resize(net: Net, x: Feature, b: int) -> Feature:
    if 2 * x.rows > MOST_ROWS:
        return pool(net, x, b)
    net.arrays["scales"] = np.array([1, 1, 2, 2], np.float32)
    mode = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return Feature(net.node("Resize", x.name, "", "scales", **mode), x.channels, 2 * x.rows)


def dynamic_reshape(net: Net, x: Feature, b: int) -> Feature:
    batch = net.node("Gather", net.node("Shape", x.name), net.sizes(0))
    target = (net.sizes(x.channels), net.sizes(x.rows**2))
    flat = net.node("Reshape", x.name, net.node("Concat", batch, *target, axis=0))
    back = net.sizes(0, -1 if b % 2 else x.channels, x.rows, x.rows)
    return Feature(net.node("Reshape", net.node("Relu", flat), back), x.channels, x.rows)


def dead_branch(net: Net, x: Feature, b: int) -> Feature:
    net.same("Relu", net.conv(x, 2 + b))
    return net.same("Tanh", x)


def second_output(net: Net, x: Feature, b: int) -> Feature:
    as_it_is = b % 2 and x.name not in net.outputs
    net.outputs.append(x.name if as_it_is else net.conv(x, N_CLASSES).name)
    return net.same("LeakyRelu", x)


def group_norm(net: Net, x: Feature, b: int) -> Feature:
    """As exporters write it: the groups' channels go into the space that is normalised over."""
    blocks = _divisor(x.channels, b)
    flat = net.node("Reshape", x.name, net.sizes(0, blocks, -1))
    ones = net.constant(np.ones(blocks, np.float32)), net.constant(np.zeros(blocks, np.float32))
    normed = net.node("InstanceNormalization", flat, *ones)
    back = net.node("Reshape", normed, net.node("Shape", x.name))
    return scale_and_shift(net, Feature(back, x.channels, x.rows), b)


def normalised(net: Net, x: Feature, b: int) -> Feature:
    if b % 2:
        return net.same("LpNormalization", x, axis=1, p=1 + b % 4 // 2)
    length = net.node("ReduceL2", x.name, axes=[1], keepdims=1)
    return net.same("Div", x, net.node("Add", length, net.constant(np.float32(1.0))))


def local_response(net: Net, x: Feature, b: int) -> Feature:
    return net.same("LRN", x, size=3)


def pixel_shuffle(net: Net, x: Feature, b: int) -> Feature:
    if 2 * x.rows > MOST_ROWS:
        return pool(net, x, b)
    wide = net.conv(x, 4 * (1 + b % 3))
    mode = ("DCR", "CRD")[b % 2]
    name = net.node("DepthToSpace", wide.name, blocksize=2, mode=mode)
    return Feature(name, wide.channels // 4, 2 * x.rows)


def space_to_depth(net: Net, x: Feature, b: int) -> Feature:
    if x.rows % 2:
        return dead_branch(net, x, b)
    return Feature(net.node("SpaceToDepth", x.name, blocksize=2), 4 * x.channels, x.rows // 2)


def permuted(net: Net, x: Feature, b: int) -> Feature:
    order = np.random.default_rng(b).integers(0, x.channels, x.channels - b % 2)
    name = net.node("Gather", x.name, net.constant(order.astype(np.int64)), axis=1)
    return Feature(name, len(order), x.rows)


def summed_up(net: Net, x: Feature, b: int) -> Feature:
    options = {"exclusive": b % 2, "reverse": b // 2 % 2}
    return net.same("CumSum", x, net.constant(np.array(1 + b % 3, np.int64)), **options)


def quantised(net: Net, x: Feature, b: int) -> Feature:
    """Weights of whole numbers, one scale for each written channel, and a quantised input."""
    channels = 2 + b
    whole = net.rng.integers(-127, 128, (channels, x.channels, 1, 1)).astype(np.int8)
    scale = net.rng.uniform(0.5, 1.5, channels).astype(np.float32) / (127 * x.channels)
    w = net.node(
        "DequantizeLinear", net.constant(whole), net.constant(scale),
        net.constant(np.zeros(channels, np.int8)), axis=0,
    )  # fmt: skip
    step, zero = net.constant(np.float32(0.05)), net.constant(np.uint8(128))
    small = net.node("QuantizeLinear", x.name, step, zero)
    name = net.node("Conv", net.node("DequantizeLinear", small, step, zero), w)
    return Feature(name, channels, x.rows)


def spatial_gate(net: Net, x: Feature, b: int) -> Feature:
    total = net.node("ReduceSum", x.name, net.sizes(1), keepdims=1)
    wide = net.node("Expand", net.node("Sigmoid", total), net.node("Shape", x.name))
    return net.same("Mul", x, wide)


def tiled(net: Net, x: Feature, b: int) -> Feature:
    name = net.node("Tile", x.name, net.sizes(1, 1 + b % 3, 1, 1))
    return Feature(name, (1 + b % 3) * x.channels, x.rows)


def half_of_shape(net: Net, x: Feature, b: int) -> Feature:
    """Cut channels at a number that is computed from their count, as a traced `chunk` does."""
    half = -(-x.channels // 2)
    size = net.node("Gather", net.node("Shape", x.name), net.sizes(1))
    more = net.node("Add", size, net.sizes(x.channels % 2))
    middle = net.node("Div", more, net.sizes(2))
    head = net.node("Slice", x.name, net.sizes(0), middle, net.sizes(1))
    tail = net.node("Slice", x.name, middle, size, net.sizes(1))
    return net.joined(
        net.same("Relu", Feature(tail, x.channels - half, x.rows)), Feature(head, half, x.rows)
    )


BLOCKS: dict[str, Callable[[Net, Feature, int], Feature]] = {
    block.__name__: block
    for block in (
        conv, residual, add, concat_with_itself, concat, dense, squeeze_excite, gate_without_axes,
        depthwise, grouped, padded_shortcut, pad_channels, shared_weight, shuffle, split,
        shuffle_and_split, slice_channels, batch_norm, prelu, scale_and_shift, pool, resize,
        dynamic_reshape, dead_branch, second_output, group_norm, normalised, local_response,
        pixel_shuffle, space_to_depth, permuted, summed_up, quantised, spatial_gate, tiled,
        half_of_shape,
    )
}  # fmt: skip


def flat_head(net: Net, x: Feature) -> str:
    flat = net.node("Flatten", x.name)
    w, bias = net.weight(N_CLASSES, x.channels * x.rows**2), net.weight(N_CLASSES)
    return net.node("Gemm", flat, w, bias, transB=1)


def pooled_head(net: Net, x: Feature) -> str:
    pooled = net.node("GlobalAveragePool", x.name)
    hidden = net.node("Gemm", net.node("Flatten", pooled), net.weight(x.channels, 7))
    return net.node("MatMul", net.node("Relu", hidden), net.weight(7, N_CLASSES))


def map_head(net: Net, x: Feature) -> str:
    return net.conv(x, N_CLASSES).name


HEADS = (flat_head, pooled_head, map_head)


def build_net(recipe: Recipe, head: int = 0, seed: int = 0) -> onnx.ModelProto:
    """Follow a recipe of (block, which map to extend, variant)."""
    net = Net(seed)
    for kind, which, variant in recipe:
        x = net.features[-1 - which % len(net.features)]
        if x.channels == 1:
            x = net.conv(x, 6)
        made = BLOCKS[kind](net, x, variant)
        net.features.append(net.conv(made, 6) if made.channels > MOST_CHANNELS else made)
    last = net.features[-1]
    if last.channels == 1:
        last = net.conv(last, 6)
    net.outputs.insert(0, HEADS[head](net, last))
    return net.to_model()


def _divisor(size: int, b: int) -> int:
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return divisors[b % len(divisors)]


steps = st.tuples(st.sampled_from(sorted(BLOCKS)), st.integers(0, 2), st.integers(0, 6))
nets = st.builds(
    build_net,
    st.lists(steps, min_size=1, max_size=7),
    st.integers(0, len(HEADS) - 1),
    st.integers(0, 99),
)
"""Models; at most seven blocks between a stem and a head."""
