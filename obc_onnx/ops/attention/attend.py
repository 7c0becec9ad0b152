"""Attention in torch: what the twins of all its forms share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PACKED_RANK = 3
"""Rank of [batch, positions, heads x width]; else it is [batch, heads, positions, width]."""


def default_scale(width: int) -> float:
    """Return 1 / sqrt(width of a head)."""
    return 1.0 / math.sqrt(width)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    scale: float | None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Compute softmax(cap(scale q k') + bias) v; a row without any key that may be used is zero.

    Args:
        q: Shape [batch, heads, queries, width].
        k: Shape [batch, shared heads, keys, width]; each serves as many heads in a row.
        v: Shape [batch, shared heads, keys, value width].
        bias: Broadcast to [batch, heads, queries, keys].
        scale: Of the scores; None for 1 / sqrt(width).
        softcap: Bound of the scores, 0 for none.
        sink: For each head the score of one more key, which has no value, shape [heads].
    Returns:
        The output, and the scores: scaled, bounded, with the bias, and after the softmax.
    """
    import torch

    n_sharing = q.shape[1] // k.shape[1]
    if n_sharing > 1:
        k, v = k.repeat_interleave(n_sharing, 1), v.repeat_interleave(n_sharing, 1)
    scale = default_scale(q.shape[-1]) if scale is None else scale
    scaled = torch.matmul(q * scale, k.transpose(-1, -2))
    bounded = softcap * torch.tanh(scaled / softcap) if softcap else scaled
    biased = bounded if bias is None else bounded + bias
    if sink is not None:
        column = sink.reshape(-1, 1, 1).expand(*biased.shape[:-1], 1)
        shares = torch.cat([biased, column], -1).softmax(-1)[..., :-1]
    elif bias is None:
        shares = biased.softmax(-1)
    else:
        empty = bias.isneginf().all(-1, keepdim=True)
        shares = biased.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return torch.matmul(shares, v), (scaled, bounded, biased, shares)


def unpack(x: Tensor, n_heads: int) -> Tensor:
    """Turn [batch, positions, heads x width] into [batch, heads, positions, width]."""
    return x.reshape(*x.shape[:2], n_heads, -1).transpose(1, 2)


def pack(x: Tensor) -> Tensor:
    """Turn [batch, heads, positions, width] into [batch, positions, heads x width]."""
    return x.transpose(1, 2).flatten(2)


def behind(past: Tensor | None, x: Tensor) -> Tensor:
    """Put keys or values behind those of a cache, where there is one."""
    import torch

    return x if past is None else torch.cat([past, x], 2)


def additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Turn a mask of booleans, which is true where a key may be used, into one that is added."""
    import torch

    if mask is None or mask.dtype != torch.bool:
        return mask
    return like.new_zeros(mask.shape).masked_fill(~mask, -math.inf)


def forbid(bias: Tensor | None, forbidden: Tensor, value: float, like: Tensor) -> Tensor:
    """Give a bias a value wherever a key may not be used."""
    import torch

    if bias is None:
        return like.new_zeros(forbidden.shape).masked_fill(forbidden, value)
    return torch.where(forbidden, torch.full_like(bias, value), bias)


def allowed_keys(
    places: Tensor, n_keys: int, *, before: int, after: int, ends: Tensor | None = None
) -> Tensor:
    """Say which keys each query may use.

    Args:
        places: Of the queries among the keys, shape [queries] or [batch, queries].
        n_keys: Number of keys.
        before: How many keys before its place a query may use, -1 for all.
        after: How many behind it, -1 for all.
        ends: How many keys are used of each sample, shape [batch].
    Returns:
        Booleans of shape [queries, keys], or [batch, 1, queries, keys] with a batch.
    """
    import torch

    key = torch.arange(n_keys, device=places.device)
    ahead = key - places[..., None]
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if before >= 0:
        allowed = allowed & (-ahead <= before)
    if after >= 0:
        allowed = allowed & (ahead <= after)
    if ends is not None:
        allowed = allowed & (key < ends[:, None, None])
    return allowed if places.ndim == 1 else allowed[:, None]


def attend_masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scores_bias: Tensor | None,
    *,
    n_past: int,
    scale: float | None,
    causal: bool,
    filtered: float,
) -> tuple[Tensor, Tensor]:
    """Attend with the masks of ONNX Runtime.

    Args:
        q: Shape [batch, heads, queries, width].
        k: Shape [batch, heads, keys, width].
        v: Shape [batch, heads, keys, value width].
        mask: As in `usable_keys`.
        scores_bias: Broadcast to [batch, heads, queries, keys].
        n_past: How many keys are from before the first query.
        scale: Of the scores; None for 1 / sqrt(width).
        causal: Whether a query may not use what comes behind it.
        filtered: What is added to the score of a key that is masked.
    Returns:
        The output, and the scores in front of the softmax.
    """
    import torch

    bias = scores_bias
    if mask is not None:
        usable = usable_keys(mask, len(q), k.shape[2])
        masked = q.new_zeros(usable.shape).masked_fill(~usable, filtered)
        bias = masked if bias is None else masked + bias
    if causal:
        places = n_past + torch.arange(q.shape[2], device=q.device)
        last = places == n_past + q.shape[2] - 1
        places = places.masked_fill(last, k.shape[2] - 1)  # ONNX Runtime masks nothing of the last
        allowed = allowed_keys(places, k.shape[2], before=-1, after=0)
        bias = forbid(bias, ~allowed, torch.finfo(q.dtype).min, q)
    y, (_, _, biased, _) = attend(q, k, v, bias, scale=scale)
    return y, biased


def usable_keys(mask: Tensor, n_samples: int, n_keys: int) -> Tensor:
    """Read a mask of ONNX Runtime.

    Args:
        mask: Integers, 0 for a key that is masked, shape [batch, keys] or [batch, queries, keys].
            Or how many keys each sample has, in the first `n_samples` elements of one axis; where
            there are twice as many elements, the others say at which key it starts.
        n_samples: Size of the batch.
        n_keys: Number of keys.
    Returns:
        Booleans that broadcast to [batch, heads, queries, keys].
    """
    import torch

    if mask.ndim > 1:
        usable = mask > 0
        return usable[:, None] if mask.ndim == PACKED_RANK else usable[:, None, None]
    key = torch.arange(n_keys, device=mask.device)
    usable = key < mask[:n_samples, None]
    if len(mask) == 2 * n_samples:
        usable = usable & (key >= mask[n_samples:, None])
    return usable[:, None, None]
