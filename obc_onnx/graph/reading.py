"""Read a model file, or say in one sentence what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model

from obc_onnx.errors import ModelError
from obc_onnx.files import check_name
from obc_onnx.graph.external import files_named, parsed
from obc_onnx.graph.foreign import without_foreign
from obc_onnx.graph.ordering import sort_nodes
from obc_onnx.graph.outline import outlined
from obc_onnx.graph.soundness import check_sound

if TYPE_CHECKING:
    from pathlib import Path


def read_model(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """Read a model file, with its external data.

    Returns:
        The model, and the files that it is made of, its own first.
    Raises:
        ModelError: The file is missing, not an ONNX model, or fails the checker.
    """
    check_name(path, ModelError)
    if path.is_dir():
        raise ModelError(f"model '{path}' is a folder")
    if not path.is_file():
        raise ModelError(f"model file '{path}' does not exist")
    try:
        model = parsed(path)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read as an ONNX model: {_sentence(error)}") from error
    try:
        check_sound(model, path.parent)
    except ModelError as error:
        raise ModelError(f"'{path}' is malformed: {error}") from error
    sorts = sort_nodes(model)
    try:
        _check(path, model, as_written=not sorts)
        files = files_named(path, model)
        load_external_data_for_model(model, str(path.parent))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"'{path}' fails the ONNX checker: {_sentence(error)}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read as an ONNX model: {_sentence(error)}") from error
    return model, files


def _check(path: Path, parsed_model: onnx.ModelProto, *, as_written: bool) -> None:
    """Run the checker on a file, and where operators are foreign to it, on what it would see.

    Args:
        path: The file.
        parsed_model: What it holds, with nodes in order.
        as_written: Whether the file has them in that order; else what it holds is checked.
    """
    try:
        onnx.checker.check_model(path if as_written else outlined(parsed_model))
    except onnx.checker.ValidationError:
        model = outlined(parsed_model)
        known = without_foreign(model)
        if known is model:
            raise
        onnx.checker.check_model(known)


def _sentence(error: BaseException) -> str:
    """Join a message of several lines, which the checker and protobuf write."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__
