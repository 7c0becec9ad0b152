"""Fine-tune a pruned network at its pruned width, towards the original's outputs and labels."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from obc_onnx.errors import DivergedError, RequestError
from obc_onnx.logits import ends_in_softmax, logits_of
from obc_onnx.measure import batch_size_of
from obc_onnx.progress import Progress
from obc_onnx.recover import spread_of
from obc_onnx.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.data import Samples
    from obc_onnx.equivalent import EquivalentTwin
    from obc_onnx.graph import Graph
    from obc_onnx.training import TrainingOptions

logger = logging.getLogger(__name__)

_LARGEST_RATE = float(np.finfo(np.float32).max)
_CACHE_BYTES = 2**28
"""The original's outputs are kept for all samples as long as they fit into this."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the samples gave: the mean loss of its steps, and the last rate."""

    number: int
    loss: float
    lr: float


def finetune(
    student: EquivalentTwin, original: Graph, samples: Samples, options: TrainingOptions
) -> list[Epoch]:
    """Train in place.

    Args:
        student: The pruned network; trained in training mode, left in evaluation mode.
        original: Whose outputs are the targets.
        samples: To train on.
        options: How.
    Returns:
        One entry per epoch.
    Raises:
        RequestError: A number is out of range, or there is nothing to train towards.
        DivergedError: The loss, or a weight after the last step, is not finite.
    """
    finite = 0 < options.lr < _LARGEST_RATE
    if options.epochs < 1 or options.batch_size < 1 or not finite:
        raise RequestError("epochs and batch size must be at least 1, and lr a number above 0")
    teacher = _Teacher(original, samples)
    batch_size = batch_size_of(original, options.batch_size)
    student.to(options.device)
    was_finite = student.finite()
    optimizer = _optimizer(student, options)
    starts = _starts(len(samples), batch_size, joins=original.batch is None)
    steps = options.epochs * len(starts)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _schedule(s, steps, options))
    rng = np.random.default_rng(options.seed)
    history = []
    student.train()
    with torch.random.fork_rng(), Progress("fine-tuning", steps) as progress:
        torch.random.manual_seed(options.seed)  # Dropout draws from torch's own generator
        for number in range(1, options.epochs + 1):
            losses: list[float] = []
            for which in _shuffled(len(samples), starts, rng):
                lr = float(schedule.get_last_lr()[0])
                loss = _step(student, teacher, which, optimizer, options)
                if not math.isfinite(loss):
                    before = f", after {losses[-1]:g}" if losses else ""
                    raise DivergedError(
                        f"the loss is {loss} in epoch {number}, step {len(losses) + 1}, at "
                        f"learning rate {lr:g}{before}: try a smaller --lr"
                    )
                schedule.step()
                losses.append(loss)
                progress.advance(f"epoch {number}/{options.epochs} loss {loss:.4f}")
            mean = float(np.mean(losses))
            history.append(Epoch(number, mean, lr))
            logger.info("epoch %d: loss %.5f", number, mean)
    _check_weights(was_finite, student.finite(), lr)
    student.eval()
    return history


def _check_weights(before: dict[str, bool], after: dict[str, bool], lr: float) -> None:
    """Check that training has left every number finite that was; masks may hold infinities."""
    for name, finite in after.items():
        if before[name] and not finite:
            raise DivergedError(
                f"'{name}' is not finite after the last step, at learning rate {lr:g}: try a "
                f"smaller --lr"
            )


def _step(
    student: EquivalentTwin,
    teacher: _Teacher,
    which: NDArray[np.int64],
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
) -> float:
    samples = teacher.samples
    inputs = [torch.from_numpy(a).to(options.device) for a in teacher.inputs(which)]
    targets: Sequence[Tensor] = [
        torch.from_numpy(a).to(options.device) for a in teacher.outputs(which)
    ]
    labels = None
    if samples.labels is not None:
        labels = torch.from_numpy(samples.labels[which]).to(options.device)
    try:
        outputs = student(*inputs)
    except ValueError as error:  # torch's word for a norm that sees one number per channel
        raise RequestError(
            f"batch norms cannot be trained on {len(which)} samples at a time: export the model "
            f"with a dynamic batch, or leave --epochs out"
        ) from error
    if labels is not None:
        outputs, targets = (
            (logits_of(first, probabilities=teacher.probabilities), *others)
            for first, *others in (outputs, targets)
        )
    loss = distillation_loss(outputs, targets, labels, teacher.spreads, options)
    if not loss.requires_grad:
        raise RequestError(
            "no weight that learns reaches a float output: there is nothing to train"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def distillation_loss(
    outputs: tuple[Tensor, ...],
    targets: Sequence[Tensor],
    labels: Tensor | None,
    spreads: list[float],
    options: TrainingOptions,
) -> Tensor:
    """Measure how far outputs are from the original's, and from the labels.

    Where there are labels, the first output holds class logits: its part is
    a * cross entropy + (1 - a) * T^2 * KL(original / T || pruned / T), a = `label_share`.
    Every other float output adds its mean squared error over its spread: the variance of the
    original's output over the samples, since that over a small batch may be anything.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531; the mix
    is that of the recipes in Chen et al., arXiv 2508.05521.

    Raises:
        RequestError: No output is a float.
    """
    terms = []
    for i, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        if not output.is_floating_point():
            continue
        if i == 0 and labels is not None:
            hard = functional.cross_entropy(output, labels)
            soft = functional.kl_div(
                functional.log_softmax(output / options.temperature, -1),
                functional.log_softmax(target / options.temperature, -1),
                reduction="batchmean",
                log_target=True,
            )
            share = options.label_share
            terms.append(share * hard + (1 - share) * options.temperature**2 * soft)
        else:
            terms.append(functional.mse_loss(output, target) / spreads[i])
    if not terms:
        raise RequestError("no output of the model is a float: there is nothing to train towards")
    return torch.stack(terms).sum()


class _Teacher:
    """The original network in ONNX Runtime; its outputs are kept where they fit."""

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self._session = Session(graph)
        self.samples = samples
        self.probabilities = ends_in_softmax(graph)
        self._ports = [port.name for port in graph.inputs]
        self._names = [port.name for port in graph.outputs]
        self._size = batch_size_of(graph)
        first = self._session.run(samples.feed(slice(0, self._size)))
        per_run = sum(array.nbytes for array in first.values())
        runs = math.ceil(len(samples) / self._size)
        by_sample = all(array.shape[:1] == (self._size,) for array in first.values())
        fits = by_sample and per_run * runs <= _CACHE_BYTES and len(samples) >= self._size
        self._cache = self._all() if fits else None
        wide = [np.asarray(array, np.float64) for array in self._cache or first.values()]
        self.spreads = [spread_of(float(x.mean()), float((x**2).mean())) for x in wide]

    def inputs(self, which: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return chosen samples in the order of the graph's inputs."""
        feed = self.samples.feed(which)
        return [feed[name] for name in self._ports]

    def outputs(self, which: NDArray[np.int64]) -> list[NDArray[Any]]:
        if self._cache is not None:
            return [array[which] for array in self._cache]
        values = self._session.run(self.samples.feed(which))
        return [values[name] for name in self._names]

    def _all(self) -> list[NDArray[Any]]:
        runs = [
            self._session.run(self.samples.feed(part)) for part in self.samples.batches(self._size)
        ]
        return [np.concatenate([run[name] for run in runs]) for name in self._names]


def _optimizer(student: EquivalentTwin, options: TrainingOptions) -> torch.optim.Optimizer:
    decayed = [p for p in student.decayed() if p.ndim > 1]
    listed = {id(p) for p in decayed}
    matrices = list(student.matrices())
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": [p for p in student.weights() if id(p) not in listed]},
        {"params": matrices, "lr": options.lr * options.matrix_lr},
    ]
    return torch.optim.SGD(
        groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0
    )


def _schedule(step: int, steps: int, options: TrainingOptions) -> float:
    """Return the learning rate over its largest: a linear rise, then half a cosine."""
    rise = max(1, round(options.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _starts(n_samples: int, batch_size: int, *, joins: bool) -> list[int]:
    """Return where batches start; a last batch of one joins the one before, where sizes are free.

    Batch statistics of a single sample are not defined after global pooling.
    """
    starts = list(range(0, n_samples, batch_size))
    if joins and len(starts) > 1 and n_samples - starts[-1] == 1:
        starts.pop()
    return starts


def _shuffled(
    n_samples: int, starts: list[int], rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield every sample once, in random order."""
    order = rng.permutation(n_samples)
    for start, end in zip(starts, [*starts[1:], n_samples], strict=True):
        yield order[start:end]
