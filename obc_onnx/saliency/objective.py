"""What is differentiated: labels, the model's own answers, its outputs, or a loss of the user's."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from obc_onnx.errors import DataError, RequestError
from obc_onnx.logits import ends_in_softmax, logits_of
from obc_onnx.measure import batch_size_of
from obc_onnx.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph
    from obc_onnx.saliency.criterion import Scene

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

    def __init__(self, graph: Graph, labels: NDArray[np.int64]) -> None:
        self._labels = labels
        self._probabilities = ends_in_softmax(graph)

    def __call__(self, outputs: Sequence[Tensor], which: slice) -> Tensor:
        """Sum over the samples."""
        logits = logits_of(outputs[0], probabilities=self._probabilities)
        labels = torch.from_numpy(self._labels[which]).to(logits.device)
        return functional.cross_entropy(logits, labels, reduction="sum")


class Projections(Objective):
    """<r, f(x)> with r standard normal, drawn anew for every number of every float output.

    The square of its derivative along w is an unbiased estimate of |J w|^2, the squared first-order
    change of the outputs: E_r (w . d<r, f>/dw)^2 = E_r (r . J w)^2 = |J w|^2, since E r r' = I.
    r . J w is normal with variance |J w|^2, so that its square has variance 2 |J w|^4: over N
    samples of equal weight the estimate is off by sqrt(2 / N) of itself, 6 % for 512.

    What is drawn for a sample depends on the seed and its place only, so that neither the size of
    batches nor the number of processes changes the score.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, outputs: Sequence[Tensor], which: slice) -> Tensor:
        """Sum over all float outputs."""
        floats = [(i, o) for i, o in enumerate(outputs) if o.is_floating_point()]
        if not floats:
            raise RequestError("no output of the model is a float: use --criterion l2")
        terms: list[Tensor] = [(o * self._drawn(o, i, which)).sum() for i, o in floats]
        return torch.stack(terms).sum()

    def _drawn(self, output: Tensor, number: int, which: slice) -> Tensor:
        n_samples = which.stop - which.start
        by_sample = output.ndim > 0 and output.shape[0] == n_samples
        shape = tuple(output.shape[1:] if by_sample else output.shape)
        drawn = [
            np.random.default_rng((self._seed, place, number)).standard_normal(shape, np.float32)
            for place in range(which.start, which.stop if by_sample else which.start + 1)
        ]
        noise = torch.from_numpy(np.stack(drawn) if by_sample else drawn[0])
        return noise.to(output.device, output.dtype)


class Given(Objective):
    """A function of the user's, from outputs by name and labels to one loss per sample."""

    def __init__(self, graph: Graph, source: str, labels: NDArray[np.int64] | None) -> None:
        self._names = [port.name for port in graph.outputs]
        self._source, self._labels = source, labels
        self._function = load_function(source)

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
        return losses.sum()


def make_objective(scene: Scene) -> Objective:
    """Return what a scene asks for; without a word, labels where there are some, else outputs.

    Raises:
        RequestError: The user's function cannot be loaded.
        DataError: Labels are asked for, and there are none.
    """
    graph, samples, scoring = scene.coupling.graph, scene.data(), scene.scoring
    if scoring.loss is not None:
        return Given(graph, scoring.loss, samples.labels)
    kind = scoring.objective or ("output" if samples.labels is None else "labels")
    if kind == "output":
        return Projections(scene.seed)
    if kind == "pseudo":
        return CrossEntropy(graph, answers(graph, samples))
    if samples.labels is None:
        raise DataError("--objective labels needs data with labels: use pseudo or output")
    return CrossEntropy(graph, samples.labels)


def answers(graph: Graph, samples: Samples) -> NDArray[np.int64]:
    """Return the class that a model itself gives each sample: the largest of its first output."""
    session, name = Session(graph), graph.outputs[0].name
    parts = samples.batches(batch_size_of(graph))
    found = [session.run(samples.feed(part))[name].argmax(axis=-1) for part in parts]
    return np.concatenate(found).astype(np.int64)


def load_function(source: str) -> UserLoss:
    """Load a function from `FILE.py:FUNCTION`.

    Raises:
        RequestError: There is no such file or function, or the file cannot be run.
    """
    path, _, name = source.rpartition(":")
    if not path or not name:
        raise RequestError(f"'{source}' is not of the form FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise RequestError(f"there is no Python file '{path}'")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise RequestError(f"'{path}' cannot be run: {error}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise RequestError(f"'{path}' has no function '{name}'")
    loaded: UserLoss = function
    return loaded
