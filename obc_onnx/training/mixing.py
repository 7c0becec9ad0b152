"""Blend the samples of a batch: mixup and cutmix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.samples.images import IMAGE_RANK, channels_last

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.training.options import TrainingOptions

    Feed = dict[str, NDArray[Any]]


def check_mixing(options: TrainingOptions, graph: Graph) -> None:
    """Check that all that belongs to a sample can be blended, so that labels may be.

    Raises:
        RequestError: An input cannot, or the loss is given one class for each sample.
    """
    asked = "cutmix" if options.cutmix > 0 else "mixup" if options.mixup > 0 else ""
    axes = graph.batch_axes.inputs
    for port in graph.inputs if asked else ():
        if axes[port.name] != 0:
            raise RequestError(
                f"`TrainingOptions.{asked}` cannot blend input '{port.name}': its samples are not "
                f"on its first axis"
            )
        flat = options.cutmix > 0 and len(port.shape or ()) != IMAGE_RANK
        if flat or not np.issubdtype(port.dtype, np.floating):
            raise RequestError(
                f"`TrainingOptions.{asked}` cannot blend input '{port.name}', {port.dtype.name} "
                f"of shape {list(port.shape or ())}: mixup takes floats, and cutmix pictures of "
                f"rank {IMAGE_RANK}"
            )
    own = [name for name, _ in options.loss if ".py:" in name]
    if asked and own:
        raise RequestError(
            f"`TrainingOptions.{asked}` gives samples two classes, and the loss '{own[0]}' is "
            f"told one"
        )


def mix(
    feed: Feed, options: TrainingOptions, rng: np.random.Generator
) -> tuple[Feed, NDArray[np.int64] | None, float]:
    """Blend every sample with another one of the batch.

    With both mixup and cutmix, one is drawn for the batch. What cutmix cuts is the same share of
    each input.

    Args:
        feed: Inputs by name, shape [batch, ...], for which `check_mixing` had nothing to say.
        options: The strengths.
        rng: What is drawn from.
    Returns:
        The blended inputs; for each sample the place of the other one, None where nothing is
        blended; and the share of the sample itself.
    Sources: Zhang et al., mixup, arXiv 1710.09412; Yun et al., CutMix, arXiv 1905.04899.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(options, kind) > 0]
    if not kinds:
        return feed, None, 1.0
    kind = kinds[rng.integers(len(kinds))]
    strength = getattr(options, kind)
    share = float(rng.beta(strength, strength))
    count = len(next(iter(feed.values())))
    others = rng.permutation(count)
    if kind == "mixup":
        blended = {
            name: (own * share + own[others] * (1 - share)).astype(own.dtype)
            for name, own in feed.items()
        }
        return blended, others, share
    cut = rng.uniform(size=2)
    patched = {name: _patched(own, others, share, cut) for name, own in feed.items()}
    return (
        {name: own for name, (own, _) in patched.items()},
        others,
        min(left for _, left in patched.values()),
    )


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
