"""Operator rules, one class per family; `DEFAULT_RULES` is what every stage uses by default."""

from obc_onnx.ops import (
    activation,
    attention,
    conv,
    einsum,
    elementwise,
    frozen,
    fused,
    gather,
    join,
    layout,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    scatter,
    select,
    shape,
    slicing,
    spatial,
)
from obc_onnx.ops.rule import Call, FreeOfMacs, Rule, RuleSet

DEFAULT_RULES = RuleSet(
    (
        *activation.RULES,
        *attention.RULES,
        *conv.RULES,
        *einsum.RULES,
        *elementwise.RULES,
        *frozen.RULES,
        *fused.RULES,
        *gather.RULES,
        *join.RULES,
        *layout.RULES,
        *linear.RULES,
        *norm.RULES,
        *pool.RULES,
        *quantize.RULES,
        *recurrent.RULES,
        *reduce.RULES,
        *resize.RULES,
        *scatter.RULES,
        *select.RULES,
        *shape.RULES,
        *slicing.RULES,
        *spatial.RULES,
    )
)

__all__ = ["DEFAULT_RULES", "Call", "FreeOfMacs", "Rule", "RuleSet"]
