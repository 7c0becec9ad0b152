"""Rows for pooling, Resize, Upsample, reductions and Softmax."""

from __future__ import annotations

from ops.cases import Case

LINE = {"X": (6, 10)}
CUBE = {"X": (4, 5, 4, 5)}
UNEVEN = {"X": (4, 7, 8)}
WINDOW = "kernel_shape=[3,3], strides=[2,2]"

_FORMS = {
    "plain": "<kernel_shape=[2,3]>",
    "strides": f"<{WINDOW}>",
    "pads": f"<{WINDOW}, pads=[1,1,1,1]>",
    "asymmetric_pads": f"<{WINDOW}, pads=[0,1,1,2]>",
    "ceil": f"<{WINDOW}, ceil_mode=1>",
    "ceil_pads": f"<{WINDOW}, ceil_mode=1, pads=[1,1,1,1]>",
    "same_upper": f'<{WINDOW}, auto_pad="SAME_UPPER">',
    "same_lower": f'<{WINDOW}, auto_pad="SAME_LOWER">',
    "valid": f'<{WINDOW}, auto_pad="VALID">',
}
WINDOWS = (
    *(
        Case(name, op, f"Y = {op}{attributes}(X)", UNEVEN)
        for op in ("MaxPool", "AveragePool")
        for name, attributes in _FORMS.items()
    ),
    *(
        Case(
            f"padding_counts_{name}",
            "AveragePool",
            f"Y = AveragePool{form[:-1]}, count_include_pad=1>(X)",
            UNEVEN,
            opset=19,
        )
        for name, form in _FORMS.items()
    ),
    *(
        Case("opset9", op, f"Y = {op}{_FORMS['pads']}(X)", opset=9)
        for op in ("MaxPool", "AveragePool")
    ),
    *(
        Case("1d", op, f"Y = {op}<kernel_shape=[3], strides=[2]>(X)", LINE)
        for op in ("MaxPool", "AveragePool")
    ),
    *(
        Case("3d", op, f"Y = {op}<kernel_shape=[2,2,3], pads=[1,0,1,0,0,1]>(X)", CUBE)
        for op in ("MaxPool", "AveragePool")
    ),
    Case("dilations", "MaxPool", "Y = MaxPool<kernel_shape=[2,2], dilations=[2,3]>(X)", UNEVEN),
    Case(
        "dilated_ceil",
        "MaxPool",
        "Y = MaxPool<kernel_shape=[2,2], dilations=[2,3], strides=[2,2], ceil_mode=1, pads=[1,0,0,1]>(X)",
        UNEVEN,
    ),
    Case(
        "dilations",
        "AveragePool",
        "Y = AveragePool<kernel_shape=[2,2], dilations=[2,3], pads=[1,1,0,0], strides=[1,2]>(X)",
        UNEVEN,
        opset=19,
    ),
    *(
        Case(f"{len(shape) - 1}d", op, f"Y = {op}(X)", {"X": shape})
        for op in ("GlobalAveragePool", "GlobalMaxPool")
        for shape in ((6, 10), (4, 6, 6), (4, 5, 4, 5))
    ),
)

ASYMMETRIC = 'mode="nearest", coordinate_transformation_mode="asymmetric"'
NEAREST = f'{ASYMMETRIC}, nearest_mode="floor"'
LINEAR = 'mode="linear", coordinate_transformation_mode='
TWICE = {"scales": [1.0, 1.0, 2.0, 3.0]}
RESIZES = (
    Case(
        "nearest_11",
        "Resize",
        f"Y = Resize<{NEAREST}>(X, roi, scales)",
        constants={**TWICE, "roi": []},
        opset=11,
    ),
    Case("nearest", "Resize", f"Y = Resize<{NEAREST}>(X, , scales)", constants=TWICE),
    Case(
        "nearest_sizes",
        "Resize",
        f"Y = Resize<{NEAREST}>(X, , , sizes)",
        {"X": (4, 6, 6)},
        {},
        {"sizes": [3, 4, 9, 12]},
        batch=3,
    ),
    Case(
        "nearest_down",
        "Resize",
        f"Y = Resize<{NEAREST}>(X, , s)",
        constants={"s": [1.0, 1.0, 0.5, 0.5]},
    ),
    Case("opset10", "Resize", "Y = Resize(X, scales)", constants=TWICE, opset=10),
    Case(
        "half_pixel",
        "Resize",
        f'Y = Resize<{LINEAR}"half_pixel">(X, , scales)',
        constants=TWICE,
    ),
    Case(
        "default_coordinates",
        "Resize",
        'Y = Resize<mode="linear">(X, , scales)',
        constants=TWICE,
    ),
    Case(
        "pytorch_half_pixel",
        "Resize",
        f'Y = Resize<{LINEAR}"pytorch_half_pixel">(X, , scales)',
        constants=TWICE,
    ),
    Case(
        "align_corners",
        "Resize",
        f'Y = Resize<{LINEAR}"align_corners">(X, , scales)',
        constants=TWICE,
    ),
    Case(
        "linear_1d",
        "Resize",
        'Y = Resize<mode="linear">(X, , s)',
        LINE,
        {},
        {"s": [1.0, 1.0, 1.5]},
    ),
    Case(
        "linear_3d",
        "Resize",
        'Y = Resize<mode="linear">(X, , s)',
        {"X": (4, 3, 4, 3)},
        {},
        {"s": [1.0, 1.0, 2.0, 2.0, 2.0]},
    ),
    Case("cubic", "Resize", 'Y = Resize<mode="cubic">(X, , scales)', constants=TWICE),
    Case(
        "axes",
        "Resize",
        f"Y = Resize<{NEAREST}, axes=[2,3]>(X, , s)",
        constants={"s": [2.0, 2.0]},
        opset=18,
    ),
    Case(
        "axes_sizes",
        "Resize",
        f"Y = Resize<{NEAREST}, axes=[-1]>(X, , , k)",
        constants={"k": [12]},
        opset=18,
    ),
    Case(
        "computed_sizes",
        "Resize",
        f"S = Shape(X) H = Slice(S, a, b) T = Concat<axis=0>(H, k) Y = Resize<{NEAREST}>(X, , , T)",
        constants={"a": [0], "b": [2], "k": [12, 12]},
    ),
    Case(
        "written_sizes",
        "Resize",
        f"S = Shape(X) H = Slice(S, a, b) T = Concat<axis=0>(H, k) Y = Resize<{NEAREST}>(X, , , T)",
        constants={"a": [0], "b": [1], "k": [4, 12, 12]},
    ),
    Case("opset9", "Upsample", "Y = Upsample(X, scales)", constants=TWICE, opset=9),
    Case("opset7", "Upsample", "Y = Upsample<scales=[1.0, 1.0, 2.0, 2.0]>(X)", opset=7),
)

_REDUCED = (
    *((op, "attribute", f"Y = {op}<axes=[2,3], keepdims=1>(X)", {}, old) for op, old in (("ReduceMean", 13), ("ReduceSum", 11))),
    *((op, "negative", f"Y = {op}<axes=[-1,-2], keepdims=0>(X)", {}, old) for op, old in (("ReduceMean", 17), ("ReduceSum", 11))),
    *((op, "input", f"Y = {op}(X, axes)", {"axes": [2, -1]}, 18) for op in ("ReduceMean", "ReduceSum")),
    *((op, "input_dropped", f"Y = {op}<keepdims=0>(X, axes)", {"axes": [3]}, 18) for op in ("ReduceMean", "ReduceSum")),
    *((op, "nothing", f"Y = {op}<noop_with_empty_axes=1>(X)", {}, 18) for op in ("ReduceMean", "ReduceSum")),
    *((op, "channels", f"Y = {op}(X, axes)", {"axes": [1]}, 18) for op in ("ReduceMean", "ReduceSum")),
)  # fmt: skip
REDUCTIONS = (
    *(
        Case(name, op, text, constants=constants, opset=opset)
        for op, name, text, constants, opset in _REDUCED
    ),
    *(
        Case("everything", op, f"Y = {op}<keepdims=0>(X)", opset=17)
        for op in ("ReduceMean", "ReduceSum")
    ),
    Case(
        "features",
        "ReduceSum",
        "Y = ReduceSum<keepdims=0>(X, axes)",
        {"X": (8,)},
        {},
        {"axes": [1]},
    ),
    Case(
        "two_free_axes",
        "ReduceSum",
        "A = Reshape(X, to) B = Relu(A) Y = ReduceSum<keepdims=0>(B, axes)",
        {"X": (12,)},
        {},
        {"to": [0, 3, 4], "axes": [1, 2]},
    ),
    Case(
        "product",
        "ReduceSum",
        "F = Flatten(X) Y = ReduceSum(F, axes)",
        {"X": (4, 3, 3)},
        {},
        {"axes": [1]},
    ),
)
_OVER_CHANNELS = {"channels", "flattened_default"}
SOFTMAX = tuple(
    Case(name, op, text.format(op=op), opset=opset, prunes=name not in _OVER_CHANNELS)
    for op in ("Softmax", "LogSoftmax")
    for name, text, opset in (
        ("last", "Y = {op}(X)", 13),
        ("channels", "Y = {op}<axis=1>(X)", 13),
        ("rows", "Y = {op}<axis=-2>(X)", 13),
        ("flattened", "Y = {op}<axis=2>(X)", 11),
        ("flattened_default", "Y = {op}(X)", 11),
        ("flattened_negative", "Y = {op}<axis=-1>(X)", 12),
    )
)
CASES = (*WINDOWS, *RESIZES, *REDUCTIONS, *SOFTMAX)
