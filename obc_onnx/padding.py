"""Padding: positions that fill samples of different lengths up, and that count nowhere.

A model with a mask among its inputs is told which positions of a sample are real. What stands
elsewhere is no data: not in scores, not in what weights are solved for, not in errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes import product

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.coupling import Coupling

    Feed = Mapping[str, NDArray[Any]]
    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Padding:
    """Which positions of samples are filled up, since samples are of different lengths.

    Attributes:
        mask: An input of shape [samples, positions].
        real: What it is where something stands: 1, or 0 where it marks the padding.
    """

    mask: str
    real: int

    def positions(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Say where something stands, shape [samples, positions]."""
        return np.asarray(feed[self.mask] == self.real)


def describe_padding(padding: Padding) -> str:
    """Say for a report what counts nowhere."""
    return (
        f"positions at which input '{padding.mask}' is {1 - padding.real} are padding, since the "
        f"outputs do not depend on them: they count in no score, repair or error of outputs"
    )


def real_positions(
    coupling: Coupling, padding: Padding | None, name: str, feed: Feed
) -> Mask | None:
    """Say which positions of a value are no padding.

    Args:
        coupling: Of the model that the value is of.
        padding: Of the samples.
        name: Of the value.
        feed: The inputs of a run.
    Returns:
        A mask that broadcasts to the value in that run; None where nothing of it is padding, since
        positions do not lie along its axes.
    """
    if padding is None or name not in coupling.axes:
        return None
    (batch, positions), axes = coupling.axes[padding.mask], coupling.axes[name]
    real = padding.positions(feed)
    if axes[:1] == (product((batch, positions)),):  # tokens of all samples in a row
        return real.reshape(-1, *[1] * (len(axes) - 1))
    if axes[:1] != (batch,) or positions not in axes[1:]:
        return None
    at = axes.index(positions, 1)
    return real.reshape(len(real), *[-1 if i == at else 1 for i in range(1, len(axes))])
