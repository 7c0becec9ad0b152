"""Find what says which positions of samples are padding: an input, or the lengths of samples.

An input is found by experiment. Whatever stands where a mask says so must not matter:
other contents there change no output at real positions. Contents at real positions do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError, RequestError
from obc_onnx.graph.node import is_float
from obc_onnx.graph.session import Session
from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.measuring.padding import real_positions
from obc_onnx.samples.padding import Padding
from obc_onnx.samples.ragged import LENGTHS, MASK_RANK, check_fits

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples

    Feed = Mapping[str, NDArray[Any]]
    Mask = NDArray[np.bool_]

_SEARCHED = 1024
"""Samples among which some with padding are looked for."""
_LOOKED_AT = 8
_SAME = 1e-5
"""Of the root mean square of an output: what is not changed by more is the same."""


def find_padding(coupling: Coupling, samples: Samples) -> Padding | None:
    """Find the input that says which positions of the samples are padding.

    Returns:
        None where no input does, or no sample is padded.
    Raises:
        RequestError: The input that is named as the mask cannot be one.
    """
    named = samples.mask_input
    candidates = [port.name for port in coupling.graph.inputs if _may_be_mask(coupling, port.name)]
    if named is not None:
        _check_named(coupling, named, candidates)
        candidates = [named]
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
    found = (_padding_of(coupling, samples) for samples in parts)
    padding = next((own for own in found if own is not None), None)
    return tuple(replace(samples, padding=padding) for samples in parts)


def _padding_of(coupling: Coupling, samples: Samples) -> Padding | None:
    """Return the padding of samples; a mask that is named counts though nothing shows it.

    Raises:
        RequestError: The input that is named cannot be a mask.
        DataError: A mask or lengths do not fit the model.
    """
    if samples.lengths is not None and samples.mask_input is None:
        return _padding_of_lengths(coupling, samples.lengths)
    found, name = find_padding(coupling, samples), samples.mask_input
    if name is None:
        return found
    if not _is_of_bits(samples, name):
        raise DataError(f"input '{name}' is named as a mask, but holds other numbers than 0 and 1")
    if samples.lengths is not None and found is not None and found.real == 0:
        raise DataError(
            f"input '{name}' was made of '{LENGTHS}' with 1 where something stands, but the model "
            f"takes 0 there: give the array '{name}' itself"
        )
    return found or Padding(name, 1)


def _padding_of_lengths(coupling: Coupling, lengths: NDArray[np.int64]) -> Padding:
    """Find the positions that lengths count: the one axis besides the batch that is open.

    Where none is, it is the one that inputs of shape [samples, positions] have.

    Raises:
        DataError: There are several, or none, or a sample is longer.
    """
    axes: dict[bool, dict[Expr, tuple[str, int]]] = {True: {}, False: {}}
    for port in coupling.graph.inputs:
        batch_axis, own = coupling.graph.batch_axes.inputs[port.name], coupling.axes[port.name]
        for axis, size in enumerate(port.shape or ()):
            is_open = not isinstance(size, int)
            if batch_axis not in (None, axis) and (is_open or len(own) == MASK_RANK):
                axes[is_open].setdefault(own[axis], (port.name, axis))
    found = axes[True] or axes[False]
    if len(found) != 1:
        named = ", ".join(f"axis {axis} of '{name}'" for name, axis in found.values()) or "none"
        raise DataError(
            f"'{LENGTHS}' counts positions along one open axis of the inputs besides the batch, "
            f"found {named}: leave '{LENGTHS}' out, or give a mask that the model takes"
        )
    ((expr, (name, axis)),) = found.items()
    check_fits(lengths, expr.size, f"input '{name}' on axis {axis}")
    return Padding(name, None, axis)


def _check_named(coupling: Coupling, name: str, candidates: Collection[str]) -> None:
    """Check that an input that is named can be a mask.

    Raises:
        RequestError: It cannot.
    """
    if name in candidates:
        return
    port = next((port for port in coupling.graph.inputs if port.name == name), None)
    inputs = ", ".join(f"'{port.name}'" for port in coupling.graph.inputs)
    raise RequestError(
        f"`DataOptions(mask_input={name!r})` is no input of the model, which has {inputs}"
        if port is None
        else f"`DataOptions(mask_input={name!r})` has shape {list(port.shape or ())}: a "
        f"mask is of shape [samples, positions], with positions that another input has too"
    )


def _is_of_bits(samples: Samples, name: str) -> bool:
    return bool(np.isin(samples.rows(slice(0, len(samples)))[name], (0, 1)).all())


def _may_be_mask(coupling: Coupling, name: str) -> bool:
    """Say whether an input is [samples, positions], and another one has these positions too."""
    axes = coupling.axes.get(name, ())
    if len(axes) != MASK_RANK or coupling.graph.batch_axes.inputs.get(name) != 0:
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
    if not _is_of_bits(samples, name):
        return None
    mask = samples.rows(slice(0, len(samples)))[name]
    mixed = np.flatnonzero((mask != mask[:, :1]).any(1))
    if not mixed.size:
        return None
    if whole:  # a batch as it is given
        start = int(mixed[0]) // size * size
        return samples.feed(slice(start, start + size))
    return samples.feed(mixed[:size])


def _is_shown(coupling: Coupling, session: Session, padding: Padding, feed: Feed) -> bool:
    """Say whether contents matter at real positions, and at others do not."""
    real = feed[padding.name] == padding.real
    before = session.run(feed)

    def changes(where: Mask) -> bool:
        found = session.run(_exchanged(coupling, padding, feed, where))
        return any(
            _differ(before[port.name], found[port.name], own)
            for port, own in (
                (p, real_positions(coupling, padding, p.name, real))
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
        axis = _axis_of(coupling, name, coupling.axes[padding.name][1])
        if name == padding.name or axis is None or len(array) != len(where):
            continue
        moved = np.moveaxis(array, axis, 1)
        chosen = (where & mixed[:, None]).reshape(*where.shape, *[1] * (moved.ndim - MASK_RANK))
        moved = np.where(chosen, moved[rows, others][:, None], moved)
        found[name] = np.ascontiguousarray(np.moveaxis(moved, 1, axis))
    return found


def _differ(before: NDArray[Any], after: NDArray[Any], real: Mask | None) -> bool:
    """Say whether an output changed where it is real."""
    wide = np.where(np.isfinite(before), before, 0).astype(np.float64)
    other = np.where(np.isfinite(after), after, 0).astype(np.float64)
    apart = np.abs(wide - other) if real is None else np.abs(wide - other) * real
    return bool(apart.max(initial=0) > _SAME * np.sqrt(np.square(wide).mean()))
