"""Rows for blocks of positions, regions, deformed convolutions, and further forms of Resize."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

BATCH = 3
TALL = {"X": (8, 4, 6)}
BLOCKS = (
    *(
        Case(f"opset{opset}", "DepthToSpace", "Y = DepthToSpace<blocksize=2>(X)", TALL, opset=opset)
        for opset in (1, 11, 13)
    ),
    *(
        Case(
            f"{mode}_{opset}",
            "DepthToSpace",
            f'Y = DepthToSpace<blocksize=2, mode="{mode}">(X)',
            TALL,
            opset=opset,
        )
        for mode in ("DCR", "CRD")
        for opset in (11, 13)
    ),
    Case("three", "DepthToSpace", "Y = DepthToSpace<blocksize=3>(X)", {"X": (18, 2, 3)}),
    Case("nothing", "DepthToSpace", "Y = DepthToSpace<blocksize=1>(X)", TALL),
    *(
        Case(f"opset{opset}", "SpaceToDepth", "Y = SpaceToDepth<blocksize=2>(X)", opset=opset)
        for opset in (1, 13)
    ),
    Case("three", "SpaceToDepth", "Y = SpaceToDepth<blocksize=3>(X)", {"X": (4, 3, 6)}),
    Case(
        "there_and_back",
        "SpaceToDepth",
        "A = SpaceToDepth<blocksize=2>(X) B = Relu(A) Y = DepthToSpace<blocksize=2>(B)",
    ),
    Case(
        "single",
        "DepthToSpace",
        "A = DepthToSpace<blocksize=2>(X) Y = Flatten(A)",
        {"X": (16, 1, 1)},
    ),
    # positions that are features: whole blocks may go
    Case(
        "features",
        "SpaceToDepth",
        "A = Reshape(X, to) B = SpaceToDepth<blocksize=2>(A) Y = Flatten(B)",
        {"X": (48,)},
        constants={"to": [0, 1, 8, 6]},
    ),
    # what a block holds is told apart again by a Split, so that all parts lose the same channels
    Case(
        "split",
        "SpaceToDepth",
        "A = SpaceToDepth<blocksize=2>(X) B, C = Split<axis=1>(A) Y = Add(B, C)",
    ),
)
REGIONS = np.array(
    [[0.2, 0.4, 3.3, 4.1], [1.0, 1.0, 5.5, 5.0], [-2.5, 3.0, 2.0, 9.0], [4.0, 4.0, 4.2, 4.1]],
    np.float32,
)
IMAGES = np.array([0, 2, 1, 0])
ALIGNED = {"r": REGIONS, "i": IMAGES}
_SIZE = "output_height=2, output_width=3"
_SAMPLES = f"{_SIZE}, sampling_ratio=2, spatial_scale=0.75"
ALIGN = (
    *(
        Case(
            f"{name}_{opset}",
            "RoiAlign",
            f"Y = RoiAlign<{form}>(X, r, i)",
            constants=ALIGNED,
            batch=BATCH,
            opset=opset,
        )
        for opset in (10, 16)
        for name, form in (("cells", _SIZE), ("samples", _SAMPLES))
    ),
    Case("defaults", "RoiAlign", "Y = RoiAlign(X, r, i)", constants=ALIGNED, batch=BATCH, opset=16),
    Case(
        "output_half_pixel",
        "RoiAlign",
        f'Y = RoiAlign<{_SAMPLES}, coordinate_transformation_mode="output_half_pixel">(X, r, i)',
        constants=ALIGNED,
        batch=BATCH,
        opset=16,
    ),
    Case(
        "fed",
        "RoiAlign",
        f"Y = RoiAlign<{_SAMPLES}>(X, r, i)",
        given=ALIGNED,
        batch=BATCH,
        opset=16,
    ),
    Case(
        "flattened",
        "RoiAlign",
        f"A = RoiAlign<{_SAMPLES}>(X, r, i) Y = Flatten(A)",
        constants=ALIGNED,
        batch=BATCH,
        opset=16,
    ),
    Case(
        "dynamic_batch",
        "RoiAlign",
        f"Y = RoiAlign<{_SAMPLES}>(X, r, i)",
        constants={"r": REGIONS, "i": IMAGES % 2},
        opset=16,
        counted=False,  # there are as many regions for any batch
    ),
    # images and positions that are features: none may go
    Case(
        "features",
        "RoiAlign",
        f"A = Reshape(X, to) Y = RoiAlign<{_SAMPLES}>(A, r, i)",
        {"X": (96,)},
        constants={**ALIGNED, "to": [3, 2, 4, 4]},
        batch=1,
        opset=16,
    ),
    Case(
        "regions_are_channels",
        "RoiAlign",
        "R = Reshape(Z, to) A = RoiAlign<output_height=2, sampling_ratio=2>(X, R, i)"
        " Y = Transpose<perm=[1,0,2,3]>(A)",
        {"X": (4, 6, 6), "Z": (24,)},
        constants={"to": [6, 4], "i": [0] * 6},
        batch=1,
        opset=10,
    ),
    # the largest of four weighted neighbours, which no interpolation of torch gives
    *(
        Case(
            f"max_{opset}",
            "RoiAlign",
            f'Y = RoiAlign<{_SAMPLES}, mode="max">(X, r, i)',
            constants=ALIGNED,
            batch=BATCH,
            opset=opset,
            has_twin=False,
        )
        for opset in (10, 16)
    ),
)
POOLED = {"r": np.hstack([IMAGES[:, None], REGIONS]).astype(np.float32)}
POOL = (
    Case(
        "cells",
        "MaxRoiPool",
        "Y = MaxRoiPool<pooled_shape=[2,3]>(X, r)",
        constants=POOLED,
        batch=BATCH,
    ),
    Case(
        "scaled",
        "MaxRoiPool",
        "Y = MaxRoiPool<pooled_shape=[3,2], spatial_scale=0.6>(X, r)",
        constants=POOLED,
        batch=BATCH,
        opset=9,
    ),
    Case(
        "fed",
        "MaxRoiPool",
        "Y = MaxRoiPool<pooled_shape=[1,1]>(X, r)",
        given=POOLED,
        batch=BATCH,
    ),
)


def deformed(name: str, call: str, weight: tuple[int, ...], opset: int = 19, **more: int) -> Case:
    """Make a row with computed offsets; `more` are the numbers of offset and mask channels."""
    computed = {name: (n_channels, 4, 4) for name, n_channels in more.items()}
    weights = {"W": weight, "B": weight[:1]} if "B" in call else {"W": weight}
    return Case(
        name,
        "DeformConv",
        f"Y = DeformConv{call}",
        {"X": (4, 4, 4), **computed},
        weights,
        opset=opset,
    )


_SAME = "kernel_shape=[3,3], pads=[1,1,1,1]"
DEFORMED = (
    deformed("dense", f"<{_SAME}>(X, W, O)", (6, 4, 3, 3), O=18),
    deformed("opset22", f"<{_SAME}>(X, W, O)", (6, 4, 3, 3), 22, O=18),
    deformed("bias_mask", f"<{_SAME}>(X, W, O, B, M)", (6, 4, 3, 3), O=18, M=9),
    deformed("mask", f"<{_SAME}>(X, W, O, , M)", (6, 4, 3, 3), O=18, M=9),
    deformed("blocks", f"<{_SAME}, group=2>(X, W, O, B)", (6, 2, 3, 3), O=18),
    deformed("depthwise", f"<{_SAME}, group=4>(X, W, O)", (4, 1, 3, 3), O=18),
    deformed("sharing", f"<{_SAME}, offset_group=2>(X, W, O, B)", (6, 4, 3, 3), O=36),
    deformed("sharing_mask", f"<{_SAME}, offset_group=2>(X, W, O, , M)", (6, 4, 3, 3), O=36, M=18),
    deformed("both", f"<{_SAME}, offset_group=2, group=4>(X, W, O)", (8, 1, 3, 3), O=36),
    deformed("more_sharing", f"<{_SAME}, offset_group=4, group=2>(X, W, O)", (6, 2, 3, 3), O=72),
    deformed("uneven", "<pads=[0,1,1,1], kernel_shape=[2,3]>(X, W, O)", (6, 4, 2, 3), O=12),
    Case(
        "strides",
        "DeformConv",
        "Y = DeformConv<kernel_shape=[3,2], strides=[2,1], dilations=[1,2], pads=[2,0,1,1]>(X, W, O)",
        {"X": (4, 6, 7), "O": (12, 4, 6)},
        {"W": (6, 4, 3, 2)},
        opset=19,
    ),
    # offsets that are channels: each is for one image of the batch
    Case(
        "offsets_are_channels",
        "DeformConv",
        f"O = Reshape(X, to) Y = DeformConv<{_SAME}>(V, W, O)",
        {"X": (54, 4, 4)},
        {"V": (3, 4, 4, 4), "W": (6, 4, 3, 3)},
        {"to": [3, 18, 4, 4]},
        batch=1,
        opset=19,
    ),
    Case(
        "computed_weight",
        "DeformConv",
        f"A = GlobalAveragePool(Z) V = Mul(W, A) Y = DeformConv<{_SAME}>(X, V, O)",
        {"X": (4, 4, 4), "O": (18, 4, 4), "Z": (4, 2, 2)},
        {"W": (1, 4, 3, 3)},
        batch=1,
        opset=19,
    ),
)


def resized(
    name: str, form: str, constants: dict[str, list], opset: int = 17, **options: bool
) -> Case:
    """Make a row on maps of 6 x 7; constants are called `roi`, `scales` and `sizes`."""
    names = [name if name in constants else "" for name in ("roi", "scales", "sizes")]
    call = ", ".join(["X", *names]).rstrip(", ")
    text = f"Y = Resize<{form}>({call})"
    return Case(name, "Resize", text, {"X": (4, 6, 7)}, constants=constants, opset=opset, **options)


_ODD = {"scales": [1.0, 1.0, 1.7, 0.6]}
_DOWN = {"scales": [1.0, 1.0, 0.4, 0.6]}
_COORDINATES = 'coordinate_transformation_mode="{}"'.format
_CROP = {"roi": [0.0, 0.0, 0.2, -0.1, 1.0, 1.0, 0.9, 1.2], **_ODD}
RESIZES = (
    *(
        resized(f"{mode}_{where}", f'mode="{mode}", {_COORDINATES(where)}', _ODD)
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ),
    *(
        resized(f"symmetric_{mode}", f'mode="{mode}", {_COORDINATES("half_pixel_symmetric")}', _ODD, 19)
        for mode in ("linear", "cubic")
    ),
    *(
        resized(f"nearest_{rounding}", f'mode="nearest", nearest_mode="{rounding}"', _ODD)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    resized(
        "half_pixel_for_nn",
        f'mode="nearest", {_COORDINATES("tf_half_pixel_for_nn")}',
        {"roi": [], **_ODD},
        11,
    ),
    *(
        resized(
            f"crop_{mode}",
            f'mode="{mode}", {_COORDINATES("tf_crop_and_resize")}, extrapolation_value=2.5',
            _CROP,
        )
        for mode in ("nearest", "linear", "cubic")
    ),
    resized(
        "cropped_channels",
        f'mode="nearest", {_COORDINATES("tf_crop_and_resize")}',
        {"roi": [0.0, 0.1, 0.2, 0.0, 1.0, 1.0, 0.9, 1.0], **_ODD},
        prunes=False,
    ),
    resized("cubic_coefficient", 'mode="cubic", cubic_coeff_a=-0.5', _ODD),
    resized("excludes_outside", 'mode="cubic", exclude_outside=1', _ODD),
    resized("antialias_linear", 'mode="linear", antialias=1', _DOWN, 18),
    resized("antialias_cubic", 'mode="cubic", antialias=1', _DOWN, 18),
    resized("antialias_excludes", 'mode="cubic", antialias=1, exclude_outside=1', _DOWN, 18),
    *(
        resized(
            policy,
            f'mode="linear", axes=[2,3], keep_aspect_ratio_policy="{policy}"',
            {"sizes": [9, 5]},
            18,
        )
        for policy in ("not_larger", "not_smaller")
    ),
    resized(
        "not_larger_channels",
        'mode="nearest", axes=[1,2,3], keep_aspect_ratio_policy="not_larger"',
        {"sizes": [4, 9, 5]},
        18,
        prunes=False,
    ),
    resized("one_position", f'mode="linear", {_COORDINATES("pytorch_half_pixel")}, axes=[3]', {"sizes": [1]}, 18),
    resized("rounded_size", 'mode="nearest"', {"scales": [1.0, 1.0, 0.7, 1.1]}),
    # a scale that leaves the number of channels as it is, but not the channels
    resized("barely_scaled", 'mode="nearest"', {"scales": [1.0, 1.2, 2.0, 1.0]}, prunes=False),
    Case(
        "computed_scales",
        "Resize",
        "M = ReduceMax<keepdims=0>(X) D = Sub(M, M) T = Add(D, s) Y = Resize(X, , T)",
        constants={"s": [1.0, 1.0, 2.0, 3.0]},
        batch=BATCH,
        prunes=False,
    ),
    Case(
        "sizes_of_another",
        "Resize",
        'S = Shape(Z) Y0 = Resize<mode="linear">(X, , , S) Y = Add(Y0, Z)',
        {"X": (4, 3, 3), "Z": (4, 6, 5)},
    ),
    Case(
        "open_batch",
        "Resize",
        'Y = Resize<mode="nearest">(X, , , k)',
        {"X": (4, 3, 3)},
        constants={"k": [2, 4, 6, 6]},
        counted=False,  # of any batch, two samples are left
    ),
    # as many channels as samples: that is only known as the model runs
    Case(
        "channels_by_batch",
        "Resize",
        "S = Shape<end=1>(X) T = Concat<axis=0>(S, S, k) A = Resize(X, , , T)"
        " Y = ReduceMax<axes=[1]>(A)",
        {"X": (2, 3, 3)},
        constants={"k": [6, 6]},
        prunes=False,
    ),
    Case("shrinks_10", "Resize", 'Y = Resize<mode="nearest">(X, s)', constants={"s": [1.0, 1.0, 0.6, 0.7]}, opset=10),
    Case("linear_10", "Resize", 'Y = Resize<mode="linear">(X, s)', constants={"s": [1.0, 1.0, 1.5, 0.7]}, opset=10),
    Case("shrinks_9", "Upsample", 'Y = Upsample<mode="linear">(X, s)', constants={"s": [1.0, 1.0, 1.5, 2.0]}, opset=9),
)  # fmt: skip
CASES = (*BLOCKS, *ALIGN, *POOL, *DEFORMED, *RESIZES)
