"""The scales of a model's outputs: how far each channel goes from sample to sample.

Outputs hold numbers of different units side by side, such as boxes in pixels and scores of
thousandths. So a difference counts as a share of what its own channel does by itself.

A *channel* is what weights tell apart: positions along a dim that weights write are channels of
their own, and so is each part that is joined to them, as boxes to scores. Positions along other
axes, such as pixels, tokens or anchors, are places where the same channel is looked at. Numbers
that a Softmax makes are one quantity: all of them are one channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import Dim, Joined, Product, Take, leaves
from obc_onnx.graph.node import Port, is_float
from obc_onnx.measuring.classes import softmax_axis
from obc_onnx.measuring.padding import real_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples

    Numbers = NDArray[np.float64]
    Channels = NDArray[np.int64]
    Feed = Mapping[str, NDArray[Any]]

_LEAST = 1e-6
"""Of the largest deviation of an output: a channel that moves less is at rest."""
_MOST_NUMBERS = 2**27
"""Of an output: three sums of each are held, which take 3 GiB; of more all count as one."""
_ROUNDING = 1e-12
"""Of a mean square: a variance below it is rounding."""


@dataclass(frozen=True, eq=False)
class Rows:
    """An output of one run, a row for each sample.

    Attributes:
        values: Shape [rows, ...]; 0 where `counts` is.
        counts: Where there is data, 1 or 0, broadcast to the values.
    """

    values: Numbers
    counts: Numbers


@dataclass(frozen=True, eq=False)
class Scale:
    """How far an output goes, channel by channel.

    Attributes:
        name: Of the output.
        channels: Which channel each number of a sample is of, shape as one sample of the output.
        labels: What each channel is, as `[4, :]`.
        centre: Mean over samples of each number, shape as one sample.
        variance: Of each channel: mean over its numbers of their variance over samples.
        numbers: How many numbers of each channel a sample has; fewer where there is padding.
        batch_axis: Along which samples lie; without one each number counts as a row.
    """

    name: str
    channels: Channels
    labels: Sequence[str]
    centre: Numbers
    variance: Numbers
    numbers: Numbers
    batch_axis: int | None

    def rows(self, value: NDArray[Any], real: NDArray[np.bool_] | None) -> Rows:
        """Lay out a run of this output, see `rows_of`."""
        return rows_of(value, real, self.batch_axis)

    def weights(self) -> Numbers:
        """Return what to multiply each number of a sample with, shape as one sample.

        The squares of weighted differences add up to the mean over channels of the mean squared
        difference as a share of the variance.
        """
        total = self.variance * self.numbers * len(self.variance)
        each = 1 / np.sqrt(np.maximum(total, np.finfo(np.float64).tiny))
        return np.asarray(each[self.channels])

    def per_channel(self, totals: Numbers) -> Numbers:
        """Add numbers up, shape as one sample, into channels."""
        return added_up(totals, self.channels)

    def as_one(self, kept: Mapping[int, Channels]) -> Scale:
        """Return the scale of what stays of this value, all of it as one channel.

        Args:
            kept: For each of its axes that shrinks, which positions stay.
        """
        if self.batch_axis is None:
            return self  # number after number, all of them are one channel
        channels, centre = self.channels, self.centre
        for axis, positions in kept.items():
            own = axis - (axis > self.batch_axis)
            channels, centre = channels.take(positions, own), centre.take(positions, own)
        numbers = self.numbers / np.bincount(self.channels.ravel())
        return replace(
            self,
            channels=np.zeros_like(channels),
            labels=["all"],
            centre=centre,
            variance=self.variance[channels].mean(keepdims=True).reshape(1),
            numbers=numbers[channels].sum(keepdims=True).reshape(1),
        )


def laid_out(value: NDArray[Any], batch_axis: int | None) -> NDArray[Any]:
    """Return what a run gives with samples first; without a batch axis, number after number."""
    return value.ravel() if batch_axis is None else np.moveaxis(value, batch_axis, 0)


def rows_of(value: NDArray[Any], real: NDArray[np.bool_] | None, batch_axis: int | None) -> Rows:
    """Lay out an output of one run.

    Args:
        value: As ONNX Runtime gives it.
        real: Which numbers are no padding, broadcast to the value; None where all are.
        batch_axis: Along which samples lie; without one each number is a row.
    """
    wide = laid_out(value.astype(np.float64), batch_axis)
    if real is None or batch_axis is None:
        counts = np.ones([1] * wide.ndim)
    else:
        counts = laid_out(real.astype(np.float64), batch_axis)
    finite = np.isfinite(wide)
    if not finite.all():  # such as the scores of what is masked
        counts = counts * finite
    return Rows(np.where(counts > 0, wide, 0.0), counts)


def measure_scales(
    coupling: Coupling, samples: Samples, run: Callable[[Feed], Feed], size: int
) -> list[Scale]:
    """Measure the float outputs of a model on samples.

    The variance of a number is taken around its own mean over the samples: what is the same for
    all samples, such as where anchors stand, is not what a channel does. With one sample it is
    taken around the mean of the channel. Where an output is not laid out by samples, or in other
    shapes from run to run, all of its numbers are one channel.

    Args:
        coupling: Of the model.
        samples: To run it on.
        run: Gives the outputs of the model for its inputs, both by name.
        size: How many samples a run takes.
    """
    return scales_of(coupling, coupling.graph.outputs, samples, run, size)


def scales_of(
    coupling: Coupling,
    ports: Sequence[Port],
    samples: Samples,
    run: Callable[[Feed], Feed],
    size: int,
) -> list[Scale]:
    """Measure float values of a model on samples, see `measure_scales`.

    Args:
        coupling: Of the model.
        ports: Outputs, or other values, which `inner_port` describes.
        samples: To run it on.
        run: Gives the values for inputs, both by name.
        size: How many samples a run takes.
    """
    runs = ((part, run(samples.feed(part))) for part in samples.batches(size))
    return scales_from(coupling, ports, samples, runs)


def scales_from(
    coupling: Coupling,
    ports: Sequence[Port],
    samples: Samples,
    runs: Iterable[tuple[slice, Feed]],
) -> list[Scale]:
    """Measure float values of a model in runs that somebody does, see `measure_scales`.

    Args:
        coupling: Of the model.
        ports: Outputs, or other values, which `inner_port` describes.
        samples: That it is run on.
        runs: The samples of each run, and the values by name.
    """
    ports = [port for port in ports if is_float(port.dtype)]
    sums = [_Sums(coupling, port) for port in ports]
    for part, found in runs:
        real = real_of(coupling, samples, part)
        for port, own in zip(ports, sums, strict=True):
            own.add(found[port.name], real(port.name), part.stop - part.start)
    return [own.scale() for own in sums]


def inner_port(coupling: Coupling, name: str, dtype: np.dtype[Any]) -> Port:
    """Describe a value inside of a model as if it were an output."""
    return Port(name, dtype, coupling.shapes[name])


def _batch_axis_of(coupling: Coupling, name: str) -> int | None:
    """Say along which axis of a value the samples lie; None where no axis holds them alone."""
    known = coupling.graph.batch_axes
    if name in known.outputs:
        return known.outputs[name]
    places = ((port, axis) for port, axis in known.inputs.items() if axis is not None)
    batch = next((coupling.axes[port][axis] for port, axis in places), None)
    axes = coupling.axes.get(name, ())
    return axes.index(batch) if axes.count(batch) == 1 else None


class _Sums:
    """Sums over runs of one output: number by number while its shape allows it, and in all."""

    def __init__(self, coupling: Coupling, port: Port) -> None:
        self._name = port.name
        self._batch_axis = _batch_axis_of(coupling, port.name)
        known = self._batch_axis is not None and port.name in coupling.axes
        sizes = [max(expr.size, 1) for expr in coupling.axes.get(port.name, ())]
        self._fits = known and math.prod(sizes) <= _MOST_NUMBERS
        self._along = _channels_along(coupling, port, self._batch_axis) if self._fits else []
        self._shape = tuple(len(own) for own in self._along)
        self._each, self._all = np.zeros((3, *self._shape)), np.zeros(3)
        self._n_samples = 0

    def add(self, value: NDArray[Any], real: NDArray[np.bool_] | None, n_samples: int) -> None:
        """Add a run."""
        self._n_samples += n_samples
        self._all += _moments(rows_of(value, None, None))
        if self._fits:
            shape = laid_out(value, self._batch_axis).shape
            self._fits = shape == (n_samples, *self._shape)
        if self._fits:
            self._each += _moments(rows_of(value, real, self._batch_axis))

    def scale(self) -> Scale:
        """Turn sums into a scale."""
        sums, along = (self._each, self._along) if self._fits else (self._all, [])
        axis = self._batch_axis if self._fits else None
        channels, labels = _joint(along)
        centre, variance = _spread(sums, channels)
        numbers = added_up(sums[0], channels) / max(self._n_samples, 1)
        return Scale(self._name, channels, labels, centre, variance, numbers, axis)


def added_up(numbers: Numbers, channels: Channels) -> Numbers:
    """Add up the numbers of each channel; both are of the shape of one sample."""
    return np.asarray(np.bincount(channels.ravel(), weights=numbers.ravel()), np.float64)


def _moments(rows: Rows) -> Numbers:
    """Sum over rows: how many, values, squares; shape [3, ...]."""
    counts = np.broadcast_to(rows.counts, rows.values.shape)
    return np.stack([counts.sum(0), rows.values.sum(0), np.square(rows.values).sum(0)])


def _spread(sums: Numbers, channels: Channels) -> tuple[Numbers, Numbers]:
    """Return the centre of each number, and the variance of each channel; none is 0.

    A channel at rest has its mean square for a scale, and one that is always 0 the mean of the
    others.
    """
    count, total, square = sums
    some = np.maximum(count, 1)
    n: Numbers = np.maximum(added_up(count, channels), 1)
    mean, mean_square = added_up(total, channels) / n, added_up(square, channels) / n
    freedom = added_up(np.maximum(count - 1, 0), channels)
    alone = freedom == 0
    within = added_up(square - total**2 / some, channels) / np.maximum(freedom, 1)
    variance = np.where(alone, mean_square - mean**2, within)
    moves = variance > np.maximum(_ROUNDING * mean_square, _LEAST**2 * variance.max())
    typical = variance[moves].mean() if moves.any() else 1.0
    at_rest = np.maximum(mean_square, _LEAST**2 * variance.max())
    at_rest = np.where(mean_square > 0, at_rest, typical)
    centre = np.where(alone[channels], mean[channels], total / some)
    return centre, np.where(moves, variance, at_rest)


def _channels_along(coupling: Coupling, port: Port, batch_axis: int | None) -> list[Channels]:
    """Number the channels along each axis of an output but that of the batch."""
    axes = coupling.axes.get(port.name, ())
    written = {
        dim
        for role in coupling.roles
        if role.kind == "writes"
        for dim in leaves(coupling.axes[role.node.inputs[role.slot]][role.axis])
    }
    softmax = softmax_axis(coupling.graph, coupling.rules, port)
    along = [
        np.zeros(expr.size, np.int64)
        if written.isdisjoint(leaves(expr))
        else _channels_of(expr, written)
        for expr in axes
    ]
    if softmax is not None and along:
        along[softmax] = np.zeros_like(along[softmax])
    return along[: batch_axis or 0] + along[(batch_axis or 0) + 1 :]


def _channels_of(expr: Expr, written: Collection[Dim]) -> Channels:
    """Number the channels along an axis that weights write, or that is joined to such a one."""
    match expr:
        case Dim():
            return np.arange(expr.size) if expr in written else np.zeros(expr.size, np.int64)
        case Product(factors=factors):
            found = np.zeros(1, np.int64)
            for factor in factors:
                own = _channels_of(factor, written)
                found = (found[:, None] * (own.max(initial=0) + 1) + own).ravel()
            return found
        case Joined(parts=parts):
            joined, start = [], 0
            for part in parts:
                own = _channels_of(part, written)
                joined.append(start + own)
                start += int(own.max(initial=0)) + 1
            return np.concatenate(joined)
        case Take(base=base, index=index):
            return _channels_of(base, written)[np.asarray(index, np.int64)]


def _joint(along: Sequence[Channels]) -> tuple[Channels, list[str]]:
    """Number the channels of a sample, and say what each is."""
    ids, labels = np.zeros((), np.int64), [""]
    for own in along:
        kinds, own_ids = np.unique(own, return_inverse=True)
        named = [_named(np.flatnonzero(own_ids == i), len(own)) for i in range(len(kinds))]
        ids = ids[..., None] * len(kinds) + own_ids
        labels = [f"{before}, {here}" if before else here for before in labels for here in named]
    return ids, [f"[{label}]" if label else "all" for label in labels]


def _named(places: Channels, size: int) -> str:
    """Write positions as Python does: `4`, `:`, `1600:2000`; of others, the first."""
    first, last = int(places[0]), int(places[-1])
    if len(places) == size:
        return ":" if size > 1 else "0"
    if len(places) == 1:
        return str(first)
    return f"{first}:{last + 1}" if last - first + 1 == len(places) else f"{first}, ..."
