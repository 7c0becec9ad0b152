"""Small stand-ins for the models and samples that pages of documentation name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from helpers import build
from PIL import Image
from plugin_graphs import BACK, FRONT, INPUT, OUTPUT, WEIGHTS, Row, plugin_model
from small import CHAIN, archive, classes, images, saved

if TYPE_CHECKING:
    from pathlib import Path

LENGTH, USED = 9, 10
"""Tokens of a sentence, and ids that occur: fewer than the encoder has rows."""
ENCODER = """
net (int64[N,L] input_ids, int64[N,L] attention_mask, int64[N,L] token_type_ids)
 => (float[N,8] embedding)
<float[12,8] words, float[2,8] kinds, float[8,8] wq, float[8,8] wk, float[8,8] wv,
 float[8,16] up, float[16] up_bias, float[16,8] down, float[8] down_bias>
{ w = Gather(words, input_ids) k = Gather(kinds, token_type_ids) x = Add(w, k)
  real = Cast<to=1>(attention_mask) away = Sub(unit, real) hidden = Mul(away, large)
  q = MatMul(x, wq) i = MatMul(x, wk) v = MatMul(x, wv) it = Transpose<perm=[0,2,1]>(i)
  s = MatMul(q, it) h = Unsqueeze(hidden, one) b = Add(s, h) p = Softmax(b) m = MatMul(p, v)
  r = Add(x, m) u = MatMul(r, up) a = Add(u, up_bias) g = Relu(a) d = MatMul(g, down)
  e = Add(d, down_bias) o = Add(r, e) t = Unsqueeze(real, two) f = Mul(o, t)
  n = ReduceSum<keepdims=0>(f, one) c = ReduceSum<keepdims=1>(real, one) embedding = Div(n, c) }
"""
FASHION = (
    "net (float[batch,1,28,28] input) => (float[batch,10] logits)"
    "<float[16,1,3,3] a, float[16] a_bias, float[24,16,3,3] b, float[24] b_bias,"
    " float[10,24] fc, float[10] fc_bias>"
    "{ p = Conv<strides=[4,4]>(input, a, a_bias) q = Relu(p) r = Conv(q, b, b_bias) s = Relu(r)"
    "  t = GlobalAveragePool(s) u = Flatten(t) logits = Gemm<transB=1>(u, fc, fc_bias) }"
)


def write_files(folder: Path) -> None:
    """Write everything."""
    saved(folder, CHAIN)
    archive(folder, "samples.npz", x=images(40), labels=classes(40))
    archive(folder, "unlabelled.npz", x=images(40))
    archive(folder, "test.npz", x=images(20, seed=2), labels=classes(20, seed=3))
    _write_fashion(folder / "models")
    _write_sentences(folder)
    _write_pictures(folder / "photos")
    plugin = f"net {INPUT} => {OUTPUT} <{WEIGHTS}> {{ {FRONT} p = trt.plugins.GridSampler3D (c) "
    onnx.save(plugin_model(Row(f"{plugin}{BACK} }}")), folder / "detector.onnx")


def _write_fashion(folder: Path) -> None:
    folder.mkdir()
    saved(folder, FASHION, "fashion_resnet20.onnx")
    rng = np.random.default_rng(0)
    for name in ("fashion-train.npz", "fashion-test.npz"):
        pixels = rng.integers(0, 256, (40, 1, 28, 28)).astype(np.uint8)
        archive(folder, name, input=pixels, labels=rng.integers(0, 10, 40))


def _write_sentences(folder: Path) -> None:
    constants = {"one": [1], "two": [2], "unit": np.float32(1), "large": np.float32(-1e4)}
    onnx.save(build(ENCODER, constants), folder / "encoder.onnx")
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, LENGTH + 1, 40)
    there = np.arange(LENGTH) < lengths[:, None]
    ids = np.where(there, rng.integers(0, USED, there.shape), 0)
    kinds = np.zeros_like(ids)
    mask = there.astype(np.int64)
    archive(folder, "sentences.npz", input_ids=ids, token_type_ids=kinds, attention_mask=mask)
    archive(folder, "lengths.npz", input_ids=ids, token_type_ids=kinds, lengths=lengths)


def _write_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (10, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
