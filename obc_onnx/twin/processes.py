"""Several processes on one job, as `torchrun` starts them: each takes a share, and sums are shared.

A process that was started alone is the first of one, and loads no torch to find that out.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from obc_onnx.installation import require_torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

Item = TypeVar("Item")
Key = TypeVar("Key")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes, if there are any, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _several():
        yield
        return
    require_torch("work that several processes share")
    from torch import distributed

    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    if not _several():
        return 0
    from torch import distributed

    return distributed.get_rank()


def world_size() -> int:
    """Return how many processes there are."""
    if not _several():
        return 1
    from torch import distributed

    return distributed.get_world_size()


def local_device(device: str) -> str:
    """Return the GPU of this process where several share a machine and "cuda" was asked for."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and _several() else device


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Return every n-th item, so that n processes take all of them."""
    return items[rank() :: world_size()]


def own_part(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one of as many consecutive parts as there are processes."""
    return np.array_split(places, world_size())[rank()]


def add_up(totals: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Sum tensors over all processes, which hold the same keys in the same order."""
    if not _several() or not totals:
        return totals
    import torch
    from torch import distributed

    flat = torch.cat([total.reshape(-1).double() for total in totals.values()])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [total.numel() for total in totals.values()])
    return {
        key: part.reshape(total.shape).to(total.dtype)
        for (key, total), part in zip(totals.items(), parts, strict=True)
    }


def _several() -> bool:
    if sys.modules.get("torch") is None:  # nobody has joined anything without it
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
