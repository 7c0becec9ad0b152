"""Batch norms whose statistics are those of the batch of all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.nn.functional import all_reduce

from obc_onnx.ops.norms.batch import batch_norm
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.twin.module import TorchTwin


def share_statistics(twin: TorchTwin) -> None:
    """Let every norm of a twin see the batch of all processes.

    Several processes then train as one does on the whole batch. torch's own SyncBatchNorm needs a
    GPU.
    """
    for node in twin.graph.nodes:
        if node.target is batch_norm:
            node.target = batch_norm_of_all
    twin.recompile()


def batch_norm_of_all(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float,
    momentum: float,
    training: bool,
) -> Tensor:
    """Compute BatchNormalization as `batch_norm` does, over the samples of all processes.

    Sums are reduced with their gradients, in two passes: a variance as a difference of squares
    would lose digits.
    """
    if not training:
        return batch_norm(
            x, scale, bias, mean, var, epsilon=epsilon, momentum=momentum, training=False
        )
    per_position = scale.ndim > 1  # which opsets before 9 call not spatial
    flat = x.flatten(1) if per_position else x.flatten(2) if x.ndim > 2 else x.unsqueeze(-1)  # noqa: PLR2004
    flat = flat.unsqueeze(-1) if per_position else flat
    flat = wide(flat)
    count = flat.new_tensor([float(flat.shape[0] * flat.shape[2])])
    total = _sum_of_all(torch.cat([flat.sum((0, 2)), count]))
    n = total[-1].detach()
    centred = flat - (total[:-1] / n)[:, None]
    spread = _sum_of_all(centred.square().sum((0, 2))) / n
    with torch.no_grad():
        for stored, fresh in ((mean, total[:-1] / n), (var, spread * n / (n - 1))):
            stored.lerp_(fresh.reshape(stored.shape).to(stored.dtype), 1.0 - momentum)
    factor = scale.flatten() * (spread + epsilon).rsqrt()
    y = centred * factor[:, None] + bias.flatten()[:, None]
    return y.to(x.dtype).reshape(x.shape)


def _sum_of_all(own: Tensor) -> Tensor:
    total: Tensor = all_reduce(own)  # type: ignore[no-untyped-call]
    return total
