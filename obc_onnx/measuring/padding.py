"""Padding: positions that fill samples of different lengths up, and that count nowhere.

A model with a mask among its inputs is told which positions of a sample are real; else the lengths
of samples say it. What stands elsewhere is no data: not in scores, not in what weights are solved
for or trained towards, not in errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import product

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.padding import Padding
    from obc_onnx.samples.samples import Samples

    Mask = NDArray[np.bool_]
    RealOf = Callable[[str], Mask | None]


def real_of(coupling: Coupling, samples: Samples, which: slice | NDArray[np.int64]) -> RealOf:
    """Return what says of a value, by its name, where it is no padding for chosen samples."""
    found = samples.real(which)

    def of(name: str) -> Mask | None:
        return real_positions(coupling, samples.padding, name, found)

    return of


def real_positions(
    coupling: Coupling, padding: Padding | None, name: str, found: Mask | None
) -> Mask | None:
    """Say which positions of a value are no padding.

    Args:
        coupling: Of the model that the value is of.
        padding: Of the samples.
        name: Of the value.
        found: Where something stands in a run, shape [samples, positions].
    Returns:
        A mask that broadcasts to the value in that run; None where nothing of it is padding, since
        positions do not lie along its axes.
    """
    if padding is None or found is None or name not in coupling.axes:
        return None
    axes, own = coupling.axes[name], coupling.axes[padding.name]
    batch_axis = coupling.graph.batch_axes.inputs[padding.name]
    if batch_axis is None:
        return None
    batch, positions = own[batch_axis], own[padding.axis]
    shape = [1] * len(axes)
    for pair, real in (((batch, positions), found), ((positions, batch), found.T)):
        if product(pair) in axes:  # positions of all samples in a row
            shape[axes.index(product(pair))] = -1
            return real.reshape(shape)
    if batch not in axes or positions not in axes:
        return None
    at, along = axes.index(batch), axes.index(positions)
    shape[at], shape[along] = found.shape
    return (found if at < along else found.T).reshape(shape)
