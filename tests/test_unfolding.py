"""Norms put behind folded convolutions and folded again, against ONNX Runtime on the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from graphs import BLOCKS, build_net
from helpers import analyse, assert_close, assert_valid, build, make_feed, random_keep, run_onnx
from nets import (
    HEAD,
    IMAGE,
    NETS,
    draw_inputs,
    draw_samples,
    error_of,
    make_static,
    model_of,
    sine_loss,
)
from onnx import TensorProto, helper, numpy_helper

from obc_onnx import unfolding
from obc_onnx.data import Samples, load_samples
from obc_onnx.equivalent import EquivalentTwin
from obc_onnx.errors import DataError, InvariantError
from obc_onnx.graph import Graph
from obc_onnx.runtime import Session
from obc_onnx.surgery import remove_units
from obc_onnx.unfolding import EPSILON, Unfolded, fold_norms, same_units, unfold_norms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from obc_onnx.coupling import Coupling, Keep

SINGLE, HALF = 1e-5, 2e-2
"""What rounding may change in float32 and in float16, over the RMS of an output."""
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}
FC = "float[4,5] fc, float[4] fc_b"
MODELS = Path(__file__).resolve().parents[1] / "models"
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


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_value_of_the_original_keeps_its_name_and_its_numbers(name: str) -> None:
    graph = Graph.from_model(model_named(name))
    unfolded = unfolded_of(graph)
    values, feed = [node.key for node in graph.nodes], make_feed(graph, np.random.default_rng(1), 3)
    found, expected = (
        Session(g, optimize=False, outputs=values).run(feed) for g in (unfolded.graph, graph)
    )
    assert_close(found, expected, SINGLE)
    assert unfolded.original is graph
    assert unfolded.norms
    assert len(unfolded.graph.nodes) == len(graph.nodes) + len(unfolded.norms)
    assert unfolded.graph.inputs == graph.inputs
    assert unfolded.graph.outputs == graph.outputs
    assert_valid(unfolded.graph)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_statistics_are_those_of_all_samples_at_the_convolution(name: str) -> None:
    """Fifty samples are a whole run and a part of one."""
    graph = Graph.from_model(model_named(name))
    samples = draw_samples(graph, 50)
    unfolded = unfold_norms(graph, samples, seed=0)
    for norm in unfolded.norms:
        node = unfolded.graph.producers[norm]
        assert node.op_type == "BatchNormalization"
        assert node.number("epsilon", 0.0) == EPSILON == np.float32(1e-5)
        scale, bias, mean, var = parameters(unfolded.graph, norm)
        expected_mean, expected_var = moments(graph, norm, samples)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(var, expected_var, rtol=1e-5)
        np.testing.assert_allclose(scale, np.sqrt(var.astype(np.float64) + EPSILON), rtol=1e-6)
        assert np.array_equal(bias, mean)


def test_a_far_mean_does_not_spoil_the_variance() -> None:
    graph = graph_of(CHAIN).edit({"b1": np.full(6, 1e7, np.float32)})
    samples = draw_samples(graph, 50)
    _, _, mean, var = parameters(unfold_norms(graph, samples, 0).graph, "c1")
    expected_mean, expected_var = moments(graph, "c1", samples)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)


def test_training_sees_what_the_norm_was_measured_on() -> None:
    """In training mode a batch of all samples is normed by the very statistics that are stored."""
    graph = graph_of(CHAIN)
    samples = draw_samples(graph, 40)
    coupling = analyse(unfold_norms(graph, samples, 0).graph).coupling
    twin = EquivalentTwin(coupling, {}, coupling.graph)
    x = torch.from_numpy(samples.inputs["x"])
    with torch.no_grad():
        expected, found = twin.eval()(x)[0], twin.train()(x)[0]
    assert error_of(found, expected) < SINGLE


def test_runs_in_which_nothing_reaches_the_convolution_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only samples with a large number pass: one in seven, or none."""
    text = CHAIN.replace("(float[N,4] y)", "(float[M,4] y)").replace(
        "c1 = Conv(x, w1, b1)",
        "m = ReduceMax<axes=[1,2,3],keepdims=0>(x) large = Greater(m, limit)"
        " some = Compress<axis=0>(x, large) c1 = Conv(some, w1, b1)",
    )
    monkeypatch.setattr(unfolding, "_ROWS", 2)
    graph = graph_of(text, {"limit": 3.0})
    samples = draw_samples(graph, 50)
    _, _, mean, var = parameters(unfold_norms(graph, samples, 0).graph, "c1")
    expected_mean, expected_var = moments(graph, "c1", samples)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)
    assert unfolded_of(graph_of(text, {"limit": 9.0})).norms == ()


def test_no_more_samples_are_measured_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolding, "MEASURED", 40)
    graph = graph_of(CHAIN)
    samples = draw_samples(graph, 90)
    chosen = np.random.default_rng(7).permutation(90)[:40]
    _, _, mean, var = parameters(unfold_norms(graph, samples, 7).graph, "c2")
    expected_mean, expected_var = moments(graph, "c2", samples.part(chosen))
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)


def test_the_seed_decides_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolding, "MEASURED", 40)
    graph = graph_of(CHAIN)
    samples = draw_samples(graph, 90)
    first, again, other = (unfold_norms(graph, samples, seed).graph.sha256 for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("n_bytes", "passes"),
    [
        (1, [["c1"], ["c2"], ["last"]]),
        (32 * 4 * (6 + 8) * 4 * 4 + 1, [["c1", "c2"], ["last"]]),
        (2**29, [["c1", "c2", "last"]]),
    ],
)
def test_what_does_not_fit_into_memory_together_is_measured_in_passes(
    monkeypatch: pytest.MonkeyPatch, n_bytes: int, passes: list[list[str]]
) -> None:
    """A run of 32 samples gives 6 x 4 x 4 floats each, 8 x 4 x 4 and 5 x 3 x 3."""
    opened = []

    class Watched(Session):
        def __init__(self, graph: Graph, *, outputs: list[str]) -> None:
            opened.append(outputs)
            super().__init__(graph, outputs=outputs)

    graph = graph_of(CHAIN)
    expected = unfolded_of(graph).graph.sha256
    monkeypatch.setattr(unfolding, "_RUN_BYTES", n_bytes)
    monkeypatch.setattr(unfolding, "Session", Watched)
    assert unfolded_of(graph).graph.sha256 == expected
    assert opened == passes


# --- what is left out


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


@pytest.mark.parametrize("case", LEFT_OUT)
def test_only_what_can_be_folded_again_is_unfolded(case: str) -> None:
    text, expected, constants = LEFT_OUT[case]
    graph = graph_of(text, constants)
    unfolded = unfolded_of(graph)
    assert set(unfolded.norms) == expected
    assert_same_function(unfolded.graph, graph)
    if not expected:
        assert unfolded.graph is graph
        assert fold_norms(graph, unfolded) is graph


@pytest.mark.parametrize(("batch", "gets_one"), [(None, True), (1, False), (4, True)])
def test_a_norm_needs_more_than_one_value_per_channel(batch: int | None, gets_one: bool) -> None:
    model = build(GATED)
    if batch is not None:
        make_static(model, batch)
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert unfolded.norms == (("c1", "c2", "last") if gets_one else ("c1", "last"))
    assert_same_function(unfolded.graph, graph)


def test_a_single_sample_gives_no_statistics_behind_pooling() -> None:
    assert unfolded_of(graph_of(GATED), 1).norms == ("c1", "last")


def test_a_static_batch_is_measured_in_whole_batches() -> None:
    model = build(CHAIN)
    make_static(model, 16)
    samples = draw_samples(Graph.from_model(model), 40)
    chosen = np.random.default_rng(0).permutation(40)[:32]
    unfolded = unfold_norms(Graph.from_model(model), samples, 0)
    mean, _ = moments(graph_of(CHAIN), "c1", samples.part(chosen))
    np.testing.assert_allclose(parameters(unfolded.graph, "c1")[2], mean, rtol=1e-4, atol=1e-6)


def test_samples_that_fill_no_batch_are_refused() -> None:
    model = build(CHAIN)
    make_static(model, 16)
    graph = Graph.from_model(model)
    with pytest.raises(DataError, match="15 samples do not fill the model's batch of 16"):
        unfolded_of(graph, 15)


def test_a_value_that_a_subgraph_reads_stays_the_same() -> None:
    graph = graph_of(
        CHAIN.replace("float[6] b1,", "float[6] b1, int64 one = {1},").replace(
            "t2 = Tanh(c2)",
            "flag = Cast<to=9>(one) t2 = If(flag) <"
            " then_branch = yes () => (float[N,8,4,4] z) { z = Tanh(c2) },"
            " else_branch = no () => (float[N,8,4,4] z) { z = Neg(c2) }>",
        )
    )
    unfolded = unfolded_of(graph)
    assert unfolded.norms == ("c1", "c2", "last")
    assert_same_function(unfolded.graph, graph)
    assert_valid(unfolded.graph)
    assert_same_function(fold_norms(unfolded.graph, unfolded), graph)
    coupling = analyse(graph).coupling
    keep = random_keep(coupling, np.random.default_rng(0))
    assert_cuts_alike(coupling, keep, unfolded)


def test_a_channel_that_never_varies_keeps_its_value() -> None:
    graph = graph_of(CHAIN)
    weight, bias = graph.initializers["w1"].copy(), graph.initializers["b1"].copy()
    weight[:2], bias[:2] = 0.0, (0.0, 3.0)
    graph = graph.edit({"w1": weight, "b1": bias})
    unfolded = unfolded_of(graph)
    scale, shift, mean, var = parameters(unfolded.graph, "c1")
    assert var[:2].tolist() == [0.0, 0.0]
    assert mean[:2].tolist() == shift[:2].tolist() == [0.0, 3.0]
    assert scale[0] == np.float32(np.sqrt(EPSILON))
    assert_same_function(unfolded.graph, graph)
    folded = fold_norms(unfolded.graph, unfolded)
    assert_same_function(folded, graph)
    assert folded.initializers["b1"][:2].tolist() == pytest.approx([0.0, 3.0], rel=1e-6)


def test_statistics_that_are_not_finite_are_left_out() -> None:
    graph = graph_of(CHAIN)
    graph = graph.edit({"w1": np.full_like(graph.initializers["w1"], 3e38)})
    assert "c1" not in unfolded_of(graph).norms


def test_names_that_are_taken_are_not_used_again() -> None:
    model = build(CHAIN)
    names = {"b1": "c1.norm.scale", "c2": "c1.unnormed", "w2": "c1.unnormed.bias"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert unfolded.norms == ("c1", "c1.unnormed", "last")
    assert_same_function(unfolded.graph, graph)
    folded = fold_norms(disturbed(unfolded.graph, unfolded.norms), unfolded)
    assert new_names(folded, graph) == ["c1.unnormed.bias.1", "last.bias"]


def test_a_file_that_lists_its_weights_as_inputs_lists_the_new_ones_too() -> None:
    model = build(CHAIN, opset=8)
    model.ir_version = 3
    weights = model.graph.initializer
    model.graph.input.extend(
        helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights
    )
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert unfolded.norms == ("c1", "c2", "last")
    assert [port.name for port in unfolded.graph.inputs] == ["x"]
    assert_same_function(unfolded.graph, graph)
    folded = fold_norms(disturbed(unfolded.graph, unfolded.norms), unfolded)
    for made in (unfolded.graph, folded):
        onnx.checker.check_model(made.to_model())


def test_opsets_whose_norms_take_statistics_of_the_batch_are_left_alone() -> None:
    assert unfolded_of(Graph.from_model(build(CHAIN, opset=6))).norms == ()


# --- folding


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_what_was_not_trained_folds_to_the_original(name: str) -> None:
    graph = Graph.from_model(model_named(name))
    unfolded = unfolded_of(graph)
    folded = fold_norms(unfolded.graph, unfolded)
    assert structure(folded) == structure(graph)
    for key, array in graph.initializers.items():
        np.testing.assert_allclose(folded.initializers[key], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_norms_that_were_trained_are_folded(name: str) -> None:
    graph = Graph.from_model(model_named(name))
    unfolded = unfolded_of(graph)
    trained = disturbed(unfolded.graph, unfolded.norms)
    folded = fold_norms(trained, unfolded)
    assert_same_function(folded, trained)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_function(folded, graph)
    assert_valid(folded)
    bare = [key for key in unfolded.norms if not graph.producers[key].has_input(2)]
    assert new_names(folded, graph) == sorted(f"{key}.bias" for key in bare)
    assert structure(folded, new_names(folded, graph)) == structure(graph)
    assert {n.op_type for n in folded.nodes} == {n.op_type for n in graph.nodes}


def test_a_bias_is_added_only_where_the_function_needs_it() -> None:
    graph = graph_of(CHAIN)
    unfolded = unfolded_of(graph)
    scale, shift = unfolded.graph.producers["c2"].inputs[1:3]
    arrays = unfolded.graph.initializers
    moved = unfolded.graph.edit({shift: arrays[shift] + np.float32(1e-5)})
    folded = fold_norms(moved, unfolded)
    assert new_names(folded, graph) == ["c2.bias"]
    np.testing.assert_allclose(folded.initializers["c2.bias"], 1e-5, rtol=5e-2)
    grown = unfolded.graph.edit({scale: 2 * arrays[scale], shift: 2 * arrays[shift]})
    folded = fold_norms(grown, unfolded)
    assert new_names(folded, graph) == []
    np.testing.assert_allclose(folded.initializers["w2"], 2 * graph.initializers["w2"], rtol=1e-6)


def test_a_bias_that_there_was_is_written_though_it_vanishes() -> None:
    graph = graph_of(CHAIN)
    unfolded = unfolded_of(graph)
    arrays = unfolded.graph.initializers
    _, shift, mean, _ = unfolded.graph.producers["c1"].inputs[1:]
    moved = unfolded.graph.edit({shift: arrays[mean] - arrays["b1"]})
    folded = fold_norms(moved, unfolded)
    assert np.abs(folded.initializers["b1"]).max() < 1e-6 < np.abs(graph.initializers["b1"]).max()
    assert_same_function(folded, moved)


def test_everything_that_describes_the_model_is_kept() -> None:
    model = build(CHAIN)
    model.producer_name, model.doc_string = "someone", "a chain"
    helper.set_model_props(model, {"classes": "4"})
    for number, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"node {number}", f"this is {node.op_type}"
    graph = Graph.from_model(model)
    unfolded = unfolded_of(graph)
    assert structure(fold_norms(unfolded.graph, unfolded)) == structure(graph)
    assert unfolded.graph.producers["c1"].name == "c1.norm"
    assert unfolded.graph.to_model().metadata_props == model.metadata_props


def test_a_graph_without_the_norms_is_refused() -> None:
    graph = graph_of(CHAIN)
    with pytest.raises(InvariantError, match="norm 'c1'"):
        fold_norms(graph, unfolded_of(graph))


# --- half precision


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


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_half_precision_stays_what_it_is(name: str) -> None:
    graph = in_half(model_of(name) if name in NETS else build(MORE[name]))
    unfolded = unfolded_of(graph)
    assert {p.dtype for norm in unfolded.norms for p in parameters(unfolded.graph, norm)} == {
        np.dtype(np.float16)
    }
    assert_same_function(unfolded.graph, graph, HALF)
    trained = disturbed(unfolded.graph, unfolded.norms)
    folded = fold_norms(trained, unfolded)
    assert_same_function(folded, trained, HALF)
    assert {array.dtype.name for array in folded.initializers.values()} <= {"float16", "int64"}


def test_statistics_that_half_precision_cannot_hold_are_left_out() -> None:
    """Of 6e4 times a normal number, which float16 holds, the variance is 3e9, which it does not."""
    graph = in_half(build(CHAIN))
    graph = graph.edit({"w1": (graph.initializers["w1"] * np.float16(1e3))})
    assert unfolded_of(graph).norms == ("c2", "last")


# --- cutting


def coupled(graph: Graph) -> Coupling:
    return analyse(graph).coupling


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_net_folds_to_the_cut_of_the_original(name: str, seed: int) -> None:
    graph, _, coupling = analyse(model_of(name))
    keep = random_keep(coupling, np.random.default_rng(seed), inexact=True)
    assert_cuts_alike(coupling, keep, unfolded_of(graph))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("head", range(3))
def test_blocks_of_all_kinds_are_cut_alike(block: str, head: int) -> None:
    recipe = [(block, 0, 1), ("conv", 0, 0), (block, 0, 2)]
    graph, _, coupling = analyse(build_net(recipe, head, seed=1))
    unfolded = unfolded_of(graph, 20)
    for seed in (1, 2):
        keep = random_keep(coupling, np.random.default_rng(seed), inexact=True)
        assert_cuts_alike(coupling, keep, unfolded)


@pytest.mark.parametrize(
    "sizes",
    [
        "to = Concat<axis=0>(n, k)",
        "t = Concat<axis=0>(n, k) to = Identity(t)",
        "t = Concat<axis=0>(n, k) u = Identity(t) to = Identity(u)",
    ],
)
def test_nodes_that_surgery_copies_stand_where_they_would(sizes: str) -> None:
    graph, _, coupling = analyse(build(COPIED.replace("SIZES", sizes)))
    unfolded = unfolded_of(graph)
    for seed in range(4):
        keep = random_keep(coupling, np.random.default_rng(seed))
        cut = remove_units(coupling, keep)
        assert_cuts_alike(coupling, keep, unfolded)
    assert len(cut.nodes) > len(graph.nodes)


def test_nodes_that_surgery_drops_are_gone() -> None:
    recipe = [("half_of_shape", 0, 1), ("conv", 0, 0), ("half_of_shape", 0, 2)]
    graph, _, coupling = analyse(build_net(recipe, seed=1))
    keep = random_keep(coupling, np.random.default_rng(2), inexact=True)
    assert len(remove_units(coupling, keep).nodes) < len(graph.nodes)
    assert_cuts_alike(coupling, keep, unfolded_of(graph))


def test_attributes_that_surgery_drops_are_gone() -> None:
    text = JOINED.replace(
        "BODY",
        "p, q = Split<axis=1,num_outputs=2>(c1) t = Tanh(q) j = Concat<axis=1>(p, t, c2)",
    )
    graph, _, coupling = analyse(build(text, opset=18))
    first = next(group for group in coupling.groups if group.name.startswith("w1:0"))
    keep = {first.dim: np.arange(first.size) > 0}
    cut = remove_units(coupling, keep)
    assert "num_outputs" not in cut.producers["p"].attributes
    assert_cuts_alike(coupling, keep, unfolded_of(graph))


def test_training_at_the_cut_width_folds_back() -> None:
    graph, _, coupling = analyse(model_of("transposed blocks"))
    unfolded = unfolded_of(graph)
    with_norms = coupled(unfolded.graph)
    keep = random_keep(coupling, np.random.default_rng(0))
    normed_keep = same_units(coupling, keep, with_norms)
    normed = remove_units(with_norms, normed_keep)
    twin = EquivalentTwin(with_norms, normed_keep, normed).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        sine_loss(twin(*draw_inputs(graph, 8))).backward()
        optimizer.step()
    trained = twin.eval().fold(normed)
    folded = fold_norms(trained, unfolded)
    assert_same_function(folded, trained)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_function(folded, remove_units(coupling, keep))


# --- translating units


def joined(body: str, constants: dict[str, ArrayLike] | None = None) -> Coupling:
    text = JOINED.replace("BODY", body)
    return coupled(graph_of(text, constants))


APART = "j = Concat<axis=1>(c1, c2)"
ORDER = {"order": [1, 0, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("plain", "other", "message"),
    [
        (APART, "j = Concat<axis=1>(c2, c1)", "group 'w[12]:0' differs at 'w3'"),
        ("s = Add(c1, c2) j = Concat<axis=1>(s, s)", APART, "group 'w1:0' differs at"),
        (APART, "s = Add(c1, c2) j = Concat<axis=1>(s, s)", "joined, frozen or gone"),
        (APART, "z = Neg(c1) j = Concat<axis=1>(c1, c2)", "joined, frozen or gone"),
        (APART, "g = Gather<axis=1>(c1, order) j = Concat<axis=1>(g, c2)", "positions of .*'w3'"),
    ],
)
def test_groups_that_do_not_correspond_are_refused(plain: str, other: str, message: str) -> None:
    coupling = joined(plain)
    text = JOINED.replace("BODY", other)
    if "z = " in other:
        text = text.replace("(float[N,4] y)", "(float[N,4] y, float[N,6,4,4] z)")
    unfolded = coupled(graph_of(text, ORDER if "order" in other else None))
    keep = {group.dim: np.arange(group.size) > 0 for group in coupling.groups}
    with pytest.raises(InvariantError, match=message):
        same_units(coupling, keep, unfolded)


def test_a_dim_of_another_graph_is_refused() -> None:
    coupling, other = joined(APART), joined(APART)
    keep = {group.dim: np.arange(group.size) > 0 for group in other.groups}
    with pytest.raises(InvariantError, match="gone"):
        same_units(coupling, keep, coupling)
    assert same_units(other, keep, coupling).keys() == {group.dim for group in coupling.groups}


# --- trained models


@pytest.mark.parametrize("path", SHIPPED)
def test_a_trained_model_is_unfolded_cut_and_folded(path: Path) -> None:
    graph, _, coupling = analyse(Graph.load(path))
    sample = MODELS / "fashion-sample.npz"
    fashion = path.parent == MODELS and sample.is_file()
    samples = load_samples(sample, graph) if fashion else draw_samples(graph, 64)
    unfolded = unfold_norms(graph, samples.part(slice(0, 64)), 0)
    convs = [node.key for node in graph.nodes if node.op_type == "Conv"]
    assert unfolded.norms == tuple(convs)
    feed = samples.feed(slice(0, 16))
    assert_close(run_onnx(unfolded.graph, feed), run_onnx(graph, feed), 10 * SINGLE)
    keep = random_keep(coupling, np.random.default_rng(0))
    assert_cuts_alike(coupling, keep, unfolded, 10 * SINGLE)
