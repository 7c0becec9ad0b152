"""If, Loop and Scan in the twin: values, what is used of the graph around, gradients, pickling."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers import analyse, assert_close, build, run_onnx, run_twin
from nets import draw_samples

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import Scoring
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    import onnx

IF = """
net (float[N,4] x, bool c) => (float[N,3] y) <float[4,5] w, float[5,3] v, float[5,3] u> {
  h = MatMul(x, w)
  r = Relu(h)
  s = If(c) <
    then_branch = then () => (float[N,3] t) { t = MatMul(r, v) },
    else_branch = other () => (float[N,3] e) <float k = {2.0}> { g = Mul(r, k) e = MatMul(g, u) }
  >
  y = Tanh(s)
}"""
LOOP = """
net (float[N,4] x, int64 m) => (float[N,4] y, float[M,N,4] z) <float[4,4] w, float[4] b> {
  y, z = Loop(m, , x) <
    body = body (int64 i, bool go, float[N,4] a) => (bool on, float[N,4] out, float[N,4] handed) {
      p = MatMul(a, w) q = Add(p, b) out = Tanh(q) handed = Neg(out) on = Identity(go) }
  >
}"""
SCAN = """
net (float[N,4] x, float[6,N,4] s) => (float[N,4] y, float[6,N,4] z) <float[4,4] w> {
  y, z = Scan<num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
    body = body (float[N,4] a, float[N,4] t) => (float[N,4] out, float[N,4] handed) {
      p = MatMul(a, w) q = Add(p, t) out = Tanh(q) handed = Abs(out) }>(x, s)
}"""
CONDITION = """
net (float[N,4] x) => (float[N,4] y) {
  y = Loop(, yes, x) <
    body = body (int64 i, bool go, float[N,4] a) => (bool on, float[N,4] out) {
      out = Add(a, one) l = ReduceMin<keepdims = 0>(out) on = Less(l, limit) }
  >
}"""
RNG = np.random.default_rng(2)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CASES = {
    "then": (IF, {}, {"x": drawn(3, 4), "c": np.array(True)}),
    "else": (IF, {}, {"x": drawn(2, 4), "c": np.array(False)}),
    "loop": (LOOP, {}, {"x": drawn(3, 4), "m": np.array(5)}),
    "one_trip": (LOOP, {}, {"x": drawn(3, 4), "m": np.array(1)}),
    "no_trip": (LOOP.replace("N,4", "3,4"), {}, {"x": drawn(3, 4), "m": np.array(0)}),
    "scan": (SCAN, {}, {"x": drawn(3, 4), "s": drawn(6, 3, 4)}),
    "condition": (
        CONDITION,
        {"yes": np.array(True), "one": np.float32(1), "limit": np.float32(4)},
        {"x": drawn(3, 4)},
    ),
}


def model_of(name: str) -> onnx.ModelProto:
    text, constants, _ = CASES[name]
    return build(text, {key: np.asarray(value) for key, value in constants.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_twin_equals_onnx_runtime(name: str) -> None:
    feed = CASES[name][2]
    graph, shapes, _ = analyse(model_of(name), shapes={n: a.shape for n, a in feed.items()})
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


@pytest.mark.parametrize("name", ["then", "else", "loop", "scan"])
def test_gradients_pass_through_subgraphs_whose_own_weights_do_not_learn(name: str) -> None:
    feed = CASES[name][2]
    graph, shapes, _ = analyse(model_of(name), shapes={n: a.shape for n, a in feed.items()})
    twin = build_twin(graph, shapes, DEFAULT_RULES).double()
    inputs = [torch.from_numpy(feed[port.name]) for port in graph.inputs]
    inputs = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    learns = {key: p for key, p in twin.named_parameters() if p.requires_grad}
    assert learns.keys() == ({"w"} if name in ("then", "else") else set())

    def run(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(learns, values[len(inputs) :], strict=True))
        return torch.func.functional_call(twin, state, values[: len(inputs)])[0]

    weights = [p.detach().clone().requires_grad_() for p in learns.values()]
    assert torch.autograd.gradcheck(run, (*inputs, *weights))


@pytest.mark.parametrize("name", CASES)
def test_a_twin_with_subgraphs_pickles_and_copies(name: str) -> None:
    feed = CASES[name][2]
    graph, shapes, _ = analyse(model_of(name), shapes={n: a.shape for n, a in feed.items()})
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    inputs = [torch.from_numpy(feed[port.name]) for port in graph.inputs]
    expected = twin(*inputs)
    for again in (pickle.loads(pickle.dumps(twin)), copy.deepcopy(twin)):
        for found, due in zip(again(*inputs), expected, strict=True):
            assert torch.equal(found, due)
        assert again.state_dict().keys() == twin.state_dict().keys()
    written = twin.write_to(graph)
    assert written.to_model().SerializeToString() == graph.to_model().SerializeToString()


def test_units_in_front_of_control_flow_are_scored() -> None:
    model = build(
        "net (float[N,4] x) => (float[N,3] y) <float[4,6] a, float[6,5] w, float[5,3] v> {"
        " g = MatMul(x, a) p = Relu(g) h = MatMul(p, w) r = Relu(h)"
        " s = If(c) <then_branch = then () => (float[N,3] t) { t = MatMul(r, v) },"
        " else_branch = other () => (float[N,3] e) { t = MatMul(r, v) e = Neg(t) }> y = Tanh(s) }",
        {"c": np.array(True)},
    )
    graph, _, coupling = analyse(model)
    assert [group.name for group in coupling.groups] == ["a:1"]
    samples = draw_samples(graph, 5)
    scene = Scene(coupling, samples, scoring=Scoring(objective="output"))
    assert (make_criterion("jacobian").score(scene, {})["a:1"] > 0).any()


def test_what_a_subgraph_holds_that_torch_lacks_is_refused() -> None:
    model = build(
        "net (float[N,4] x, bool c) => (float[N,4] y) { y = If(c) <"
        "then_branch = then () => (float[N,4] t) { t = RandomNormalLike(x) },"
        "else_branch = other () => (float[N,4] e) { e = Neg(x) }> }"
    )
    graph, shapes, _ = analyse(model, shapes={"x": (2, 4), "c": ()})
    with pytest.raises(UnsupportedOperatorError, match="random numbers"):
        build_twin(graph, shapes, DEFAULT_RULES)
