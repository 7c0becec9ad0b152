"""Models with folded norms, and what tests of unfolding compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
from conftest import ROOT
from helpers import analyse, assert_close, assert_valid, build, make_feed, run_onnx
from nets import (
    HEAD,
    IMAGE,
    NETS,
    draw_samples,
    model_of,
)
from onnx import TensorProto, numpy_helper

from obc_onnx.equivalent.norms import Unfolded, fold_norms, same_units, unfold_norms
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.samples.samples import Samples

SINGLE, HALF = 1e-5, 2e-2
"""What rounding may change in float32 and in float16, over the RMS of an output."""
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}
FC = "float[4,5] fc, float[4] fc_b"
MODELS = ROOT / "models"
SHARED = MODELS.parents[1] / "shared" / "models"
SHIPPED = [
    pytest.param(path, id=path.stem)
    for path in (MODELS / "fashion_resnet20_folded.onnx", *sorted(SHARED.glob("*_folded.onnx")))
]
if not SHARED.is_dir():
    SHIPPED.append(pytest.param(None, marks=pytest.mark.skip(reason=f"{SHARED} is missing")))
MORE = {
    "transposed blocks with output padding": f"{IMAGE} <float[8,3,3,3] w1, float[8,3,3,2] w2,"
    f" float[6] b2, float[6,2,2,2] w3, float[5,12,1,1] w4, {FC}>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1)"
    "  c2 = ConvTranspose<group=2,strides=[2,3],output_padding=[1,2],pads=[1,0,0,1]>(t1, w2, b2)"
    f"  t2 = Tanh(c2) c3 = ConvTranspose<group=6>(t2, w3) last = Conv(c3, w4) {HEAD} }}",
    "one channel": f"{IMAGE} <float[1,3,3,3] w1, float[5,1,1,1] w2, {FC}>"
    f"{{ c1 = Conv(x, w1) t1 = Relu(c1) last = Conv(t1, w2) {HEAD} }}",
}
CONVOLUTIONS = [*MORE, *(name for name, text in NETS.items() if "Conv" in text)]
CHAIN = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6] b1, float[8,6,1,1] w2, float[5,8,2,2] w3, {FC}>"
    "{ c1 = Conv(x, w1, b1) t1 = Tanh(c1) c2 = Conv(t1, w2) t2 = Tanh(c2) last = Conv(t2, w3)"
    f" {HEAD} }}"
)
"""Three convolutions, the first with a bias."""
GATED = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6,6,1,1] w2, float[5,6,1,1] w3, {FC}>"
    "{ c1 = Conv(x, w1) p = GlobalAveragePool(c1) c2 = Conv(p, w2) s = Sigmoid(c2) m = Mul(c1, s)"
    f"  last = Conv(m, w3) {HEAD} }}"
)
"""Behind the pooling, a sample gives one value per channel."""
COPIED = (
    "net (float[N,3,2,1] x, float[N,8] v) => (float[N,M] y) <float[4,3,1,1] a, float[4,3,1,1] b,"
    " float[24,5] w, int64[1] zero = {0}, int64[1] k = {8}>"
    "{ p = Conv(x, a) s = Shape(p) n = Gather(s, zero) SIZES q = Reshape(p, to) p2 = Conv(x, b)"
    "  q2 = Reshape(p2, to) r = Reshape(v, to) j = Concat<axis=1>(q, q2, r) y = MatMul(j, w) }"
)
"""Each reshape needs numbers of its own once a convolution is cut: surgery copies nodes."""
JOINED = (
    f"{IMAGE} <float[6,3,3,3] w1, float[6,3,3,3] w2, float[5,12,1,1] w3, {FC}>"
    f"{{ c1 = Conv(x, w1) c2 = Conv(x, w2) BODY last = Conv(j, w3) {HEAD} }}"
)


def unfolded_of(graph: Graph, n_samples: int = 50) -> Unfolded:
    return unfold_norms(graph, draw_samples(graph, n_samples), seed=0)


def model_named(name: str) -> onnx.ModelProto:
    return build(MORE[name]) if name in MORE else model_of(name)


def graph_of(text: str, constants: Mapping[str, ArrayLike] | None = None) -> Graph:
    return Graph.from_model(build(text, constants))


def moments(graph: Graph, value: str, samples: Samples) -> tuple[NDArray, NDArray]:
    """Mean and variance of every channel of a value, over all samples in one batch."""
    run = Session(graph, optimize=False, outputs=[value]).run(samples.feed(slice(0, None)))
    wide = run[value].astype(np.float64)
    others = (0, *range(2, wide.ndim))
    return wide.mean(others), wide.var(others)


def parameters(graph: Graph, norm: str) -> list[NDArray]:
    """Scale, bias, mean and variance."""
    return [graph.initializers[name] for name in graph.producers[norm].inputs[1:]]


def structure(graph: Graph, without: Sequence[str] = ()) -> bytes:
    """Serialise a model without what float weights hold, and without some initializers."""
    model = graph.to_model()
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in without]
    for tensor in kept:
        if tensor.data_type in FLOATS:
            tensor.ClearField("raw_data")
    for node in model.graph.node:
        if node.input and node.input[-1] in without:
            node.input.pop()
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model.SerializeToString(deterministic=True)


def disturbed(graph: Graph, norms: Sequence[str]) -> Graph:
    """Give inserted norms other scales, biases, means and variances, as training would."""
    rng, arrays = np.random.default_rng(0), {}
    ranges = ((-1.5, 1.5), (-1.0, 1.0), (-0.5, 0.5), (0.2, 2.0))
    for norm in norms:
        for name, limits in zip(graph.producers[norm].inputs[1:], ranges, strict=True):
            array = graph.initializers[name]
            arrays[name] = rng.uniform(*limits, array.shape).astype(array.dtype)
    return graph.edit(arrays)


def assert_same_function(found: Graph, expected: Graph, tolerance: float = SINGLE) -> None:
    feed = make_feed(expected, np.random.default_rng(1), 3)
    assert_close(run_onnx(found, feed), run_onnx(expected, feed), tolerance)


def new_names(folded: Graph, plain: Graph) -> list[str]:
    return sorted(folded.initializers.keys() - plain.initializers.keys())


def assert_cuts_alike(
    coupling: Coupling, keep: Keep, unfolded: Unfolded, tolerance: float = SINGLE
) -> None:
    """Raise unless the cut with norms is, folded, the cut without; trained or not."""
    with_norms = analyse(unfolded.graph, shapes=inputs_of(coupling)).coupling
    plain = remove_units(coupling, keep)
    normed = remove_units(with_norms, same_units(coupling, keep, with_norms))
    folded = fold_norms(normed, unfolded)
    assert structure(folded) == structure(plain)
    assert folded.copies == plain.copies
    assert_same_function(folded, plain, tolerance)
    trained = disturbed(normed, unfolded.norms)
    folded = fold_norms(trained, unfolded)
    assert structure(folded, new_names(folded, plain)) == structure(plain)
    assert_same_function(folded, trained, tolerance)
    assert_valid(folded, inputs_of(coupling))


def inputs_of(coupling: Coupling) -> dict[str, tuple[int, ...]]:
    return {port.name: coupling.shapes[port.name] for port in coupling.graph.inputs}


class LeftOut(NamedTuple):
    """A net, and the convolutions that get a norm."""

    text: str
    unfolded: set[str]
    constants: Mapping[str, ArrayLike] | None = None


LEFT_OUT = {
    "an output": LeftOut(
        CHAIN.replace("(float[N,4] y)", "(float[N,4] y, float[N,8,4,4] c2)"), {"c1", "last"}
    ),
    "the head": LeftOut(
        "net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[6,3,1,1] a, float[4,6,1,1] b>"
        "{ c1 = Conv(x, a) t1 = Relu(c1) y = Conv(t1, b) }",
        {"c1"},
    ),
    "a norm behind it": LeftOut(NETS["norm"], {"last"}),
    "a norm behind it, among others": LeftOut(
        CHAIN.replace(FC, f"float[6] s, float[6] b, float[6] m, float[6] var, {FC}").replace(
            "t1 = Tanh(c1)", "n1 = BatchNormalization(c1, s, b, m, var) t1 = Add(c1, n1)"
        ),
        {"c2", "last"},
    ),
    "a shared weight": LeftOut(NETS["shared weight"], {"c0"}),
    "a weight with another use": LeftOut(
        CHAIN.replace("(float[N,4] y)", "(float[N,4] y, float[8,6,1,1] z)").replace(
            "t2 = Tanh(c2)", "t2 = Tanh(c2) z = Tanh(w2)"
        ),
        {"c1", "last"},
    ),
    "a weight that is an output": LeftOut(
        CHAIN.replace("(float[N,4] y)", "(float[N,4] y, float[8,6,1,1] w2)"), {"c1", "last"}
    ),
    "a computed weight": LeftOut(
        CHAIN.replace("c2 = Conv(t1, w2)", "v2 = Tanh(w2) c2 = Conv(t1, v2)"), {"c1", "last"}
    ),
    "a computed bias": LeftOut(
        CHAIN.replace("c1 = Conv(x, w1, b1)", "d1 = Neg(b1) c1 = Conv(x, w1, d1)"), {"c2", "last"}
    ),
    "a bias that callers may set for two": LeftOut(
        NETS["shared bias"].replace("6] x)", "6] x, float[6] b)").replace(" float[6] b,", ""),
        {"c3", "c4"},
        {"b": np.ones(6, np.float32)},
    ),
    "a weight that is dequantised": LeftOut(
        CHAIN.replace("float[8,6,1,1] w2,", "").replace(
            "c2 = Conv(t1, w2)", "v2 = DequantizeLinear(q2, step) c2 = Conv(t1, v2)"
        ),
        {"c1", "last"},
        {"q2": np.ones((8, 6, 1, 1), np.int8), "step": 0.1},
    ),
    "rounded activations": LeftOut(
        CHAIN.replace(
            "t1 = Tanh(c1)",
            "q1 = QuantizeLinear(c1, step, zero) d1 = DequantizeLinear(q1, step, zero)"
            " t1 = Tanh(d1)",
        ),
        set(),
        {"step": 0.1, "zero": np.zeros((), np.int8)},
    ),
    "nothing to unfold": LeftOut(NETS["gemm"], set()),
}


def in_half(model: onnx.ModelProto) -> Graph:
    """Write a net in float16 throughout."""
    for index, tensor in enumerate(list(model.graph.initializer)):
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            narrow = numpy_helper.from_array(array.astype(np.float16), tensor.name)
            model.graph.initializer[index].CopyFrom(narrow)
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = TensorProto.FLOAT16
    return Graph.from_model(model)


def coupled(graph: Graph) -> Coupling:
    return analyse(graph).coupling


def joined(body: str, constants: dict[str, ArrayLike] | None = None) -> Coupling:
    text = JOINED.replace("BODY", body)
    return coupled(graph_of(text, constants))


APART = "j = Concat<axis=1>(c1, c2)"
ORDER = {"order": [1, 0, 2, 3, 4, 5]}
