"""Read batches for training: in this process, or ahead of it in others."""

from __future__ import annotations

import signal
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from obc_onnx.errors import DataError, InvariantError, ObcError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.samples.augmentation import Augmentation
    from obc_onnx.samples.samples import Samples

Feed: TypeAlias = "dict[str, NDArray[Any]]"
Request: TypeAlias = "tuple[int, NDArray[np.int64]]"
"""An epoch, and the indices of a batch."""
_WORKER_DIED = "DataLoader worker"
"""How torch's message about a process that is gone begins."""


class Loader:
    """Gives batches in a chosen order, with pictures changed on the way.

    What it gives depends on the samples, the augmentation, the seed, the epoch and the order, and
    not on the number of processes. Those start with the first batch and stay until the loader goes.
    Each has one thread for torch, reads whole batches, and is up to two of them ahead.

    Args:
        samples: To read from.
        augmentation: Changes pictures, or None.
        workers: Processes that read; with 0 this one does.
        seed: Of what the augmentation draws.
    Raises:
        RequestError: The number of workers is negative, or the augmentation does not fit.
    """

    def __init__(
        self, samples: Samples, augmentation: Augmentation | None, workers: int, seed: int
    ) -> None:
        if workers < 0:
            raise RequestError(f"workers must be at least 0, found {workers}")
        if augmentation is not None:
            augmentation.check({name: array.shape for name, array in samples.inputs.items()})
        self._labels = samples.labels
        self._reader = _Reader(samples, augmentation, seed)
        self._requests: list[Request] = []
        self._processes = self._started(workers) if workers else None
        self._passes = 0
        # Where garbage is collected in cycles, queues go before the processes are told to stop, and
        # torch waits ten seconds for those. What this refers to goes one by one.
        weakref.finalize(self, _let_go, self._processes)

    def batches(
        self, epoch: int, order: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], Feed, NDArray[np.int64] | None]]:
        """Yield batches: their indices, inputs as the model takes them, and labels.

        One pass at a time: the next one ends it.

        Args:
            epoch: The pass over the samples, which decides what is drawn.
            order: The indices of each batch.
        Raises:
            DataError: A sample cannot be read, or a process has died.
            RequestError: The user's transform returns something else than it should.
        """
        self._passes += 1
        own = self._passes
        requests = [(epoch, which) for which in order]
        ahead = self._processes is not None
        feeds = self._ahead(requests) if ahead else map(self._reader.feed, requests)
        for which in order:
            if own != self._passes:
                raise InvariantError("a pass over batches went on after the next had begun")
            yield which, next(feeds), None if self._labels is None else self._labels[which]

    def _ahead(self, requests: list[Request]) -> Iterator[Feed]:
        """Yield what the processes read."""
        self._requests[:] = requests
        with _refusing_when_one_dies(), _keeping_signals():
            results = iter(self._processes or ())
        while (result := _next(results)) is not None:
            if isinstance(result, (ObcError, MemoryError)):
                raise result
            yield {
                name: array.numpy() if isinstance(array, torch.Tensor) else array
                for name, array in result.items()
            }

    def _started(self, workers: int) -> DataLoader[Any]:
        return DataLoader(
            self._reader,
            batch_size=None,  # an item of the reader is a batch
            sampler=self._requests,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=True,
            generator=torch.Generator(),  # it would draw from the one that Dropout draws from
        )


class _Reader(Dataset["Feed | ObcError | MemoryError"]):
    """Reads batches, in whatever process it is."""

    def __init__(self, samples: Samples, augmentation: Augmentation | None, seed: int) -> None:
        self._samples, self._augmentation, self._seed = samples, augmentation, seed

    def feed(self, request: Request) -> Feed:
        epoch, which = request
        rows = self._samples.rows(which)
        if self._augmentation is not None:
            rows = self._augmentation.apply(rows, which, epoch, self._seed)
        return self._samples.laid_out(rows)

    def __getitem__(self, request: Request) -> dict[str, Any] | ObcError | MemoryError:
        """Read a batch in a worker.

        Errors are handed over as values: torch would put a traceback into their message.
        """
        try:
            feed = self.feed(request)
        except (ObcError, MemoryError) as error:
            return error
        return {name: _shared(array) for name, array in feed.items()}


def _shared(array: NDArray[Any]) -> torch.Tensor | NDArray[Any]:
    """Return an array as a tensor, if it can be one, since those go through shared memory.

    Taking 1 GB from workers costs the training process 0.2 s that way, and 2.4 s through a pipe.
    """
    try:
        return torch.from_numpy(array)
    except TypeError:  # torch lacks the type
        return array


def _as_it_is(item: Any) -> Any:
    """Keep torch from turning what a worker returns into something else."""
    return item


def _let_go(_processes: DataLoader[Any] | None) -> None:
    """Do nothing: the reference that goes with the call was all."""


def _next(results: Iterator[Any]) -> Any:
    """Return what the workers give next; None at the end."""
    with _refusing_when_one_dies():
        return next(results, None)


@contextmanager
def _refusing_when_one_dies() -> Iterator[None]:
    """Turn torch's error about a process that is gone into one for the user."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_WORKER_DIED):
            raise
        raise DataError(
            f"a process that reads samples has died, perhaps for lack of memory or of room in "
            f"/dev/shm: use fewer `TrainingOptions.workers` ({error})"
        ) from error


@contextmanager
def _keeping_signals() -> Iterator[None]:
    """Undo what torch does when it starts processes: let the death of one raise at any place.

    That would be in the middle of a step. Asking for the next batch finds it too, within 5 seconds.
    """
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if before is not None:  # else a handler that Python does not know
            signal.signal(number, before)
