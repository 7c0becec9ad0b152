"""Keep the states of a run, so that one that was broken off goes on."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any, Protocol

import torch

from obc_onnx.errors import RequestError
from obc_onnx.files import check_regular, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PARTS = {
    *("student", "optimizer", "precision", "history", "trials", "losses", "best", "average"),
    "penalty",
}
SPARSE_LEARNING, TUNING = "sparse", ""
"""Stages of training: what the names of their files start with."""


class Checkpoints(Protocol):
    """Where the states of a run are kept."""

    resume: bool
    """Whether a run that is there goes on."""

    def checkpoint(self, stage: str) -> Path:
        """Say where states of a stage of training are kept."""

    def keep_metrics(self, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep one JSON object per epoch of a stage."""


class Keeper:
    """The checkpoint and the metrics of one stage in the folder of a run.

    Args:
        folder: Of the run; a file in it is whole or absent, whenever the process ends.
        stage: Which stage.
    """

    def __init__(self, folder: Checkpoints, stage: str) -> None:
        self._folder, self._stage = folder, stage

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved last, None where there is none or none is wanted.

        Raises:
            RequestError: The file is no checkpoint, or not the one that was written.
        """
        path = self._folder.checkpoint(self._stage)
        if not self._folder.resume or not path.exists():
            return None
        check_regular(path, "checkpoint", RequestError)
        try:
            whole = path.read_bytes()
        except OSError as error:
            raise RequestError(f"'{path}' cannot be read: {error.strerror}") from error
        content = memoryview(whole)[: -len(_digest(b""))]
        if whole[len(content) :] != _digest(content):
            raise RequestError(
                f"'{path}' is no checkpoint of a run, or is damaged: remove it, and the run starts "
                f"this stage again"
            )
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        if state.keys() != _PARTS:
            raise RequestError(f"'{path}' is of another version of obc-onnx: remove it")
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, and write the metrics of the epochs so far."""
        with replacing(self._folder.checkpoint(self._stage)) as partial:
            torch.save(state, partial)
            with partial.open("rb+") as file:
                content = file.read()
                file.write(_digest(content))
        self._folder.keep_metrics(self._stage, state["history"])


def _digest(content: bytes | memoryview) -> bytes:
    """Return what the file of a state ends with: the SHA-256 of what is before it."""
    return hashlib.sha256(content).digest()
