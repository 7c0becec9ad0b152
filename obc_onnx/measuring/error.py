"""How far a changed network is from its original, and on which samples that is judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.measuring.outputs import Outputs
from obc_onnx.measuring.padding import real_of
from obc_onnx.measuring.scales import laid_out, scales_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.scales import Rows, Scale
    from obc_onnx.samples.samples import Samples

    Numbers = NDArray[np.float64]

MEASURED = 2048
"""Samples to measure statistics or errors on, at most: neither changes much with more."""
LOST = 1.0
"""An error as large as the variance: the channel's mean would be as near to the original."""
_SHOWN = 3
"""Channels of an output that are named, those that are the farthest away."""
_TELLING = 4
"""Samples that have to make a channel's variance: of normal ones, a third do; of one that hardly
ever fires, those where it does."""
_TAIL = 5
"""Percentile over samples."""
_HELD_OUT = 0.2


def split(samples: Samples, batch: int) -> tuple[Samples, Samples]:
    """Hold out the last batches to judge repair on; both parts are whole batches."""
    n_batches = len(samples) // batch
    n_held = max(min(round(n_batches * _HELD_OUT), MEASURED // batch), 1)
    n_used = max(n_batches - n_held, 0) * batch
    return samples.part(slice(0, n_used)), samples.part(slice(n_used, n_batches * batch))


@dataclass(frozen=True)
class ChannelError:
    """How far a channel of an output is from the original's.

    Attributes:
        channel: Which numbers of a sample it is, as `[4, :]`.
        error: Mean squared difference, as a share of the original's variance.
        deviation: Of the original, the root of that variance.
    """

    channel: str
    error: float
    deviation: float


@dataclass(frozen=True)
class OutputError:
    """How far an output is from the original's, each channel on its own scale.

    Attributes:
        name: Of the output.
        error: That of all channels, see `Distance`.
        n_channels: How many there are.
        n_lost: How many have an error above 1, so that their mean would be nearer, among those that
            enough samples move to tell.
        worst: The channels with the largest errors, the largest first; those that too few samples
            move come last.
        agreement: Cosine of the angle between what sets a sample apart from the mean output in the
            original and in the changed network, as a mean over samples; 1 where all is the same.
        agreement_p5: 5th percentile of it: one of twenty samples agrees less.
    """

    name: str
    error: float
    n_channels: int
    n_lost: int
    worst: list[ChannelError]
    agreement: float
    agreement_p5: float


class Distance:
    """How far changed networks are from an original, on some samples, in ONNX Runtime.

    The error of a channel is its mean squared difference as a share of its variance. That of
    several is the geometric mean of one plus theirs, less one: the mean of small errors, in which
    a channel that hardly moves, so that any difference is large beside it, does not outweigh all
    others. Outputs come together in the same way, each with one voice. What is padding counts not.

    Args:
        original: Whose outputs are wanted.
        samples: To measure on.

    Attributes:
        reference: What the original gives for them; it runs once, when that is first asked for.
    """

    def __init__(self, original: Coupling, samples: Samples) -> None:
        self.original, self.samples = original, samples
        self.reference = Outputs(original.graph, samples)

    @cached_property
    def _scales(self) -> list[Scale]:
        ports = self.original.graph.outputs
        return scales_from(self.original, ports, self.samples, self.reference.runs())

    def __call__(self, changed: Graph) -> float:
        """Return one number for all outputs; 0 where there is no float among them."""
        return _together([output.error for output in self.outputs(changed)])

    def outputs(self, changed: Graph) -> list[OutputError]:
        """Return the error of each float output."""
        return self.errors(Outputs(changed, self.samples))

    def errors(self, changed: Outputs) -> list[OutputError]:
        """Return the error of each float output, of a network that others ask, too."""
        sums = [_Differences(scale) for scale in self._scales]
        both = zip(self.reference.runs(), changed.runs(), strict=True)
        for (part, expected), (_, values) in both:
            real = real_of(self.original, self.samples, part)
            for own in sums:
                name = own.scale.name
                own.add(expected[name], values[name], real(name))
        return [own.error() for own in sums]


def output_error(original: Coupling, changed: Graph, samples: Samples) -> float:
    """Return how far a network is from its original, see `Distance`."""
    return Distance(original, samples)(changed)


class _Differences:
    """Squared differences of one output, summed over runs."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._squares, self._counts = np.zeros((2, *scale.channels.shape))
        self._powers = np.zeros((2, len(scale.variance)))
        self._agreements: list[Numbers] = []

    def add(
        self,
        expected: NDArray[np.floating],
        found: NDArray[np.floating],
        real: NDArray[np.bool_] | None,
    ) -> None:
        """Add a run; where what is found is of another shape, the mean stands for it."""
        scale = self.scale
        wanted = scale.rows(expected, real)
        centred = wanted.values - scale.centre
        if found.shape == expected.shape:
            wide = laid_out(found.astype(np.float64), scale.batch_axis)
            error = np.where(wanted.counts > 0, wide - wanted.values, 0.0)
        else:
            error = -centred
        counts = np.broadcast_to(wanted.counts, error.shape)
        self._squares += np.square(error * counts).sum(0)
        self._counts += counts.sum(0)
        self._add_powers(np.square(centred * counts))
        self._agreements.append(self._agreement(centred, error, wanted))

    def _add_powers(self, squares: Numbers) -> None:
        """Add up by channel what samples differ from the centre, and the squares of that."""
        by_sample = [self.scale.per_channel(own) for own in squares]
        for own in by_sample:
            self._powers += np.stack([own, np.square(own)])

    def _telling(self, counts: Numbers) -> NDArray[np.bool_]:
        """Say of which channels enough samples make the variance, or none, since they are at rest.

        As many as would give the same sums if all others stood still: (sum v)^2 / sum v^2.
        """
        total, squares = self._powers
        at_rest = total < self.scale.variance * counts / 2  # then another scale stands for it
        return np.asarray(at_rest | (total**2 >= _TELLING * squares))

    def _agreement(self, centred: Numbers, error: Numbers, wanted: Rows) -> Numbers:
        """Return the cosine of each sample, of the whole run where rows are no samples."""
        factor = self.scale.weights() * wanted.counts
        own, changed = centred * factor, (centred + error) * factor
        rows = 1 if self.scale.batch_axis is None else len(own)
        own, changed = own.reshape(rows, -1), changed.reshape(rows, -1)
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(changed, axis=1)
        same = (own == changed).all(1).astype(np.float64)
        found: Numbers = np.divide((own * changed).sum(1), lengths, out=same, where=lengths > 0)
        return found

    def error(self) -> OutputError:
        """Return what the sums come to."""
        scale = self.scale
        squares, counts = scale.per_channel(self._squares), scale.per_channel(self._counts)
        errors = squares / np.maximum(counts, 1) / scale.variance
        telling = self._telling(counts)
        worst = np.lexsort((-errors, ~telling))[:_SHOWN]
        agreements = np.concatenate(self._agreements)
        return OutputError(
            name=scale.name,
            error=_together(errors),
            n_channels=len(errors),
            n_lost=int((telling & (errors > LOST)).sum()),
            worst=[
                ChannelError(scale.labels[i], float(errors[i]), float(np.sqrt(scale.variance[i])))
                for i in worst
            ],
            agreement=float(agreements.mean()),
            agreement_p5=float(np.percentile(agreements, _TAIL)),
        )


def _together(errors: Sequence[float] | Numbers) -> float:
    """Return the geometric mean of one plus each error, less one; 0 of none."""
    return float(np.expm1(np.log1p(errors).mean())) if len(errors) else 0.0
