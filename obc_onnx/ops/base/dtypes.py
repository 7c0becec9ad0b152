"""ONNX data types: what the twin holds each in, and the numbers that quantised ones hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from obc_onnx.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from obc_onnx.graph.node import Node

_SIGNED_BITS: dict[int, int] = {
    TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.INT8: 8, TensorProto.INT16: 16,
    TensorProto.INT32: 32,
}  # fmt: skip
_UNSIGNED_BITS: dict[int, int] = {
    TensorProto.UINT2: 2, TensorProto.UINT4: 4, TensorProto.UINT8: 8, TensorProto.UINT16: 16,
    TensorProto.UINT32: 32,
}  # fmt: skip


def check_held(data_type: int, node: Node) -> None:
    """Check that the twin can hold what a node converts to.

    Raises:
        UnsupportedOperatorError: torch has no such type.
    """
    try:
        torch_dtype(data_type)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(f"{node.label}: {error}") from error


def torch_dtype(data_type: int) -> torch.dtype:
    """Return what the twin holds tensors of a TensorProto data type in.

    torch computes with integers of 8 bits and more, and with no unsigned ones but those of 8. The
    others are held in larger ones, and unsigned ones of 64 bits in signed ones.

    Raises:
        UnsupportedOperatorError: torch has no such type.
    """
    import torch

    table: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
        TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
        TensorProto.FLOAT8E5M2: torch.float8_e5m2,
        TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
        TensorProto.INT8: torch.int8,
        TensorProto.INT16: torch.int16,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.INT2: torch.int8,
        TensorProto.INT4: torch.int8,
        TensorProto.UINT2: torch.uint8,
        TensorProto.UINT4: torch.uint8,
        TensorProto.UINT8: torch.uint8,
        TensorProto.UINT16: torch.int32,
        TensorProto.UINT32: torch.int64,
        TensorProto.UINT64: torch.int64,
        TensorProto.BOOL: torch.bool,
    }
    if data_type not in table:
        raise UnsupportedOperatorError(f"the twin cannot hold tensors of ONNX type {data_type}")
    return table[data_type]


def bits_dtype(data_type: int) -> torch.dtype:
    """Return the torch type with the bits of a TensorProto data type, to read them again."""
    import torch

    unsigned: dict[int, torch.dtype] = {
        TensorProto.UINT16: torch.uint16,
        TensorProto.UINT32: torch.uint32,
        TensorProto.UINT64: torch.uint64,
    }
    return unsigned[data_type] if data_type in unsigned else torch_dtype(data_type)


def wrap(x: Tensor, data_type: int) -> Tensor:
    """Convert to a data type; whole numbers that it has no place for wrap around."""
    import torch

    kind, limits = torch_dtype(data_type), integer_limits(data_type)
    if limits is None or limits == (torch.iinfo(kind).min, torch.iinfo(kind).max):
        return x.to(kind)
    low, high = limits
    return (((x.to(torch.int64) - low) & (high - low)) + low).to(kind)


def integer_limits(data_type: int) -> tuple[int, int] | None:
    """Return the least and the greatest number of an integer type, None where it is none."""
    if data_type in _SIGNED_BITS:
        half = 1 << (_SIGNED_BITS[data_type] - 1)
        return -half, half - 1
    if data_type in _UNSIGNED_BITS:
        return 0, (1 << _UNSIGNED_BITS[data_type]) - 1
    return None
