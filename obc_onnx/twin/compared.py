"""Distances of an output from the original's, each channel on its own scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.measuring.scales import Scale

    Mask = NDArray[np.bool_]


class _Rows(NamedTuple):
    """Two outputs in units of their deviation, shape [samples, ...], and what counts: 1 or 0.

    What does not count is 0 in both.
    """

    found: Tensor
    wanted: Tensor
    counts: Tensor


class Compared:
    """Compares an output with the original's, as `scales` and `measuring.error.Distance` do.

    A difference is a share of the deviation of its channel, so that boxes in pixels and scores of
    thousandths count alike. Losses of channels come together as the mean of log(1 + loss): that of
    small losses, in which a channel that hardly moves, so that any difference is large beside it,
    does not outweigh all others.

    Args:
        scale: Of the output.
    """

    def __init__(self, scale: Scale) -> None:
        self._batch_axis = scale.batch_axis
        self._channels = torch.from_numpy(scale.channels)
        self._n_channels = len(scale.variance)
        self._deviations = torch.from_numpy(scale.variance).sqrt()[self._channels]

    def mse(self, found: Tensor, wanted: Tensor, real: Mask | None) -> Tensor:
        """Return the squared differences, a scalar."""
        rows = self._rows(found, wanted, real)
        return self._together((rows.found - rows.wanted).square(), rows.counts)

    def smooth_l1(self, found: Tensor, wanted: Tensor, real: Mask | None) -> Tensor:
        """Return half the squares of differences below a deviation, and of others the distance."""
        rows = self._rows(found, wanted, real)
        losses = functional.smooth_l1_loss(rows.found, rows.wanted, reduction="none")
        return self._together(losses, rows.counts)

    def cosine(self, found: Tensor, wanted: Tensor, real: Mask | None) -> Tensor:
        """Return one minus the cosine between both outputs of a sample, the mean over samples."""
        rows = self._rows(found, wanted, real)
        n_samples = 1 if self._batch_axis is None else len(rows.found)
        own, other = (value.reshape(n_samples, -1) for value in (rows.found, rows.wanted))
        return 1 - functional.cosine_similarity(own, other, dim=-1).mean()

    def _rows(self, found: Tensor, wanted: Tensor, real: Mask | None) -> _Rows:
        if self._batch_axis is None:
            found, wanted = found.reshape(-1), wanted.reshape(-1)
        else:
            found, wanted = (value.movedim(self._batch_axis, 0) for value in (found, wanted))
        counted = wanted.isfinite()  # not so the scores of what is masked
        if real is not None and self._batch_axis is not None:
            counted &= torch.from_numpy(real).to(wanted.device).movedim(self._batch_axis, 0)
        deviations = self._deviations.to(found)
        found, wanted = (value.where(counted, 0) / deviations for value in (found, wanted))
        return _Rows(found, wanted, counted.to(found))

    def _together(self, losses: Tensor, counts: Tensor) -> Tensor:
        sums, numbers = (self._by_channel(value.sum(0)) for value in (losses, counts))
        return (sums / numbers.clamp_min(1)).log1p().mean()

    def _by_channel(self, numbers: Tensor) -> Tensor:
        """Add numbers up, shape as one sample, into channels."""
        channels = self._channels.to(numbers.device).reshape(-1)
        return numbers.new_zeros(self._n_channels).index_add(0, channels, numbers.reshape(-1))
