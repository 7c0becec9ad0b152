"""Blend the samples of a batch: mixup and cutmix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.images import IMAGE_RANK, channels_last

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.training.options import TrainingOptions

    Feed = dict[str, NDArray[Any]]


def mix(
    feed: Feed, options: TrainingOptions, rng: np.random.Generator
) -> tuple[Feed, NDArray[np.int64] | None, float]:
    """Blend every sample with another one of the batch.

    With both mixup and cutmix, one is drawn for the batch. Cutmix takes inputs of rank 4 only, with
    pictures along the last two axes that are no channels: what is cut is the same share of each.

    Args:
        feed: Inputs by name, shape [batch, ...]; whole numbers cannot be blended and stay.
        options: The strengths.
        rng: What is drawn from.
    Returns:
        The blended inputs; for each sample the place of the other one, None where nothing is
        blended; and the share of the sample itself.
    Sources: Zhang et al., mixup, arXiv 1710.09412; Yun et al., CutMix, arXiv 1905.04899.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(options, kind) > 0]
    floats = [name for name, array in feed.items() if np.issubdtype(array.dtype, np.floating)]
    if not kinds or not floats:
        return feed, None, 1.0
    kind = kinds[rng.integers(len(kinds))]
    strength = getattr(options, kind)
    share = float(rng.beta(strength, strength))
    count = len(next(iter(feed.values())))
    others = rng.permutation(count)
    blended = dict(feed)
    if kind == "mixup":
        for name in floats:
            own = feed[name]
            blended[name] = (own * share + own[others] * (1 - share)).astype(own.dtype)
        return blended, others, share
    cut = rng.uniform(size=2)
    for name in floats:
        if feed[name].ndim == IMAGE_RANK:
            blended[name], share = _patched(feed[name], others, share, cut)
    return blended, others, share


def _patched(
    own: NDArray[Any], others: NDArray[np.int64], share: float, at: NDArray[np.float64]
) -> tuple[NDArray[Any], float]:
    """Put a patch of other pictures into pictures; return what share of each is left."""
    first = 1 if channels_last(own.shape) else 2
    sizes = np.array(own.shape[first : first + 2])
    lengths = np.sqrt(1 - share) * sizes
    centre = at * sizes
    low = np.clip(np.round(centre - lengths / 2), 0, sizes).astype(int)
    high = np.clip(np.round(centre + lengths / 2), 0, sizes).astype(int)
    where = (slice(None),) * first + tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    patched = own.copy()
    patched[where] = own[others][where]
    return patched, 1 - float(np.prod(high - low) / np.prod(sizes))
