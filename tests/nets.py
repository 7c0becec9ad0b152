"""Small nets in ONNX text for what is scored and trained, and their float64 forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import torch
from helpers import analyse, build
from onnx import TensorProto, numpy_helper

from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph

N_CLASSES = 4
HEAD = "pool = GlobalAveragePool(last) flat = Flatten(pool) y = Gemm<transB=1>(flat, fc, fc_b)"
IMAGE = "net (float[N,3,6,6] x) => (float[N,4] y)"
ONE_CONV = (
    f"{IMAGE} <float[6,3,3,3] w, float[4,6] fc, float[4] fc_b>"
    f"{{ c = Conv(x, w) last = Tanh(c) {HEAD} }}"
)

NETS: dict[str, str] = {
    "dense": f"{IMAGE} <float[5,3,3,3] w1, float[5] b1, float[6,5,3,3] w2, float[5,6,2,2] w3,"
    " float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) t1 = Tanh(c1)"
    "  c2 = Conv<strides=[2,2],pads=[2,1,0,1]>(t1, w2) t2 = Relu(c2)"
    f"  last = Conv<dilations=[2,1],pads=[1,0,1,0]>(t2, w3) {HEAD} }}",
    "grouped": f"{IMAGE} <float[12,3,3,3] w1, float[9,4,3,3] w2, float[9] b2, float[5,9,1,1] w3,"
    " float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1) c2 = Conv<group=3,pads=[1,1,1,1]>(t1, w2, b2)"
    f"  t2 = Tanh(c2) last = Conv(t2, w3) {HEAD} }}",
    "depthwise": f"{IMAGE} <float[6,3,3,3] w1, float[6,1,3,3] w2, float[6] b2, float[5,6,1,1] w3,"
    " float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1) c2 = Conv<group=6,pads=[1,1,1,1]>(t1, w2, b2)"
    f"  t2 = Tanh(c2) last = Conv(t2, w3) {HEAD} }}",
    "multiplier": f"{IMAGE} <float[4,3,3,3] w1, float[12,1,3,3] w2, float[12] b2,"
    " float[5,12,1,1] w3, float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1) c2 = Conv<group=4>(t1, w2, b2)"
    f"  t2 = Tanh(c2) last = Conv(t2, w3) {HEAD} }}",
    "line": "net (float[N,3,9] x) => (float[N,4] y) <float[6,3,3] w1, float[6] b1,"
    " float[6,3,2] w2, float[5,6,1] w3, float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv<pads=[1,0]>(x, w1, b1) t1 = Tanh(c1) c2 = Conv<group=2,strides=[2]>(t1, w2)"
    f"  t2 = Tanh(c2) last = Conv(t2, w3) {HEAD} }}",
    "volume": "net (float[N,2,4,4,4] x) => (float[N,4] y) <float[5,2,2,2,2] w1, float[5] b1,"
    " float[6,5,2,2,2] w2, float[4,6] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1, b1) t1 = Tanh(c1)"
    f"  last = Conv<pads=[1,0,0,0,1,0]>(t1, w2) {HEAD} }}",
    "transposed": f"{IMAGE} <float[5,3,3,3] w1, float[5,4,3,3] w2, float[4] b2,"
    " float[6,4,2,2] w3, float[4,6] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1)"
    "  c2 = ConvTranspose<strides=[2,2],pads=[1,0,0,1],output_padding=[1,0]>(t1, w2, b2)"
    f"  t2 = Tanh(c2) last = Conv(t2, w3) {HEAD} }}",
    "transposed blocks": f"{IMAGE} <float[9,3,3,3] w1, float[9,4,2,2] w2, float[12] b2,"
    " float[5,12,1,1] w3, float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1) c2 = ConvTranspose<group=3,strides=[2,2]>(t1, w2, b2)"
    f"  t2 = Tanh(c2) last = Conv(t2, w3) {HEAD} }}",
    "gemm": "net (float[N,7] x) => (float[N,4] y) <float[6,7] w1, float[6] b1, float[6,5] w2,"
    " float[1,5] b2, float[6,5] w3, float[4,6] fc>"
    "{ c1 = Gemm<transB=1>(x, w1, b1) t1 = Tanh(c1)"
    "  c2 = Gemm<alpha=0.5,beta=2.0>(t1, w2, b2) t2 = Tanh(c2)"
    "  c3 = Gemm<transB=1>(t2, w3) t3 = Tanh(c3) y = Gemm<transB=1>(t3, fc) }",
    "matmul right": "net (float[N,5,7] x) => (float[N,4] y) <float[7,6] w1, float[6] b1,"
    " float[6,5] w2, float[1,1,5] b2, float[5,4] fc>"
    "{ c1 = MatMul(x, w1) a1 = Add(c1, b1) t1 = Tanh(a1) c2 = MatMul(t1, w2) a2 = Add(b2, c2)"
    "  t2 = Tanh(a2) c3 = MatMul(t2, fc) y = ReduceMean<axes=[1],keepdims=0>(c3) }",
    "matmul left": "net (float[N,7,5] x) => (float[N,4] y) <float[6,7] w1, float[6,1] b1,"
    " float[4,6] fc>"
    "{ c1 = MatMul(w1, x) a1 = Add(c1, b1) t1 = Tanh(a1) c2 = MatMul(fc, t1)"
    "  y = ReduceMean<axes=[2],keepdims=0>(c2) }",
    "norm": f"{IMAGE} <float[6,3,3,3] w1, float[6] b1, float[6] scale, float[6] shift,"
    " float[6] mean, float[6] var, float[6,1,1] slope, float[5,6,3,3] w2, float[4,5] fc,"
    " float[4] fc_b>"
    "{ c1 = Conv(x, w1, b1) n1 = BatchNormalization(c1, scale, shift, mean, var)"
    f"  t1 = PRelu(n1, slope) last = Conv(t1, w2) {HEAD} }}",
    "bare": f"{IMAGE} <float[6,3,3,3] w1, float[1,6,1,1] p, float[1,6,1,1] q, float[6,1,1] r,"
    " float[5,6,3,3] w2, float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) a1 = Add(c1, p) t1 = Tanh(a1) m1 = Mul(q, t1) s1 = Sub(m1, r)"
    f"  last = Conv(s1, w2) {HEAD} }}",
    "flatten": f"{IMAGE} <float[5,3,3,3] w1, float[5] b1, float[4,80] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1, b1) t1 = Tanh(c1) f1 = Flatten(t1) y = Gemm<transB=1>(f1, fc, fc_b) }",
    "concat": f"{IMAGE} <float[5,3,3,3] w1, float[4,3,3,3] w2, float[6,14,3,3] w3,"
    " float[4,6] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) t1 = Tanh(c1) c2 = Conv(x, w2) t2 = Sigmoid(c2)"
    f"  j = Concat<axis=1>(t1, t2, t1) last = Conv(j, w3) {HEAD} }}",
    "residual": f"{IMAGE} <float[6,3,3,3] w0, float[6] b0, float[5,6,3,3] w1, float[5] b1,"
    " float[6,5,1,1] w2, float[6] b2, float[6] scale, float[6] shift, float[6] mean,"
    " float[6] var, float[5,6,1,1] w3, float[5,6,3,3] w4, float[4,5] fc, float[4] fc_b>"
    "{ s = Conv(x, w0, b0) c1 = Conv<pads=[1,1,1,1]>(s, w1, b1) t1 = Tanh(c1)"
    "  c2 = Conv(t1, w2, b2) n2 = BatchNormalization(c2, scale, shift, mean, var)"
    "  r = Add(s, n2) c3 = Conv(r, w3) c4 = Conv<pads=[1,1,1,1]>(r, w4) t3 = Tanh(c3)"
    f"  t4 = Tanh(c4) last = Mul(t3, t4) {HEAD} }}",
    "shared weight": f"{IMAGE} <float[6,3,3,3] w0, float[6,6,3,3] w, float[6] b1, float[6] b2,"
    " float[4,6] fc, float[4] fc_b>"
    "{ c0 = Conv(x, w0) t0 = Tanh(c0) c1 = Conv<pads=[1,1,1,1]>(t0, w, b1) t1 = Tanh(c1)"
    f"  last = Conv(t1, w, b2) {HEAD} }}",
    "tied": "net (float[N,7] x) => (float[N,4] y) <float[6,7] w0, float[5,6] w, float[5] b1,"
    " float[6] b2, float[4,6] fc>"
    "{ c0 = Gemm<transB=1>(x, w0) t0 = Tanh(c0) c1 = Gemm<transB=1>(t0, w, b1) t1 = Tanh(c1)"
    "  c2 = Gemm(t1, w, b2) t2 = Tanh(c2) y = Gemm<transB=1>(t2, fc) }",
    "shared bias": f"{IMAGE} <float[6,3,3,3] w1, float[6,3,3,3] w2, float[6] b,"
    " float[5,6,1,1] w3, float[5,6,1,1] w4, float[4,5] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1, b) t1 = Tanh(c1) c2 = Conv(x, w2, b) t2 = Sigmoid(c2)"
    f"  c3 = Conv(t1, w3) c4 = Conv(t2, w4) last = Mul(c3, c4) {HEAD} }}",
    "padded shortcut": f"{IMAGE} <float[5,3,3,3] w0, float[9,5,3,3] w1, float[9] b1,"
    " float[5,9,1,1] w2, float[4,5] fc, float[4] fc_b, int64[8] amounts>"
    "{ s = Conv(x, w0) t = Tanh(s) c1 = Conv<pads=[1,1,1,1]>(t, w1, b1) p = Pad(t, amounts)"
    f"  r = Add(c1, p) u = Tanh(r) last = Conv(u, w2) {HEAD} }}",
    "gram": f"{IMAGE} <float[5,3,3,3] w1, float[5] b1, float[4,25] fc, int64[3] rows>"
    "{ c1 = Conv(x, w1, b1) t1 = Tanh(c1) m = Reshape(t1, rows)"
    "  n = Transpose<perm=[0,2,1]>(m) g = MatMul(m, n) f = Flatten(g)"
    "  y = Gemm<transB=1>(f, fc) }",
}
_CONSTANTS = {
    "padded shortcut": {"amounts": [0, 2, 0, 0, 0, 2, 0, 0]},
    "gram": {"rows": [0, 5, -1]},
}


class Case(NamedTuple):
    """A float64 net with its coupling."""

    graph: Graph
    shapes: dict[str, tuple[int, ...]]
    coupling: Coupling


def model_of(name: str, seed: int = 0) -> onnx.ModelProto:
    """Build a net in float32."""
    constants = _CONSTANTS.get(name, {})
    text = NETS[name]
    for constant, value in constants.items():
        text = text.replace(f", int64[{len(value)}] {constant}", "")
    return build(text, constants, seed=seed)


def make_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float64, so that what should be equal is equal to 1e-10."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    for tensor in double.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for port in (*double.graph.input, *double.graph.output):
        if port.type.tensor_type.elem_type == TensorProto.FLOAT:
            port.type.tensor_type.elem_type = TensorProto.DOUBLE
    return double


def case_of(net: str | onnx.ModelProto, batch: int | None = None) -> Case:
    """Analyse a net in float64; `batch` writes a static first axis into it."""
    model = make_double(model_of(net) if isinstance(net, str) else net)
    if batch is not None:
        make_static(model, batch)
    return Case(*analyse(model))


def make_static(model: onnx.ModelProto, batch: int) -> None:
    """Write the batch size into inputs and outputs."""
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = batch


def draw_samples(graph: Graph, n_samples: int, seed: int = 0, *, labelled: bool = False) -> Samples:
    """Draw normal inputs, and labels where wanted."""
    rng = np.random.default_rng(seed)
    inputs = {
        port.name: rng.standard_normal((n_samples, *port.shape[1:])).astype(port.dtype)
        for port in graph.inputs
    }
    labels = rng.integers(0, N_CLASSES, n_samples) if labelled else None
    return Samples(inputs, labels, {port.name: port.dtype for port in graph.inputs})


def draw_inputs(graph: Graph, n_samples: int, seed: int = 0) -> list[Tensor]:
    """Draw the graph's inputs in order, as tensors."""
    samples = draw_samples(graph, n_samples, seed)
    return [torch.from_numpy(samples.inputs[port.name]) for port in graph.inputs]


def draw_keep(
    coupling: Coupling, seed: int = 0, least: int = 2, only: str | None = None
) -> dict[object, NDArray[np.bool_]]:
    """Keep a random half of each group, `least` units or more; all of `only` are named so."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in coupling.groups:
        if only is None or group.name.startswith(only):
            kept = np.zeros(group.size, np.bool_)
            kept[rng.permutation(group.size)[: max(least, (group.size + 1) // 2)]] = True
            keep[group.dim] = kept
    return keep


def prune(case: Case, keep: Keep) -> Graph:
    """Remove units."""
    return remove_units(case.coupling, keep)


def sine_loss(outputs: tuple[Tensor, ...]) -> Tensor:
    """Sum a curved function of every output over samples."""
    return torch.stack([output.sin().sum() for output in outputs]).sum()


def error_of(actual: Tensor, expected: Tensor, floor: float = 1e-300) -> float:
    """Return max|a - b| / max|b|; `floor` stands for what would be zero but for rounding."""
    assert actual.shape == expected.shape
    difference = (actual - expected).detach().abs().max()
    return float(difference / expected.detach().abs().max().clamp_min(floor))


def with_grads(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors into leaves that collect gradients."""
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
