"""Networks on sequences of tokens, made of random blocks; a recipe says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st
from net_builder import N_CLASSES, Builder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

    Recipe = Sequence[tuple[str, int, int]]

TOKENS = (6, 3)
"""Tokens of a sample, and numbers of a token, at the input."""
WIDTH = 8
MOST_WIDTH = 24
HEADS = 2


@dataclass(frozen=True)
class Tokens:
    """A sequence of shape [batch, length, width]."""

    name: str
    length: int
    width: int


class TokenNet(Builder):
    """A net on tokens, with every sequence made so far."""

    input_shape = TOKENS

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.sequences = [self.linear(Tokens("x", *TOKENS), WIDTH)]

    def linear(self, x: Tokens, width: int, *, bias: bool = True) -> Tokens:
        """Add a fully connected layer on the last axis."""
        name = self.node("MatMul", x.name, self.weight(x.width, width))
        if bias:
            name = self.node("Add", name, self.weight(width))
        return Tokens(name, x.length, width)

    def same(self, op_type: str, x: Tokens, *others: str, **attributes: object) -> Tokens:
        """Add a node that changes no size."""
        return Tokens(self.node(op_type, x.name, *others, **attributes), x.length, x.width)

    def fitting(self, x: Tokens, b: int) -> Tokens:
        """Choose a sequence of the length of `x`."""
        fits = [other for other in self.sequences if other.length == x.length]
        return fits[b % len(fits)]

    def reshape(self, name: str, *sizes: int) -> str:
        """Reshape to numbers that are written down."""
        return self.node("Reshape", name, self.sizes(*sizes))

    def size_of(self, name: str, axis: int) -> str:
        """Read a size as the model runs, shape [1]."""
        return self.node("Gather", self.node("Shape", name), self.sizes(axis))


def attend(net: TokenNet, q: str, k: str, v: str, width: int) -> str:
    """Scores, softmax, values; [..., length, width] each, keys transposed already."""
    scale = net.constant(np.float32(width**-0.5))
    scores = net.node("Mul", net.node("MatMul", q, k), scale)
    return net.node("MatMul", net.node("Softmax", scores, axis=-1), v)


def heads_of(net: TokenNet, x: Tokens, order: Sequence[int]) -> str:
    """Cut the width into heads, and bring them in front of the tokens."""
    cut = net.reshape(x.name, 0, x.length, HEADS, x.width // HEADS)
    return net.node("Transpose", cut, perm=order)


def separate_attention(net: TokenNet, x: Tokens, b: int) -> Tokens:
    width, out = HEADS * (2 + b % 3), HEADS * (2 + b % 2)
    q, k, v = net.linear(x, width), net.linear(x, width), net.linear(x, out)
    mixed = attend(
        net, heads_of(net, q, [0, 2, 1, 3]), heads_of(net, k, [0, 2, 3, 1]),
        heads_of(net, v, [0, 2, 1, 3]), width // HEADS,
    )  # fmt: skip
    joined = net.reshape(net.node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, x.length, out)
    return net.same("Add", net.linear(Tokens(joined, x.length, out), x.width), x.name)


def fused_attention(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """One projection for queries, keys and values; cut by Gather, by Split or by Slice."""
    width = HEADS * (2 + b % 2)
    qkv = net.linear(x, 3 * width)
    if b % 3 == 0:
        cut = net.reshape(qkv.name, 0, x.length, 3, HEADS, width // HEADS)
        moved = net.node("Transpose", cut, perm=[2, 0, 3, 1, 4])
        q, k, v = (
            net.node("Gather", moved, net.constant(np.array(i, np.int64)), axis=0) for i in range(3)
        )
    else:
        if b % 3 == 1:
            first = net.node("Split", qkv.name, n=3, axis=2)
            parts = [first, first[:-1] + "1", first[:-1] + "2"]
        else:
            bounds = [(i * width, (i + 1) * width) for i in range(3)]
            parts = [
                net.node("Slice", qkv.name, net.sizes(s), net.sizes(e), net.sizes(-1))
                for s, e in bounds
            ]
        q, k, v = (heads_of(net, Tokens(p, x.length, width), [0, 2, 1, 3]) for p in parts)
    mixed = attend(net, q, net.node("Transpose", k, perm=[0, 1, 3, 2]), v, width // HEADS)
    joined = net.reshape(net.node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, x.length, -1)
    return net.linear(Tokens(joined, x.length, width), x.width)


def batched_heads(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """Heads join the batch, whose size is multiplied as the model runs."""
    width = HEADS * (2 + b % 2)
    first = net.node("Transpose", x.name, perm=[1, 0, 2])
    seq = Tokens(first, x.length, x.width)
    batch = net.size_of(x.name, 0)
    many = net.node("Mul", batch, net.sizes(HEADS))
    target = net.node("Concat", net.sizes(x.length), many, net.sizes(width // HEADS), axis=0)
    q, k, v = (
        net.node("Transpose", net.node("Reshape", net.linear(seq, width).name, target), perm=order)
        for order in ([1, 0, 2], [1, 2, 0], [1, 0, 2])
    )
    mixed = net.node("Transpose", attend(net, q, k, v, width // HEADS), perm=[1, 0, 2])
    back = net.node("Concat", net.sizes(x.length), batch, net.sizes(width), axis=0)
    joined = net.node("Transpose", net.node("Reshape", mixed, back), perm=[1, 0, 2])
    return net.linear(Tokens(joined, x.length, width), x.width)


def grouped_query(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """Two query heads share one key and value head, which is expanded or tiled."""
    width, repeats = 2 + b % 3, 2
    q = net.linear(x, HEADS * repeats * width)
    k, v = net.linear(x, HEADS * width), net.linear(x, HEADS * width)
    queries = net.reshape(q.name, 0, x.length, HEADS * repeats, width)
    queries = net.node("Transpose", queries, perm=[0, 2, 1, 3])

    def repeated(part: Tokens) -> str:
        apart = heads_of(net, part, [0, 2, 1, 3])
        lone = net.node("Unsqueeze", apart, net.sizes(2))
        target = net.sizes(1, 1, repeats, 1, 1)
        wide = net.node("Expand" if b % 2 else "Tile", lone, target)
        return net.reshape(wide, 0, HEADS * repeats, x.length, width)

    keys = net.node("Transpose", repeated(k), perm=[0, 1, 3, 2])
    mixed = net.node("Transpose", attend(net, queries, keys, repeated(v), width), perm=[0, 2, 1, 3])
    joined = net.reshape(mixed, 0, x.length, HEADS * repeats * width)
    return net.linear(Tokens(joined, x.length, HEADS * repeats * width), x.width)


def einsum_attention(net: TokenNet, x: Tokens, b: int) -> Tokens:
    width = HEADS * (2 + b % 3)
    q, k, v = (
        net.reshape(net.linear(x, width).name, 0, x.length, HEADS, width // HEADS) for _ in range(3)
    )
    scores = net.node("Einsum", q, k, equation="bqhd,bkhd->bhqk")
    shares = net.node("Softmax", scores, axis=-1)
    mixed = net.node("Einsum", shares, v, equation="bhqk,bkhd->bqhd")
    joined = net.reshape(mixed, 0, x.length, width)
    return net.linear(Tokens(joined, x.length, width), x.width)


def mlp(net: TokenNet, x: Tokens, b: int) -> Tokens:
    hidden = net.same(("Relu", "Tanh", "Sigmoid")[b % 3], net.linear(x, 3 + b))
    scale = net.weight(x.width)
    return net.same("Add", x, net.node("Mul", net.linear(hidden, x.width).name, scale))


def gated_mlp(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """One projection whose halves gate each other, as in gated linear units."""
    hidden = 2 + b % 4
    both = net.linear(x, 2 * hidden)
    first = net.node("Split", both.name, n=2, axis=-1)
    gate = net.node("Sigmoid", first)
    product = net.node("Mul", gate, first[:-1] + "1")
    return net.linear(Tokens(product, x.length, hidden), x.width)


def norm(net: TokenNet, x: Tokens, b: int) -> Tokens:
    return net.same("LayerNormalization", x, net.weight(x.width), net.weight(x.width), axis=-1)


def written_norm(net: TokenNet, x: Tokens, b: int) -> Tokens:
    centred = net.node("Sub", x.name, net.node("ReduceMean", x.name, axes=[-1]))
    square = net.node("Pow", centred, net.constant(np.float32(2.0)))
    spread = net.node("ReduceMean", square, axes=[-1])
    root = net.node("Sqrt", net.node("Add", spread, net.constant(np.float32(1e-5))))
    return net.same(
        "Mul", Tokens(net.node("Div", centred, root), x.length, x.width), net.weight(x.width)
    )


def mixer(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """Mix tokens: their axis is a feature axis in between."""
    turned = Tokens(net.node("Transpose", x.name, perm=[0, 2, 1]), x.width, x.length)
    hidden = net.same("Relu", net.linear(turned, 3 + b))
    back = net.node("Transpose", net.linear(hidden, x.length).name, perm=[0, 2, 1])
    return net.same("Add", x, back)


def windows(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """Tokens of a window join, windows go to the batch, and back."""
    if x.length % 2:
        return mlp(net, x, b)
    inner = x.length // 2
    apart = net.reshape(x.name, -1, inner, x.width)
    mixed = attend(net, apart, net.node("Transpose", apart, perm=[0, 2, 1]), apart, x.width)
    return Tokens(net.reshape(mixed, -1, x.length, x.width), x.length, x.width)


def rolled(net: TokenNet, x: Tokens, b: int) -> Tokens:
    axis = 1 + b % 2
    size = (x.length, x.width)[axis - 1]
    at = 1 + b % (size - 1)
    end = net.sizes(2**63 - 1)
    tail = net.node("Slice", x.name, net.sizes(at), end, net.sizes(axis))
    head = net.node("Slice", x.name, net.sizes(0), net.sizes(at), net.sizes(axis))
    return net.same(
        "Identity", Tokens(net.node("Concat", tail, head, axis=axis), x.length, x.width)
    )


def class_token(net: TokenNet, x: Tokens, b: int) -> Tokens:
    """Put one more token in front, expanded to the batch as the model runs."""
    target = net.node("Concat", net.size_of(x.name, 0), net.sizes(1, -1 if b % 2 else 1), axis=0)
    if b % 2:
        length = net.node("Shape", target)
        ones = net.node("ConstantOfShape", length, value=_int_tensor(1))
        minus = net.node("Mul", ones, net.constant(np.array(-1, np.int64)))
        target = net.node("Where", net.node("Equal", target, minus), ones, target)
    token = net.node("Expand", net.weight(1, 1, x.width), target)
    return Tokens(net.node("Concat", token, x.name, axis=1), x.length + 1, x.width)


def add(net: TokenNet, x: Tokens, b: int) -> Tokens:
    other = net.fitting(x, b)
    other = other if other.width == x.width else net.linear(other, x.width)
    return net.same("Add", x, other.name)


def concat(net: TokenNet, x: Tokens, b: int) -> Tokens:
    other = net.fitting(x, b)
    return Tokens(net.node("Concat", other.name, x.name, axis=-1), x.length, x.width + other.width)


def permuted(net: TokenNet, x: Tokens, b: int) -> Tokens:
    order = np.random.default_rng(b).permutation(x.width)
    return net.same("Gather", x, net.constant(order.astype(np.int64)), axis=2)


def recurrent(net: TokenNet, x: Tokens, b: int) -> Tokens:
    kind, gates = (("LSTM", 4), ("GRU", 3), ("RNN", 1))[b % 3]
    ways, hidden = 1 + b % 2, 2 + b % 3
    seq = net.node("Transpose", x.name, perm=[1, 0, 2])
    operands = (
        net.weight(ways, gates * hidden, x.width),
        net.weight(ways, gates * hidden, hidden),
        net.weight(ways, 2 * gates * hidden),
    )
    direction = ("forward", "bidirectional")[ways - 1]
    options = {"linear_before_reset": 1} if kind == "GRU" and b > 3 else {}
    y = net.node(kind, seq, *operands, hidden_size=hidden, direction=direction, **options)
    back = net.reshape(net.node("Transpose", y, perm=[2, 0, 1, 3]), 0, x.length, ways * hidden)
    return Tokens(back, x.length, ways * hidden)


def normalised(net: TokenNet, x: Tokens, b: int) -> Tokens:
    length = net.node("ReduceL2", x.name, axes=[-1], keepdims=1)
    return net.same("Div", x, net.node("Clip", length, net.constant(np.float32(0.1))))


def second_output(net: TokenNet, x: Tokens, b: int) -> Tokens:
    net.outputs.append(net.linear(x, N_CLASSES).name)
    return net.same("Tanh", x)


TOKEN_BLOCKS: dict[str, Callable[[TokenNet, Tokens, int], Tokens]] = {
    block.__name__: block
    for block in (
        separate_attention, fused_attention, batched_heads, grouped_query, einsum_attention, mlp,
        gated_mlp, norm, written_norm, mixer, windows, rolled, class_token, add, concat, permuted,
        recurrent, normalised, second_output,
    )
}  # fmt: skip


def mean_head(net: TokenNet, x: Tokens) -> str:
    pooled = net.node("ReduceMean", x.name, axes=[1], keepdims=0)
    return net.node("Gemm", pooled, net.weight(x.width, N_CLASSES), net.weight(N_CLASSES))


def token_head(net: TokenNet, x: Tokens) -> str:
    first = net.node("Gather", x.name, net.constant(np.array(0, np.int64)), axis=1)
    return net.node("MatMul", first, net.weight(x.width, N_CLASSES))


TOKEN_HEADS = (mean_head, token_head)


def build_token_net(recipe: Recipe, head: int = 0, seed: int = 0) -> onnx.ModelProto:
    """Follow a recipe of (block, which sequence to extend, variant)."""
    net = TokenNet(seed)
    for kind, which, variant in recipe:
        x = net.sequences[-1 - which % len(net.sequences)]
        made = TOKEN_BLOCKS[kind](net, x, variant)
        net.sequences.append(net.linear(made, WIDTH) if made.width > MOST_WIDTH else made)
    last = net.linear(net.same("Relu", net.sequences[-1]), WIDTH)
    net.outputs.insert(0, TOKEN_HEADS[head](net, last))
    return net.to_model()


def _int_tensor(value: int) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array([value], np.int64))


token_steps = st.tuples(st.sampled_from(sorted(TOKEN_BLOCKS)), st.integers(0, 2), st.integers(0, 6))
token_nets = st.builds(
    build_token_net,
    st.lists(token_steps, min_size=1, max_size=6),
    st.integers(0, len(TOKEN_HEADS) - 1),
    st.integers(0, 99),
)
"""Models; at most six blocks between a projection and a head."""
