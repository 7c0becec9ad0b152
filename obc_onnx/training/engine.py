"""The training loop: at the pruned width, towards the original's outputs and labels."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.errors import DivergedError, RequestError
from obc_onnx.measuring.padding import real_of
from obc_onnx.progress import Progress
from obc_onnx.training.course import Course, Epoch, best_of
from obc_onnx.training.evaluation import Judge, first_of, parts_of
from obc_onnx.training.fabric import make_fabric
from obc_onnx.training.loading import Loader
from obc_onnx.training.loss import Labels, TrainingLoss
from obc_onnx.training.mixing import check_mixing, mix
from obc_onnx.training.norm_modes import NormModes
from obc_onnx.training.optimise import Average, copy_of, make_optimizer, set_rate
from obc_onnx.training.options import NORMS
from obc_onnx.training.order import Order, rate
from obc_onnx.training.synced_norm import share_statistics
from obc_onnx.training.teacher import Teacher
from obc_onnx.training.trial import RATES, Trial, run_trials, taken_of, trial_steps
from obc_onnx.twin.processes import add_up, own_part, rank, world_size
from obc_onnx.twin.tensors import as_inputs, lay_channels_last

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.equivalent.network import EquivalentTwin
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples
    from obc_onnx.training.keeper import Keeper
    from obc_onnx.training.options import NormsName, Training
    from obc_onnx.training.sparse import GroupPenalty

    Stream = Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.int64] | None]]

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 300.0
"""Checkpoints within an epoch are this far apart; there is one after each epoch anyway."""


def finetune(
    student: EquivalentTwin,
    pruned: Graph,
    coupling: Coupling,
    samples: Samples,
    training: Training,
    keeper: Keeper | None = None,
    penalty: GroupPenalty | None = None,
) -> Course:
    """Train in place.

    Args:
        student: The pruned network; left in evaluation mode, on the CPU, with the best state.
        pruned: The graph that it was made from.
        coupling: Of the original, whose outputs are the targets.
        samples: To train on, and to choose the best epoch.
        training: How.
        keeper: Keeps states, and gives the one to go on from.
        penalty: What is added to the gradients of each step.
    Raises:
        RequestError: There is nothing to train towards, or with.
        DivergedError: The loss, or a weight after the last step, is not finite.
    """
    run = _Training(student, pruned, coupling, samples, training, keeper, penalty)
    with torch.random.fork_rng():
        course = run.run()
    student.cpu().eval()
    return course


class _Training:
    """The state of a run."""

    def __init__(
        self,
        student: EquivalentTwin,
        pruned: Graph,
        coupling: Coupling,
        samples: Samples,
        training: Training,
        keeper: Keeper | None,
        penalty: GroupPenalty | None,
    ) -> None:
        graph, options, seed = coupling.graph, training.options, training.seed
        self.student, self._pruned, self.options = student, pruned, options
        self._keeper, self._penalty, self._seed = keeper, penalty, seed
        self._fabric = make_fabric(training)
        self._ports = graph.inputs
        used, held = parts_of(samples, options.validation, graph.batch or 1)
        self._coupling, self._samples = coupling, used
        check_mixing(options, graph)
        varies = options.augmentation is not None or options.mixup > 0 or options.cutmix > 0
        self._teacher = Teacher(coupling, used, self._fabric.device, varies=varies)
        labelled = samples.labels is not None
        self._loss = TrainingLoss(
            options, graph, self._teacher.scales, coupling.rules, labelled=labelled
        )
        self._holds_out = held is not None
        self._judge = Judge(coupling, held or first_of(used, graph.batch or 1), self._loss)
        self._loader = Loader(used, options.augmentation, options.workers, seed)
        self._order = Order(len(used), graph.batch, training, world_size())
        self._was_finite = self.student.finite()
        if world_size() > 1:
            share_statistics(self.student.twin)
        self._norms = NormModes(self.student.twin)
        self._norms.use(options.norms or "batch")
        if self._fabric.device.type == "cpu" or options.precision != "float32":
            lay_channels_last(self.student)
        self._steps_by = options.optimizer_for(distils=not self._loss.replaces_distance)
        optimizer = make_optimizer(self.student, options, self._steps_by)
        self._net, self._optimizer = self._fabric.setup(self.student, optimizer)
        self._average = None if options.ema is None else Average(self.student, options.ema)
        self.history: list[Epoch] = []
        self._trials: list[Trial] = []
        self._best: dict[str, Tensor] | None = None
        self._losses: list[float] = []
        self._saved = time.monotonic()
        self._restore()

    @property
    def steps_per_epoch(self) -> int:
        """How many times weights change in an epoch."""
        return math.ceil(len(self._order.starts) / self.options.accumulate)

    @property
    def lr(self) -> float:
        """The largest learning rate: what was given, or what trials have found."""
        return self.options.lr or taken_of(self._trials).lr

    def run(self) -> Course:
        """Go through the epochs that are left."""
        total = self.options.epochs * self.steps_per_epoch
        if not self.history and self._holds_out:
            self._finish(0, None, 0.0)
        if self.options.lr is None and not self._trials:
            self._trials = self._find_rate(total)
        if self._trials:
            self._norms.use(taken_of(self._trials).norms)
        with Progress("fine-tuning", total) as progress:
            diverged = self._go_on(total, progress)
        if self._best is not None:
            self.student.load_state_dict(self._best)
        elif self._average is not None:
            self.student.load_state_dict(self._average.state)
        _check_weights(self._was_finite, self.student.finite(), self.history[-1].lr)
        kept = best_of(self.history) if self._best is not None else self.history[-1]
        epochs = [replace(epoch, kept=epoch is kept) for epoch in self.history]
        size = self._order.size * self.options.accumulate
        return Course(epochs, self._trials, self._steps_by, size, diverged)

    def _go_on(self, total: int, progress: Progress) -> str:
        """Go through the epochs that are left; say what went wrong at a rate that trials found."""
        done = self.history[-1].number if self.history else 0
        progress.skip(done * self.steps_per_epoch + len(self._losses))
        for number in range(done + 1, self.options.epochs + 1):
            if self._ends():
                break
            try:
                self._epoch(number, total, progress)
            except DivergedError as error:
                if not self._trials or self._best is None:
                    raise
                return str(error)
        return ""

    def _find_rate(self, total: int) -> list[Trial]:
        """Train a little at several rates, and leave everything as it was."""
        steps = trial_steps(self.steps_per_epoch, total)
        start = copy_of(self.student.state_dict())
        precision = self._fabric.strategy.precision
        fresh = deepcopy((self._optimizer.state_dict(), precision.state_dict()))
        rates = RATES[self._steps_by]
        modes = (
            (self.options.norms,) if self.options.norms else NORMS if self._norms else ("batch",)
        )
        with Progress("trying learning rates", len(rates)) as progress:

            def measure(lr: float, mode: NormsName) -> float:
                self._norms.use(mode)
                finite = self._try(lr, steps)
                error = self._judged()[0] if finite else math.inf
                self.student.load_state_dict(start)
                optimizer, scale = deepcopy(fresh)
                self._optimizer.load_state_dict(optimizer)
                precision.load_state_dict(scale)
                logger.info("%d steps at learning rate %g, %s: %g", steps, lr, mode, error)
                progress.advance(f"{lr:g}: {error:.4f}")
                return error

            return run_trials(measure, self._judged()[0], rates, modes, steps / total)

    def _try(self, lr: float, steps: int) -> bool:
        """Train for some steps, at a rate that rises and falls; say whether all stays finite."""
        groups = self._groups(0)[:steps]
        stream = self._loader.batches(0, [own_part(batch) for group in groups for batch in group])
        self._net.train()
        for place, group in enumerate(groups):
            set_rate(self._optimizer, lr * rate(place, steps, self.options))
            if not math.isfinite(self._step(stream, group, (0, place))):
                return False
        return self.student.finite() == self._was_finite

    def _groups(self, number: int) -> list[list[NDArray[np.int64]]]:
        """Return the batches of each step of an epoch."""
        batches, size = self._order.batches(number), self.options.accumulate
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def _judged(self) -> tuple[float, float | None]:
        """Judge the network in evaluation mode; what the first process measures counts."""
        found = torch.zeros(2, dtype=torch.float64, device=self._fabric.device)
        has_accuracy = self._judge.labelled
        if rank() == 0:
            measured, accuracy = self._judge(self.student.eval().fold(self._pruned))
            found += found.new_tensor([measured, accuracy or 0.0])
        measured, accuracy = add_up({"judged": found})["judged"].tolist()
        return measured, accuracy if has_accuracy else None

    def _ends(self) -> bool:
        """Say whether the last epochs brought nothing."""
        if self.options.patience is None or self._best is None:
            return False
        return self.history[-1].number - best_of(self.history).number >= self.options.patience

    def _epoch(self, number: int, total: int, progress: Progress) -> None:
        """Train on every sample once, from where a checkpoint was made."""
        options, groups = self.options, self._groups(number)
        done = len(self._losses)
        own = [own_part(batch) for group in groups[done:] for batch in group]
        stream = self._loader.batches(number, own)
        self._net.train()
        first = (number - 1) * len(groups)
        lr = self.lr * rate(first + max(done - 1, 0), total, options)
        for place, group in enumerate(groups[done:], start=done):
            lr = self.lr * rate(first + place, total, options)
            set_rate(self._optimizer, lr)
            loss = self._step(stream, group, (number, place))
            if not math.isfinite(loss):
                before = f", after {self._losses[-1]:g}" if self._losses else ""
                raise DivergedError(
                    f"the loss is {loss} in epoch {number}, step {place + 1}, at learning rate "
                    f"{lr:g}{before}: try a smaller `TrainingOptions.lr`"
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
        seed = np.random.SeedSequence((self._seed, *place, rank()))
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
                f"model with a dynamic batch, or leave `training` out"
            ) from error
        # what blends samples says of no position that it is padding
        real = real_of(self._coupling, self._samples, which) if others is None else None
        known = None if labels is None else Labels.of(labels, others, share, self._fabric.device)
        loss = self._loss(outputs, targets, known, real)
        if not loss.requires_grad:
            raise RequestError(
                "the loss depends on no weight that learns: there is nothing to train"
            )
        return loss

    def _finish(self, number: int, loss: float | None, lr: float) -> None:
        """Judge the network after an epoch, and keep its state if it is the best."""
        epoch = Epoch(number, loss, lr)
        if self._holds_out:
            trained = None
            if self._average is not None:
                trained = copy_of(self.student.state_dict())
                self.student.load_state_dict(self._average.state)
            validation, accuracy = self._judged()
            epoch = Epoch(number, loss, lr, validation, accuracy)
            if best_of([*self.history, epoch]) is epoch and math.isfinite(validation):
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
                "trials": [asdict(trial) for trial in self._trials],
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
        self._trials = [Trial(**trial) for trial in state["trials"]]
        self._losses, self._best = state["losses"], state["best"]
        if self._average is not None:
            self._average.restore(*state["average"])
        if self._penalty is not None:
            self._penalty.load_state_dict(state["penalty"])


def _check_weights(before: dict[str, bool], after: dict[str, bool], lr: float) -> None:
    """Check that training has left every number finite that was; masks may hold infinities."""
    for name, finite in after.items():
        if before[name] and not finite:
            raise DivergedError(
                f"'{name}' is not finite after the last step, at learning rate {lr:g}: try a "
                f"smaller `TrainingOptions.lr`"
            )
