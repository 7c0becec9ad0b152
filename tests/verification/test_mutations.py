"""`verify` says no to any single change of a file that `compress` wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build
from run.test_shared import UNRELATED, samples_of, siamese
from small import CHAIN
from verification.mutations import Mutation, additions, mutated, mutations

from obc_onnx.errors import ObcError
from obc_onnx.graph.model import Graph
from obc_onnx.run.api import compress, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.report.result import Result

IF = (
    "net (float[N,6] x, bool c) => (float[N,4] y)"
    "<float[8,6] a, float[8] k, float[6,8] b, float[4,6] d>"
    "{ p = Gemm<transB=1>(x, a, k) q = Relu(p) r = Gemm<transB=1>(q, b)"
    "  s = If(c) <then_branch = t () => (float[N,6] e) {"
    "  five = Constant<value_float=5.0>() e = Mul(r, five) },"
    "  else_branch = f () => (float[N,6] g) { h = Neg(r) g = Relu(h) }>"
    "  y = Gemm<transB=1>(s, d) }"
)
LOOP = (
    "net (float[2,6] x, int64 n) => (float[2,4] y) <float[8,6] a, float[6,8] b, float[4,6] d, bool go = {1}>"
    "{ p = Gemm<transB=1>(x, a) q = Relu(p) r = Gemm<transB=1>(q, b)"
    "  s = Loop(n, go, r) <body = l (int64 i, bool w, float[2,6] v) => (bool z, float[2,6] o) {"
    "  z = Identity(w) half = Constant<value_float=0.5>() o = Mul(v, half) }>"
    "  y = Gemm<transB=1>(s, d) }"
)
SCAN = (
    "net (float[3,6] x) => (float[3,4] y) <float[8,6] a, float[6,8] b, float[4,6] d, float[6] h>"
    "{ p = Gemm<transB=1>(x, a) q = Relu(p) r = Gemm<transB=1>(q, b)"
    "  last, s = Scan(h, r) <num_scan_inputs = 1, body = l (float[6] v, float[6] w) =>"
    "  (float[6] o, float[6] z) { half = Constant<value_float=0.5>() u = Mul(v, half)"
    "  o = Add(u, w) z = Identity(o) }>"
    "  y = Gemm<transB=1>(s, d) }"
)
QUANTISED = (
    "net (float[N,6] x) => (float[N,4] y)"
    "<int8[6,8] a, float scale = {0.05}, int8 zero = {0}, float[8] k, float[8,4] d>"
    "{ w = DequantizeLinear(a, scale, zero) p = MatMul(x, w) c = Add(p, k) q = Relu(c)"
    "  y = MatMul(q, d) }"
)
UNBIASED = CHAIN.replace(" float[12] a_bias,", "").replace("(x, a, a_bias)", "(x, a)")
ATTENTION = (
    "net (float[N,5,6] x) => (float[N,5,6] y)"
    "<float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,6] wo>"
    "{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) sh = Shape(q)"
    "  d = Slice(sh, two, three) f = Cast<to=1>(d) root = Sqrt(f) kt = Transpose<perm=[0,2,1]>(k)"
    "  s = MatMul(q, kt) ss = Div(s, root) p = Softmax(ss) a = MatMul(p, v) y = MatMul(a, wo) }"
)
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolutions": lambda: described(build(CHAIN)),
    "shared layers": lambda: siamese("Conv"),
    "merged biases": lambda: build(UNRELATED),
    "If": lambda: build(IF),
    "Loop": lambda: build(LOOP),
    "Scan": lambda: build(SCAN),
    "quantised": lambda: build(QUANTISED, {"a": np.arange(48).reshape(6, 8).astype(np.int8)}),
    "attention": lambda: build(ATTENTION, {"two": [2], "three": [3]}),
}


def described(model: onnx.ModelProto) -> onnx.ModelProto:
    """Say something of everything that something can be said of."""
    graph = model.graph
    for number, holder in enumerate(
        (model, graph, graph.node[0], graph.initializer[0], graph.input[0])
    ):
        holder.doc_string = f"text {number}"
        entry = holder.metadata_props.add()
        entry.key, entry.value = f"key {number}", "value"
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "org.example"
    model.model_version = 7
    graph.input[0].type.denotation = "IMAGE"
    note = graph.quantization_annotation.add()
    note.tensor_name = "q"
    entry = note.quant_parameter_tensor_names.add()
    entry.key, entry.value = "SCALE_TENSOR", "a"
    return model


def is_refused(original: Graph, changed: onnx.ModelProto, result: Result) -> bool:
    try:
        onnx.checker.check_model(changed)  # as when a file is read
        after = Graph.from_model(changed)
        checks = verify(original, after, result.plan)
    except (ObcError, onnx.checker.ValidationError, ValueError):
        return True
    return not all(check.passed for check in checks)


TRAINED = ("convolutions", "shared layers", "merged biases", "attention")


@pytest.mark.parametrize(
    ("name", "trained"), [*((n, False) for n in MODELS), *((n, True) for n in TRAINED)]
)
def test_no_single_change_is_overlooked(name: str, *, trained: bool) -> None:
    model = MODELS[name]()
    original = Graph.from_model(model)
    asked = {"data": samples_of(model, 20), "training": 1} if trained else {}
    result = compress(model, budget=0.7, criterion="l2", **asked)
    written = result.model
    assert not is_refused(original, written, result)
    changes = list(mutations(written))
    assert len(changes) > 50
    overlooked = [
        mutation.where
        for mutation in changes
        if not is_refused(original, mutated(written, mutation), result)
    ]
    assert overlooked == []


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", ["convolutions", "no bias", "shared layers", "merged biases"])
def test_nothing_that_is_added_is_overlooked(name: str, *, trained: bool) -> None:
    model = build(UNBIASED) if name == "no bias" else MODELS[name]()
    original = Graph.from_model(model)
    asked = {"data": samples_of(model, 20), "training": 1} if trained else {}
    result = compress(model, budget=0.7, criterion="l2", **asked)
    assert not is_refused(original, result.model, result)
    overlooked = [
        addition.where
        for addition in additions(result.model)
        if not is_refused(original, mutated(result.model, addition), result)
    ]
    assert overlooked == []


PARALLEL = (
    "net (float[N,6] xa, float[N,6] xb) => (float[N,4] ya, float[N,4] yb)"
    "<float[8,6] v, float[8,6] w, float[8] k, float[4,8] d, float[4,8] e>"
    "{ pa = Gemm<transB=1>(xa, v, k) qa = Relu(pa) ya = Gemm<transB=1>(qa, d)"
    "  pb = Gemm<transB=1>(xb, w, k) qb = Relu(pb) yb = Gemm<transB=1>(qb, e) }"
)


@pytest.mark.parametrize("text", ["shared layers", PARALLEL], ids=["shared", "apart"])
def test_the_order_of_nodes_and_initializers_does_not_matter(text: str) -> None:
    model = MODELS[text]() if text in MODELS else build(text)
    result = compress(model, budget=0.7, criterion="l2")
    other = mutated(result.model, Mutation("", lambda _: None))
    branches = sorted(result.model.graph.node, key=lambda node: node.output[0][-1], reverse=True)
    for field, found in (
        (other.graph.node, branches),
        (other.graph.initializer, list(result.model.graph.initializer)[::-1]),
    ):
        del field[:]
        field.extend(found)
    onnx.checker.check_model(other)
    checks = verify(Graph.from_model(model), Graph.from_model(other), result.plan)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
