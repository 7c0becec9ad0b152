"""Rows for Concat, Split, Slice and Pad."""

from __future__ import annotations

from ops.cases import Case

FLAT = {"X": (8,)}
TWO = {"X": (4, 6, 6), "Z": (5, 6, 6)}
HALVES = "Y = Mul(A, B)"
END = 2**63 - 1

CONCAT = (
    Case("channels", "Concat", "Y = Concat<axis=1>(X, Z)", TWO),
    Case("negative_axis", "Concat", "Y = Concat<axis=-3>(Z, X)", TWO),
    Case("itself", "Concat", "Y = Concat<axis=1>(X, X)"),
    Case("itself_thrice", "Concat", "Y = Concat<axis=1>(X, Z, X)", TWO),
    Case("one", "Concat", "Y = Concat<axis=1>(X)"),
    Case("rows", "Concat", "Y = Concat<axis=2>(X, Z)", {"X": (4, 6, 6), "Z": (4, 2, 6)}),
    Case("features", "Concat", "Y = Concat<axis=-1>(X, Z)", {"X": (8,), "Z": (3,)}),
    Case(
        "constant", "Concat", "Y = Concat<axis=1>(X, P)", weights={"P": (2, 3, 6, 6)}, batch=2
    ),
    Case(
        "dense_block",
        "Concat",
        "R = Relu(X) D = Concat<axis=1>(X, R, Z) Y = Concat<axis=1>(D, Z)",
        TWO,
    ),
    Case(
        "numbers",
        "Concat",
        "S = Shape(X) H = Gather(S, a) T = Concat<axis=0>(H, k) Y = Reshape(X, T)",
        {"X": (4, 3, 3)},
        {},
        {"a": [0], "k": [-1]},
    ),
)
SPLIT = (
    Case("equal", "Split", f"A, B = Split<axis=1>(X) {HALVES}", opset=13),
    Case("equal_11", "Split", f"A, B = Split<axis=-3>(X) {HALVES}", opset=11),
    Case("num_outputs", "Split", f"A, B = Split<axis=1, num_outputs=2>(X) {HALVES}", opset=18),
    Case(
        "uneven",
        "Split",
        "A, B = Split<axis=1, num_outputs=2>(X) Y = Concat<axis=1>(B, A)",
        {"X": (5, 6, 6)},
        opset=18,
    ),
    Case(
        "attribute",
        "Split",
        "A, B = Split<axis=1, split=[1,3]>(X) Y = Concat<axis=1>(B, A)",
        opset=11,
    ),
    Case(
        "input",
        "Split",
        "A, B, C = Split<axis=1>(X, k) D = Add(A, C) Y = Concat<axis=1>(B, D)",
        {"X": (8, 6, 6)},
        {},
        {"k": [2, 4, 2]},
    ),
    Case(
        "half_read", "Split", "Y, B = Split<axis=1>(X, k)", {"X": (8, 6, 6)}, {}, {"k": [5, 3]}
    ),
    Case("rows", "Split", f"A, B = Split<axis=2>(X) {HALVES}"),
    Case(
        "default_axis",
        "Split",
        "T = Transpose(X) A, B = Split(T, k) C = Concat<axis=0>(B, A) Y = Transpose(C)",
        FLAT,
        {},
        {"k": [3, 5]},
    ),
    Case(
        "features",
        "Split",
        "A, B = Split<axis=-1>(X, k) Y = Concat<axis=-1>(B, A, B)",
        FLAT,
        {},
        {"k": [3, 5]},
    ),
    Case("one", "Split", "Y = Split<axis=1>(X, k)", constants={"k": [4]}),
    Case(
        "shared_sizes",
        "Split",
        "A, B = Split<axis=1>(X, k) C, D = Split<axis=1>(Z, k) Y = Concat<axis=1>(A, D, C, B)",
        {"X": (8, 6, 6), "Z": (8, 6, 6)},
        {},
        {"k": [5, 3]},
    ),
)
SLICE = (
    Case("attributes", "Slice", "Y = Slice<starts=[1], ends=[3], axes=[1]>(X)", opset=9),
    Case(
        "attributes_default_axes", "Slice", "Y = Slice<starts=[0,1], ends=[99,4]>(X)", opset=9
    ),
    Case(
        "inputs",
        "Slice",
        "Y = Slice(X, a, b, c)",
        {"X": (8, 6, 6)},
        {},
        {"a": [2], "b": [6], "c": [1]},
    ),
    Case(
        "negative",
        "Slice",
        "Y = Slice(X, a, b, c)",
        {"X": (8, 6, 6)},
        {},
        {"a": [-6], "b": [-1], "c": [-3]},
    ),
    Case(
        "open_end",
        "Slice",
        "Y = Slice(X, a, b, c)",
        {"X": (8, 6, 6)},
        {},
        {"a": [3], "b": [END], "c": [1]},
    ),
    Case(
        "unit_steps",
        "Slice",
        "Y = Slice(X, a, b, c, d)",
        {"X": (8, 6, 6)},
        {},
        {"a": [1, 2], "b": [7, 5], "c": [1, 3], "d": [1, 1]},
    ),
    Case(
        "strided_rows",
        "Slice",
        "Y = Slice(X, a, b, c, d)",
        constants={"a": [0, 0], "b": [END, END], "c": [2, 3], "d": [2, 2]},
    ),
    Case(
        "strided_rows_and_channels",
        "Slice",
        "Y = Slice(X, a, b, c, d)",
        {"X": (8, 6, 6)},
        {},
        {"a": [1, 0], "b": [6, END], "c": [1, 3], "d": [1, 2]},
    ),
    Case(
        "strided_channels",
        "Slice",
        "Y = Slice(X, a, b, c, d)",
        {"X": (8, 6, 6)},
        {},
        {"a": [0], "b": [END], "c": [1], "d": [2]},
    ),
    Case(
        "reversed_rows",
        "Slice",
        "Y = Slice(X, a, b, c, d)",
        constants={"a": [-1], "b": [-END], "c": [2], "d": [-1]},
    ),
    Case(
        "reversed_channels",
        "Slice",
        "Y = Slice(X, a, b, c, d)",
        constants={"a": [-1], "b": [-END], "c": [1], "d": [-1]},
    ),
    Case(
        "halves",
        "Slice",
        "A = Slice(X, a, b, c) B = Slice(X, b, d, c) Y = Concat<axis=1>(B, A)",
        {"X": (8, 6, 6)},
        {},
        {"a": [0], "b": [3], "c": [1], "d": [8]},
    ),
    Case(
        "overlapping",
        "Slice",
        "A = Slice(X, a, b, c) B = Slice(X, d, e, c) Y = Concat<axis=1>(B, A)",
        {"X": (8, 6, 6)},
        {},
        {"a": [0], "b": [5], "c": [1], "d": [3], "e": [8]},
    ),
    Case(
        "computed",
        "Slice",
        "S = Shape(Z) L = Gather(S, i) Y = Slice(X, a, L, i)",
        {"X": (6, 6, 6), "Z": (4, 3, 3)},
        {},
        {"a": [0], "i": [2]},
    ),
    Case(
        "computed_channels",
        "Slice",
        "S = Shape(Z) L = Gather(S, i) W = Slice(X, a, L, i) Y = Add(W, Z)",
        {"X": (6, 6, 6), "Z": (4, 6, 6)},
        {},
        {"a": [0], "i": [1]},
    ),
    Case(
        "computed_by_channels",
        "Slice",
        "S = Shape(Z) L = Gather(S, i) W = Slice(X, a, L, j) G = GlobalMaxPool(W)"
        " H = GlobalMaxPool(Z) Y = Concat<axis=1>(G, H)",
        {"X": (6, 6, 6), "Z": (4, 6, 6)},
        {},
        {"a": [0], "i": [1], "j": [2]},
    ),
    Case(
        "nothing",
        "Slice",
        "A = Slice(X, a, b, c) Y = Concat<axis=1>(X, A)",
        constants={"a": [3], "b": [1], "c": [1]},
    ),
    Case(
        "numbers",
        "Slice",
        "S = Shape(X) H = Slice(S, a, b) T = Concat<axis=0>(H, k) Y = Reshape(X, T)",
        {"X": (4, 3, 3)},
        {},
        {"a": [0], "b": [2], "k": [-1]},
    ),
    Case(
        "after_flatten",
        "Slice",
        "F = Flatten(X) Y = Slice(F, a, b, c)",
        {"X": (4, 3, 3)},
        {},
        {"a": [9], "b": [27], "c": [1]},
    ),
)
PAD = (
    Case("attribute", "Pad", "Y = Pad<pads=[0,0,1,1,0,0,2,1]>(X)", opset=10),
    Case("attribute_value", "Pad", "Y = Pad<pads=[0,1,0,0,0,2,0,0], value=0.5>(X)", opset=10),
    Case("rows", "Pad", "Y = Pad(X, k)", constants={"k": [0, 0, 1, 0, 0, 0, 1, 2]}),
    Case(
        "value", "Pad", "Y = Pad(X, k, v)", constants={"k": [0, 0, 1, 0, 0, 0, 1, 2], "v": 1.5}
    ),
    Case("channels", "Pad", "Y = Pad(X, k)", constants={"k": [0, 2, 0, 0, 0, 3, 0, 0]}),
    Case(
        "channels_value",
        "Pad",
        "Y = Pad(X, k, v)",
        constants={"k": [0, 2, 0, 0, 0, 3, 0, 0], "v": 1.5},
    ),
    Case("channels_behind", "Pad", "Y = Pad(X, k)", constants={"k": [0, 0, 0, 0, 0, 4, 0, 0]}),
    Case(
        "shortcut",
        "Pad",
        "S = Slice(X, a, b, c, d) P = Pad(S, k) Y = Add(P, Z)",
        {"X": (4, 6, 6), "Z": (8, 3, 3)},
        {},
        {
            "a": [0, 0],
            "b": [END, END],
            "c": [2, 3],
            "d": [2, 2],
            "k": [0, 2, 0, 0, 0, 2, 0, 0],
        },
    ),
    Case(
        "shared_amounts",
        "Pad",
        "A = Pad(X, k) B = Pad(Z, k) Y = Concat<axis=1>(A, B)",
        TWO,
        {},
        {"k": [0, 2, 0, 0, 0, 3, 0, 0]},
    ),
    Case("crop", "Pad", "Y = Pad(X, k)", constants={"k": [0, 0, -1, 0, 0, 0, -1, -2]}),
    Case("crop_channels", "Pad", "Y = Pad(X, k)", constants={"k": [0, -1, 0, 0, 0, 2, 0, 0]}),
    Case(
        "reflect",
        "Pad",
        'Y = Pad<mode="reflect">(X, k)',
        constants={"k": [0, 0, 2, 1, 0, 0, 1, 0]},
    ),
    Case(
        "reflect_channels",
        "Pad",
        'Y = Pad<mode="reflect">(X, k)',
        constants={"k": [0, 1, 0, 0, 0, 2, 0, 0]},
    ),
    Case(
        "edge", "Pad", 'Y = Pad<mode="edge">(X, k)', constants={"k": [0, 0, 2, 1, 0, 0, 1, 0]}
    ),
    Case("edge_10", "Pad", 'Y = Pad<mode="edge", pads=[0,0,1,1,0,0,2,1]>(X)', opset=10),
    Case(
        "wrap",
        "Pad",
        'Y = Pad<mode="wrap">(X, k)',
        constants={"k": [0, 0, 2, 1, 0, 0, 1, 0]},
        opset=19,
    ),
    Case(
        "axes",
        "Pad",
        "Y = Pad(X, k, , axes)",
        constants={"k": [2, 1, 3, 0], "axes": [1, 3]},
        opset=18,
    ),
    Case(
        "negative_axes",
        "Pad",
        "Y = Pad(X, k, v, axes)",
        constants={"k": [2, 3], "axes": [-3], "v": 0.5},
        opset=18,
    ),
    Case("features", "Pad", "Y = Pad(X, k)", FLAT, {}, {"k": [0, 2, 0, 3]}),
)
CASES = (*CONCAT, *SPLIT, *SLICE, *PAD)
