"""Forms of operators in which the twin has to follow ONNX Runtime with care."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import analyse, assert_close, build, run_onnx, run_twin

from obc_onnx.errors import DataError, UnsupportedOperatorError
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    import onnx
    from helpers import Feed

    from obc_onnx.twin.module import TorchTwin

RNG = np.random.default_rng(1)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE = RNG.integers(0, 256, (2, 3, 4, 4))
FORMS: dict[str, tuple[str, dict, Feed, int]] = {
    "pad_by_an_input": (
        "net (float[N,3] x, float v) => (float[N,5] y) { y = Pad(x, k, v) }",
        {"k": [0, 1, 0, 1]},
        {"x": drawn(2, 3), "v": np.array(-100, np.float32)},
        17,
    ),
    "half_of_the_frequencies_of_complex_numbers": (
        "net (float[N,8,2] x) => (float[N,A,B,2] y) { y = STFT<onesided=1>(x, step, , size) }",
        {"step": 2, "size": 4},
        {"x": drawn(3, 8, 2)},
        17,
    ),
    "pad_by_a_cast": (
        "net (float[N,3] x) => (float[N,5] y) { v = Cast<to=1>(h) y = Pad(x, k, v) }",
        {"k": [0, 1, 0, 1], "h": np.float16(7)},
        {"x": drawn(2, 3)},
        17,
    ),
    "resize_pixels": (
        ("net (uint8[N,3,4,4] x) => (float[N,3,8,6] y) {"
        ' r = Resize<mode="linear">(x, , s) y = Cast<to=1>(r) }'),
        {"s": np.array([1, 1, 2, 1.5], np.float32)},
        {"x": IMAGE.astype(np.uint8)},
        17,
    ),
    "resize_integers": (
        ("net (int32[N,3,4,4] x) => (float[N,3,8,6] y) {"
        ' r = Resize<mode="linear">(x, , s) y = Cast<to=1>(r) }'),
        {"s": np.array([1, 1, 2, 1.5], np.float32)},
        {"x": IMAGE.astype(np.int32)},
        17,
    ),
    "resize_symmetric_ties": (
        ("net (float[N,2,5,7] x) => (float[N,2,8,9] y) { y = Resize<mode=\"nearest\","
        ' nearest_mode="floor", coordinate_transformation_mode="half_pixel_symmetric">(x, , s) }'),
        {"s": np.array([1, 1, 1.7, 1.3], np.float32)},
        {"x": drawn(2, 2, 5, 7)},
        19,
    ),
    "power_of_integers": (
        "net (int32[N] x) => (float[N] y) { p = Pow(x, e) y = Cast<to=1>(p) }",
        {"e": np.float32(0.5)},
        {"x": np.array([2, 9, 30], np.int32)},
        17,
    ),
    "power_by_a_double": (
        "net (float[N,3] x) => (float[N,2] y) <float[3,2] w> { p = Pow(x, e) y = MatMul(p, w) }",
        {"e": np.float64(2.0)},
        {"x": drawn(2, 3)},
        17,
    ),
    "threshold_of_minus_infinity": (
        "net (float[N] x) => (float[N] y) { y = ThresholdedRelu(x) }",
        {},
        {"x": np.array([2, -np.inf], np.float32)},
        17,
    ),
    "gemm_without_its_addend": (
        "net (float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = Gemm<beta=0.0>(x, w, b) }",
        {"b": np.array([np.nan, np.inf, 0], np.float32)},
        {"x": drawn(2, 4)},
        17,
    ),
    "inverse_of_a_real_signal": (
        "net (float[N,8,1] x) => (float[N,8,2] y) { y = DFT<axis=1, inverse=1>(x) }",
        {},
        {"x": drawn(2, 8, 1)},
        17,
    ),
    "causal_with_more_keys": (
        ("net (float[N,3,8] x, float[N,5,8] k) => (float[N,3,8] y) {"
        " y = com.microsoft.MultiHeadAttention<num_heads=2, unidirectional=1>(x, k, k) }"),
        {},
        {"x": drawn(2, 3, 8), "k": drawn(2, 5, 8)},
        17,
    ),
    "unsigned_numbers_wrap": (
        "net (uint16[N] x) => (float[N] y) { s = Sub(x, t) y = Cast<to=1>(s) }",
        {"t": np.array([3], np.uint16)},
        {"x": np.array([1, 5], np.uint16)},
        17,
    ),
    "mean_of_integers": (
        "net (int32[N,3] x) => (float[N,1] y) { m = ReduceMean<axes=[1]>(x) y = Cast<to=1>(m) }",
        {},
        {"x": np.array([[1, 2, 2], [-1, -2, -2]], np.int32)},
        17,
    ),
    "half_beside_wider_statistics": (
        ("net (float16[N,3,4] x) => (float16[N,3,4] y) <float[3] a, float[3] b, float[3] m>"
        "{ y = BatchNormalization(x, a, b, m, v) }"),
        {"v": np.array([1, 2, 3], np.float32)},
        {"x": drawn(2, 3, 4).astype(np.float16)},
        17,
    ),
    "no_samples_flattened": (
        "net (float[N,3,4] x) => (float[N,12] y) { y = Flatten(x) }",
        {},
        {"x": drawn(0, 3, 4)},
        17,
    ),
    "interleaved_by_3": (
        ("net (float[N,3,8] x) => (float[N,3,8] y) {"
        " y = RotaryEmbedding<num_heads=2, interleaved=3>(x, c, s, p) }"),
        {"c": drawn(5, 2), "s": drawn(5, 2), "p": np.tile(np.arange(3), (2, 1))},
        {"x": drawn(2, 3, 8)},
        23,
    ),
    "causal_by_3": (
        ("net (float[N,3,8] x) => (float[N,3,8] y) {"
        " y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=3>(x, x, x) }"),
        {},
        {"x": drawn(2, 3, 8)},
        23,
    ),
    "no_samples_in_blocks": (
        ("net (float[N,8,3,4] x) => (float[N,8,3,4] y) {"
        " d = DepthToSpace<blocksize=2>(x) y = SpaceToDepth<blocksize=2>(d) }"),
        {},
        {"x": drawn(0, 8, 3, 4)},
        17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_form_gives_what_onnx_runtime_gives(form: str) -> None:
    text, constants, feed, opset = FORMS[form]
    model = build(text, {name: np.asarray(c) for name, c in constants.items()}, opset=opset)
    graph = Graph.from_model(model)
    shapes = analyse(
        model,
        shapes={n: np.shape(a) or () for n, a in feed.items()} if np.size(feed["x"]) else None,
    ).shapes
    tolerance = 2e-2 if "half" in form else 1e-4
    found, expected = run_twin(graph, shapes, feed), run_onnx(graph, feed)
    assert expected["y"].size or "no_samples" in form
    assert_close(found, expected, tolerance)


def twin_of(model: onnx.ModelProto) -> TorchTwin:
    graph, shapes, _ = analyse(model)
    return build_twin(graph, shapes, DEFAULT_RULES)


def test_more_samples_of_a_region_than_the_twin_takes_are_refused() -> None:
    model = build(
        "net (float[1,2,8,7] x) => (float[A,B,C,D] y)"
        "{ y = RoiAlign<sampling_ratio=4097>(x, r, i) }",
        {"r": np.float32([[0, 0, 4, 4]]), "i": [0]},
    )
    graph, shapes, _ = analyse(model)
    with pytest.raises(DataError, match="sampling_ratio 4097 is above 4096"):
        run_twin(graph, shapes, {"x": drawn(1, 2, 8, 7)})


def test_a_region_that_no_image_has_room_for_is_refused() -> None:
    for size in (1e38, np.inf):
        model = build(
            "net (float[1,2,8,7] x) => (float[A,B,C,D] y) { y = RoiAlign(x, r, i) }",
            {"r": np.float32([[0, 0, size, 4]]), "i": [0]},
        )
        graph, shapes, _ = analyse(model)
        with pytest.raises(DataError, match="positions long"):
            run_twin(graph, shapes, {"x": drawn(1, 2, 8, 7)})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ('MaxPool<kernel_shape=[2,2], dilations=[2,1], auto_pad="SAME_UPPER">(x)', "dilations"),
        ('Pad<mode="wrap">(x, k)', "wraps and crops"),
    ],
)
def test_what_onnx_runtime_does_in_its_own_way_is_refused(call: str, words: str) -> None:
    model = build(
        f"net (float[N,2,8,7] x) => (float[N,A,B,C] y) {{ y = {call} }}",
        {"k": [0, 0, 0, -1, 0, 0, 0, 3]},
        opset=19,
    )
    with pytest.raises(UnsupportedOperatorError, match=words):
        twin_of(model)
