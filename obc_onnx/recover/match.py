"""Match of statistics: each output of a layer gets back the mean and variance of the original's.

For graphs whose norms were folded: r = sigma / sigma_pruned, W' = r W, b' = (b - mu_pruned) r + mu.

Source: Jordan et al., REPAIR, arXiv 2211.08403, for networks without norms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.recover.least_squares import Moments

_FARTHEST = 3.0
"""A factor beyond it, or below its inverse, would blow up noise."""


def match(used: Moments, held: Moments, matrix: Tensor, *, biased: bool) -> Tensor:
    """Scale each output and shift its bias; a matrix without one stays.

    Args:
        used: Of rows.
        held: Of others, which are measured on too: nothing is chosen.
        matrix: What is there, shape [blocks, outputs, inputs], float64.
        biased: Whether the last input is always 1.
    """
    if not biased:
        return matrix
    moments = used if used is held else used + held
    count = moments.xx[:, -1:, -1]
    mean = moments.xx[:, :-1, -1] / count
    covariance = moments.xx[:, :-1, :-1] / count[..., None] - mean[:, :, None] * mean[:, None, :]
    weight, bias = matrix[..., :-1], matrix[..., -1]
    own_mean = (weight * mean[:, None, :]).sum(-1) + bias
    own = ((weight @ covariance) * weight).sum(-1)
    wanted_mean = moments.xy[:, -1, :] / count
    wanted = moments.yy / count - wanted_mean.square()
    factor = (wanted.clamp_min(0) / own).sqrt().clamp(1 / _FARTHEST, _FARTHEST)
    factor = torch.where((own > 0) & factor.isfinite(), factor, torch.ones_like(factor))
    shifted = wanted_mean + (bias - own_mean) * factor
    return torch.cat([weight * factor[..., None], shifted[..., None]], -1)
