"""Operator rules, one class per family; `DEFAULT_RULES` is what every stage uses by default."""

from obc_onnx.ops import (
    activation,
    conv,
    detection,
    einsum,
    elementwise,
    frozen,
    fused,
    gather,
    join,
    layout,
    linear,
    losses,
    order,
    pool,
    reduce,
    regions,
    resize,
    scatter,
    select,
    shape,
    signal,
    slicing,
    spatial,
)
from obc_onnx.ops.attention import contrib as contrib_attention
from obc_onnx.ops.attention import grouped as grouped_attention
from obc_onnx.ops.attention import rotary, stateful
from obc_onnx.ops.attention import standard as attention
from obc_onnx.ops.base.rule import RuleSet
from obc_onnx.ops.control import flow as control
from obc_onnx.ops.norms import batch as norm
from obc_onnx.ops.norms import fused as fused_norm
from obc_onnx.ops.norms import layer as layer_norm
from obc_onnx.ops.norms import plain as plain_norm
from obc_onnx.ops.quantised import blocks as quantized_blocks
from obc_onnx.ops.quantised import fused as quantized_fused
from obc_onnx.ops.quantised import linear as quantize
from obc_onnx.ops.quantised import maps as quantized_maps
from obc_onnx.ops.quantised import products as quantized_linear
from obc_onnx.ops.recurrent import rules as recurrent

DEFAULT_RULES = RuleSet(
    (
        *activation.RULES,
        *attention.RULES,
        *contrib_attention.RULES,
        *conv.RULES,
        *detection.RULES,
        *einsum.RULES,
        *elementwise.RULES,
        *control.RULES,
        *frozen.RULES,
        *fused.RULES,
        *fused_norm.RULES,
        *gather.RULES,
        *grouped_attention.RULES,
        *join.RULES,
        *layer_norm.RULES,
        *layout.RULES,
        *linear.RULES,
        *losses.RULES,
        *norm.RULES,
        *order.RULES,
        *plain_norm.RULES,
        *pool.RULES,
        *quantize.RULES,
        *quantized_blocks.RULES,
        *quantized_fused.RULES,
        *quantized_linear.RULES,
        *quantized_maps.RULES,
        *recurrent.RULES,
        *reduce.RULES,
        *regions.RULES,
        *resize.RULES,
        *rotary.RULES,
        *scatter.RULES,
        *select.RULES,
        *shape.RULES,
        *signal.RULES,
        *slicing.RULES,
        *spatial.RULES,
        *stateful.RULES,
    )
)
