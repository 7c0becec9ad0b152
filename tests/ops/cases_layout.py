"""Rows for reshapes and transposes, and for the shape arithmetic around them."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

FLAT = {"X": (8,)}
SMALL = {"X": (4, 3, 3)}
SHUFFLE = "A = Reshape(X, to) B = Transpose<perm=[0,2,1,3,4]>(A) Y = Reshape(B, back)"

RESHAPE = (
    Case("flatten", "Reshape", "Y = Reshape(X, to)", SMALL, {}, {"to": [0, -1]}),
    Case("flatten_rest", "Reshape", "Y = Reshape(X, to)", SMALL, {}, {"to": [-1, 36]}),
    Case("copy", "Reshape", "Y = Reshape(X, to)", SMALL, {}, {"to": [0, 0, -1]}),
    Case("written", "Reshape", "Y = Reshape(X, to)", SMALL, {}, {"to": [-1, 4, 9]}),
    Case("allowzero", "Reshape", "Y = Reshape<allowzero=1>(X, to)", SMALL, {}, {"to": [-1, 4, 9]}),
    Case("heads", "Reshape", "Y = Reshape(X, to)", FLAT, {}, {"to": [0, 2, 4]}),
    Case("merge", "Reshape", "A = Reshape(X, to) B = Relu(A) Y = Reshape(B, back)", FLAT, {}, {"to": [0, 2, 4], "back": [0, -1]}),
    Case("shuffle", "Reshape", SHUFFLE, {"X": (8, 4, 4)}, {}, {"to": [0, 2, 4, 4, 4], "back": [0, -1, 4, 4]}),
    Case("shuffle_and_split", "Reshape", f"{SHUFFLE.replace('Y =', 'H =')} C, D = Split<axis=1>(H, k) Y = Concat<axis=1>(D, C)", {"X": (8, 4, 4)}, {}, {"to": [-1, 2, 4, 4, 4], "back": [-1, 8, 4, 4], "k": [4, 4]}),
    Case("pixel_shuffle", "Reshape", "A = Reshape(X, to) B = Transpose<perm=[0,1,4,2,5,3]>(A) Y = Reshape(B, back)", {"X": (8, 3, 3)}, {}, {"to": [-1, 2, 2, 2, 3, 3], "back": [-1, 2, 6, 6]}),
    Case("crossing", "Reshape", "A = Reshape(X, to) B = Transpose<perm=[0,2,1]>(A) Y = Reshape(B, to)", {"X": (12,)}, {}, {"to": [0, 3, 4]}),
    Case("batch_merged", "Reshape", "A = Reshape(X, to) B = Relu(A) Y = Reshape(B, back)", {"X": (8, 3, 3)}, {}, {"to": [-1, 4, 3, 3], "back": [-1, 8, 3, 3]}),
    Case("computed", "Reshape", "S = Shape(X) N = Gather(S, i) T = Concat<axis=0>(N, k) Y = Reshape(X, T)", SMALL, {}, {"i": [0], "k": [36]}),
    Case("computed_scalar", "Reshape", "S = Shape(X) N = Gather(S, i) U = Unsqueeze(N, z) T = Concat<axis=0>(U, k) Y = Reshape(X, T)", SMALL, {}, {"i": 0, "z": [0], "k": [4, 9]}),
    Case("computed_product", "Reshape", "S = Shape(X) C = Gather(S, i) H = Gather(S, j) P = Mul(C, H) T = Concat<axis=0>(m, P, h) Y = Reshape(X, T)", SMALL, {}, {"i": [1], "j": [2], "m": [-1], "h": [3]}),
    Case("computed_channels", "Reshape", "S = Shape(X) H = Slice(S, a, b) T = Concat<axis=0>(H, k) Y = Reshape(X, T)", SMALL, {}, {"a": [0], "b": [2], "k": [9]}),
    Case("static_batch", "Reshape", "Y = Reshape(X, to)", SMALL, {}, {"to": [3, 36]}, batch=3),
    Case("weight", "Reshape", "P = Reshape(W, to) Y = Add(X, P)", weights={"W": (4,)}, constants={"to": [4, 1, 1]}),
    Case("weight_open", "Reshape", "P = Reshape(W, to) Y = Mul(X, P)", weights={"W": (4,)}, constants={"to": [1, -1, 1, 1]}),
    Case("shared_target", "Reshape", "A = Reshape(X, to) B = Reshape(Z, to) Y = Concat<axis=1>(A, B)", {"X": (4, 3, 3), "Z": (4, 3, 3)}, {}, {"to": [-1, 36]}),
    Case("shared_number", "Reshape", "S = Shape(X) N = Gather(S, i) T = Concat<axis=0>(N, k) A = Reshape(X, T) B = Reshape(Z, T) Y = Concat<axis=1>(A, B)", {"X": (4, 3, 3), "Z": (4, 3, 3)}, {}, {"i": [0], "k": [36]}),
    Case("number_used_otherwise", "Reshape", "S = Shape(X) N = Gather(S, i) T = Concat<axis=0>(N, k) A = Reshape(X, T) B = Slice(Z, i, k, one) Y = Concat<axis=1>(A, B)", {"X": (4, 2, 1), "Z": (12,)}, {}, {"i": [0], "k": [8], "one": [1]}),
)  # fmt: skip
AXES = (
    Case("default", "Flatten", "Y = Flatten(X)", SMALL),
    Case("rows", "Flatten", "Y = Flatten<axis=2>(X)", SMALL),
    Case("columns", "Flatten", "Y = Flatten<axis=3>(X)", SMALL),
    Case("negative", "Flatten", "Y = Flatten<axis=-1>(X)", SMALL),
    Case("negative_channels", "Flatten", "Y = Flatten<axis=-3>(X)", SMALL),
    Case("everything", "Flatten", "Y = Flatten<axis=0>(X)", SMALL, batch=2),
    Case("features", "Flatten", "Y = Flatten(X)", FLAT),
    Case("channels_last", "Transpose", "Y = Transpose<perm=[0,2,3,1]>(X)", {"X": (4, 5, 6)}),
    Case(
        "there_and_back",
        "Transpose",
        "A = Transpose<perm=[0,2,3,1]>(X) B = Mul(A, P) Y = Transpose<perm=[0,3,1,2]>(B)",
        weights={"P": (4,)},
    ),
    Case("reversed", "Transpose", "A = Transpose(X) Y = Transpose(A)"),
    Case("attribute", "Squeeze", "G = GlobalAveragePool(X) Y = Squeeze<axes=[2,3]>(G)", opset=11),
    Case(
        "negative",
        "Squeeze",
        "G = GlobalAveragePool(X) Y = Squeeze<axes=[-1,-2]>(G)",
        opset=11,
    ),
    Case(
        "input",
        "Squeeze",
        "G = GlobalAveragePool(X) Y = Squeeze(G, k)",
        constants={"k": [-1, 2]},
    ),
    Case("everything", "Squeeze", "G = GlobalAveragePool(X) Y = Squeeze(G)", {"X": (4, 2, 2)}),
    Case(
        "everything_11",
        "Squeeze",
        "G = GlobalMaxPool(X) Y = Squeeze(G)",
        {"X": (2, 4, 4)},
        opset=11,
    ),
    Case(
        "numbers",
        "Squeeze",
        "S = Shape(X) N = Gather(S, i) M = Squeeze(N, z) U = Unsqueeze(M, z) T = Concat<axis=0>(U, k) Y = Reshape(X, T)",
        SMALL,
        {},
        {"i": [0], "z": [0], "k": [-1]},
    ),
    Case("attribute", "Unsqueeze", "Y = Unsqueeze<axes=[2,3]>(X)", FLAT, opset=11),
    Case("input", "Unsqueeze", "Y = Unsqueeze(X, k)", FLAT, {}, {"k": [2, 3]}),
    Case("negative", "Unsqueeze", "Y = Unsqueeze(X, k)", FLAT, {}, {"k": [-1, -3]}),
    Case("in_front", "Unsqueeze", "Y = Unsqueeze(X, k)", FLAT, {}, {"k": [1]}),
    Case("unsorted", "Unsqueeze", "Y = Unsqueeze(X, k)", FLAT, {}, {"k": [3, 2]}),
)
NUMBERS = (
    Case("whole", "Shape", "S = Shape(X) Y = Reshape(Z, S)", {"X": (4, 6, 6), "Z": (4, 6, 6)}),
    Case(
        "range",
        "Shape",
        "S = Shape<start=0, end=2>(X) T = Concat<axis=0>(S, k) Y = Reshape(X, T)",
        SMALL,
        {},
        {"k": [-1]},
    ),
    Case(
        "negative_range",
        "Shape",
        "S = Shape<start=-2>(X) T = Concat<axis=0>(k, S) Y = Reshape(X, T)",
        {"X": (6, 3, 5)},
        {},
        {"k": [-1, 6]},
    ),
    Case(
        "value",
        "Shape",
        "S = Shape(X) F = Cast<to=1>(S) M = ReduceMean<keepdims=0>(F) Y = Mul(X, M)",
    ),
    Case(
        "numbers",
        "Gather",
        "S = Shape(X) H = Gather(S, i) T = Concat<axis=0>(H, k) Y = Reshape(X, T)",
        SMALL,
        {},
        {"i": [0, -3], "k": [-1]},
    ),
    Case("rows", "Gather", "Y = Gather<axis=2>(X, i)", constants={"i": [0, 2, -1]}),
    Case("row", "Gather", "Y = Gather<axis=3>(X, i)", constants={"i": 1}),
    Case("channels", "Gather", "Y = Gather<axis=1>(X, i)", constants={"i": [2, 0]}),
    Case("table", "Gather", "Y = Gather<axis=-1>(X, i)", constants={"i": [[0, 1], [5, -2]]}),
    Case(
        "weight",
        "Gather",
        "P = Gather(W, i) Y = Mul(X, P)",
        weights={"W": (3, 4, 1, 1)},
        constants={"i": 1},
    ),
    Case(
        "int32",
        "Gather",
        "Y = Gather<axis=2>(X, i)",
        constants={"i": np.array([1, -1], np.int32)},
    ),
)
CASES = (*RESHAPE, *AXES, *NUMBERS)
