"""Rows for operators that are frozen on purpose, and for transforms of signals.

In every row two weights come before the operator, so that the rest of the graph has units to lose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ops.cases import Case

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

BATCH = 3
MAPS = "H = Conv(X, W1) R = Relu(H) Z = Conv(R, W2)"
_MAPS = {"W1": (5, 4, 1, 1), "W2": (4, 5, 1, 1)}
ROWS = "H = MatMul(X, W1) R = Relu(H) Z = MatMul(R, W2)"
_ROWS = {"W1": (4, 5), "W2": (5, 4)}


def maps(
    name: str,
    op_type: str,
    text: str,
    constants: Mapping[str, ArrayLike] | None = None,
    **options: Any,
) -> Case:
    """Make a row with Z of shape [n, 4, 3, 3]; the operator is frozen and has no twin."""
    options = {"prunes": False, "has_twin": False, "batch": BATCH, **options}
    shape = {"X": (4, 3, 3)}
    return Case(name, op_type, f"{MAPS} {text}", shape, _MAPS, constants or {}, **options)


def rows(
    name: str,
    op_type: str,
    text: str,
    constants: Mapping[str, ArrayLike] | None = None,
    **options: Any,
) -> Case:
    """Make a row with Z of shape [n, 4]; the operator is frozen and has no twin."""
    options = {"prunes": False, "has_twin": False, "batch": BATCH, **options}
    return Case(name, op_type, f"{ROWS} {text}", {"X": (4,)}, _ROWS, constants or {}, **options)


_SHAPE = "[n,4,3,3]"
_BRANCHES = (
    "then_branch = yes () => (float[1] a) { a = Constant<value_floats=[2.0]>() }, "
    "else_branch = no () => (float[1] b) { b = Constant<value_floats=[3.0]>() }"
)
_LOOP = (
    f"body = step (int64 i, bool c, float{_SHAPE} v) => (bool d, float{_SHAPE} w)"
    " { d = Identity(c) t = Tanh(v) w = Add(t, v) }"
)
_SCAN = "body = step (float[3,3] s, float[3,3] v) => (float[3,3] t, float[3,3] w) { t = Add(s, v) w = Tanh(t) }"
_EACH = "body = each (float[n,2,3,3] v) => (float[n,2,3,3] w) { w = Tanh(v) }"
_POSITIVE = "M = ReduceMax<keepdims=0>(Z) C = Greater(M, zero)"
CONTROL = (
    maps(
        "branches",
        "If",
        f"{_POSITIVE} F = If(C) <{_BRANCHES}> Y = Mul(Z, F)",
        {"zero": 0.0},
        has_twin=True,
    ),
    maps(
        "carried",
        "Loop",
        f"Y = Loop(n, true, Z) <{_LOOP}>",
        {"n": 2, "true": np.array(True)},
        has_twin=True,
    ),
    maps(
        "rows",
        "Scan",
        f"A = ReduceSum<keepdims=0>(Z, one) T, B = Scan(zeros, A) <num_scan_inputs=1, {_SCAN}>"
        " Y = Mul(Z, B)",
        {"one": [0], "zeros": np.zeros((3, 3), np.float32)},
        has_twin=True,
    ),
    maps(
        "each",
        "SequenceMap",
        f"Q = SplitToSequence<axis=1>(Z, k) E = SequenceMap(Q) <{_EACH}>"
        " Y = ConcatFromSequence<axis=1>(E)",
        {"k": [2, 2]},
    ),
)
CONTAINERS = (
    maps("two", "SequenceConstruct", "Q = SequenceConstruct(Z, R) Y = SequenceAt(Q, k)", {"k": 0}),
    maps("first", "SequenceAt", "Q = SequenceConstruct(Z, Z) Y = SequenceAt(Q, k)", {"k": 0}),
    maps(
        "parts",
        "SplitToSequence",
        "Q = SplitToSequence<axis=1>(Z, k) Y = SequenceAt(Q, one)",
        {"k": [2, 2], "one": 1},
    ),
    maps(
        "joined",
        "ConcatFromSequence",
        "Q = SequenceConstruct(Z, Z) Y = ConcatFromSequence<axis=1>(Q)",
    ),
    maps("added", "SequenceEmpty", "Q = SequenceEmpty() S = SequenceInsert(Q, Z) Y = SequenceAt(S, k)", {"k": 0}),
    maps("added", "SequenceInsert", "Q = SequenceConstruct(Z) S = SequenceInsert(Q, Z, k) Y = SequenceAt(S, k)", {"k": 0}),
    maps("erased", "SequenceErase", "Q = SequenceConstruct(Z, R) S = SequenceErase(Q) Y = SequenceAt(S, k)", {"k": 0}),
    maps("counted", "SequenceLength", "Q = SequenceConstruct(Z, Z) L = SequenceLength(Q) F = Cast<to=1>(L) Y = Mul(Z, F)"),
    maps("wrapped", "Optional", "O = Optional(Z) Y = OptionalGetElement(O)", opset=18),
    maps("unwrapped", "OptionalGetElement", "O = Optional(Z) Y = OptionalGetElement(O)", opset=18),
    maps("tensor", "OptionalGetElement", "Y = OptionalGetElement(Z)", opset=18),
    maps("asked", "OptionalHasElement", "O = Optional(Z) B = OptionalHasElement(O) F = Cast<to=1>(B) Y = Mul(Z, F)", opset=18),
)  # fmt: skip
_LABELS = {"l": np.array([1, 0, 3])}
CHOICES = (
    maps(
        "boxes",
        "NonMaxSuppression",
        "A = Reshape(Z, boxes) P = Reshape(Z, scores) I = NonMaxSuppression(A, P, most)"
        " F = Cast<to=1>(I) S = ReduceSum<keepdims=0>(F) Y = Add(Z, S)",
        {"boxes": [BATCH, -1, 4], "scores": [BATCH, 4, 9], "most": 2},
        has_twin=True,
    ),
    rows("labels", "SoftmaxCrossEntropyLoss", "L = SoftmaxCrossEntropyLoss(Z, l) Y = Add(Z, L)", _LABELS, has_twin=True),
    rows(
        "probabilities",
        "SoftmaxCrossEntropyLoss",
        'L, P = SoftmaxCrossEntropyLoss<reduction="none">(Z, l) Y = Identity(P)',
        _LABELS,
        has_twin=True,
    ),
    rows("labels", "NegativeLogLikelihoodLoss", "L = NegativeLogLikelihoodLoss(Z, l) Y = Add(Z, L)", _LABELS, has_twin=True),
)  # fmt: skip
RANDOM = (
    maps("positions", "Bernoulli", "P = Sigmoid(Z) Y = Bernoulli<seed=1.0>(P)", batch=None, opset=15),
    maps("normal", "RandomNormal", "N = RandomNormal<seed=1.0, shape=[3,4,3,3]>() Y = Add(Z, N)"),
    maps("uniform", "RandomUniform", "N = RandomUniform<seed=1.0, shape=[3,4,3,3]>() Y = Add(Z, N)"),
    maps("like", "RandomNormalLike", "N = RandomNormalLike<seed=1.0>(Z) Y = Add(Z, N)", batch=None),
    maps("like", "RandomUniformLike", "N = RandomUniformLike<seed=1.0>(Z) Y = Add(Z, N)", batch=None),
    rows("classes", "Multinomial", "M = Multinomial<seed=1.0, sample_size=5>(Z) Y = Cast<to=1>(M)"),
)  # fmt: skip
_TEXT = "S = Cast<to=8>(I)"
TEXT = (
    rows("joined", "StringConcat", f"I = Cast<to=7>(Z) {_TEXT} C = StringConcat(S, S) Y = Cast<to=1>(C)", opset=20),
    rows("matched", "RegexFullMatch", f'I = Cast<to=7>(Z) {_TEXT} M = RegexFullMatch<pattern="-.*">(S) Y = Cast<to=1>(M)', opset=20),
    rows("split", "StringSplit", f'I = Cast<to=7>(Z) {_TEXT} P, N = StringSplit<delimiter="1">(S) Y = Cast<to=1>(N)', opset=20),
    rows("upper", "StringNormalizer", f'I = Cast<to=7>(Z) {_TEXT} N = StringNormalizer<case_change_action="UPPER", locale="C">(S) Y = Cast<to=1>(N)', batch=1),
    rows("counted", "TfIdfVectorizer", 'I = Cast<to=7>(Z) Y = TfIdfVectorizer<max_gram_length=1, max_skip_count=0, min_gram_length=1, mode="TF", ngram_counts=[0], ngram_indexes=[0,1,2], pool_int64s=[0,1,-1]>(I)'),
    rows("string", "Constant", 'I = Cast<to=7>(Z) S = Cast<to=8>(I) D = Constant<value_string="1">() C = StringConcat(S, D) Y = Cast<to=1>(C)', opset=20),
)  # fmt: skip


def classical(op_type: str, text: str, name: str = "numbers", **options: Any) -> Case:
    """Make a row of a classical model on Z of shape [n, 4]."""
    return rows(
        name,
        op_type,
        text.replace(op_type, f"ai.onnx.ml.{op_type}"),
        domain="ai.onnx.ml",
        **options,
    )


_TREE = (
    "nodes_falsenodeids=[2,0,0], nodes_featureids=[1,0,0], nodes_hitrates=[1.0,1.0,1.0],"
    ' nodes_modes=["BRANCH_LEQ","LEAF","LEAF"], nodes_nodeids=[0,1,2], nodes_treeids=[0,0,0],'
    " nodes_truenodeids=[1,0,0], nodes_values=[0.1,0.0,0.0]"
)
_SUPPORT = 'kernel_type="LINEAR", kernel_params=[1.0,0.0,1.0], coefficients=[1.0,-0.5], support_vectors=[1.0,2.0,3.0,4.0,0.5,0.2,0.1,0.3]'
CLASSICAL = (
    classical("ArrayFeatureExtractor", "Y = ArrayFeatureExtractor(Z, k)", constants={"k": [0, 2]}),
    classical("Binarizer", "Y = Binarizer<threshold=0.1>(Z)"),
    classical("FeatureVectorizer", "Y = FeatureVectorizer<inputdimensions=[4,5]>(Z, R)"),
    classical("Imputer", "Y = Imputer<imputed_value_floats=[0.5], replaced_value_float=0.0>(Z)"),
    classical("LinearRegressor", "Y = LinearRegressor<coefficients=[1.0,2.0,3.0,4.0], intercepts=[0.5]>(Z)"),
    classical("LinearClassifier", "L, Y = LinearClassifier<classlabels_ints=[0,1], coefficients=[1.0,2.0,3.0,4.0,0.1,0.2,0.3,0.4], intercepts=[0.5,0.1]>(Z)"),
    classical("Normalizer", 'Y = Normalizer<norm="L2">(Z)'),
    classical("Scaler", "Y = Scaler<offset=[0.1,0.2,0.3,0.4], scale=[1.0,2.0,3.0,4.0]>(Z)"),
    classical("OneHotEncoder", "I = Cast<to=7>(Z) F = OneHotEncoder<cats_int64s=[-1,0,1], zeros=1>(I) Y = Flatten(F)"),
    classical("SVMRegressor", f"Y = SVMRegressor<{_SUPPORT}, n_supports=2, rho=[0.2]>(Z)"),
    classical("SVMClassifier", f"L, Y = SVMClassifier<{_SUPPORT}, classlabels_ints=[0,1], vectors_per_class=[1,1], rho=[0.2]>(Z)"),
    classical("TreeEnsembleRegressor", f"Y = TreeEnsembleRegressor<{_TREE}, n_targets=1, target_ids=[0,0], target_nodeids=[1,2], target_treeids=[0,0], target_weights=[1.0,2.0]>(Z)"),
    classical("TreeEnsembleClassifier", f"L, Y = TreeEnsembleClassifier<{_TREE}, class_ids=[0,1], class_nodeids=[1,2], class_treeids=[0,0], class_weights=[1.0,2.0], classlabels_int64s=[0,1]>(Z)"),
    classical("CategoryMapper", 'I = Cast<to=7>(Z) S = Cast<to=8>(I) M = CategoryMapper<cats_int64s=[4,5], cats_strings=["0","1"], default_int64=2>(S) Y = Cast<to=1>(M)'),
    classical("LabelEncoder", 'I = Cast<to=7>(Z) S = Cast<to=8>(I) M = LabelEncoder<classes_strings=["0","1"], default_int64=2>(S) Y = Cast<to=1>(M)'),
    classical("ZipMap", "M = ZipMap<classlabels_int64s=[0,1,2,3]>(Z) Y = Relu(Z)"),
)  # fmt: skip
_SIGNAL = "U = Unsqueeze(Z, last)"
SIGNALS = (
    *(
        maps(
            f"columns_{periodic}",
            op_type,
            f"A = {op_type}<periodic={periodic}>(k) Y = Mul(Z, A)",
            {"k": 3},
            has_twin=True,
        )
        for op_type in ("BlackmanWindow", "HammingWindow", "HannWindow")
        for periodic in (0, 1)
    ),
    maps(
        "weights",
        "MelWeightMatrix",
        "A = MelWeightMatrix(bins, length, rate, low, high) F = Reshape(Z, to) B = MatMul(F, A)"
        " Y = Reshape(B, back)",
        {"bins": 3, "length": 6, "rate": 8000, "low": 0.0, "high": 4000.0, "to": [-1, 4], "back": [BATCH, 9, 3]},
    ),
    maps("maps", "Det", "D = Det(Z) Y = Relu(D)", prunes=True, has_twin=True, opset=11),
    maps("opset22", "Det", "D = Det(Z) Y = Relu(D)", prunes=True, has_twin=True, opset=22),
    maps("channels", "Det", "A = Slice(Z, a, b, one) T = Transpose<perm=[0,2,3,1]>(A) D = Det(T) Y = Relu(D)", {"a": [0], "b": [3], "one": [1]}, has_twin=True),
)  # fmt: skip


def fourier(name: str, attributes: str, inputs: str = "", opset: int = 20, **options: Any) -> Case:
    """Make a row that transforms Z of shape [n, 4, 3, 3], with parts that are real."""
    body = f"{_SIGNAL} F = DFT{attributes}(U{inputs}) Y = Reshape(F, to)"
    constants = {"last": [4], "to": [0, 4, -1, 1], "n": 5, "m": 2, "two": 2, "one": 1, "minus": -3}
    options = {"prunes": True, "has_twin": True, "opset": opset, **options}
    return maps(name, "DFT", body, constants, **options)


_COMPLEX = "A = Concat<axis=4>(U, V) F = DFT{}(A{}) Y = Reshape(F, to)".format
_PARTS = f"{_SIGNAL} V = Sin(U)"
_BACK = {"last": [4], "to": [0, 4, -1, 1], "two": 2}
FOURIER = (
    fourier("default", ""),
    fourier("axis", "", ", , two"),
    fourier("onesided", "<onesided=1>", ", , two"),
    fourier("longer", "", ", n, minus"),
    fourier("shorter", "<onesided=1>", ", m"),
    fourier("channels", "", ", , one", prunes=False),
    maps(
        "computed_axis",
        "DFT",
        f"{_SIGNAL} M = ReduceMax<keepdims=0>(Z) D = Sub(M, M) I = Cast<to=7>(D) A = Add(I, two)"
        " F = DFT(U, , A) Y = Reshape(F, to)",
        {"last": [4], "to": [0, 4, -1, 1], "two": 2},
        opset=20,
        has_twin=True,
    ),
    fourier("opset17", "<axis=2>", opset=17),
    fourier("opset17_longer", "<axis=-2, onesided=1>", ", n", opset=17),
    fourier("opset17_channels", "", opset=17, prunes=False),
    maps("complex", "DFT", f"{_PARTS} {_COMPLEX('', '')}", _BACK, prunes=True, has_twin=True, opset=20),
    maps("inverse", "DFT", f"{_PARTS} {_COMPLEX('<inverse=1>', ', , two')}", _BACK, prunes=True, has_twin=True, opset=20),
    maps("inverse_onesided", "DFT", f"{_PARTS} {_COMPLEX('<inverse=1, onesided=1>', '')}", _BACK, prunes=True, has_twin=True, opset=20),
    maps("inverse_17", "DFT", f"{_PARTS} {_COMPLEX('<inverse=1, axis=3>', '')}", _BACK, prunes=True, has_twin=True, opset=17),
)  # fmt: skip


def framed(
    name: str, inputs: str, attributes: str = "", parts: int = 1, made: str = "", **options: Any
) -> Case:
    """Make a row that transforms frames of 36 samples, or of 18 that are complex."""
    body = f"{made} S = Reshape(Z, to) F = STFT{attributes}(S{inputs}) Y = Reshape(F, back)"
    constants = {
        "to": [0, -1, parts], "back": [0, 1, -1, 2], "step": 4, "length": 8,
        "w": np.hanning(8).astype(np.float32),
    }  # fmt: skip
    options = {"has_twin": True, "batch": BATCH if made else None, **options}
    return maps(name, "STFT", body, constants, **options)


FRAMES = (
    framed("window", ", step, w", "<onesided=1>"),
    framed("length", ", step, , length", "<onesided=1>"),
    # onnx infers the shape of all frequencies where the attribute is left out
    framed("default", ", step, w", counted=False),
    framed("both", ", step, w, length", "<onesided=0>"),
    framed(
        "computed_window",
        ", step, v",
        "<onesided=1>",
        made="M = ReduceMax<keepdims=0>(Z) v = Mul(M, w)",
    ),
    framed("complex", ", step, w", "<onesided=0>", 2),
)
CASES = (
    *CONTROL, *CONTAINERS, *CHOICES, *RANDOM, *TEXT, *CLASSICAL, *SIGNALS, *FOURIER, *FRAMES,
)  # fmt: skip
WITHOUT_ROWS = frozenset({
    ("", "CausalConvWithState"),
    ("", "ImageDecoder"),
    ("", "LinearAttention"),
    ("", "SwiGLU"),
    ("ai.onnx.preview", "FlexAttention"),
    ("ai.onnx.ml", "CastMap"),
    ("ai.onnx.ml", "DictVectorizer"),
    ("ai.onnx.ml", "TreeEnsemble"),
    *(("ai.onnx.preview.training", name) for name in ("Adagrad", "Adam", "Gradient", "Momentum")),
})  # fmt: skip
"""What ONNX Runtime does not run, what takes maps, and what is younger than a row's domain."""
