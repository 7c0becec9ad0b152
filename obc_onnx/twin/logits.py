"""Class logits, also of classifiers that end in a Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def logits_of(output: Tensor, *, probabilities: bool) -> Tensor:
    """Return class logits from a first output, shape [batch, classes].

    The logarithm of probabilities are logits of the same classes: a softmax gives them back.
    """
    if not probabilities:
        return output
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()
