"""Rows for norms: over last axes, channels, groups, windows and along one axis."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

TOKENS = {"X": (5, 8)}
GRID = {"X": (4, 3, 5)}
EIGHT = {"X": (8, 5, 3)}
RUNTIME = "com.microsoft"
ONES = {"one": [1.0] * 4, "none": [0.0] * 4}


def norm(op_type: str, name: str, call: str, *shapes: tuple[int, ...], **options: object) -> Case:
    """Make a row of `call`, whose weights S and B have the given shapes."""
    weights = dict(zip("SB", shapes, strict=False))
    inputs = options.pop("inputs", GRID)
    return Case(name, op_type, call, inputs, weights, **options)


LAYER = (
    norm("LayerNormalization", "features", "Y = LayerNormalization(X, S, B)", (8,), (8,),
         inputs=TOKENS, last=True),
    norm("LayerNormalization", "channels_pass", "Y = LayerNormalization(X, S, B)", (5,), (5,)),
    norm("LayerNormalization", "no_bias", "Y = LayerNormalization<epsilon=0.1>(X, S)", (5,)),
    norm("LayerNormalization", "axis", "Y = LayerNormalization<axis=2>(X, S, B)", (3, 5), (3, 5)),
    norm("LayerNormalization", "over_channels", "Y = LayerNormalization<axis=-3>(X, S, B)",
         (4, 3, 5), (4, 3, 5)),
    norm("LayerNormalization", "one_scale", "Y = LayerNormalization<axis=2>(X, S, B)", (1,), (1,)),
    norm("LayerNormalization", "scale_of_last_axis",
         "Y = LayerNormalization<axis=2>(X, S, B)", (5,), (5,)),
    norm("LayerNormalization", "scale_per_channel", "Y = LayerNormalization(X, S)", (4, 1, 5)),
    norm("LayerNormalization", "scale_and_bias_differ",
         "Y = LayerNormalization(X, S, B)", (4, 1, 5), (5,)),
    norm("LayerNormalization", "one_scale_many_biases",
         "Y = LayerNormalization(X, S, B)", (1,), (4, 1, 5)),
    norm("LayerNormalization", "scale_of_channels",
         "Y = LayerNormalization<axis=1>(X, S, B)", (4, 1, 1), (4, 1, 1)),
    norm("LayerNormalization", "statistics",
         "A, M, D = LayerNormalization<axis=2>(X, S, B) N = Add(A, M) Y = Mul(N, D)",
         (3, 5), (3, 5)),
    norm("LayerNormalization", "mean_only",
         "A, M = LayerNormalization(X, S) Y = Add(A, M)", (5,)),
    norm("LayerNormalization", "last_statistic",
         "A, , D = LayerNormalization(X, S) Y = Mul(A, D)", (5,)),
    norm("LayerNormalization", "two_axes", "Y = LayerNormalization(X, S)", (8,),
         inputs={"X": (8,)}, opset=18),
    norm("LayerNormalization", "computed_scale",
         "G = ReduceMean<axes=[0, 1], keepdims=0>(Z) Y = LayerNormalization(X, G)",
         inputs={"X": (5, 8), "Z": (5, 8)}, last=True),
    norm("SimplifiedLayerNormalization", "features",
         "Y = SimplifiedLayerNormalization<epsilon=1e-6>(X, S)", (8,), inputs=TOKENS, last=True),
    norm("SimplifiedLayerNormalization", "channels_pass",
         "A, V = SimplifiedLayerNormalization<axis=-1>(X, S) Y = Add(A, V)", (5,)),
    norm("LayerNormalization", "before_its_opset", "Y = LayerNormalization(X, S)", (8,),
         inputs=TOKENS, last=True, opset=13),
    norm("RMSNormalization", "features", "Y = RMSNormalization(X, S)", (8,),
         inputs=TOKENS, last=True, opset=23),
    norm("RMSNormalization", "channels_pass", "Y = RMSNormalization<epsilon=0.1>(X, S)", (5,),
         opset=23),
    norm("RMSNormalization", "axis", "Y = RMSNormalization<axis=2>(X, S)", (3, 5), opset=24),
    norm("RMSNormalization", "over_channels", "Y = RMSNormalization<axis=-3>(X, S)", (4, 3, 5),
         opset=23),
    norm("RMSNormalization", "scale_per_channel", "Y = RMSNormalization(X, S)", (4, 1, 5),
         opset=23),
    norm("RMSNormalization", "one_scale", "Y = RMSNormalization<axis=2>(X, S)", (1,), opset=23),
)  # fmt: skip

_TRAINING = "A, M, V = BatchNormalization<training_mode=1, momentum=0.7, epsilon=0.1>"
_NORM = {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)}
CHANNELS = (
    Case(
        "training",
        "BatchNormalization",
        f"{_TRAINING}(X, scale, bias, mean, var) Y = Add(A, A)",
        weights=_NORM,
    ),
    Case(
        "training_statistics",
        "BatchNormalization",
        f"""{_TRAINING}(X, scale, bias, mean, var)
        m = Reshape(M, to) v = Reshape(V, to) P = Add(A, m) Y = Mul(P, v)""",
        weights=_NORM,
        constants={"to": [-1, 1, 1]},
        opset=14,
    ),
    Case(
        "training_features",
        "BatchNormalization",
        f"{_TRAINING}(X, scale, bias, mean, var) Y = Add(A, A)",
        {"X": (4,)},
        _NORM,
    ),
    Case(
        "training_over_channels",
        "BatchNormalization",
        f"""T = Transpose<perm=[0, 2, 1, 3]>(X) {_TRAINING}(T, scale, bias, mean, var)
        Y = Transpose<perm=[0, 2, 1, 3]>(A)""",
        {"X": (6, 4, 5)},
        _NORM,
    ),
    Case(
        "statistics_of_run",
        "BatchNormalization",
        "Y, a, b, c, d = BatchNormalization(X, scale, bias, mean, var)",
        weights=_NORM,
        opset=9,
        has_twin=False,
    ),
    Case(
        "statistics_of_run_over_channels",
        "BatchNormalization",
        """T = Transpose<perm=[0, 2, 1, 3]>(X)
        A, a, b, c, d = BatchNormalization(T, scale, bias, mean, var)
        Y = Transpose<perm=[0, 2, 1, 3]>(A)""",
        {"X": (6, 4, 5)},
        _NORM,
        opset=9,
        has_twin=False,
    ),
    Case(
        "not_spatial",
        "BatchNormalization",
        "Y = BatchNormalization<spatial=0>(X, scale, bias, mean, var)",
        GRID,
        dict.fromkeys(_NORM, (4, 3, 5)),
        opset=7,
    ),
    Case(
        "computed_bias",
        "BatchNormalization",
        """G = ReduceMean<axes=[0, 2, 3], keepdims=0>(Z)
        Y = BatchNormalization(X, scale, G, mean, var)""",
        {**GRID, "Z": (4, 3, 5)},
        {"scale": (4,), "mean": (4,), "var": (4,)},
    ),
    norm("InstanceNormalization", "plain",
         "Y = InstanceNormalization<epsilon=0.1>(X, S, B)", (4,), (4,)),
    norm("InstanceNormalization", "1d", "Y = InstanceNormalization(X, S, B)", (6,), (6,),
         inputs={"X": (6, 10)}, opset=11),
    norm("InstanceNormalization", "3d", "Y = InstanceNormalization(X, S, B)", (4,), (4,),
         inputs={"X": (4, 2, 3, 2)}, opset=22),
    norm("InstanceNormalization", "over_channels",
         """T = Transpose<perm=[0, 2, 1, 3]>(X) N = InstanceNormalization(T, S, B)
         Y = Transpose<perm=[0, 2, 1, 3]>(N)""", (3,), (3,)),
    norm("InstanceNormalization", "one_position", "Y = InstanceNormalization(X, S, B)", (4,), (4,),
         inputs={"X": (4, 1, 1)}),
    norm("InstanceNormalization", "computed_scale",
         """G = ReduceMean<axes=[0, 2, 3], keepdims=0>(Z)
         Y = InstanceNormalization(X, G, S)""", (4,),
         inputs={**GRID, "Z": (4, 3, 5)}),
    Case(
        "decomposed_group_norm",
        "InstanceNormalization",
        """A = Reshape(X, split) N = InstanceNormalization(A, one, none) S = Shape(X)
        R = Reshape(N, S) G = Mul(R, scale) Y = Add(G, bias)""",
        EIGHT,
        {"scale": (8, 1, 1), "bias": (8, 1, 1)},
        {**ONES, "split": [0, 4, -1]},
    ),
    Case(
        "decomposed_group_norm_in_numbers",
        "InstanceNormalization",
        """A = Reshape(X, split) N = InstanceNormalization(A, one, none)
        R = Reshape(N, joined) G = Mul(R, scale) Y = Add(G, bias)""",
        EIGHT,
        {"scale": (8, 1, 1), "bias": (8, 1, 1)},
        {**ONES, "split": [3, 4, 30], "joined": [3, 8, 5, 3]},
        batch=3,
    ),
)  # fmt: skip


def group(name: str, n_groups: int, scale: int, **options: object) -> Case:
    """Make a row of GroupNormalization of 8 channels."""
    call = f"Y = GroupNormalization<num_groups={n_groups}>(X, S, B)"
    options.setdefault("inputs", EIGHT)
    return norm("GroupNormalization", name, call, (scale,), (scale,), **options)


GROUPS = (
    group("per_channel", 4, 8, opset=21),
    group("per_channel_single", 1, 8, opset=21),
    group("per_channel_channels", 8, 8, opset=22),
    group("1d", 2, 8, opset=21, inputs={"X": (8, 6)}),
    group("3d", 4, 8, opset=21, inputs={"X": (8, 2, 3, 2)}, batch=2),
    norm("GroupNormalization", "over_channels",
         """T = Transpose<perm=[0, 2, 1, 3]>(X) N = GroupNormalization<num_groups=4>(T, S, B)
         Y = Transpose<perm=[0, 2, 1, 3]>(N)""",
         (8,), (8,), inputs={"X": (6, 8, 2)}, opset=21),
    norm("GroupNormalization", "computed_bias",
         """G = ReduceMean<keepdims=0>(Z, axes)
         Y = GroupNormalization<num_groups=4, epsilon=0.1>(X, S, G)""",
         (8,), inputs={"X": (8, 5, 3), "Z": (8, 5, 3)}, constants={"axes": [0, 2, 3]}, opset=21),
)  # fmt: skip

PLAIN = (
    norm("MeanVarianceNormalization", "default", "Y = MeanVarianceNormalization(X)", opset=9),
    norm("MeanVarianceNormalization", "batch",
         "Y = MeanVarianceNormalization<axes=[0, 2, 3]>(X)"),
    norm("MeanVarianceNormalization", "over_channels",
         "Y = MeanVarianceNormalization<axes=[1, 2]>(X)"),
    norm("MeanVarianceNormalization", "negative",
         "Y = MeanVarianceNormalization<axes=[-1]>(X)"),
    *(
        norm("LpNormalization", f"{name}_{p}", f"Y = LpNormalization<{axis}p={p}>(X)", opset=opset)
        for p in (1, 2)
        for name, axis, opset in (
            ("default", "", 17), ("channels", "axis=1, ", 17), ("negative", "axis=-3, ", 22),
        )
    ),
    norm("LpNormalization", "features", "Y = LpNormalization(X)", inputs=TOKENS, last=True,
         opset=9),
    norm("LpNormalization", "zeros",
         "Z = Sub(X, X) N = LpNormalization<axis=1>(Z) Y = Add(N, X)"),
    norm("LpNormalization", "two_dims",
         """A = Reshape(X, to) R = Relu(A) F = Reshape(R, back)
         Y = LpNormalization<axis=1, p=1>(F)""",
         inputs={"X": (12,)}, constants={"to": [0, 3, 4], "back": [0, -1]}),
    *(
        norm("LRN", name, f"Y = LRN<{attributes}>(X)", inputs=EIGHT)
        for name, attributes in (
            ("default", "size=3"),
            ("numbers", "size=5, alpha=0.5, beta=0.6, bias=2.0"),
            ("wide", "size=11, alpha=1.0"),
            ("one", "size=1, alpha=1.0"),
        )
    ),
)  # fmt: skip

_ADDED = {"X": (5, 8), "K": (5, 8)}
_EPSILON = "<epsilon=0.1>"


def skip(name: str, call: str, *names: str, op_type: str = "SkipLayerNormalization",
         **options: object) -> Case:  # fmt: skip
    """Make a row of ONNX Runtime's norms of a sum; weights of 8 features have the given names."""
    weights = options.pop("weights", {})
    inputs = options.pop("inputs", _ADDED)
    text = call.replace("Skip", f"{RUNTIME}.{op_type}")
    named = dict.fromkeys(names, (8,))
    return Case(name, op_type, text, inputs, {**named, **weights}, domain=RUNTIME, last=True,
                **options)  # fmt: skip


SKIPS = (
    skip("plain", "Y = Skip(X, K, G, B)", "G", "B"),
    skip("bias", f"Y = Skip{_EPSILON}(X, K, G, B, C)", "G", "B", "C"),
    skip("no_beta", "Y = Skip(X, K, G)", "G"),
    skip("no_beta_bias", "Y = Skip(X, K, G, , C)", "G", "C"),
    skip("broadcast", "Y = Skip(X, P, G, B)", "G", "B", inputs=TOKENS, weights={"P": (1, 5, 8)}),
    skip("broadcast_2d", "Y = Skip(X, P, G, B)", "G", "B", inputs=TOKENS, weights={"P": (5, 8)}),
    skip("flat", "Y = Skip(X, K, G, B)", "G", "B", inputs={"X": (8,), "K": (8,)}),
    skip("sum", "A, , , T = Skip(X, K, G, B, C) Y = Add(A, T)", "G", "B", "C"),
    skip("all", "A, M, D, T = Skip(X, K, G, B) U = Mul(A, D) V = Add(U, M) Y = Add(V, T)",
         "G", "B"),
    skip("mean", "A, M = Skip(X, K, G, B) Y = Add(A, M)", "G", "B"),
    skip("computed_gamma",
         "H = ReduceMean<axes=[0, 1], keepdims=0>(Z) Y = Skip(X, K, H, B)", "B",
         inputs={**_ADDED, "Z": (5, 8)}),
    *(
        skip(name, call, *names, op_type="SkipSimplifiedLayerNormalization", **options)
        for name, call, names, options in (
            ("plain", "Y = Skip(X, K, G)", "G", {}),
            ("bias", f"Y = Skip{_EPSILON}(X, K, G, C)", "GC", {}),
            ("sum", "A, , , T = Skip(X, K, G, C) Y = Add(A, T)", "GC", {}),
            ("scale", "A, , D = Skip(X, K, G) Y = Mul(A, D)", "G", {}),
            ("mean", "A, M, D, T = Skip(X, K, G) Y = Add(A, T)", "G", {"has_twin": False}),
            ("broadcast", "Y = Skip(X, P, G)", "G", {"inputs": TOKENS, "weights": {"P": (5, 8)}}),
        )
    ),
)  # fmt: skip

_IDS = np.array([[1, 2, 0], [3, 1, 5]], np.int32)
_GIVEN = {
    "ids": _IDS,
    "segment": _IDS % 2,
    "mask": np.array([[1, 0, 1], [0, 1, 0]], np.int32),
    "place": _IDS[::-1].copy(),
}
_TABLES = {"W": (9, 8), "P": (7, 8), "T": (2, 8), "G": (8,), "B": (8,)}


def embed(name: str, call: str, given: str, tables: str, **options: object) -> Case:
    """Make a row of EmbedLayerNormalization with these inputs, named by their first letters."""
    text = call.replace("Embed", f"{RUNTIME}.EmbedLayerNormalization")
    fed = {key: array for key, array in _GIVEN.items() if key[0] in given}
    weights = {key: shape for key, shape in _TABLES.items() if key in tables}
    inputs = options.pop("inputs", {})
    options["last"] = not inputs
    return Case(name, "EmbedLayerNormalization", text, inputs, weights, given=fed, domain=RUNTIME,
                **options)  # fmt: skip


_COMPUTED = """I = ArgMax<axis=2, keepdims=0>(X) ids = Cast<to=6>(I)
J = ArgMax<axis=2, keepdims=0>(Z) segment = Cast<to=6>(J)"""
EMBEDS = (
    embed("plain", "Y, m = Embed(ids, segment, W, P, T, G, B)", "is", "WPTGB"),
    embed("mask", "A, m = Embed(ids, segment, W, P, T, G, B, mask) n = Cast<to=1>(m) "
          "N = Reshape(n, to) Y = Mul(A, N)", "ism", "WPTGB", constants={"to": [2, 1, 1]}),
    embed("places", "Y, m = Embed<epsilon=0.1>(ids, segment, W, P, T, G, B, mask, place)", "ismp",
          "WPTGB"),
    embed("no_segments", "Y, m = Embed(ids, , W, P, , G, B)", "i", "WPGB"),
    embed("sum", "A, m, S = Embed(ids, , W, P, , G, B) Y = Add(A, S)", "i", "WPGB"),
    embed("output_weights", "A, m = Embed(ids, segment, W, P, T, G, B) D = Transpose(W) "
          "Y = MatMul(A, D)", "is", "WPTGB"),
    embed("computed_ids", f"{_COMPUTED} A, m = Embed(ids, , W, P, , G, B) Y = ReduceSum(A, axes)",
          "", "WPGB", inputs={"X": (6, 5), "Z": (6, 2)}, constants={"axes": [1]}, prunes=False),
    embed("computed_ids_with_places",
          f"{_COMPUTED} A, m = Embed(ids, segment, W, P, T, G, B, , at) Y = ReduceSum(A, axes)",
          "", "WPTGB", inputs={"X": (6, 5), "Z": (6, 2)},
          constants={"axes": [1], "at": np.arange(6, dtype=np.int32)[None]}),
    embed("one_row_of_places", "Y, m = Embed(ids, , W, P, , G, B, , at)", "i", "WPGB",
          constants={"at": np.array([[2, 0, 1]], np.int32)}),
)  # fmt: skip
CASES = (*LAYER, *CHANNELS, *GROUPS, *PLAIN, *SKIPS, *EMBEDS)
