"""The training loop: at the pruned width, towards the original's outputs and labels."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.errors import DivergedError, RequestError
from obc_onnx.loading import Loader
from obc_onnx.processes import add_up, own_part, rank, world_size
from obc_onnx.progress import Progress
from obc_onnx.tensors import as_inputs, lay_channels_last
from obc_onnx.training.evaluation import Judge, parts_of
from obc_onnx.training.fabric import make_fabric
from obc_onnx.training.loss import Labels, TrainingLoss
from obc_onnx.training.mixing import check_mixing, mix
from obc_onnx.training.optimise import Average, copy_of, make_optimizer, set_rate
from obc_onnx.training.order import Order, rate
from obc_onnx.training.synced_norm import share_statistics
from obc_onnx.training.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.equivalent import EquivalentTwin
    from obc_onnx.training.keeper import Keeper
    from obc_onnx.training.options import TrainingOptions
    from obc_onnx.training.sparse import GroupPenalty

    Stream = Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.int64] | None]]

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 300.0
"""Checkpoints within an epoch are this far apart; there is one after each epoch anyway."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the samples gave; number 0 is the network before any.

    Attributes:
        loss: Mean over its steps, in training mode; None before the first.
        lr: Of its last step.
        validation: Mean loss on the samples that were held out from training, where there are some.
        accuracy: On the same, where there are labels.
    """

    number: int
    loss: float | None
    lr: float
    validation: float | None = None
    accuracy: float | None = None


def finetune(
    student: EquivalentTwin,
    coupling: Coupling,
    samples: Samples,
    options: TrainingOptions,
    keeper: Keeper | None = None,
    penalty: GroupPenalty | None = None,
) -> list[Epoch]:
    """Train in place.

    Args:
        student: The pruned network; left in evaluation mode, on the CPU, with the best state.
        coupling: Of the original, whose outputs are the targets.
        samples: To train on, and to choose the best epoch.
        options: How.
        keeper: Keeps states, and gives the one to go on from.
        penalty: What is added to the gradients of each step.
    Returns:
        One entry per epoch.
    Raises:
        RequestError: There is nothing to train towards, or with.
        DivergedError: The loss, or a weight after the last step, is not finite.
    """
    training = _Training(student, coupling, samples, options, keeper, penalty)
    with torch.random.fork_rng():
        history = training.run()
    student.cpu().eval()
    return history


class _Training:
    """The state of a run."""

    def __init__(
        self,
        student: EquivalentTwin,
        coupling: Coupling,
        samples: Samples,
        options: TrainingOptions,
        keeper: Keeper | None,
        penalty: GroupPenalty | None,
    ) -> None:
        graph = coupling.graph
        self.student, self.options = student, options
        self._keeper, self._penalty = keeper, penalty
        self._fabric = make_fabric(options)
        self._ports = graph.inputs
        used, held = parts_of(samples, options.validation, options.seed, graph.batch or 1)
        check_mixing(options, graph)
        varies = options.augmentation is not None or options.mixup > 0 or options.cutmix > 0
        self._teacher = Teacher(coupling, used, self._fabric.device, varies=varies)
        labelled = samples.labels is not None
        self._loss = TrainingLoss(options, graph, self._teacher.spreads, labelled=labelled)
        self._judge = None
        if held is not None:
            self._judge = Judge(coupling, held, self._loss, self._fabric)
        self._loader = Loader(used, options.augmentation, options.workers, options.seed)
        self._order = Order(len(used), graph.batch, options, world_size())
        self._was_finite = self.student.finite()
        if world_size() > 1:
            share_statistics(self.student.twin)
        if self._fabric.device.type == "cpu" or options.precision != "float32":
            lay_channels_last(self.student)
        self._net, self._optimizer = self._fabric.setup(
            self.student, make_optimizer(self.student, options)
        )
        self._average = None if options.ema is None else Average(self.student, options.ema)
        self.history: list[Epoch] = []
        self._best: dict[str, Tensor] | None = None
        self._losses: list[float] = []
        self._saved = time.monotonic()
        self._restore()

    @property
    def steps_per_epoch(self) -> int:
        """How many times weights change in an epoch."""
        return math.ceil(len(self._order.starts) / self.options.accumulate)

    def run(self) -> list[Epoch]:
        """Go through the epochs that are left."""
        total = self.options.epochs * self.steps_per_epoch
        with Progress("fine-tuning", total) as progress:
            if not self.history and self._judge is not None:
                self._finish(0, None, 0.0)
            done = self.history[-1].number if self.history else 0
            progress.skip(done * self.steps_per_epoch + len(self._losses))
            for number in range(done + 1, self.options.epochs + 1):
                if self._ends():
                    break
                self._epoch(number, total, progress)
        if self._best is not None:
            self.student.load_state_dict(self._best)
        elif self._average is not None:
            self.student.load_state_dict(self._average.state)
        _check_weights(self._was_finite, self.student.finite(), self.history[-1].lr)
        return self.history

    def _ends(self) -> bool:
        """Say whether the last epochs brought nothing."""
        if self.options.patience is None or self._best is None:
            return False
        best = min(self.history, key=lambda epoch: _or_infinite(epoch.validation))
        return self.history[-1].number - best.number >= self.options.patience

    def _epoch(self, number: int, total: int, progress: Progress) -> None:
        """Train on every sample once, from where a checkpoint was made."""
        options, size = self.options, self.options.accumulate
        batches = self._order.batches(number)
        groups = [batches[start : start + size] for start in range(0, len(batches), size)]
        done = len(self._losses)
        own = [own_part(batch) for group in groups[done:] for batch in group]
        stream = self._loader.batches(number, own)
        self._net.train()
        first = (number - 1) * len(groups)
        lr = options.lr * rate(first + max(done - 1, 0), total, options)
        for place, group in enumerate(groups[done:], start=done):
            lr = options.lr * rate(first + place, total, options)
            set_rate(self._optimizer, lr)
            loss = self._step(stream, group, (number, place))
            if not math.isfinite(loss):
                before = f", after {self._losses[-1]:g}" if self._losses else ""
                raise DivergedError(
                    f"the loss is {loss} in epoch {number}, step {place + 1}, at learning rate "
                    f"{lr:g}{before}: try a smaller --lr"
                )
            self._losses.append(loss)
            if self._average is not None:
                self._average.update()
            progress.advance(f"epoch {number}/{options.epochs} loss {loss:.4f}{self._shown()}")
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save()
        self._finish(number, float(np.mean(self._losses)), lr)

    def _step(
        self, stream: Stream, group: list[NDArray[np.int64]], place: tuple[int, int]
    ) -> float:
        """Change the weights once; return the mean loss over the samples of all processes."""
        seed = np.random.SeedSequence((self.options.seed, *place, rank()))
        torch.random.manual_seed(int(seed.generate_state(1)[0]))  # Dropout draws from it
        rng = np.random.default_rng(seed)
        n_samples = sum(map(len, group))
        found = torch.zeros((), dtype=torch.float64, device=self._fabric.device)
        self._optimizer.zero_grad(set_to_none=True)
        with self._held_weights():
            for i in range(len(group)):
                which, feed, labels = next(stream)
                with self._without_sync(i < len(group) - 1):
                    loss = self._loss_of(which, feed, labels, rng)
                    share = len(which) / n_samples
                    self._fabric.backward(loss * (share * world_size()))  # gradients are averaged
                found += loss.detach().double() * share
        if self._penalty is not None:
            self._penalty.add_gradients()
        if self.options.clip is not None:
            self._fabric.clip_gradients(self._net, self._optimizer, max_norm=self.options.clip)
        self._optimizer.step()
        return float(add_up({"loss": found})["loss"])

    def _held_weights(self) -> AbstractContextManager[None]:
        """Make weights once for all passes of a step.

        Several processes make them for each pass: what torch does not find behind the outputs, it
        takes to have no gradient.
        """
        return self.student.hold_weights() if world_size() == 1 else nullcontext()

    def _without_sync(self, enabled: bool) -> AbstractContextManager[Any]:  # noqa: FBT001
        if world_size() == 1:
            return nullcontext()
        return self._fabric.no_backward_sync(self._net, enabled=enabled)

    def _loss_of(
        self,
        which: NDArray[np.int64],
        feed: dict[str, NDArray[Any]],
        labels: NDArray[np.int64] | None,
        rng: np.random.Generator,
    ) -> Tensor:
        feed, others, share = mix(feed, self.options, rng)
        targets = self._teacher.outputs(which, feed) if self._loss.needs_original else []
        try:
            outputs = self._net(*as_inputs(self._ports, feed, self._fabric.device))
        except ValueError as error:  # torch's word for a norm that sees one number per channel
            raise RequestError(
                f"batch norms cannot be trained on {len(which)} samples at a time: export the "
                f"model with a dynamic batch, or leave --epochs out"
            ) from error
        loss = self._loss(outputs, targets, self._labels(labels, others, share))
        if not loss.requires_grad:
            raise RequestError(
                "the loss depends on no weight that learns: there is nothing to train"
            )
        return loss

    def _labels(
        self, labels: NDArray[np.int64] | None, others: NDArray[np.int64] | None, share: float
    ) -> Labels | None:
        if labels is None:
            return None
        own = torch.from_numpy(labels).to(self._fabric.device)
        other = None if others is None else own[torch.from_numpy(others).to(own.device)]
        return Labels(own, other, share)

    def _finish(self, number: int, loss: float | None, lr: float) -> None:
        """Judge the network after an epoch, and keep its state if it is the best."""
        epoch = Epoch(number, loss, lr)
        if self._judge is not None:
            trained = None
            if self._average is not None:
                trained = copy_of(self.student.state_dict())
                self.student.load_state_dict(self._average.state)
            validation, accuracy = self._judge(self.student)
            epoch = Epoch(number, loss, lr, validation, accuracy)
            best = min((_or_infinite(e.validation) for e in self.history), default=math.inf)
            if _or_infinite(validation) < best:
                self._best = copy_of(self.student.state_dict())
            if trained is not None:
                self.student.load_state_dict(trained)
        self.history.append(epoch)
        self._losses = []
        logger.info(
            "epoch %d: loss %s, held out %s, accuracy %s",
            *(number, loss, epoch.validation, epoch.accuracy),
        )
        self._save()

    def _shown(self) -> str:
        last = self.history[-1] if self.history else None
        return "" if last is None or last.accuracy is None else f" accuracy {last.accuracy:.4f}"

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._keeper is None or rank() != 0:
            return
        average = self._average
        self._keeper.save(
            {
                "student": self.student.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "history": [asdict(epoch) for epoch in self.history],
                "losses": self._losses,
                "best": self._best,
                "precision": self._fabric.strategy.precision.state_dict(),
                "average": None if average is None else (average.state, average.steps),
                "penalty": None if self._penalty is None else self._penalty.state_dict(),
            }
        )

    def _restore(self) -> None:
        state = None if self._keeper is None else self._keeper.load()
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self._losses, self._best = state["losses"], state["best"]
        if self._average is not None:
            self._average.restore(*state["average"])
        if self._penalty is not None:
            self._penalty.load_state_dict(state["penalty"])


def _or_infinite(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _check_weights(before: dict[str, bool], after: dict[str, bool], lr: float) -> None:
    """Check that training has left every number finite that was; masks may hold infinities."""
    for name, finite in after.items():
        if before[name] and not finite:
            raise DivergedError(
                f"'{name}' is not finite after the last step, at learning rate {lr:g}: try a "
                f"smaller --lr"
            )
