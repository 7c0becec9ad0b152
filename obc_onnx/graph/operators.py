"""Operators that loading, folding and saving of a file have to know, all named here.

What an operator does is for rules to say, `obc_onnx.ops`. Those need a graph in canonical form, so
that what brings it there cannot ask them. `tests/ops/test_effects.py` compares both.
"""

from __future__ import annotations

CONSTANT = "Constant"
"""Holds an initializer in a node."""
IDENTITY = "Identity"
"""Stands where a value keeps its name, and is another one."""
DEQUANTISING = "DequantizeLinear"
QUANTISING = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
"""They round to whole numbers; so does what has `ON_QUANTISED` in its name."""
ON_QUANTISED = "QLinear"
CODING = frozenset({DEQUANTISING, "QuantizeLinear"})
"""Between floats and whole numbers, by a scale that is an input."""
SCALE = 1
"""The slot of that."""
FUSED_NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Norms that ONNX Runtime's optimizer writes into models of any opset."""
READING_UNKNOWN = frozenset({
    ("", "EyeLike"), ("", "RegexFullMatch"), ("ai.onnx.ml", "DictVectorizer"),
    ("ai.onnx.ml", "LabelEncoder"), ("ai.onnx.ml", "TreeEnsemble"),
})  # fmt: skip
"""By domain. onnx's shape inference reads the type of their input, and where it has found none, as
behind an operator of another domain, reads where nothing is and ends the process."""
SHAPED_BY_INPUT = frozenset({"Expand", "Reshape"})
"""Their second input is the shape of the output, or what broadcasts to it."""
REARRANGING = frozenset({
    "Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Each number that they give is one of the first input's, at most in another type."""
MAKES_VECTORS = {
    "ConstantOfShape": 0, "Expand": 1, "Range": 1, "Reshape": 1, "Tile": 1,
}  # fmt: skip
"""They make as many elements as an input says, and its slot: a vector, where it is one number."""
DROPS_AXES = ("Arg", "Reduce")
"""How the names of operators begin of which a vector may be left, however many axes there were."""
SHAPE_ARITHMETIC = REARRANGING | {
    "Abs", "Add", "Concat", "ConstantOfShape", "Div", "Flatten", "Max", "Min", "Mul", "Neg",
    "Range", "Shape", "Size", "Sub",
}  # fmt: skip
"""What exporters compute shapes with; equal inputs give equal outputs."""
OF_NUMBERS = SHAPE_ARITHMETIC | {
    "And", "CumSum", "Equal", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Mod", "Not", "Or", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum",
    "ScatterElements", "ScatterND", "Sign", "Trilu", "Where", "Xor",
}  # fmt: skip
"""What whole numbers are computed with that sizes follow from; what they give has one size."""
PADDING = "Pad"
"""Its amounts may be below 0, which takes positions away: more than there are are no shape."""
SIZE = "Size"
COUNTING = frozenset({"Shape", SIZE})
"""They tell how large a value is, whatever it holds: each of its axes, or all of it."""
ACROSS_POSITIONS = frozenset({
    "BatchNormalization", "Einsum", "Gemm", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "LpNormalization", "MatMul", "MeanVarianceNormalization", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "RMSNormalization", "Softmax",
})  # fmt: skip
"""Their result at one position depends on other positions of an axis."""
RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
})  # fmt: skip
"""Equal inputs give other outputs whenever the model runs."""
INITIAL_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""The input slots of recurrent layers whose values, where left out, are zeros."""
DIVIDING = {
    "Attention": ("kv_num_heads", "num_heads", "q_num_heads"), "Conv": ("group",),
    "ConvTranspose": ("group",), "DepthToSpace": ("blocksize",),
    "GroupNormalization": ("num_groups",), "GroupQueryAttention": ("kv_num_heads", "num_heads"),
    "MultiHeadAttention": ("num_heads",), "SpaceToDepth": ("blocksize",),
}  # fmt: skip
"""Attributes that ONNX Runtime divides by, unchecked: a zero would end the process."""
WINDOWS = frozenset({"dilations", "kernel_shape", "strides"})
"""Attributes that say how windows lie, whatever slides them."""
LAST_CHOICES = {
    "Attention": {"qk_matmul_output_mode": 3}, "RoiAlign": {"sampling_ratio": 2**8},
}  # fmt: skip
"""Attributes that choose by a number from 0 on, and the last of it; or of samples, whose square for
each cell ONNX Runtime takes memory for, the most."""
COUNTS_OUTPUTS = {"Split": "num_outputs"}
"""Attributes that say how many outputs a node has: ONNX Runtime ends the process where they err."""
READ_ANYWAY = {("com.microsoft", "Attention"): {2: "bias"}}
"""Inputs that may be left out, which ONNX Runtime reads all the same: that ends the process."""
_Texts = dict[str, tuple[str, ...]]
_DIRECTIONS: _Texts = {"direction": ("forward", "reverse", "bidirectional")}
_JOINS: _Texts = {"reduction": ("none", "add", "mul", "max", "min")}
_MEANS: _Texts = {"reduction": ("none", "sum", "mean")}
_ORDERS: _Texts = {"mode": ("DCR", "CRD")}
_PADS: _Texts = {"auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")}
CHOICES: dict[str, _Texts] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _DIRECTIONS),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _JOINS),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _MEANS),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _ORDERS),
    **dict.fromkeys((
        "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv",
    ), _PADS),
    "BitShift": {"direction": ("LEFT", "RIGHT")},
    "CausalConvWithState": {"activation": ("none", "silu", "swish")},
    "Gelu": {"approximate": ("none", "tanh")},
    "GridSample": {
        "mode": ("linear", "nearest", "cubic", "bilinear", "bicubic"),
        "padding_mode": ("zeros", "border", "reflection"),
    },
    "LinearAttention": {"update_rule": ("linear", "gated", "delta", "gated_delta")},
    "Pad": {"mode": ("constant", "reflect", "edge", "wrap")},
    "Resize": {
        "mode": ("nearest", "linear", "cubic"),
        "coordinate_transformation_mode": (
            "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
            "asymmetric", "tf_crop_and_resize", "tf_half_pixel_for_nn",
        ),
        "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    },
    "RoiAlign": {
        "mode": ("avg", "max"),
        "coordinate_transformation_mode": ("half_pixel", "output_half_pixel"),
    },
    "TensorScatter": {"mode": ("linear", "circular")},
    "Upsample": {"mode": ("nearest", "linear", "cubic")},
}  # fmt: skip
"""What texts of attributes of the standard domain may say. ONNX Runtime takes some others for one
of them; which one, no standard tells. Source: the operator pages of ONNX."""
