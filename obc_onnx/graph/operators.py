"""Operators that loading, folding and saving of a file have to know, all named here.

What an operator does is for rules to say, `obc_onnx.ops`. Those need a graph in canonical form, so
that what brings it there cannot ask them. `tests/ops/test_effects.py` compares both.
"""

from __future__ import annotations

CONSTANT = "Constant"
"""Holds an initializer in a node."""
DEQUANTISING = "DequantizeLinear"
QUANTISING = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
"""They round to whole numbers; so does what has `ON_QUANTISED` in its name."""
ON_QUANTISED = "QLinear"
FUSED_NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Norms that ONNX Runtime's optimizer writes into models of any opset."""
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
