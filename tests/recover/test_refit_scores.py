"""Repair of attention scores: which outputs of which layer, and the best matrix for each head."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers import OPSET, analyse, build
from nets import draw_samples

from obc_onnx.measuring.error import output_error
from obc_onnx.recover import attention as module_of_scores
from obc_onnx.recover import pair as module
from obc_onnx.recover.attention import (
    Products,
    find_products,
    fit_scores,
    put_into_layer,
    recombine,
)
from obc_onnx.recover.layers import find_layers
from obc_onnx.recover.refit import refit
from obc_onnx.recover.targets import select_kept
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.codes import Codes
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from obc_onnx.recover.attention import MatrixProduct

WEIGHTS = "float[6,8] wq, float[8] bq, float[6,8] wk, float[8] bk, float[6,6] wv, float[6,4] wo"
SEPARATE = (
    " q0 = MatMul(x, wq) q1 = Add(bq, q0) q2 = Reshape(q1, cut) q = Transpose<perm=[0,2,1,3]>(q2)"
    " k0 = MatMul(x, wk) k1 = Add(k0, bk) k2 = Reshape(k1, cut) k = Transpose<perm=[0,2,3,1]>(k2)"
)
VALUES = (
    " v0 = MatMul(x, wv) v1 = Reshape(v0, cut) v = Transpose<perm=[0,2,1,3]>(v1)"
    " p = Softmax(s) a0 = MatMul(p, v) a1 = Transpose<perm=[0,2,1,3]>(a0)"
    " a = Reshape(a1, join) y = MatMul(a, wo) }"
)
FUSED = "float[6,24] w, float[24] b, float[8,4] wo"
FUSED_END = (
    " p = Softmax(s) a0 = MatMul(p, v) a1 = Transpose<perm=[0,2,1,3]>(a0)"
    " a = Reshape(a1, join) y = MatMul(a, wo) }"
)
NETS = {
    "separate": f"{WEIGHTS}> {{{SEPARATE} s0 = MatMul(q, k) s = Mul(s0, half){VALUES}",
    "scaled before": f"{WEIGHTS}> {{{SEPARATE} c = Mul(q, half) s0 = MatMul(c, k)"
    f" s = Identity(s0){VALUES}",
    "keys whose heads are picked": f"{WEIGHTS}> {{{SEPARATE} c = Tanh(q)"
    f" h = Gather<axis=1>(k, two) s0 = MatMul(c, h) s = Identity(s0){VALUES}",
    "keys alone can be changed": f"{WEIGHTS}> {{{SEPARATE} c = Tanh(q) s0 = MatMul(c, k)"
    f" s = Identity(s0){VALUES}",
    "split": f"{FUSED}> {{ h = MatMul(x, w) h1 = Add(h, b) h2 = Reshape(h1, three)"
    " h3 = Transpose<perm=[2,0,3,1,4]>(h2) f, g, e = Split<axis=0>(h3, ones) q = Squeeze(f, zero)"
    " k0 = Squeeze(g, zero) v = Squeeze(e, zero) k = Transpose<perm=[0,1,3,2]>(k0)"
    f" s0 = MatMul(q, k) s = Div(s0, half){FUSED_END}",
    "gather": f"{FUSED}> {{ h = MatMul(x, w) h1 = Add(h, b) h2 = Reshape(h1, three)"
    " h3 = Transpose<perm=[2,0,3,1,4]>(h2) q = Gather(h3, i) k0 = Gather(h3, j)"
    " v = Gather(h3, l) k = Transpose<perm=[0,1,3,2]>(k0)"
    f" s0 = MatMul(q, k) s = Div(s0, half){FUSED_END}",
}
CONSTANTS: dict[str, Any] = {
    "cut": [0, 5, 2, -1],
    "join": [0, 5, -1],
    "three": [0, 5, 3, 2, -1],
    "ones": [1, 1, 1],
    "zero": [0],
    "half": np.float32(0.5),
    "two": [0, 1],
    "i": np.int64(0),
    "j": np.int64(1),
    "l": np.int64(2),
}


def net(body: str, more: dict[str, Any] | None = None, opset: int = OPSET) -> Any:
    used = {name: value for name, value in CONSTANTS.items() if re.search(rf"\b{name}[,)]", body)}
    text = f"net (float[N,5,6] x) => (float[N,5,4] y) <{body}"
    return build(text, used | (more or {}), opset=opset)


class Scored:
    """A net that has lost units of its scores, and both networks run up to these."""

    def __init__(self, body: str, n_kept: int = 2, more: dict[str, Any] | None = None) -> None:
        graph, _, self.coupling = analyse(net(body, more))
        axis = self.coupling.axes["q"][-1]
        self.keep = {axis: np.arange(4) < n_kept}  # type: ignore[dict-item]
        self.graph = remove_units(self.coupling, self.keep)
        self.samples = draw_samples(graph, 60)
        self.inputs = as_inputs(graph.inputs, self.samples.feed(slice(0, 60)))
        self.twin = derived_twin(self.graph, self.coupling)
        self.codes = Codes(self.coupling, self.graph, self.twin)
        self.dense = Lockstep(derived_twin(graph, self.coupling), [self.inputs], ["s0", "p"])
        self.dense.advance(self.dense.places["p"] + 1)
        self.cut = self.run()
        self.layers = list(find_layers(self.coupling, self.graph, self.twin))

    def run(self) -> Lockstep:
        run = Lockstep(self.twin, [self.inputs])
        run.advance(run.calls["s0"])
        return run

    def scores(self) -> list[MatrixProduct]:
        return find_products(
            Cut(self.coupling, self.keep, self.graph), self.twin, self.layers, self.inputs
        )


def rows_of(
    left: np.ndarray, right: np.ndarray, wanted: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Lay every pair of positions of a head out as a row; with a softmax, weighted and centred."""
    rows = np.einsum("nti,njs->ntsij", left, right)
    rows = rows.reshape(*wanted.shape, -1)
    if weights is not None:
        rows = rows - (weights[..., None] * rows).sum(2, keepdims=True)
        wanted = wanted - (weights * wanted).sum(2, keepdims=True)
        rows, wanted = rows * np.sqrt(weights)[..., None], wanted * np.sqrt(weights)
    return rows.reshape(wanted.size, -1), wanted.reshape(-1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_scores_come_as_near_as_any_matrix_between_the_factors(name: str, weighted: bool) -> None:
    case = Scored(NETS[name])
    (scores,) = case.scores()
    assert scores.slot == (1 if name.startswith("keys") else 0)
    assert scores.softmax == "p"
    wanted = select_kept(case.dense.values("s0")[0], scores.kept)
    weights = select_kept(case.dense.values("p")[0], scores.kept) if weighted else None
    (factors,) = case.cut.arguments("s0")
    chunk = Products(*factors, wanted, weights)
    matrices, fit = fit_scores(scores, [chunk], [False], np.random.default_rng(0))
    total = before = after = least = 0.0
    for head in range(2):
        own = [None if v is None else v[:, head].double().numpy() for v in chunk]
        rows, y = rows_of(*own)  # type: ignore[arg-type]
        best = np.linalg.lstsq(rows, y, rcond=None)[0]
        found = matrices[int(scores.head.reshape(-1)[head])].reshape(-1).numpy()
        total += (y**2).sum()
        before += ((rows @ np.eye(2).reshape(-1) - y) ** 2).sum()
        after += ((rows @ found - y) ** 2).sum()
        least += ((rows @ best - y) ** 2).sum()
    assert after < 0.97 * before
    assert after == pytest.approx(least, rel=2e-3)
    assert fit.before == pytest.approx(before / total, rel=1e-4)
    assert fit.after == pytest.approx(after / total, rel=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_what_the_layer_has_given_becomes_what_it_would_give(name: str) -> None:
    case = Scored(NETS[name])
    (scores,) = case.scores()
    (factors,) = case.cut.arguments("s0")
    rng = np.random.default_rng(0)
    matrices = torch.from_numpy(rng.standard_normal((2, 2, 2)))
    case.cut.replace("s0", scores.slot, [recombine(scores, matrices, factors[scores.slot])])
    (replaced,) = case.cut.preview("s0")
    put_into_layer(scores, matrices, case.codes)
    (again,) = case.run().preview("s0")
    torch.testing.assert_close(again, replaced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["split", "gather"])
def test_values_of_a_fused_projection_stay(name: str) -> None:
    case = Scored(NETS[name])
    (scores,) = case.scores()
    key = case.twin.graph
    run = Lockstep(case.twin, [case.inputs], ["v", "k"])
    run.advance(len(key.nodes))
    before = run.values("v") + run.values("k")
    put_into_layer(scores, torch.full((2, 2, 2), 2.0, dtype=torch.float64), case.codes)
    run = Lockstep(case.twin, [case.inputs], ["v", "k"])
    run.advance(len(key.nodes))
    for old, new in zip(before, run.values("v") + run.values("k"), strict=True):
        assert torch.equal(old, new)


REFUSED = {
    "both are bent": f"{WEIGHTS}> {{{SEPARATE} c = Tanh(q) d = Tanh(k) s0 = MatMul(c, d)"
    f" s = Identity(s0){VALUES}",
    "queries and keys serve a second product": f"{WEIGHTS}> {{{SEPARATE} s0 = MatMul(q, k)"
    f" t = MatMul(q, k) s = Add(s0, t){VALUES}",
    "values are made of the same keys": f"{WEIGHTS.replace('[6,6] wv', '[8,6] wv')}> {{{SEPARATE}"
    f" c = Tanh(q) s0 = MatMul(c, k) s = Identity(s0){VALUES.replace('(x, wv)', '(k1, wv)')}",
    "data says which head is meant": f"{WEIGHTS}> {{{SEPARATE} c = Tanh(q)"
    " m = ReduceMax<axes=[0,1,2],keepdims=0>(x) z = Less(m, m) g = Cast<to=7>(z) which = Add(two, g)"
    f" h = Gather<axis=1>(k, which) s0 = MatMul(c, h) s = Identity(s0){VALUES}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_scores_without_a_layer_of_their_own_are_left_alone(name: str) -> None:
    assert Scored(REFUSED[name]).scores() == []


def test_scores_of_layers_whose_bias_stays_are_left_alone() -> None:
    """Recombined outputs would need a recombined bias."""
    case = Scored(NETS["separate"])
    assert case.scores()
    case.layers = [replace(layer, addend=2) for layer in case.layers]
    assert case.scores() == []


def test_scores_that_lost_no_unit_are_left_alone() -> None:
    assert Scored(NETS["separate"], n_kept=4).scores() == []


@pytest.mark.parametrize("name", NETS)
def test_a_refit_repairs_scores_with_everything_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs come nearer than with every layer refit and the scores left alone."""
    case = Scored(NETS[name])
    samples, held = (draw_samples(case.coupling.graph, 400, seed=seed) for seed in (0, 1))
    found, fits = refit(Cut(case.coupling, case.keep, case.graph), samples, 0)
    (scores,) = case.scores()
    assert any(fit.layer == scores.layer.weight for fit in fits)
    monkeypatch.setattr(module, "find_products", lambda *_: [])
    without, _ = refit(Cut(case.coupling, case.keep, case.graph), samples, 0)
    error, other = (output_error(case.coupling, g, held) for g in (found, without))
    assert error < 0.98 * other


@pytest.mark.parametrize(
    ("between", "slot"),
    [
        ("Mul(half, q)", 0),
        ("Div(q, half)", 0),
        ("Mul(q, q)", 1),
        ("Div(half, q)", 1),
        ("Add(q, half)", 1),
    ],
)
def test_queries_can_be_changed_in_front_of_a_scale_alone(between: str, slot: int) -> None:
    """Where they are not scaled by a number, keys are what can be changed."""
    body = f"{WEIGHTS}> {{{SEPARATE} c = {between} s0 = MatMul(c, k) s = Identity(s0){VALUES}"
    (scores,) = Scored(body).scores()
    assert scores.slot == slot


def test_a_product_with_itself_is_left_alone() -> None:
    body = (
        "float[6,8] w, float[8] b> { h = MatMul(x, w) q = Add(h, b) k = Transpose<perm=[0,2,1]>(q)"
        " s0 = MatMul(q, k) y = Softmax(s0) }"
    )
    graph, _, coupling = analyse(build(f"net (float[N,5,6] x) => (float[N,5,5] y) <{body}"))
    keep = {coupling.by_name["w:1"].dim: np.arange(8) < 5}
    cut, samples = remove_units(coupling, keep), draw_samples(graph, 100)
    found, fits = refit(Cut(coupling, keep, cut), samples, 0)
    assert np.array_equal(found.initializers["w"], cut.initializers["w"])
    assert fits == []


def test_a_softmax_of_old_that_runs_over_all_axes_gives_no_weights() -> None:
    for opset, found in ((11, ""), (13, "p")):
        graph, _, coupling = analyse(net(NETS["separate"], opset=opset))
        node = graph.producers["s0"]
        assert module_of_scores._softmax_of(coupling, graph, node) == found


@pytest.mark.parametrize(
    ("between", "found"),
    [
        ("Add(half, s0)", "p"),
        ("Sub(half, s0)", "p"),
        ("Mul(half, s0)", "p"),
        ("Div(s0, half)", "p"),
        ("Cast<to=1>(s0)", "p"),
        ("Where(seen, s0, half)", "p"),
        ("Div(half, s0)", ""),
        ("Tanh(s0)", ""),
    ],
)
def test_scores_keep_their_order_on_the_way_to_a_softmax(between: str, found: str) -> None:
    body = NETS["separate"].replace("Mul(s0, half)", between)
    more = {"seen": np.eye(5) > 0} if "seen" in between else None
    graph, _, coupling = analyse(net(body, more))
    node = graph.producers["s0"]
    assert module_of_scores._softmax_of(coupling, graph, node) == found


def test_who_asks_for_a_size_uses_no_values() -> None:
    body = NETS["separate"].replace(
        "s = Mul(s0, half)", "n = Size(q) m = Cast<to=1>(n) s = Mul(s0, m)"
    )
    (scores,) = Scored(body).scores()
    assert scores.slot == 0


def test_a_query_that_is_masked_whole_does_not_count() -> None:
    mask = np.zeros((5, 5), np.float32)
    mask[2] = -np.inf
    body = NETS["separate"].replace("s = Mul(s0, half)", "s1 = Mul(s0, half) s = Add(s1, mask)")
    body = body.replace("p = Softmax(s)", "p0 = Softmax(s) n = IsNaN(p0) p = Where(n, nothing, p0)")
    case = Scored(body, more={"mask": mask, "nothing": np.float32(0.0)})
    _, fits = refit(Cut(case.coupling, case.keep, case.graph), case.samples, 0)
    (fit,) = (fit for fit in fits if fit.layer == "wq")
    assert fit.after < fit.before


def test_a_vector_on_the_right_has_no_scores_to_repair() -> None:
    model = build(
        "net (float[N,5,6] x, float[1,6] z) => (float[N,5] y) <float[6,8] wq, float[6,8] wk>"
        "{ q0 = MatMul(x, wq) q = Tanh(q0) k0 = MatMul(z, wk) k = Squeeze(k0, zero)"
        " y = MatMul(q, k) }",
        {"zero": [0]},
    )
    graph, _, coupling = analyse(model)
    keep = {coupling.by_name["wq:1"].dim: np.arange(8) < 5}
    samples = draw_samples(graph, 1)
    assert refit(Cut.of(coupling, keep), samples, 0)[0]


def test_a_bias_behind_a_shared_weight_waits_for_its_siblings() -> None:
    """The products run one after the other, and the sums after them all."""
    model = build(
        "net (float[N,5,6] x) => (float[N,5,6] y) <float[6,8] w, float[8] bq, float[8] bk,"
        " float[6,6] wv> { q0 = MatMul(x, w) q = Add(q0, bq) k0 = MatMul(x, w) k1 = Add(k0, bk)"
        " k = Transpose<perm=[0,2,1]>(k1) v = MatMul(x, wv) s = MatMul(q, k) p = Softmax(s)"
        " y = MatMul(p, v) }"
    )
    graph, _, coupling = analyse(model)
    keep = {coupling.axes["q"][-1]: np.arange(8) < 4}
    cut = remove_units(coupling, keep)  # type: ignore[arg-type]
    assert refit(Cut(coupling, keep, cut), draw_samples(graph, 50), 0)[0]  # type: ignore[arg-type]
