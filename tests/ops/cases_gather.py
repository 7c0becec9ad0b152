"""Rows for operators that pick positions, by index or by coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
from ops.cases import Case

_DRAW = np.random.default_rng(4)
TOKENS = {"X": (5, 8)}
TWO = {"X": (4, 3, 3), "Z": (6, 2, 2)}
BATCH = 3


def positions(*shape: int, below: int) -> np.ndarray:
    """Draw int64 positions, some counted from the end."""
    return _DRAW.integers(-below, below, shape)


def points(*shape: int) -> np.ndarray:
    """Draw coordinates, some outside of the image."""
    return _DRAW.uniform(-1.3, 1.3, shape).astype(np.float32)


ELEMENTS = (
    Case(
        "rows",
        "GatherElements",
        "Y = GatherElements<axis=2>(X, i)",
        {"X": (4, 5, 3)},
        constants={"i": positions(BATCH, 4, 7, 3, below=5)},
        batch=BATCH,
    ),
    Case(
        "columns_11",
        "GatherElements",
        "Y = GatherElements<axis=-1>(X, i)",
        {"X": (4, 5, 3)},
        constants={"i": positions(BATCH, 4, 5, 2, below=3)},
        batch=BATCH,
        opset=11,
    ),
    # the channels are gathered and frozen, but those that come out may go
    Case(
        "channels",
        "GatherElements",
        "Y = GatherElements<axis=1>(X, i)",
        {"X": (4, 5, 3)},
        constants={"i": positions(BATCH, 6, 5, 3, below=4).astype(np.int32)},
        batch=BATCH,
    ),
    Case(
        "default_axis",
        "GatherElements",
        "Y = GatherElements(X, i)",
        {"X": (4, 5, 3)},
        constants={"i": positions(2, 4, 5, 3, below=BATCH)},
        batch=BATCH,
    ),
    Case(
        "fed",
        "GatherElements",
        "Y = GatherElements<axis=1>(X, i)",
        TOKENS,
        given={"i": positions(BATCH, 3, 8, below=5)},
        batch=BATCH,
        last=True,
        prunes=False,
    ),
    Case(
        "computed",
        "GatherElements",
        "G = GreaterOrEqual(X, zero) I = Cast<to=7>(G) Y = GatherElements<axis=2>(Z, I)",
        {"X": (4, 2, 3), "Z": (4, 5, 3)},
        constants={"zero": 0.0},
    ),
    Case(
        "table",
        "GatherElements",
        "G = GreaterOrEqual(X, zero) I = Cast<to=7>(G) E = GatherElements(W, I) Y = Mul(E, X)",
        {"X": (8,)},
        {"W": (BATCH, 8)},
        {"zero": 0.0},
    ),
    Case(
        "part",
        "GatherElements",
        "P = GatherElements<axis=2>(X, i) Y = Relu(P)",
        {"X": (4, 5, 3)},
        constants={"i": positions(BATCH, 2, 4, 3, below=5)},
        batch=BATCH,
        prunes=False,
    ),
)
TUPLES = (
    Case(
        "tokens",
        "GatherND",
        "Y = GatherND<batch_dims=1>(X, i)",
        TOKENS,
        constants={"i": positions(BATCH, 4, 1, below=5)},
        batch=BATCH,
        last=True,
    ),
    Case(
        "one_token",
        "GatherND",
        "Y = GatherND<batch_dims=1>(X, i)",
        TOKENS,
        given={"i": positions(BATCH, 1, below=5)},
        batch=BATCH,
        last=True,
    ),
    Case(
        "pairs",
        "GatherND",
        "Y = GatherND(X, i)",
        TOKENS,
        constants={"i": np.array([[0, 2], [2, -1], [1, 4]])},
        batch=BATCH,
        last=True,
    ),
    Case(
        "channels_are_batch_axes",
        "GatherND",
        "C = Transpose<perm=[1,0,2,3]>(X) G = GatherND<batch_dims=1>(C, i)"
        " Y = Transpose<perm=[1,0,2,3]>(G)",
        {"X": (4, 3, 3)},
        constants={"i": positions(4, BATCH, 1, below=BATCH)},
        batch=BATCH,
    ),
    Case(
        "positions_11",
        "GatherND",
        "T = Transpose<perm=[1,2,0,3]>(X) Y = GatherND(T, i)",
        {"X": (3, 4, 8)},
        constants={"i": np.array([[0, 2], [2, -1], [1, 3], [-3, 0]])},
        opset=11,
        last=True,
    ),
    Case(
        "everything",
        "GatherND",
        "G = GatherND(X, i) U = Unsqueeze(G, one) Y = Mul(U, W)",
        {"X": (8,)},
        {"W": (1, 8)},
        {"i": np.array([[0, 2], [2, -1], [1, 4]]), "one": [1]},
        batch=BATCH,
        prunes=False,
    ),
    Case(
        "table",
        "GatherND",
        "G = GatherND(W, i) Y = Add(X, G)",
        {"X": (5, 8)},
        {"W": (3, 4, 8)},
        given={"i": positions(BATCH, 5, 2, below=3)},
        batch=BATCH,
        last=True,
    ),
    Case(
        "table_by_rows",
        "GatherND",
        "G = GatherND<batch_dims=1>(W, i) Y = Add(X, G)",
        {"X": (5, 8)},
        {"W": (BATCH, 4, 8)},
        given={"i": positions(BATCH, 5, 1, below=4)},
        batch=BATCH,
        last=True,
    ),
    # the channels are gathered and frozen, but those that come out may go
    Case(
        "channels",
        "GatherND",
        "Y = GatherND<batch_dims=1>(X, i)",
        {"X": (4, 3, 3)},
        constants={"i": positions(BATCH, 6, 1, below=4)},
        batch=BATCH,
    ),
    *(
        Case(
            f"computed_pairs_{depth}",
            "GatherND",
            "G = GreaterOrEqual(Z, zero) I = Cast<to=7>(G) Y = GatherND(X, I)",
            {"X": (5, 2, 8), "Z": (4, depth)},
            constants={"zero": 0.0},
            last=True,
        )
        for depth in (2, 3)
    ),
    Case(
        "computed_table",
        "GatherND",
        "M = ReduceMax<axes=[2], keepdims=1>(X) G = GreaterOrEqual(M, zero) I = Cast<to=7>(G)"
        " E = GatherND(W, I) Y = Add(X, E)",
        {"X": (5, 8)},
        {"W": (3, 8)},
        {"zero": 0.0},
        last=True,
    ),
    Case(
        "computed",
        "GatherND",
        "M = ReduceMax<axes=[2], keepdims=1>(Z) G = GreaterOrEqual(M, zero) I = Cast<to=7>(G)"
        " Y = GatherND<batch_dims=1>(X, I)",
        {"X": (5, 8), "Z": (4, 6)},
        constants={"zero": 0.0},
        last=True,
    ),
)


def sampled(
    name: str, call: str, shape: tuple[int, ...], grid: tuple[int, ...], **options: Any
) -> Case:
    """Make a row that samples at fed coordinates."""
    fed = {"g": points(BATCH, *grid)}
    return Case(name, "GridSample", call, {"X": shape}, given=fed, batch=BATCH, **options)


_MODES = {16: ("bilinear", "nearest", "bicubic"), 20: ("linear", "nearest", "cubic")}
GRIDS = (
    *(
        sampled(
            f"{mode}_{padding}_{corners}_{opset}",
            f'Y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={corners}>(X, g)',
            (4, 5, 6),
            (3, 4, 2),
            opset=opset,
        )
        for opset, modes in _MODES.items()
        for mode in modes
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ),
    sampled("defaults_16", "Y = GridSample(X, g)", (4, 5, 6), (3, 4, 2), opset=16),
    sampled("defaults_22", "Y = GridSample(X, g)", (4, 5, 6), (3, 4, 2), opset=22),
    sampled("volume", "Y = GridSample(X, g)", (4, 3, 4, 5), (2, 3, 4, 3), opset=20),
    sampled(
        "volume_nearest",
        'Y = GridSample<mode="nearest", align_corners=1>(X, g)',
        (4, 3, 4, 5),
        (2, 3, 4, 3),
        opset=22,
    ),
    Case(
        "computed",
        "GridSample",
        "T = Tanh(Z) G = Transpose<perm=[0,2,3,1]>(T) Y = GridSample(X, G)",
        {"X": (4, 5, 6), "Z": (2, 3, 4)},
        opset=16,
    ),
    Case(
        "computed_volume",
        "GridSample",
        "T = Tanh(Z) G = Transpose<perm=[0,2,3,4,1]>(T) Y = GridSample(X, G)",
        {"X": (4, 3, 4, 5), "Z": (3, 2, 3, 4)},
        opset=20,
    ),
    # positions that are features: none may go, but those of the grid may
    Case(
        "features",
        "GridSample",
        "A = Unsqueeze(X, k) B = GridSample(A, g) Y = Squeeze(B, k)",
        {"X": (5, 8)},
        constants={"g": points(BATCH, 3, 1, 2), "k": [3]},
        batch=BATCH,
        last=True,
    ),
    # grids that are channels: each is for one image of the batch
    Case(
        "grids_are_channels",
        "GridSample",
        "A = Reshape(X, to) G = Transpose<perm=[0,2,3,1]>(A) Y = GridSample(W, G)",
        {"X": (6, 3, 4)},
        {"W": (3, 4, 5, 6)},
        {"to": [3, 2, 3, 4]},
        batch=1,
    ),
    Case(
        "dynamic_batch",
        "GridSample",
        "S = Shape(X) N = Gather(S, z) T = Concat<axis=0>(N, k) G = Expand(g, T)"
        " Y = GridSample(X, G)",
        {"X": (4, 5, 6)},
        constants={"g": points(1, 3, 4, 2), "z": [0], "k": [3, 4, 2]},
        opset=20,
    ),
)
_MAPS = "A = Flatten(Z) B = MatMul(A, W) C = Reshape(B, shape)"
_PLACE = {"X": (4, 5, 6), "Z": (6, 1, 1)}
AFFINE = (
    Case(
        "image",
        "AffineGrid",
        f"{_MAPS} G = AffineGrid(C, size) Y = GridSample(X, G)",
        _PLACE,
        {"W": (6, 6)},
        {"shape": [-1, 2, 3], "size": [BATCH, 4, 3, 4]},
        batch=BATCH,
        opset=20,
        prunes=False,
    ),
    Case(
        "corners",
        "AffineGrid",
        f"{_MAPS} G = AffineGrid<align_corners=1>(C, size) Y = GridSample<align_corners=1>(X, G)",
        _PLACE,
        {"W": (6, 6)},
        {"shape": [-1, 2, 3], "size": [BATCH, 4, 3, 4]},
        batch=BATCH,
        opset=20,
        prunes=False,
    ),
    Case(
        "volume",
        "AffineGrid",
        f"{_MAPS} G = AffineGrid(C, size) Y = GridSample(X, G)",
        {"X": (4, 3, 4, 5), "Z": (6, 1, 1, 1)},
        {"W": (6, 12)},
        {"shape": [-1, 3, 4], "size": [BATCH, 4, 2, 3, 4]},
        batch=BATCH,
        opset=20,
        prunes=False,
    ),
)
SIZED = (
    # the size names the channels of X, which may go all the same
    Case(
        "of_a_size",
        "GridSample",
        f"{_MAPS} S = Shape(X) G = AffineGrid(C, S) Y = GridSample(X, G)",
        _PLACE,
        {"W": (6, 6)},
        {"shape": [-1, 2, 3]},
        opset=20,
    ),
)
CASES = (*ELEMENTS, *TUPLES, *GRIDS, *AFFINE, *SIZED)
