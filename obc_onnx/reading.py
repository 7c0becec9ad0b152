"""Read a model file, and say in a sentence why it cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError

from obc_onnx.errors import ModelError
from obc_onnx.foreign import without_foreign

if TYPE_CHECKING:
    from pathlib import Path


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model with its external data.

    Raises:
        ModelError: The file is missing, not an ONNX model, or fails the checker.
    """
    if path.is_dir():
        raise ModelError(f"model '{path}' is a folder")
    if not path.is_file():
        raise ModelError(f"model file '{path}' does not exist")
    try:
        return _checked(path)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"'{path}' fails the ONNX checker: {_sentence(error)}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read as an ONNX model: {_sentence(error)}") from error


def _checked(path: Path) -> onnx.ModelProto:
    """Load a model that the checker, called with its path on account of its size, accepts."""
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as fault:
        try:
            model = onnx.load(path)
        except DecodeError:
            raise fault from None
        known = without_foreign(model)
        if known is model:
            raise
        onnx.checker.check_model(known)
        return model
    return onnx.load(path)


def _sentence(error: BaseException) -> str:
    """Join a message of several lines, which the checker and protobuf write."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__
