"""Layers that are applied several times: what is one parameter stays one, in every stage.

The oracle is the network's own symmetry: branches that share all weights give equal outputs for
equal inputs, whatever was cut, repaired and trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
from helpers import analyse, build, make_feed, random_keep, run_onnx
from onnx import numpy_helper

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.planning.scope import Scope
from obc_onnx.recover.norms import reestimate_norms
from obc_onnx.recover.refit import refit
from obc_onnx.run.api import compress, verify
from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import Cut, remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.report.result import Result


class Siamese(NamedTuple):
    """A network that is applied to two inputs: `@` in its body stands for the branch."""

    shape: str
    out: str
    weights: str
    body: str


IMAGE, VECTOR, TOKENS = "N,3,6,6", "N,6", "N,4,6"
HEAD = "t@ = GlobalAveragePool({}) u@ = Flatten(t@) y@ = Gemm<transB=1>(u@, fc, fcb)"
FC = "float[5,8] fc, float[5] fcb"
NORM = "float[8] scale, float[8] shift, float[8] mean, float[8] var"
BRANCHES = {
    "Conv": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, float[8] b, {FC}",
        f"c@ = Conv(x@, w, b) r@ = Relu(c@) {HEAD.format('r@')}",
    ),
    "two Conv": Siamese(
        IMAGE, "N,5", f"float[12,3,3,3] v, float[12] vb, float[8,12,1,1] w, float[8] b, {FC}",
        f"p@ = Conv(x@, v, vb) q@ = Relu(p@) c@ = Conv(q@, w, b) r@ = Relu(c@) {HEAD.format('r@')}",
    ),
    "BatchNormalization": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, {NORM}, {FC}",
        "c@ = Conv(x@, w) n@ = BatchNormalization(c@, scale, shift, mean, var)"
        f" r@ = Relu(n@) {HEAD.format('r@')}",
    ),
    "norm in front": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, float[8,8,1,1] v, {NORM}, {FC}",
        "c@ = Conv(x@, w) n@ = BatchNormalization(c@, scale, shift, mean, var) r@ = Relu(n@)"
        f" d@ = Conv(r@, v) {HEAD.format('d@')}",
    ),
    "PRelu": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, float[8] b, float[8,1,1] slope, {FC}",
        f"c@ = Conv(x@, w, b) r@ = PRelu(c@, slope) {HEAD.format('r@')}",
    ),
    "depthwise": Siamese(
        IMAGE, "N,5", f"float[8,3,1,1] v, float[8] vb, float[8,1,3,3] w, float[8] b, {FC}",
        "p@ = Conv(x@, v, vb) q@ = Relu(p@) c@ = Conv<group=8>(q@, w, b) r@ = Relu(c@)"
        f" {HEAD.format('r@')}",
    ),
    "ConvTranspose": Siamese(
        IMAGE, "N,5", f"float[3,8,2,2] w, float[8] b, {FC}",
        f"c@ = ConvTranspose<strides=[2,2]>(x@, w, b) r@ = Relu(c@) {HEAD.format('r@')}",
    ),
    "InstanceNormalization": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, float[8] scale, float[8] shift, {FC}",
        "c@ = Conv(x@, w) n@ = InstanceNormalization(c@, scale, shift) r@ = Relu(n@)"
        f" {HEAD.format('r@')}",
    ),
    "scale and shift": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, float[1,8,1,1] scale, float[8,1,1] shift, {FC}",
        f"c@ = Conv(x@, w) m@ = Mul(c@, scale) n@ = Add(m@, shift) r@ = Relu(n@) {HEAD.format('r@')}",
    ),
    "residual": Siamese(
        IMAGE, "N,5", f"float[8,3,1,1] w, float[8] b, float[8,8,3,3] v, float[8] vb, {FC}",
        "c@ = Conv(x@, w, b) p@ = Conv<pads=[1,1,1,1]>(c@, v, vb) s@ = Add(c@, p@) r@ = Relu(s@)"
        f" {HEAD.format('r@')}",
    ),
    "Identity": Siamese(
        IMAGE, "N,5", f"float[8,3,3,3] w, float[8] b, {FC}",
        "i@ = Identity(b) j@ = Identity(w) c@ = Conv(x@, j@, i@) r@ = Relu(c@)"
        f" {HEAD.format('r@')}",
    ),
    "Gemm": Siamese(
        VECTOR, "N,5", f"float[8,6] w, float[8] b, {FC}",
        "c@ = Gemm<transB=1>(x@, w, b) r@ = Tanh(c@) y@ = Gemm<transB=1>(r@, fc, fcb)",
    ),
    "one output": Siamese(
        VECTOR, "N,1", "float[8,6] w, float[8] b, float[1,8] fc, float[1] fcb",
        "c@ = Gemm<transB=1>(x@, w, b) r@ = Tanh(c@) y@ = Gemm<transB=1>(r@, fc, fcb)",
    ),
    "MatMul and Add": Siamese(
        VECTOR, "N,5", "float[6,8] w, float[8] b, float[8,5] fc, float[5] fcb",
        "m@ = MatMul(x@, w) c@ = Add(m@, b) r@ = Relu(c@) n@ = MatMul(r@, fc) y@ = Add(fcb, n@)",
    ),
    "tokens": Siamese(
        TOKENS, "N,4,5", "float[6,8] w, float[8] b, float[8,5] fc, float[5] fcb",
        "m@ = MatMul(x@, w) c@ = Add(m@, b) r@ = Relu(c@) n@ = MatMul(r@, fc) y@ = Add(fcb, n@)",
    ),
    "LayerNormalization": Siamese(
        TOKENS, "N,4,5", "float[6,8] w, float[8] b, float[8] g, float[8] h, float[8,5] fc",
        "m@ = MatMul(x@, w) c@ = Add(m@, b) n@ = LayerNormalization(c@, g, h)"
        " y@ = MatMul(n@, fc)",
    ),
    "norm of the input": Siamese(
        TOKENS, "N,4,5", "float[6] g, float[6] h, float[6,8] w, float[8] b, float[8,5] fc",
        "n@ = LayerNormalization(x@, g, h) m@ = MatMul(n@, w) c@ = Add(m@, b) r@ = Relu(c@)"
        " y@ = MatMul(r@, fc)",
    ),
    "norm in steps": Siamese(
        TOKENS, "N,4,5", "float[6,8] w, float[8] b, float[8] g, float[8] h, float[8,5] fc",
        "m@ = MatMul(x@, w) c@ = Add(m@, b) a@ = ReduceMean<axes=[-1]>(c@) d@ = Sub(c@, a@)"
        " q@ = Mul(d@, d@) v@ = ReduceMean<axes=[-1]>(q@) e@ = Add(v@, tiny) s@ = Sqrt(e@)"
        " k@ = Div(d@, s@) l@ = Mul(k@, g) n@ = Add(l@, h) y@ = MatMul(n@, fc)",
    ),
}  # fmt: skip
INEXACT = {"LayerNormalization", "norm in steps", "InstanceNormalization"}


def siamese(name: str) -> onnx.ModelProto:
    shape, out, weights, body = BRANCHES[name]
    nodes = " ".join(body.replace("@", branch) for branch in "ab")
    text = (
        f"net (float[{shape}] xa, float[{shape}] xb) => (float[{out}] ya, float[{out}] yb)"
        f"<{weights}> {{ {nodes} }}"
    )
    constants = {"tiny": np.full(1, 1e-5, np.float32)} if "tiny" in body else {}
    return build(text, constants)


def samples_of(model: onnx.ModelProto, count: int = 40) -> Samples:
    feed = make_feed(Graph.from_model(model), np.random.default_rng(7), count)
    smooth = {k: v + 0.5 * np.roll(v, 1, -1) for k, v in feed.items()}
    return Samples(smooth, None, {name: array.dtype for name, array in smooth.items()})


def weights_in(model: onnx.ModelProto) -> dict[str, NDArray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def n_params(model: onnx.ModelProto) -> int:
    return sum(array.size for array in weights_in(model).values() if array.dtype == np.float32)


def assert_branches_agree(model: onnx.ModelProto) -> None:
    graph = Graph.from_model(model)
    x = make_feed(graph, np.random.default_rng(3), 3)["xa"]
    found = Session(graph).run({"xa": x, "xb": x})
    np.testing.assert_array_equal(found["ya"], found["yb"])


def assert_is_as_reported(result: Result, model: onnx.ModelProto) -> None:
    written = result.model
    assert result.report.params.before == n_params(model)
    assert result.report.params.after == n_params(written)
    assert set(weights_in(written)) <= set(weights_in(model)), "no weight has a copy"
    assert not result.plan.copies


HOW = {"cut": {}, "repaired": {"data": True}, "trained": {"data": True, "training": 1}}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_give_equal_outputs(name: str, how: str, tmp_path: Path) -> None:
    model = siamese(name)
    asked = dict(HOW[how])
    if asked.pop("data", False):
        asked["data"] = samples_of(model)
    budget = Budget(0.7, scope=Scope(allow_inexact=name in INEXACT))
    result = compress(model, budget=budget, criterion="l2", **asked)
    assert result.report.macs.after < result.report.macs.before
    assert_branches_agree(result.model)
    assert_is_as_reported(result, model)
    onnx.save(model, tmp_path / "model.onnx")
    result = compress(tmp_path / "model.onnx", budget=budget, criterion="l2", **asked)
    result.save(tmp_path / "small.onnx", tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    checks = verify(tmp_path / "model.onnx", tmp_path / "small.onnx", plan)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


@pytest.mark.parametrize("name", BRANCHES)
def test_a_shared_layer_has_no_copies(name: str) -> None:
    model = siamese(name)
    graph = Graph.from_model(model)
    assert not graph.copies
    assert graph.params == n_params(model)


def one_branch(name: str) -> onnx.ModelProto:
    """Build the network that is applied twice in `siamese`, with the same weights."""
    shape, out, weights, body = BRANCHES[name]
    text = f"net (float[{shape}] x) => (float[{out}] y) <{weights}> {{ {body.replace('@', '')} }}"
    model = build(text)
    same = weights_in(siamese(name))
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in same.items())
    return model


@pytest.mark.parametrize(
    "name", ["Conv", "two Conv", "residual", "Gemm", "MatMul and Add", "tokens"]
)
def test_repair_over_all_uses_is_that_of_one_network_on_all_inputs(name: str) -> None:
    """Two branches on pairs of inputs see what one network sees on twice as many."""
    model = siamese(name)
    pairs = samples_of(model, 200)
    pairs.inputs["xb"][:] = np.maximum(2 * pairs.inputs["xb"][..., ::-1] - 1, 0)  # unlike `xa`
    both = np.stack([pairs.inputs["xa"], pairs.inputs["xb"]], 1)
    both = both.reshape(-1, *both.shape[2:])  # by turns, so that each batch holds some of both
    single = Samples({"x": both}, None, {"x": both.dtype})
    errors = []
    for net, samples in ((model, pairs), (one_branch(name), single)):
        coupling = analyse(net).coupling
        keep = random_keep(coupling, np.random.default_rng(5), 0.5)
        pruned = remove_units(coupling, keep)
        fitted, layers = refit(Cut(coupling, keep, pruned), samples, 0)
        assert len({layer.layer for layer in layers}) == len(layers) > 0
        feed = samples.feed(slice(None))
        wanted, *found = (together(run_onnx(g, feed)) for g in (coupling.graph, pruned, fitted))
        errors.append([np.square(y - wanted).sum() for y in found])
    (cut, repaired), (cut_alone, repaired_alone) = errors
    assert cut == pytest.approx(cut_alone, rel=1e-4)
    assert repaired < 0.8 * cut
    assert repaired == pytest.approx(repaired_alone, rel=0.1)


def together(outputs: Mapping[str, NDArray]) -> NDArray:
    """Bring the outputs of two branches into the order of the inputs of one."""
    found = np.stack([outputs[name] for name in sorted(outputs)], 1)
    return found.reshape(-1, *found.shape[2:])


def test_statistics_of_a_shared_norm_are_those_of_all_its_inputs() -> None:
    model = siamese("BatchNormalization")
    coupling = analyse(model).coupling
    samples = samples_of(model, 96)
    samples.inputs["xb"][:] += 2  # the branches differ, and the later one must not win
    graph = reestimate_norms(Cut(coupling, {}, coupling.graph), samples, 0)
    given = Session(graph, outputs=["ca", "cb"]).run(samples.feed(slice(None)))
    wanted = np.mean([given["ca"].mean((0, 2, 3)), given["cb"].mean((0, 2, 3))], 0)
    np.testing.assert_allclose(graph.initializers["mean"], wanted, rtol=1e-4, atol=1e-5)


REPEATED = (
    "net (float[N,4,6] x) => (float[N,4,6] once, float[N,4,6] twice)"
    "<float[6,16] w, float[16] b, float[16,6] v, float[6] c, float[6] g, float[6] h>"
    "{ m1 = MatMul(x, w) a1 = Add(m1, b) r1 = Relu(a1) n1 = MatMul(r1, v) o1 = Add(n1, c)"
    "  s1 = Add(x, o1) once = LayerNormalization(s1, g, h)"
    "  m2 = MatMul(once, w) a2 = Add(m2, b) r2 = Relu(a2) n2 = MatMul(r2, v) o2 = Add(n2, c)"
    "  s2 = Add(once, o2) twice = LayerNormalization(s2, g, h) }"
)
"""As in ALBERT: the second layer is the first one again."""


@pytest.mark.parametrize("how", HOW)
def test_a_layer_that_is_repeated_stays_one_layer(how: str) -> None:
    model = build(REPEATED)
    asked = dict(HOW[how])
    if asked.pop("data", False):
        asked["data"] = samples_of(model)
    result = compress(model, budget=0.5, criterion="l2", **asked)
    assert_is_as_reported(result, model)
    x = make_feed(result.graph, np.random.default_rng(1), 3)
    first = run_onnx(result.graph, x)
    again = run_onnx(result.graph, {"x": first["once"]})
    np.testing.assert_allclose(again["once"], first["twice"], rtol=1e-4, atol=1e-5)


UNRELATED = (
    "net (float[N,3,6,6] x) => (float[N,4,6,6] y)"
    "<float[8,3,1,1] w1, float[8,8,1,1] w2, float[8,8,1,1] w3, float[4,8,1,1] w4, float[8] k>"
    "{ p = Conv(x, w1, k) q = Relu(p) r = Conv(q, w2, k) s = Relu(r) t = Conv(s, w3, k)"
    "  u = Relu(t) y = Conv(u, w4) }"
)
"""An exporter has merged the biases of three layers, which were equal."""


@pytest.mark.parametrize("filled", [False, True], ids=["drawn", "zeros"])
@pytest.mark.parametrize("how", HOW)
def test_layers_with_merged_biases_are_cut_apart_only_where_they_differ(
    how: str, tmp_path: Path, *, filled: bool
) -> None:
    model = build(UNRELATED, {"k": np.zeros(8, np.float32)} if filled else {})
    onnx.save(model, tmp_path / "model.onnx")
    asked = dict(HOW[how])
    if asked.pop("data", False):
        asked["data"] = samples_of(model)
    result = compress(tmp_path / "model.onnx", budget=0.6, criterion="l2", **asked)
    result.save(tmp_path / "small.onnx", tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    written, before = weights_in(onnx.load(tmp_path / "small.onnx")), weights_in(model)
    assert set(written) == set(before) | set(plan.copies)
    assert set(plan.copies.values()) <= {"k"}
    assert set(plan.copies).isdisjoint(plan.merged)
    assert result.report.params.before == n_params(model)
    assert result.report.params.after == n_params(result.model)
    arrays = [array.tobytes() for name, array in written.items() if name not in "w1 w2 w3 w4"]
    assert len(set(arrays)) == len(arrays), "equal copies are merged"
    assert all(c.passed for c in verify(tmp_path / "model.onnx", tmp_path / "small.onnx", plan))
    if how == "cut":
        for name, array in written.items():
            expected = before[plan.copies.get(name, name)]
            for axis, kept in plan.initializers.get(name, {}).items():
                expected = expected.take(kept, int(axis))
            np.testing.assert_array_equal(array, expected)


def test_what_is_not_cut_is_written_as_it_was() -> None:
    model = build(UNRELATED)
    result = compress(model, budget=Budget(0.95, scope=Scope(only=("w1*",))), criterion="l2")
    assert set(weights_in(result.model)) == {"w1", "w2", "w3", "w4", "k", *result.plan.copies}
    (copy,) = result.plan.copies
    assert result.plan.merged
    assert {len(weights_in(result.model)[name]) for name in ("k", copy)} == {
        8,
        len(result.plan.groups["w1:0"]["kept"]),
    }


def test_a_plan_is_applied_again_with_the_same_result(tmp_path: Path) -> None:
    model = build(UNRELATED)
    result = compress(model, budget=0.6, criterion="l2")
    result.save(tmp_path / "small.onnx", tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    again = compress(model, plan=plan)
    assert again.model == result.model
    assert again.plan == plan


def test_different_layers_that_share_a_head_keep_biases_of_their_own() -> None:
    """Only what is behind or in front of the shared head may be one parameter."""
    text = (
        "net (float[N,3,6,6] xa, float[N,3,6,6] xb) => (float[N,4,6,6] ya, float[N,4,6,6] yb)"
        "<float[8,3,1,1] v, float[8,3,1,1] w, float[8] k, float[4,8,1,1] fc, float[4] c>"
        "{ pa = Conv(xa, v, k) qa = Relu(pa) ya = Conv(qa, fc, c)"
        "  pb = Conv(xb, w, k) qb = Relu(pb) yb = Conv(qb, fc, c) }"
    )
    graph = Graph.from_model(build(text))
    assert list(graph.copies.values()) == ["k"]
    result = compress(build(text), budget=0.6, criterion="l2")
    assert not result.plan.copies, "the head ties their units, so the biases stay equal"
    trained = compress(build(text), budget=0.6, data=samples_of(build(text)), training=1)
    assert list(trained.plan.copies.values()) == ["k"], "training makes them differ"
