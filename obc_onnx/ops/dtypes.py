"""The torch type of each ONNX data type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from obc_onnx.errors import ModelError

if TYPE_CHECKING:
    import torch


def torch_dtype(data_type: int) -> torch.dtype:
    """Translate a TensorProto data type.

    Raises:
        ModelError: torch has no such type.
    """
    import torch

    table: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.INT8: torch.int8,
        TensorProto.INT16: torch.int16,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.UINT8: torch.uint8,
        TensorProto.BOOL: torch.bool,
    }
    if data_type not in table:
        raise ModelError(f"the twin cannot hold tensors of ONNX type {data_type}")
    return table[data_type]
