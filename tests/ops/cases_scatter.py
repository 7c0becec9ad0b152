"""Rows for operators that lay a tensor into another."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

BATCH = 3
TOKENS = {"X": (5, 8), "U": (2, 8)}
MAPS = {"X": (4, 5, 3), "U": (4, 2, 3)}
_DRAW = np.random.default_rng(5)


def distinct(*shape: int, axis: int, below: int) -> np.ndarray:
    """Draw int64 positions that differ along an axis, some counted from the end."""
    drawn = _DRAW.permuted(np.broadcast_to(np.arange(below), (*shape, below)), axis=-1)
    drawn = np.moveaxis(drawn[..., : shape[axis]], -1, axis).take(0, axis + 1)
    return drawn - below * _DRAW.integers(0, 2, drawn.shape)


def drawn(*shape: int, below: int) -> np.ndarray:
    """Draw int64 positions that may come several times."""
    return _DRAW.integers(-below, below, shape)


ROWS = distinct(BATCH, 4, 2, 3, axis=2, below=5)
ELEMENTS = (
    Case(
        "rows",
        "ScatterElements",
        "Y = ScatterElements<axis=2>(X, i, U)",
        MAPS,
        constants={"i": ROWS},
        batch=BATCH,
    ),
    Case(
        "rows_11",
        "ScatterElements",
        "Y = ScatterElements<axis=-2>(X, i, U)",
        MAPS,
        constants={"i": ROWS.astype(np.int32)},
        batch=BATCH,
        opset=11,
    ),
    Case(
        "rows",
        "Scatter",
        "Y = Scatter<axis=2>(X, i, U)",
        MAPS,
        constants={"i": ROWS},
        batch=BATCH,
        opset=9,
    ),
    Case(
        "default_axis",
        "Scatter",
        "Y = Scatter(X, i, U)",
        {"X": (4, 3, 3), "U": (4, 3, 3)},
        constants={"i": distinct(BATCH, 4, 3, 3, axis=0, below=BATCH)},
        batch=BATCH,
        opset=10,
    ),
    *(
        Case(
            f"{reduction}_{opset}",
            "ScatterElements",
            f'Y = ScatterElements<axis=2, reduction="{reduction}">(X, i, U)',
            MAPS,
            constants={"i": drawn(BATCH, 4, 2, 3, below=5)},
            batch=BATCH,
            opset=opset,
        )
        for reduction, opset in (("add", 16), ("mul", 16), ("add", 18), ("max", 18), ("min", 18))
    ),
    Case(
        "fed",
        "ScatterElements",
        "Y = ScatterElements<axis=1>(X, i, U)",
        TOKENS,
        given={"i": distinct(BATCH, 2, 8, axis=1, below=5)},
        batch=BATCH,
        last=True,
        prunes=False,
    ),
    Case(
        "weights_and_computed",
        "ScatterElements",
        "G = GreaterOrEqual(U, zero) I = Cast<to=7>(G)"
        ' Y = ScatterElements<axis=1, reduction="add">(X, I, U)',
        {"X": (5, 8), "U": (2, 8)},
        constants={"zero": 0.0},
        opset=18,
        last=True,
    ),
    Case(
        "into_weights",
        "ScatterElements",
        "Y = ScatterElements<axis=1>(W, i, U)",
        {"U": (2, 8)},
        {"W": (BATCH, 5, 8)},
        {"i": distinct(BATCH, 2, 8, axis=1, below=5)},
        batch=BATCH,
        last=True,
    ),
    # what is left out of the channels would move were some removed
    Case(
        "part",
        "ScatterElements",
        "Y = ScatterElements<axis=2>(X, i, U)",
        {"X": (4, 5, 3), "U": (2, 2, 3)},
        constants={"i": distinct(BATCH, 2, 2, 3, axis=2, below=5)},
        batch=BATCH,
        prunes=False,
    ),
    # each update goes to a channel of its own, so that none of them may go
    Case(
        "channels",
        "ScatterElements",
        'Y = ScatterElements<axis=1, reduction="add">(X, i, U)',
        {"X": (4, 3, 3), "U": (6, 3, 3)},
        constants={"i": drawn(BATCH, 6, 3, 3, below=4)},
        batch=BATCH,
        opset=18,
        prunes=False,
    ),
)
PAIRS = np.array([[[0, 2], [0, -1]], [[1, 0], [-2, 1]], [[2, 4], [-1, 0]]])
SLICES = (
    Case(
        "tokens",
        "ScatterND",
        "Y = ScatterND(X, i, U)",
        TOKENS,
        constants={"i": PAIRS},
        batch=BATCH,
        last=True,
    ),
    Case(
        "tokens_11",
        "ScatterND",
        "Y = ScatterND(X, i, U)",
        TOKENS,
        given={"i": PAIRS},
        batch=BATCH,
        opset=11,
        last=True,
    ),
    *(
        Case(
            f"{reduction}_{opset}",
            "ScatterND",
            f'Y = ScatterND<reduction="{reduction}">(X, i, U)',
            TOKENS,
            constants={"i": np.where(PAIRS == 4, 0, PAIRS)},
            batch=BATCH,
            opset=opset,
            last=True,
        )
        for reduction, opset in (("add", 16), ("mul", 16), ("add", 18), ("max", 18), ("min", 18))
    ),
    Case(
        "rows",
        "ScatterND",
        "A = Transpose<perm=[2,0,1,3]>(X) B = Transpose<perm=[2,0,1,3]>(U)"
        " C = ScatterND(A, i, B) Y = Transpose<perm=[1,2,0,3]>(C)",
        MAPS,
        constants={"i": [[3], [-5]]},
    ),
    Case(
        "every_element",
        "ScatterND",
        "V = Reshape(U, to) Y = ScatterND(X, i, V)",
        {"X": (6,), "U": (2,)},
        constants={
            "i": np.array([[0, 2], [2, -1], [1, 4], [0, 0], [1, 0], [2, 0]]),
            "to": [6],
        },
        batch=BATCH,
        prunes=False,
    ),
    # the channels come first in the tuples, so that they are frozen
    Case(
        "channels",
        "ScatterND",
        "A = Transpose<perm=[1,0,2,3]>(X) B = Transpose<perm=[1,0,2,3]>(U)"
        " C = ScatterND(A, i, B) Y = Transpose<perm=[1,0,2,3]>(C)",
        {"X": (6, 3, 3), "U": (2, 3, 3)},
        constants={"i": [[3], [-6]]},
        prunes=False,
    ),
)
BLOCKS = {"X": (24, 9)}
COLUMNS = (
    Case(
        "image",
        "Col2Im",
        "Y = Col2Im(X, image, block)",
        BLOCKS,
        constants={"image": [4, 4], "block": [2, 2]},
        opset=18,
    ),
    Case(
        "dense",
        "Col2Im",
        "F = Transpose<perm=[0,2,1]>(X) G = MatMul(F, W) H = Transpose<perm=[0,2,1]>(G)"
        " Y = Col2Im(H, image, block)",
        {"X": (5, 9)},
        {"W": (5, 24)},
        {"image": [4, 4], "block": [2, 2]},
        opset=18,
    ),
    Case(
        "geometry",
        "Col2Im",
        "Y = Col2Im<strides=[1,2], pads=[1,0,0,1], dilations=[2,1]>(X, image, block)",
        {"X": (24, 12)},
        constants={"image": [5, 5], "block": [2, 2]},
        opset=18,
    ),
    Case(
        "volume",
        "Col2Im",
        "Y = Col2Im<pads=[0,1,0,0,0,1], strides=[1,2,1]>(X, image, block)",
        {"X": (24, 8)},
        constants={"image": [3, 2, 2], "block": [2, 1, 2]},
        opset=18,
    ),
    Case(
        "single",
        "Col2Im",
        "Y = Col2Im(X, image, block)",
        {"X": (6, 6)},
        constants={"image": [2, 3], "block": [1, 1]},
        opset=18,
    ),
    Case(
        "computed_image",
        "Col2Im",
        "S = Shape<start=2>(Z) Y = Col2Im(X, S, block)",
        {"X": (24, 9), "Z": (2, 4, 4)},
        constants={"block": [2, 2]},
        opset=18,
    ),
    Case(
        "blocks_are_channels",
        "Col2Im",
        "T = Transpose<perm=[0,2,1]>(X) Y = Col2Im(T, image, block)",
        {"X": (9, 24)},
        constants={"image": [4, 4], "block": [2, 2]},
        opset=18,
        prunes=False,
    ),
    Case(
        "computed_from_weights",
        "Col2Im",
        "M = ReduceMax<keepdims=0>(X) D = Sub(M, M) K = Add(D, k) S = Cast<to=7>(K)"
        " Y = Col2Im(X, S, block)",
        BLOCKS,
        constants={"k": [4.0, 4.0], "block": [2, 2]},
        batch=BATCH,
        opset=18,
    ),
    Case(
        "computed_block",
        "Col2Im",
        "M = ReduceMax<keepdims=0>(X) D = Sub(M, M) T = Cast<to=7>(D) B = Add(T, block)"
        " Y = Col2Im(X, image, B)",
        BLOCKS,
        constants={"image": [4, 4], "block": [2, 2]},
        opset=18,
        prunes=False,
    ),
)
CENTRES = (
    Case(
        "crop",
        "CenterCropPad",
        "Y = CenterCropPad<axes=[2,3]>(X, k)",
        {"X": (4, 7, 6)},
        constants={"k": [4, 3]},
        opset=18,
    ),
    Case(
        "pad",
        "CenterCropPad",
        "Y = CenterCropPad<axes=[-1,2]>(X, k)",
        {"X": (4, 5, 6)},
        constants={"k": [9, 8]},
        opset=18,
    ),
    Case(
        "both",
        "CenterCropPad",
        "Y = CenterCropPad<axes=[3,1,2]>(X, k)",
        {"X": (4, 5, 6)},
        constants={"k": [9, 4, 2]},
        opset=18,
    ),
    Case(
        "every_axis",
        "CenterCropPad",
        "Y = CenterCropPad(X, k)",
        {"X": (4, 5, 6)},
        constants={"k": [3, 4, 4, 4]},
        batch=BATCH,
        opset=18,
    ),
    Case(
        "to_another",
        "CenterCropPad",
        "S = Shape<start=1>(Z) A = CenterCropPad<axes=[1,2,3]>(X, S) Y = Add(A, Z)",
        {"X": (4, 5, 6), "Z": (4, 3, 7)},
        opset=18,
    ),
    Case(
        "channels",
        "CenterCropPad",
        "Y = CenterCropPad<axes=[1]>(X, k)",
        {"X": (4, 3, 3)},
        constants={"k": [6]},
        opset=18,
        prunes=False,
    ),
    Case(
        "open_batch",
        "CenterCropPad",
        "Y = CenterCropPad(X, k)",
        {"X": (4, 3, 3)},
        constants={"k": [2, 4, 5, 3]},
        opset=18,
        counted=False,  # of any batch, two samples are left
    ),
    Case(
        "computed",
        "CenterCropPad",
        "M = ReduceMax<keepdims=0>(X) D = Sub(M, M) T = Add(D, k) K = Cast<to=7>(T)"
        " Y = CenterCropPad<axes=[1,2,3]>(X, K)",
        {"X": (4, 5, 6)},
        constants={"k": [4.0, 3.0, 7.0]},
        opset=18,
        prunes=False,
    ),
)
CASES = (*ELEMENTS, *SLICES, *COLUMNS, *CENTRES)
