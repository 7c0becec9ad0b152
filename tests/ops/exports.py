"""Networks of floats, quantised by ONNX Runtime in each of its forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from helpers import (
    analyse,
    assert_pruned_equals_masked,
    assert_recount_agrees,
    build,
    make_feed,
    random_keep,
    relative_error,
    run_onnx,
)
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)

from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_KEEPS = 3
CHANGES = 1e-2
"""How much an output has to change where units go, for a comparison to mean something."""
CONVOLUTIONS = """
net (float[N,3,8,8] x) => (float[N,5] y) <
  float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[6,8,1,1] w3, float[6] b3,
  float[8,6,1,1] w4, float[16,5] w5, float[5] b5
> {
  h1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(h1)
  h2 = Conv<group=8, pads=[1,1,1,1]>(r1, w2, b2)
  h3 = Conv(h2, w3, b3)
  r3 = Relu(h3)
  h4 = Conv(r3, w4)
  sum = Add(h4, r1)
  both = Concat<axis=1>(sum, h2)
  pooled = GlobalAveragePool(both)
  flat = Flatten(pooled)
  y = Gemm(flat, w5, b5)
}"""
"""Depthwise, pointwise and residual, with a join in front of the last layer."""
ATTENTION = """
net (float[N,5,16] x) => (float[N,5,7] y) <
  float[16,16] e, float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,16] wo,
  float[16] bo, float[16,24] w1, float[24] b1, float[24,16] w2, float[16,7] fc
> {
  t = MatMul(x, e)
  q0 = MatMul(t, wq) q1 = Reshape(q0, apart) q = Transpose<perm=[0,2,1,3]>(q1)
  k0 = MatMul(t, wk) k1 = Reshape(k0, apart) k = Transpose<perm=[0,2,3,1]>(k1)
  v0 = MatMul(t, wv) v1 = Reshape(v0, apart) v = Transpose<perm=[0,2,1,3]>(v1)
  s = MatMul(q, k)
  scaled = Mul(s, half)
  p = Softmax(scaled)
  o = MatMul(p, v) o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Reshape(o1, together)
  o3 = MatMul(o2, wo) o4 = Add(o3, bo)
  r = Add(o4, t)
  h = MatMul(r, w1) hb = Add(h, b1) g = Relu(hb)
  f = MatMul(g, w2)
  z = Add(f, r)
  y = MatMul(z, fc)
}"""
"""One block of four heads of four."""
SIZES = {"apart": [0, 0, 4, 4], "together": [0, 0, 16], "half": 0.5}


def of_floats(text: str) -> onnx.ModelProto:
    """Build one of the networks."""
    return build(text, SIZES if "apart" in text else None)


class Draws(CalibrationDataReader):
    """Random inputs to measure ranges on."""

    def __init__(self, model: onnx.ModelProto) -> None:
        rng, graph = np.random.default_rng(0), Graph.from_model(model)
        self._feeds = iter([make_feed(graph, rng, 4) for _ in range(3)])

    def get_next(self) -> dict[str, NDArray] | None:
        """Return the next batch."""
        return next(self._feeds, None)


def quantise(
    model: onnx.ModelProto, folder: Path, form: QuantFormat | None, **options: object
) -> onnx.ModelProto:
    """Quantise with ONNX Runtime; without a form ranges follow the data.

    Weights have 7 bits: processors without instructions for it sum two products of uint8 and int8
    in 16 bits, where those of 8 bits saturate.
    """
    source, target = folder / "float.onnx", folder / "quantised.onnx"
    onnx.save(model, source)
    options = {"reduce_range": True, **options}
    if form is None:
        quantize_dynamic(source, target, **options)
    else:
        quantize_static(source, target, Draws(model), quant_format=form, **options)
    return onnx.load(target)


def quantised(
    text: str, folder: Path, form: QuantFormat | None, **options: object
) -> onnx.ModelProto:
    """Quantise one of the networks."""
    return quantise(of_floats(text), folder, form, **options)


def assert_prunes_exactly(model: onnx.ModelProto) -> None:
    """Raise where a pruned network is not the masked one, or where nothing depends on the units."""
    rng, (graph, _, coupling) = np.random.default_rng(0), analyse(model)
    assert coupling.groups
    assert not coupling.unknown
    for _ in range(N_KEEPS):
        keep, feed = random_keep(coupling, rng), make_feed(graph, rng, 3)
        pruned = assert_pruned_equals_masked(coupling, keep, feed)
        assert_recount_agrees(coupling, keep, pruned)
        whole, cut = run_onnx(graph, feed)["y"], run_onnx(pruned, feed)["y"]
        assert relative_error(cut, whole) > CHANGES
