"""Weights that the graph makes of something else: they train, and go back to what they came from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers import analyse, build, make_feed, run_onnx, run_twin
from onnx import numpy_helper

import obc_onnx
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.samples.samples import Samples
from obc_onnx.twin.build import build_twin
from obc_onnx.twin.tensors import parameter_name
from obc_onnx.twin.weights import encoding_of

RNG = np.random.default_rng(3)
WHOLE = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
SCALES = RNG.uniform(0.004, 0.02, 6).astype(np.float32)
HEAD = "net (float[N,4] x) => (float[N,6] y) {"
QDQ = "W = DequantizeLinear<axis=0>(w, s, z) y = Gemm<transB=1>(x, W) }"
FORMS = {
    "constant": (
        "w = Constant<value = float[4,6] {" + ",".join(["0.5", "-1", "2"] * 8) + "}>()"
        " y = MatMul(x, w) }",
        {},
    ),
    "half": ("W = Cast<to=1>(w) y = MatMul(x, W) }", {"w": RNG.normal(size=(4, 6)).astype("f2")}),
    "transposed": (
        "W = Transpose(w) y = MatMul(x, W) }",
        {"w": RNG.normal(size=(6, 4)).astype("f4")},
    ),
    "picked_half": (
        "v = Gather(w, order) W = Cast<to=1>(v) y = MatMul(x, W) }",
        {"w": RNG.normal(size=(5, 6)).astype("f2"), "order": [3, 0, 4, 1]},
    ),
    "transposed_half": (
        "v = Cast<to=1>(w) W = Transpose(v) y = MatMul(x, W) }",
        {"w": RNG.normal(size=(6, 4)).astype("f2")},
    ),
    "int8": (QDQ, {"w": WHOLE, "s": SCALES, "z": np.zeros(6, np.int8)}),
    "uint8": (
        QDQ,
        {"w": WHOLE.view("u1"), "s": SCALES, "z": RNG.integers(0, 256, 6).astype("u1")},
    ),
    "one_scale": (
        "W = DequantizeLinear(w, s) y = Gemm<transB=1>(x, W) }",
        {"w": WHOLE, "s": 0.01},
    ),
    "transposed_int8": (
        "V = DequantizeLinear(w, s) W = Transpose(V) y = MatMul(x, W) }",
        {"w": WHOLE, "s": 0.01},
    ),
    "half_scale": (
        "t = Cast<to=1>(s) W = DequantizeLinear<axis=0>(w, t) y = Gemm<transB=1>(x, W) }",
        {"w": WHOLE, "s": SCALES.astype("f2")},
    ),
    "int16": (
        "W = DequantizeLinear(w, s) y = Gemm<transB=1>(x, W) }",
        {"w": RNG.integers(-(2**15), 2**15, (6, 4)).astype("i2"), "s": 1e-4},
    ),
    "int32": (
        "W = DequantizeLinear(w, s) y = Gemm<transB=1>(x, W) }",
        {"w": RNG.integers(-(2**31), 2**31, (6, 4)).astype("i4"), "s": 1e-9},
    ),
    "blocks": (
        "W = DequantizeLinear<axis=1, block_size=2>(w, s) y = Gemm<transB=1>(x, W) }",
        {"w": WHOLE, "s": RNG.uniform(0.004, 0.02, (6, 2)).astype(np.float32)},
    ),
    "fake_quantised": (
        (
            "q = QuantizeLinear<axis=0>(w, s, z) W = DequantizeLinear<axis=0>(q, s, z)"
            " y = Gemm<transB=1>(x, W) }"
        ),
        {"w": RNG.normal(size=(6, 4)).astype("f4"), "s": SCALES, "z": np.zeros(6, np.int8)},
    ),
}


def graph_of(form: str) -> Graph:
    text, constants = FORMS[form]
    return Graph.from_model(build(HEAD + text, constants, opset=21))


@pytest.mark.parametrize("form", FORMS)
def test_untrained_weights_go_back_to_the_same_bytes(form: str) -> None:
    graph, shapes, _ = analyse(graph_of(form).to_model())
    written = build_twin(graph, shapes, DEFAULT_RULES).write_to(graph)
    assert written.to_model().SerializeToString() == graph.to_model().SerializeToString()


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_behind_something_trains_and_goes_back(form: str) -> None:
    graph, shapes, _ = analyse(graph_of(form).to_model())
    feed = make_feed(graph, np.random.default_rng(0))
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    x = torch.from_numpy(feed["x"])
    target = torch.randn(len(x), 6, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (twin.train()(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    written = twin.eval().write_to(graph)
    with torch.no_grad():
        trained = twin(x)[0].numpy()
    np.testing.assert_allclose(run_onnx(written, feed)["y"], trained, rtol=2e-3, atol=2e-3)
    for name, array in graph.initializers.items():
        assert written.initializers[name].dtype == array.dtype
        assert (name == "w") == bool((written.initializers[name] != array).any())


def test_a_quantised_weight_is_held_as_the_floats_that_it_stands_for() -> None:
    graph, shapes, _ = analyse(graph_of("int8").to_model())
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    assert [name for name, _ in twin.named_parameters()] == ["w"]
    expected = WHOLE * SCALES[:, None]
    np.testing.assert_allclose(twin.w.detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (
            QDQ,
            {
                "w": WHOLE,
                "s": SCALES * np.array([0, 1, 1, 1, 1, 1], "f4"),
                "z": np.zeros(6, np.int8),
            },
        ),
        (
            (
                "W = DequantizeLinear(w, s) V = DequantizeLinear(w, t) U = Add(W, V)"
                " y = Gemm<transB=1>(x, U) }"
            ),
            {"w": WHOLE, "s": 0.01, "t": 0.02},
        ),
        (
            "W = DequantizeLinear(w, s) v = Cast<to=1>(w) U = Add(W, v) y = Gemm<transB=1>(x, U) }",
            {"w": WHOLE, "s": 0.01},
        ),
        (
            (
                "r = ReduceMax(x) a = Abs(r) t = Max(a, s) u = Reshape(t, k) W = DequantizeLinear(w, u)"
                " y = Gemm<transB=1>(x, W) }"
            ),
            {"w": WHOLE, "s": 0.01, "k": np.array([1])},
        ),
    ],
    ids=["scale_of_zero", "two_scales", "used_as_it_is", "computed_scale"],
)
def test_what_would_not_come_back_stays_as_it_is_stored(text: str, constants: dict) -> None:
    graph, shapes, _ = analyse(build(HEAD + text, constants))
    assert encoding_of(graph, "w") is None
    assert "w" in dict(build_twin(graph, shapes, DEFAULT_RULES).named_buffers())
    feed = make_feed(graph, np.random.default_rng(0))
    np.testing.assert_allclose(
        run_twin(graph, shapes, feed)["y"], run_onnx(graph, feed)["y"], rtol=1e-4, atol=1e-5
    )


def test_statistics_behind_a_cast_are_updated_and_go_back() -> None:
    names = ("a", "b", "m", "v")
    casts = " ".join(f"{name.upper()} = Cast<to=1>({name})" for name in names)
    text = f"net (float[N,3,5] x) => (float[N,3,5] y) {{ {casts} y = BatchNormalization(x, A, B, M, V) }}"
    stored = {name: np.full(3, 1, np.float16) for name in names}
    graph, shapes, _ = analyse(build(text, stored))
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    assert {name for name, _ in twin.named_buffers()} == {"m", "v"}
    twin.train()(torch.full((4, 3, 5), 5.0))
    np.testing.assert_allclose(
        twin.write_to(graph).initializers["m"], np.full(3, 0.9 * 1 + 0.1 * 5), rtol=1e-3
    )


def test_a_quantised_model_is_fine_tuned_and_keeps_its_scales() -> None:
    text = (
        "net (float[N,4] x) => (float[N,3] y) {"
        " q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx)"
        " W = DequantizeLinear<axis=0>(w, s) B = DequantizeLinear<axis=0>(b, t)"
        " h = Gemm<transB=1>(d, W, B) r = Relu(h) V = DequantizeLinear(v, sv)"
        " y = Gemm<transB=1>(r, V) }"
    )
    rng = np.random.default_rng(0)
    stored = {
        "sx": 0.02, "zx": np.array(128, np.uint8),
        "w": rng.integers(-128, 128, (16, 4)).astype(np.int8),
        "s": rng.uniform(0.004, 0.02, 16).astype(np.float32),
        "b": rng.integers(-900, 900, 16).astype(np.int32),
        "t": rng.uniform(1e-4, 4e-4, 16).astype(np.float32),
        "v": rng.integers(-128, 128, (3, 16)).astype(np.int8), "sv": 0.01,
    }  # fmt: skip
    model = build(text, stored)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    samples = Samples({"x": x}, None, {"x": x.dtype})
    asked = {"data": samples, "budget": 0.6, "seed": 1, "recover": "none"}
    plain = obc_onnx.compress(model, **asked)
    tuned = obc_onnx.compress(model, training=40, **asked)
    before, after = (weights(result.model) for result in (plain, tuned))
    assert {name: array.dtype for name, array in before.items()} == {
        name: array.dtype for name, array in after.items()
    }
    changed = {name for name, array in before.items() if (array != after[name]).any()}
    assert changed == {"w", "b", "v"}
    feed = {"x": x}
    due, cut, repaired = (
        run_onnx(Graph.from_model(m), feed)["y"] for m in (model, plain.model, tuned.model)
    )
    assert np.square(repaired - due).mean() < 0.6 * np.square(cut - due).mean()


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_names_of_held_weights_are_escaped_as_others_are() -> None:
    model = graph_of("int8").to_model()
    for tensor in model.graph.initializer:
        tensor.name = f"a.{tensor.name}"
    model.graph.node[0].input[:] = ["a.w", "a.s", "a.z"]
    graph, shapes, _ = analyse(model)
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    assert [name for name, _ in twin.named_parameters()] == [parameter_name("a.w")]
    np.testing.assert_array_equal(twin.write_to(graph).initializers["a.w"], WHOLE)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16])
def test_stored_weights_at_the_limits_of_their_type_learn(kind: type) -> None:
    limits = np.iinfo(kind)
    stored = np.array([[limits.min, limits.max, 1, 0]] * 50, kind)
    scales = RNG.uniform(1e-3, 0.1, 50).astype(np.float32)
    model = build(
        "net (float[N,4] x) => (float[N,50] y) {"
        " W = DequantizeLinear<axis=0>(w, s) y = Gemm<transB=1>(x, W) }",
        {"w": stored, "s": scales},
        opset=21,
    )
    graph, shapes, _ = analyse(model)
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    twin(torch.ones(1, 4))[0].sum().backward()
    assert (twin.w.grad != 0).all()


def test_statistics_that_are_computed_do_not_learn() -> None:
    model = build(
        "net (float[N,3,4] x) => (float[N,3,4] y) <float[3] a, float[3] b, float[1,3] m, float[3] v>"
        "{ k = Reshape(m, s) y = BatchNormalization(x, a, b, k, v) }",
        {"s": [3]},
    )
    graph, shapes, _ = analyse(model)
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    assert {name for name, _ in twin.named_parameters()} == {"a", "b"}
    twin(torch.ones(2, 3, 4))[0].sum().backward()
