"""What is differentiated: labels, the model's own answers, its outputs, or a loss of the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from obc_onnx.errors import DataError, InvariantError, RequestError
from obc_onnx.graph.node import CLASSES_RANK, is_float
from obc_onnx.measuring.classes import ends_in_softmax
from obc_onnx.measuring.outputs import answers
from obc_onnx.twin.logits import logits_of
from obc_onnx.twin.tensors import wide
from obc_onnx.user_code import load_function

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.padding import RealOf
    from obc_onnx.measuring.scales import Scale
    from obc_onnx.saliency.criterion import Scene
    from obc_onnx.saliency.options import ObjectiveName

    UserLoss = Callable[[dict[str, Tensor], Tensor | None], Tensor]


class Objective(ABC):
    """A loss of chosen samples."""

    @abstractmethod
    def __call__(self, outputs: Sequence[Tensor], which: slice) -> Tensor:
        """Return the sum of the losses of samples, a scalar.

        Args:
            outputs: The model's outputs for the samples, in order.
            which: Where the samples are among all.
        """


class CrossEntropy(Objective):
    """Cross entropy of the first output, which holds class logits or probabilities."""

    def __init__(self, coupling: Coupling, labels: NDArray[np.int64]) -> None:
        self._labels = labels
        self._probabilities = ends_in_softmax(coupling.graph, coupling.rules)

    def __call__(self, outputs: Sequence[Tensor], which: slice) -> Tensor:
        """Sum over the samples."""
        logits = logits_of(wide(outputs[0]), probabilities=self._probabilities)
        labels = torch.from_numpy(self._labels[which]).to(logits.device)
        return functional.cross_entropy(logits, labels, reduction="sum")


class Projections(Objective):
    """<r, f(x) / s> with r standard normal, drawn again for every number of every float output.

    s is the scale of a number: the deviation of its channel, times the root of how many numbers
    there are beside it, see `Scale.weights`; at padding, 1 / s is 0. The square of the derivative
    along w is an unbiased estimate of |J w / s|^2, the squared first-order change of the outputs
    as the mean over channels of what it is of their variance, added up over outputs: with
    v = J w / s, E_r (w . d<r, f / s>/dw)^2 = E_r (r . v)^2 = |v|^2, since E r r' = I. r . v is
    normal with variance |v|^2, so that its square has variance 2 |v|^4: over N samples of equal
    weight the estimate is off by sqrt(2 / N) of itself, 6 % for 512.

    What is drawn for a sample depends on the seed and its place only, so that neither the size of
    batches nor the number of processes changes the score. Of an output without a batch axis, what
    is drawn depends on the batches too.

    Args:
        seed: Of what is drawn.
        scales: Of the float outputs, in order.
        real: Gives for samples what says which positions of an output are no padding, see
            `measuring.padding.real_of`.
    """

    def __init__(
        self,
        seed: int,
        scales: Sequence[Scale],
        real: Callable[[slice], RealOf],
    ) -> None:
        self._seed, self._scales, self._real = seed, scales, real

    def __call__(self, outputs: Sequence[Tensor], which: slice) -> Tensor:
        """Sum over all float outputs."""
        floats = [(i, wide(o)) for i, o in enumerate(outputs) if o.is_floating_point()]
        if not floats:
            raise RequestError("no output of the model is a float: use `criterion='l2'`")
        terms: list[Tensor] = [
            (o * self._drawn(o, i, scale, which) * self._weights(o, scale, which)).sum()
            for (i, o), scale in zip(floats, self._scales, strict=True)
        ]
        return torch.stack(terms).sum()

    def _drawn(self, output: Tensor, number: int, scale: Scale, which: slice) -> Tensor:
        axis, n_samples = scale.batch_axis, which.stop - which.start
        by_sample = axis is not None and output.ndim > axis and output.shape[axis] == n_samples
        shape = list(output.shape)
        if by_sample and axis is not None:
            del shape[axis]
        drawn = [
            np.random.default_rng((self._seed, place, number)).standard_normal(shape, np.float32)
            for place in range(which.start, which.stop if by_sample else which.start + 1)
        ]
        noise = torch.from_numpy(np.stack(drawn, axis or 0) if by_sample else drawn[0])
        return noise.to(output.device, output.dtype)

    def _weights(self, output: Tensor, scale: Scale, which: slice) -> Tensor:
        """Return 1 / s, which broadcasts to the output."""
        weights, real = scale.weights(), None
        if scale.batch_axis is not None:
            weights = np.expand_dims(weights, scale.batch_axis)
            real = self._real(which)(scale.name)
        return torch.from_numpy(weights if real is None else weights * real).to(output)


class Given(Objective):
    """A function of the user's, from outputs by name and labels to one loss per sample."""

    def __init__(self, graph: Graph, source: str, labels: NDArray[np.int64] | None) -> None:
        self._names = [port.name for port in graph.outputs]
        self._source, self._labels = source, labels
        self._function: UserLoss = load_function(source)

    def __call__(self, outputs: Sequence[Tensor], which: slice) -> Tensor:
        """Check what the function returns, and sum it."""
        labels = None
        if self._labels is not None:
            labels = torch.from_numpy(self._labels[which]).to(outputs[0].device)
        losses = self._function(dict(zip(self._names, outputs, strict=True)), labels)
        n_samples = which.stop - which.start
        if not isinstance(losses, torch.Tensor) or losses.shape != (n_samples,):
            found = list(losses.shape) if isinstance(losses, torch.Tensor) else type(losses)
            raise RequestError(
                f"the loss '{self._source}' has to return one number per sample, a tensor of shape "
                f"[{n_samples}]; it gave {found}"
            )
        if not losses.requires_grad and any(output.requires_grad for output in outputs):
            raise RequestError(
                f"the loss '{self._source}' cannot be differentiated: compute it from the outputs "
                f"in torch, without detach, numpy or whole numbers"
            )
        return wide(losses).sum()


def make_objective(scene: Scene) -> Objective:
    """Return the one loss that a scene asks for, see `kinds_of`.

    Raises:
        RequestError: The user's function cannot be loaded, or no output holds classes.
        DataError: Labels are asked for, and there are none.
    """
    graph, samples, scoring = scene.coupling.graph, scene.data(), scene.scoring
    if scoring.loss is not None:
        return Given(graph, scoring.loss, samples.labels)
    if scoring.objective in {None, "mixed"}:
        raise InvariantError(
            "a criterion differentiates one loss at a time, which the scene has to name"
        )
    if scoring.objective == "output":
        return Projections(scene.seed, scene.scales, scene.real_positions)
    if scoring.objective == "pseudo":
        return CrossEntropy(scene.coupling, answers(graph, samples))
    if samples.labels is None:
        raise DataError(
            "`Scoring(objective='labels')` needs data with labels: use 'pseudo' or 'output'"
        )
    return CrossEntropy(scene.coupling, samples.labels)


def kinds_of(scene: Scene, *, averaged: bool) -> tuple[ObjectiveName, ...]:
    """Return the objectives that a scene's is made of: two of a mixture, and one else.

    Without a word, the outputs: after repair, plans by them are nearer to the original than those
    by labels, whose gradients are small and alike where the model is sure (docs/criteria.md). But
    random projections cancel out where losses are averaged before they are squared.

    Args:
        scene: What is asked for.
        averaged: Whether a criterion takes means of losses over samples.
    """
    asked = scene.scoring.objective
    if asked == "mixed":
        return ("pseudo" if scene.data().labels is None else "labels", "output")
    return (asked or (_classes_of(scene) if averaged else "output"),)


def _classes_of(scene: Scene) -> ObjectiveName:
    """Return what looks at classes, where the model is known to have some.

    That are labels where there are some and they say all: of several outputs, units that only serve
    the others would be worth nothing. The model's own answers where its only output is known to
    hold classes, since it ends in a Softmax. Else all outputs.
    """
    graph = scene.coupling.graph
    if sum(is_float(port.dtype) for port in graph.outputs) > 1:
        return "output"
    if scene.data().labels is not None:
        return "labels"
    flat = len(graph.outputs[0].shape or ()) == CLASSES_RANK
    return "pseudo" if flat and ends_in_softmax(graph, scene.coupling.rules) else "output"


def check_loss(loss: Tensor) -> Tensor:
    """Return a loss, if it is finite.

    Raises:
        DataError: It is not.
    """
    if not torch.isfinite(loss):
        raise DataError(
            f"the loss of the scoring pass is {loss.item()}, which is not finite: some sample "
            f"drives the model out of its range"
        )
    return loss
