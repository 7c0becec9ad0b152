"""Operator rules, one class per family; `DEFAULT_RULES` is what every stage uses by default."""

from obc_onnx.ops.activation import Clip, Dropout, Gelu, ParametricUnary, PRelu
from obc_onnx.ops.conv import Conv, ConvTranspose
from obc_onnx.ops.elementwise import Binary, Same, Unary, Variadic, Where
from obc_onnx.ops.gather import Gather
from obc_onnx.ops.join import Concat, Split
from obc_onnx.ops.layout import Flatten, Reshape, Squeeze, Transpose, Unsqueeze
from obc_onnx.ops.linear import Gemm, MatMul
from obc_onnx.ops.norm import BatchNormalization
from obc_onnx.ops.pool import GlobalPool, WindowPool
from obc_onnx.ops.reduce import Reduce, Softmax
from obc_onnx.ops.resize import Resize
from obc_onnx.ops.rule import Call, FreeOfMacs, Rule, RuleSet
from obc_onnx.ops.shape import ConstantOfShape, Expand, Range, Shape, Size, Tile
from obc_onnx.ops.slicing import Pad, Slice

DEFAULT_RULES = RuleSet(
    (
        BatchNormalization(),
        Binary(),
        Clip(),
        Concat(),
        ConstantOfShape(),
        Conv(),
        ConvTranspose(),
        Dropout(),
        Expand(),
        Flatten(),
        Gather(),
        Gelu(),
        Gemm(),
        GlobalPool(),
        MatMul(),
        PRelu(),
        Pad(),
        ParametricUnary(),
        Range(),
        Reduce(),
        Reshape(),
        Resize(),
        Same(),
        Shape(),
        Size(),
        Slice(),
        Softmax(),
        Split(),
        Squeeze(),
        Tile(),
        Transpose(),
        Unary(),
        Unsqueeze(),
        Variadic(),
        Where(),
        WindowPool(),
    )
)

__all__ = ["DEFAULT_RULES", "Call", "FreeOfMacs", "Rule", "RuleSet"]
