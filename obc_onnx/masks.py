"""Find the input that says which positions of samples are padding.

It is found by experiment. Whatever stands where a mask says so must not matter:
other contents there change no output at real positions. Contents at real positions do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.measure import batch_size_of
from obc_onnx.node import is_float
from obc_onnx.padding import Padding, real_positions
from obc_onnx.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes import Expr
    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples

    Feed = Mapping[str, NDArray[Any]]
    Mask = NDArray[np.bool_]

_RANK = 2
_SEARCHED = 1024
"""Samples among which some with padding are looked for."""
_LOOKED_AT = 8
_SAME = 1e-5
"""Of the root mean square of an output: what is not changed by more is the same."""


def find_padding(coupling: Coupling, samples: Samples) -> Padding | None:
    """Find the input that says which positions of the samples are padding.

    Returns:
        None where no input does, or no sample is padded.
    """
    candidates = [port.name for port in coupling.graph.inputs if _may_be_mask(coupling, port.name)]
    if not candidates:
        return None
    size = batch_size_of(coupling.graph, _LOOKED_AT)
    searched = samples.part(slice(0, _SEARCHED // size * size or size))
    session: Session | None = None
    for name in candidates:
        feed = _with_padding(searched, name, size, whole=coupling.graph.batch is not None)
        if feed is None:
            continue
        session = session or Session(coupling.graph)
        for real in (1, 0):
            padding = Padding(name, real)
            if _is_shown(coupling, session, padding, feed):
                return padding
    return None


def with_padding(coupling: Coupling, *parts: Samples) -> tuple[Samples, ...]:
    """Return samples that know their padding, which is found on the first part that has any."""
    found = (find_padding(coupling, samples) for samples in parts)
    padding = next((own for own in found if own is not None), None)
    return tuple(replace(samples, padding=padding) for samples in parts)


def _may_be_mask(coupling: Coupling, name: str) -> bool:
    """Say whether an input is [samples, positions], and another one has these positions too."""
    axes = coupling.axes.get(name, ())
    if len(axes) != _RANK or coupling.graph.batch_axes.inputs.get(name) != 0:
        return False
    return any(
        port.name != name and _axis_of(coupling, port.name, axes[1]) is not None
        for port in coupling.graph.inputs
    )


def _axis_of(coupling: Coupling, name: str, positions: Expr) -> int | None:
    """Return the axis of an input along which positions lie."""
    axes = coupling.axes.get(name, ())
    return axes.index(positions, 1) if positions in axes[1:] else None


def _with_padding(samples: Samples, name: str, size: int, *, whole: bool) -> dict[str, Any] | None:
    """Return a few samples for which a mask is neither all 0 nor all 1, nor anything else."""
    mask = samples.feed(slice(0, len(samples)))[name]
    if not np.isin(mask, (0, 1)).all():
        return None
    mixed = np.flatnonzero((mask != mask[:, :1]).any(1))
    if not mixed.size:
        return None
    if whole:  # a batch as it is given
        start = int(mixed[0]) // size * size
        return samples.feed(slice(start, start + size))
    return samples.feed(mixed[:size])


def _is_shown(coupling: Coupling, session: Session, padding: Padding, feed: Feed) -> bool:
    """Say whether contents matter at real positions, and at others do not."""
    real = padding.positions(feed)
    before = session.run(feed)

    def changes(where: Mask) -> bool:
        found = session.run(_exchanged(coupling, padding, feed, where))
        return any(
            _differ(before[port.name], found[port.name], own)
            for port, own in (
                (p, real_positions(coupling, padding, p.name, feed))
                for p in coupling.graph.outputs
                if is_float(p.dtype)
            )
        )

    return not changes(~real) and changes(real)


def _exchanged(coupling: Coupling, padding: Padding, feed: Feed, where: Mask) -> dict[str, Any]:
    """Put at some positions of all inputs but the mask what stands at the first of the others."""
    found, rows = dict(feed), np.arange(len(where))
    mixed = np.asarray(where.any(1) & ~where.all(1))
    others = np.logical_not(where).argmax(1)
    for name, array in feed.items():
        axis = _axis_of(coupling, name, coupling.axes[padding.mask][1])
        if name == padding.mask or axis is None or len(array) != len(where):
            continue
        moved = np.moveaxis(array, axis, 1)
        chosen = (where & mixed[:, None]).reshape(*where.shape, *[1] * (moved.ndim - _RANK))
        moved = np.where(chosen, moved[rows, others][:, None], moved)
        found[name] = np.ascontiguousarray(np.moveaxis(moved, 1, axis))
    return found


def _differ(before: NDArray[Any], after: NDArray[Any], real: Mask | None) -> bool:
    """Say whether an output changed where it is real."""
    wide = np.where(np.isfinite(before), before, 0).astype(np.float64)
    other = np.where(np.isfinite(after), after, 0).astype(np.float64)
    apart = np.abs(wide - other) if real is None else np.abs(wide - other) * real
    return bool(apart.max(initial=0) > _SAME * np.sqrt(np.square(wide).mean()))
