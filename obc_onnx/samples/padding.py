"""Padding: positions that fill samples of different lengths up, and that count nowhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Padding:
    """Which positions of samples are filled up, since samples are of different lengths.

    Attributes:
        name: An input along which the positions lie: a mask of shape [samples, positions], or where
            lengths say what is real, any.
        real: What a mask is where something stands: 1, or 0 where it marks the padding; None where
            the samples have lengths.
        axis: Of the input, along which the positions lie.
    """

    name: str
    real: int | None
    axis: int = 1


def describe_padding(padding: Padding) -> str:
    """Say for a report what counts nowhere."""
    nowhere = "count in no score, repair, training or error of outputs"
    if padding.real is None:
        return (
            f"positions of input '{padding.name}' on axis {padding.axis} beyond the length of a "
            f"sample are padding: they {nowhere}"
        )
    return (
        f"positions at which input '{padding.name}' is {1 - padding.real} are padding: they "
        f"{nowhere}"
    )
