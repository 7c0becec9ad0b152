"""Small graphs for repair: sums with values of every origin, folded batches, shared weights.

In those of `SUMS` a layer of weight `w1` and bias `b1` takes `t`, and what it gives meets `r` in a
sum or a difference `s`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from helpers import build
from nets import make_static

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

RNG = np.random.default_rng(3)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Row(NamedTuple):
    """A graph.

    Attributes:
        make: Text that computes `r`, and what else is needed.
        weights: What it declares.
        constants: By name.
        width: Channels of `r`.
        sum: Text of `s`.
        inputs: More of them.
        outputs: More of them.
        batch: A static one, where it is not open.
    """

    make: str
    weights: str = ""
    constants: Mapping[str, Any] = {}
    width: int = 8
    sum: str = "s = Add(r, o)"
    inputs: str = ""
    outputs: str = ""
    batch: int | None = None

    def model(self, text: str) -> onnx.ModelProto:
        """Fill a template in."""
        filled = text.format(**self._asdict(), more=self.weights and f", {self.weights}")
        model = build(filled, self.constants)
        leave_out(model)
        if self.batch is not None:
            make_static(model, self.batch)
        return model


def leave_out(model: onnx.ModelProto) -> None:
    """Leave out the outputs that are called `none`, for which the text has no way."""
    for node in model.graph.node:
        node.output[:] = ["" if name.startswith("none") else name for name in node.output]


IMAGE = (
    "net (float[N,3,6,6] x{inputs}) => (float[N,4,6,6] y{outputs}) <float[8,3,3,3] w0, float[8] b0,"
    " float[6,3,1,1] wt, float[6] bt, float[{width},6,1,1] w1, float[{width}] b1,"
    " float[4,{width},1,1] w2{more}> {{ h = Conv<pads=[1,1,1,1]>(x, w0, b0)"
    "  g0 = Conv(x, wt, bt) t = Relu(g0) {make}"
    "  o = Conv(t, w1, b1) {sum} u = Tanh(s) y = Conv(u, w2) }}"
)
CHOICE = (
    "m = ReduceMax<keepdims=0>(x) c = Greater(m, zero)"
    " e = If(c) <then_branch = yes () => (float[N,8,6,6] i) {{ i = Identity({0}) }},"
    " else_branch = no () => (float[N,8,6,6] n) {{ n = Neg({0}) }}>"
)
ZERO = {"zero": np.float32(0.0)}
NORM = "float[8] sc, float[8] sh, float[8] mean, float[8] var"
IMAGES = {
    "identity": Row("r = Identity(h)"),
    "the other way round": Row("r = Identity(h)", sum="s = Add(o, r)"),
    "less the layer": Row("r = Identity(h)", sum="s = Sub(r, o)"),
    "less the value": Row("r = Identity(h)", sum="s = Sub(o, r)"),
    "behind a norm of the layer": Row(
        "r = Identity(h)", NORM, sum="n = BatchNormalization(o, sc, sh, mean, var) s = Add(r, n)"
    ),
    "less a norm of the layer": Row(
        "r = Identity(h)", NORM, sum="n = BatchNormalization(o, sc, sh, mean, var) s = Sub(r, n)"
    ),
    "first of two": Row("r, q = Split<axis=1>(h, two)", "", {"two": [4, 4]}, 4),
    "second of two": Row("p, r = Split<axis=1>(h, two)", "", {"two": [4, 4]}, 4),
    "third of three": Row("p, q, r = Split<axis=1>(h, three)", "", {"three": [2, 2, 4]}, 4),
    "both of two": Row(
        "p, q = Split<axis=1>(h, two) r = Concat<axis=1>(q, p)", "", {"two": [4, 4]}
    ),
    "largest": Row("r, i = TopK(h, k)", "", {"k": [6]}),
    "places of the largest": Row("v, i = TopK(h, k) r = Cast<to=1>(i)", "", {"k": [6]}),
    "pool with places": Row("r, i = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)"),
    "dropout with a mask": Row("r, i = Dropout(h)"),
    "norm": Row("r = BatchNormalization(h, sc, sh, mean, var)", NORM),
    "layer norm": Row("r, m, d = LayerNormalization(h, g)", "float[6] g"),
    "mean of a layer norm": Row("a, r, d = LayerNormalization(h, g)", "float[6] g"),
    "deviation of a layer norm": Row("a, none, r = LayerNormalization(h, g)", "float[6] g"),
    "transposed": Row("a = Transpose<perm=[0,1,3,2]>(h) r = Transpose<perm=[0,1,3,2]>(a)"),
    "reshaped": Row(
        "a = Reshape(h, flat) r = Reshape(a, map)", "", {"flat": [0, 0, 36], "map": [0, 0, 6, 6]}
    ),
    "graph input": Row("", inputs=", float[N,8,6,6] r"),
    "graph input of one channel": Row("", inputs=", float[N,1,6,6] r"),
    "graph input and a static batch": Row("", inputs=", float[N,8,6,6] r", batch=4),
    "input of the net": Row("r = Concat<axis=1>(x, x)", "", {}, 6),
    "computed constant": Row("r = Tanh(k)", "", {"k": drawn(1, 8, 6, 6)}),
    "constant map": Row("r = Identity(k)", "", {"k": drawn(8, 6, 6)}),
    "value that is an output": Row(
        "r = Conv<pads=[1,1,1,1]>(x, wr)", "float[8,3,3,3] wr", outputs=", float[N,8,6,6] r"
    ),
    "sum that is an output": Row("r = Identity(h)", outputs=", float[N,8,6,6] s"),
    "value that a branch takes": Row(
        f"r = Identity(h) {CHOICE.format('r')}", "", ZERO, sum="a = Add(r, o) s = Add(a, e)"
    ),
    "value of a branch": Row(f"{CHOICE.format('h')} r = Identity(e)", "", ZERO),
    "value that a branch gives": Row(
        CHOICE.replace(" e = ", " r = ").format("h"), "", ZERO
    ),
}  # fmt: skip

TOKENS = (
    "net (float[N,5,6] x{inputs}) => (float[N,5,4] y{outputs}) <float[6,8] wt, float[8] bt,"
    " float[8,{width}] w1, float[{width}] b1, float[{width},4] w2{more}>"
    "{{ h0 = MatMul(x, wt) h = Add(h0, bt) t = Tanh(h) {make}"
    "  o0 = MatMul(t, w1) o = Add(o0, b1) {sum} u = Tanh(s) y = MatMul(u, w2) }}"
)


def recurrent(op_type: str, gates: int, output: int, first: str = "Y") -> Row:
    """Let an output of a recurrent layer be `r`: all states, the last one, or the last cell."""
    names = [first, "Yh", "Yc"][: 3 if op_type == "LSTM" else 2]
    text = f"xt = Transpose<perm=[1,0,2]>(x) {', '.join(names)} = {op_type}<hidden_size=8>(xt, W, R, B)"
    text += (
        " a = Squeeze(Y, one) r = Transpose<perm=[1,0,2]>(a)"
        if output == 0
        else f" a = Squeeze({names[output]}, zero) r = Unsqueeze(a, one)"
    )
    weights = f"float[1,{8 * gates},6] W, float[1,{8 * gates},8] R, float[1,{16 * gates}] B"
    return Row(text, weights, {"one": [1]} if output == 0 else {"one": [1], "zero": [0]})


TEXTS = {
    **{f"LSTM {i}": recurrent("LSTM", 4, i) for i in range(3)},
    **{f"GRU {i}": recurrent("GRU", 3, i) for i in range(2)},
    **{f"RNN {i}": recurrent("RNN", 1, i) for i in range(2)},
    "LSTM without states": recurrent("LSTM", 4, 2, "none"),
    "GRU without states": recurrent("GRU", 3, 1, "none"),
    "input of tokens": Row("", inputs=", float[N,5,8] r"),
    "table of places": Row("r = Identity(k)", "", {"k": drawn(5, 8)}),
    "less tokens": Row("", inputs=", float[N,5,8] r", sum="s = Sub(r, o)"),
    "behind a constant": Row(
        "", "float[8] more", inputs=", float[N,5,8] r", sum="o1 = Add(o, more) s = Add(o1, r)"
    ),
    "static tokens": Row("", inputs=", float[N,5,8] r", batch=1),
}
SUMS = {name: row.model(IMAGE) for name, row in IMAGES.items()} | {
    name: row.model(TOKENS) for name, row in TEXTS.items()
}

FOLDED_WEIGHTS = "float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,4] wo"


class Layout(NamedTuple):
    """Attention whose heads are folded into the batch.

    Attributes:
        spread: Text that makes each of `q`, `k` and `v` of `x`, shape [batch and heads, tokens, 4].
        gather: Text that brings `a` back into the shape [batch, tokens, heads * 4], as `a3`.
        constants: By name.
        before: Text in front of all.
    """

    spread: str
    gather: str
    constants: Mapping[str, Any]
    before: str = ""


LAYOUTS = {
    "batch first": Layout(
        "{0}0 = MatMul(x, w{0}) {0}1 = Reshape({0}0, cut) {0}2 = Transpose<perm=[0,2,1,3]>({0}1)"
        " {0} = Reshape({0}2, fold)",
        "a1 = Reshape(a, back) a2 = Transpose<perm=[0,2,1,3]>(a1) a3 = Reshape(a2, join)",
        {"cut": [0, 4, 2, 4], "fold": [-1, 4, 4], "back": [-1, 2, 4, 4], "join": [0, 4, -1]},
    ),
    "sequence first": Layout(
        "{0}z = Transpose<perm=[1,0,2]>(x) {0}0 = MatMul({0}z, w{0}) {0}1 = Reshape({0}0, fold)"
        " {0} = Transpose<perm=[1,0,2]>({0}1)",
        "a1 = Transpose<perm=[1,0,2]>(a) a2 = Reshape(a1, join) a3 = Transpose<perm=[1,0,2]>(a2)",
        {"fold": [4, -1, 4], "join": [4, -1, 8]},
    ),
    "heads before the batch": Layout(
        "{0}0 = MatMul(x, w{0}) {0}1 = Reshape({0}0, cut) {0}2 = Transpose<perm=[2,0,1,3]>({0}1)"
        " {0} = Reshape({0}2, fold)",
        "a1 = Reshape(a, back) a2 = Transpose<perm=[1,2,0,3]>(a1) a3 = Reshape(a2, join)",
        {"cut": [0, 4, 2, 4], "fold": [-1, 4, 4], "back": [2, -1, 4, 4], "join": [0, 4, -1]},
    ),
    "windows": Layout(
        "{0}0 = MatMul(x, w{0}) {0}1 = Reshape({0}0, cut) {0}2 = Transpose<perm=[0,1,3,2,4]>({0}1)"
        " {0} = Reshape({0}2, fold)",
        "a1 = Reshape(a, back) a2 = Transpose<perm=[0,1,3,2,4]>(a1) a3 = Reshape(a2, join)",
        {"cut": [0, 2, 2, 2, 4], "fold": [-1, 2, 4], "back": [-1, 2, 2, 2, 4], "join": [0, 4, -1]},
    ),
    "computed sizes": Layout(
        "{0}z = Transpose<perm=[1,0,2]>(x) {0}0 = MatMul({0}z, w{0}) {0}1 = Reshape({0}0, to)"
        " {0} = Transpose<perm=[1,0,2]>({0}1)",
        "a1 = Transpose<perm=[1,0,2]>(a) b1 = Unsqueeze(n, zero) back = Concat<axis=0>(l, b1, rest)"
        " a2 = Reshape(a1, back) a3 = Transpose<perm=[1,0,2]>(a2)",
        {"first": np.int64(0), "heads": np.int64(2), "zero": [0], "l": [4], "d": [4], "rest": [-1]},
        "sizes = Shape(x) n = Gather(sizes, first) nh = Mul(n, heads) n1 = Unsqueeze(nh, zero)"
        " to = Concat<axis=0>(l, n1, d)",
    ),
    "samples turned round": Layout(
        "{0}0 = MatMul(xs, w{0}) {0}1 = Reshape({0}0, cut) {0}2 = Transpose<perm=[0,2,1,3]>({0}1)"
        " {0} = Reshape({0}2, fold)",
        "a1 = Reshape(a, back) a2 = Transpose<perm=[0,2,1,3]>(a1) a3 = Reshape(a2, join)",
        {"cut": [0, 4, 2, 4], "fold": [-1, 4, 4], "back": [-1, 2, 4, 4], "join": [0, 4, -1],
         "last": [-1], "far": [-1000], "zero": [0]},
        "xs = Slice(x, last, far, zero, last)",
    ),
}  # fmt: skip
INSIDE = {
    "": "z = Identity(v)",
    ", layers on heads": "z0 = MatMul(v, wd) z1 = Add(z0, bd) z2 = Tanh(z1) z3 = MatMul(z2, we)"
    " z = Add(v, z3)",
    ", scores that are an output": "z = Identity(v)",
}


def folded(layout: str, inside: str, batch: int | None) -> onnx.ModelProto:
    """Write attention whose heads are folded into the batch."""
    spread, gather, constants, before = LAYOUTS[layout]
    body = " ".join([before, *(spread.format(name) for name in "qkv")])
    more = ", float[4,6] wd, float[6] bd, float[6,4] we" if "wd" in INSIDE[inside] else ""
    row = Row(
        f"{body} kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax(s)"
        f" {INSIDE[inside]} a = MatMul(p, z) {gather} y = MatMul(a3, wo)",
        FOLDED_WEIGHTS + more,
        constants,
        batch=batch,
        outputs=", float[M,K,L] s" if "output" in inside else "",
    )
    return row.model("net (float[N,4,6] x) => (float[N,4,4] y{outputs}) <{weights}> {{ {make} }}")


FOLDED = {
    f"{layout}{inside}": folded(layout, inside, None) for layout in LAYOUTS for inside in INSIDE
} | {f"{layout} of one sample": folded(layout, "", 1) for layout in LAYOUTS}

TWO = "net (float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4] y)"
END = "pool = GlobalAveragePool(last) flat = Flatten(pool) y = Gemm<transB=1>(flat, fc)"
BRANCHES = "float[6,3,3,3] w0, float[6] b0, float[6,6,1,1] w, float[4,6] fc,"
BRANCHES += " float[5,6,1,1] v1, float[5] v1_b, float[6,5,1,1] v2"
PAIR = "a = Conv(x, w0, b0) ta = Tanh(a) c0 = Conv(z, w0, b0) c1 = Tanh(c0)"
PAIR += " c2 = Conv(c1, v1, v1_b) c3 = Tanh(c2) c = Conv(c3, v2) tc = Tanh(c)"
NORM6 = "float[6] sc, float[6] sh, float[6] mean, float[6] var"
SHARED_TEXTS = {
    "weights of two inputs": f"{TWO} <{BRANCHES}> {{ {PAIR} d = Conv(ta, w) e = Conv(tc, w)"
    f" last = Sub(d, e) {END} }}",
    "a weight with two biases": f"{TWO} <{BRANCHES}, float[6] b1, float[6] b2> {{ {PAIR}"
    f" d = Conv(ta, w, b1) e = Conv(tc, w, b2) td = Tanh(d) te = Tanh(e) last = Add(td, te) {END} }}",
    "a bias of two weights": f"{TWO} <{BRANCHES}, float[6,6,1,1] v, float[6] b1> {{ {PAIR}"
    f" d = Conv(ta, w, b1) e = Conv(tc, v, b1) td = Tanh(d) te = Tanh(e) last = Add(td, te) {END} }}",
    "a norm of two weights": f"{TWO} <{BRANCHES}, float[6,6,1,1] v, {NORM6}> {{ {PAIR}"
    " d = Conv(ta, w) e = Conv(tc, v) nd = BatchNormalization(d, sc, sh, mean, var)"
    f" ne = BatchNormalization(e, sc, sh, mean, var) td = Tanh(nd) te = Tanh(ne) last = Add(td, te) {END} }}",
    "scales of two norms": f"{TWO} <{BRANCHES}, float[6,6,1,1] v, {NORM6}, float[6] mean2, float[6] var2>"
    f" {{ {PAIR} d = Conv(ta, w) e = Conv(tc, v) nd = BatchNormalization(d, sc, sh, mean, var)"
    f" ne = BatchNormalization(e, sc, sh, mean2, var2) td = Tanh(nd) te = Tanh(ne) last = Add(td, te) {END} }}",
    "a weight used twice in a row": f"{TWO} <{BRANCHES}> {{ {PAIR} d0 = Conv(ta, w) d1 = Tanh(d0)"
    f" d = Conv(d1, w) last = Add(d, tc) {END} }}",
    "a weight that is an output": f"{TWO[:-1]}, float[6,6,1,1] w) <{BRANCHES}> {{ {PAIR}"
    f" d = Conv(ta, w) last = Add(d, tc) {END} }}",
    "a bias that is an output": f"{TWO[:-1]}, float[6] b1) <{BRANCHES}, float[6] b1> {{ {PAIR}"
    f" d = Conv(ta, w, b1) td = Tanh(d) last = Add(td, tc) {END} }}",
    "a value read twice": f"{TWO} <{BRANCHES}> {{ {PAIR} d = Conv(ta, w) last0 = Add(d, tc)"
    f" last = Mul(last0, d) {END} }}",
    "a value added to itself": f"{TWO} <{BRANCHES}> {{ {PAIR} d = Conv(ta, w) f = Add(d, d)"
    f" last = Add(f, tc) {END} }}",
    "a weight that a branch takes": f"{TWO} <{BRANCHES}> {{ {PAIR} m = ReduceMax<keepdims=0>(x)"
    " g = Greater(m, zero) e = If(g) <then_branch = yes () => (float[6,6,1,1] p) { p = Identity(w) },"
    " else_branch = no () => (float[6,6,1,1] q) { q = Neg(w) }>"
    f" d = Conv(ta, w) f = Conv(tc, e) last = Add(d, f) {END} }}",
    "tied ways in and out": "net (float[N,5,7] x) => (float[N,5,7] y) <float[7,8] w, float[8] b,"
    " float[8,8] v, float[7] c> { h0 = MatMul(x, w) h = Add(h0, b) t = Tanh(h) d0 = MatMul(t, v)"
    " d = Add(d0, t) wt = Transpose<perm=[1,0]>(w) y0 = MatMul(d, wt) y = Add(y0, c) }",
}  # fmt: skip
SHARED = {
    name: build(text, ZERO if "branch" in name else {}) for name, text in SHARED_TEXTS.items()
}
PAIRS = build(
    "net (float[N,4,6] x) => (float y) <float[6,8] w, float[8] b, float[64,5] v, float[5,4] u> {"
    " h0 = MatMul(x, w) h = Add(h0, b) t = Tanh(h) p = Reshape(t, pairs) d = MatMul(p, v)"
    " e = Tanh(d) y = MatMul(e, u) }",
    {"pairs": [-1, 64]},
)
"""Two samples make one row."""
GRAPHS = SUMS | FOLDED | SHARED
