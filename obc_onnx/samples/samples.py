"""Samples as a value: the inputs of a model for each of them, in memory or not, and labels.

Samples often lie class by class, and what is looked at is often the first thousand. So they are put
into a random order once, which the number of samples alone decides, and those to measure on are
drawn from all classes: runs with other options or seeds measure on the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError, InvariantError
from obc_onnx.samples.lazy import LazyArray, MemoryArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import BatchAxes
    from obc_onnx.samples.images import Preparation
    from obc_onnx.samples.padding import Padding

_ORDER_SEED, _DRAW_SEED = 0, 1


@dataclass(frozen=True)
class Samples:
    """Inputs, and labels where there are any.

    Attributes:
        inputs: For each model input that differs from sample to sample, an array of shape
            [samples, ...], in memory or not. Until `placed` all inputs, as the model takes them.
        labels: Class indices, shape [samples], int64, or None.
        dtypes: The type that the model takes for each input.
        prepared: For inputs that hold pictures, how those are made.
        fixed: What the other inputs are given in every run.
        batch_axes: Where the model has the samples; None until `placed`.
        lengths: How many positions of each sample hold something, shape [samples]; None where a
            mask says it, or all do.
        mask_input: The input that is known to be a mask, though nothing has shown it yet.
        padding: Which positions are no data, see `measuring.masks`; None where all are.
        drawn: Inputs that are drawn at random, see `stand_ins`.
    """

    inputs: Mapping[str, NDArray[Any] | LazyArray]
    labels: NDArray[np.int64] | None
    dtypes: Mapping[str, np.dtype[Any]]
    prepared: Mapping[str, Preparation] = field(default_factory=dict)
    fixed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    batch_axes: BatchAxes | None = None
    lengths: NDArray[np.int64] | None = None
    mask_input: str | None = None
    padding: Padding | None = None
    drawn: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def feed(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return chosen samples as the model takes them.

        Raises:
            DataError: One cannot be read.
        """
        return self.laid_out(self.rows(which))

    def rows(self, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return what differs from sample to sample, of the model's types, shape [chosen, ...].

        Raises:
            DataError: One cannot be read.
        """
        rows = {name: array[which] for name, array in self.inputs.items()}
        for name, preparation in self.prepared.items():
            rows[name] = preparation.scaled(rows[name])
        return {name: np.asarray(array, self.dtypes[name], "C") for name, array in rows.items()}

    def laid_out(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Put samples, shape [chosen, ...], where the model has them, and what is fixed beside."""
        feed: dict[str, NDArray[Any]] = {}
        for name, array in rows.items():
            axis = 0 if self.batch_axes is None else self.batch_axes.inputs[name]
            if axis is None and len(array) != 1:
                raise InvariantError(f"a run was to take {len(array)} samples of input '{name}'")
            placed = array[0] if axis is None else np.moveaxis(array, 0, axis)
            feed[name] = np.asarray(placed, order="C")
        fixed = {name: np.asarray(v, self.dtypes[name], "C") for name, v in self.fixed.items()}
        return {**feed, **fixed}

    def real(self, which: slice | NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Say where chosen samples hold something, shape [chosen, positions]; None where all do."""
        if self.padding is None:
            return None
        array = self.inputs[self.padding.name]
        if self.padding.real is not None:
            return np.asarray(array[which] == self.padding.real)
        assert self.lengths is not None
        batch_axis = 0 if self.batch_axes is None else self.batch_axes.inputs[self.padding.name]
        axis = self.padding.axis + (self.padding.axis < (batch_axis or 0))
        return np.arange(array.shape[axis]) < self.lengths[which][:, None]

    def placed(self, batch_axes: BatchAxes, ranks: Mapping[str, int]) -> Samples:
        """Bring the samples of each input to the front, and set apart what is given once.

        Args:
            batch_axes: Of the model.
            ranks: How many axes each input of the model has.
        """
        inputs: dict[str, NDArray[Any] | LazyArray] = {}
        fixed: dict[str, NDArray[Any]] = {}
        for name, array in self.inputs.items():
            axis = batch_axes.inputs[name]
            if axis is not None:
                inputs[name] = _along(array, axis)
            elif array.ndim == ranks[name]:
                fixed[name] = array.whole() if isinstance(array, LazyArray) else array
            elif array.ndim == ranks[name] + 1 and _are_equal(array):
                fixed[name] = array[:1][0]
            else:
                inputs[name] = array
        if any(batch_axes.inputs[name] is None for name in inputs):
            batch_axes = replace(batch_axes, size=1)
        return replace(self, inputs=inputs, fixed=fixed, batch_axes=batch_axes)

    def batches(self, size: int) -> Iterator[slice]:
        """Yield consecutive ranges of at most `size` samples."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def part(self, which: slice | NDArray[np.int64]) -> Samples:
        """Return chosen samples as a set of their own; they are neither read nor copied."""
        return replace(
            self,
            inputs={name: _part(array, which) for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[which],
            lengths=None if self.lengths is None else self.lengths[which],
        )

    def draw(self, n: int, batch: int | None, seed: int) -> Samples:
        """Draw samples at random, in their order; all of them where there are no more.

        Args:
            n: How many; whole batches, and at least one, where `batch` says how large those are.
            batch: Of the model, where it is static.
            seed: Of the choice.
        """
        if batch is not None:
            n = max(n // batch, 1) * batch
        order = np.random.default_rng(seed).permutation(len(self))
        return self.part(np.sort(order[:n]))

    def mixed(self) -> Samples:
        """Return all samples in a random order, the same for equal numbers of samples."""
        return self.part(np.random.default_rng(_ORDER_SEED).permutation(len(self)))

    def split(self, holdout: float) -> tuple[Samples, Samples]:
        """Mix the samples, and set a share of them apart for measuring.

        With labels each class gives about its share, and those of at least two samples at least
        one, as far as there are places.

        Returns:
            The samples to work with, and those to measure on.
        Raises:
            DataError: One of the parts would be empty.
        """
        n_held = round(len(self) * holdout) if 0 < holdout < 1 else 0
        if not 0 < n_held < len(self):
            raise DataError(
                f"{len(self)} samples cannot be split with holdout {holdout:g}: both parts need "
                f"at least one"
            )
        mixed = self.mixed()
        # not in the order of the mix: what is left of it would begin with the first classes done
        drawn = np.random.default_rng(_DRAW_SEED).permutation(len(self))
        if mixed.labels is not None:
            drawn = drawn[np.argsort(_turns(mixed.labels[drawn]), kind="stable")]
        held = np.zeros(len(self), np.bool_)
        held[drawn[:n_held]] = True
        return mixed.part(np.flatnonzero(~held)), mixed.part(np.flatnonzero(held))


def _part(
    array: NDArray[Any] | LazyArray, which: slice | NDArray[np.int64]
) -> NDArray[Any] | LazyArray:
    if isinstance(array, LazyArray):
        return array.part(which)
    return array[which] if isinstance(which, slice) else LazyArray(MemoryArray(array), which)


def _turns(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return at which turn each sample is drawn: Webster's way to give classes their shares.

    The first sample of a class comes before all later ones; one that is alone in it comes last.

    Args:
        labels: In the order in which samples of one class are drawn.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    size = np.repeat(counts, counts)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    spread = np.select([size == 1, rank == 0], [1.0, 0.0], (rank + 0.5) / size)
    turns = np.empty(len(labels))
    turns[order] = spread
    return turns


def _are_equal(array: NDArray[Any] | LazyArray) -> bool:
    return len(array) > 0 and all(np.array_equal(one, array[:1][0]) for one in array)


def _along(array: NDArray[Any] | LazyArray, axis: int) -> NDArray[Any] | LazyArray:
    if axis == 0 or array.ndim <= axis:
        return array
    return array.along(axis) if isinstance(array, LazyArray) else np.moveaxis(array, axis, 0)
