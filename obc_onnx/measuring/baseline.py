"""Whether a measurement can be believed: what a model was fed, and what the original makes of it.

A model that is fed numbers of another range than it was trained on, or labels in another order, is
compressed and verified like any other: every check compares two networks, and none says that the
first one works. What the original answers on held-out samples does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.graph.node import CLASSES_RANK, is_float
from obc_onnx.measuring.outputs import batch_size_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.outputs import Outputs
    from obc_onnx.samples.samples import Samples

_LOOKED_AT = 1024
"""Samples that statistics of inputs, and answers without labels, are taken over, at most."""
FEW_SAMPLES = 100
"""One sample of fewer is worth more than a point of accuracy."""
_SIGNIFICANCE = 0.01
_OVERCONFIDENT = 0.25
"""Trained networks are more confident than right by up to 0.17: Guo et al., arXiv 1706.04599."""
_DRAWN = "random numbers, since the data lacks them"
_NAMED = 5
"""Classes that a message names."""
_SUM_TOLERANCE = 1e-3
HELD_OUT, WORKED_ON = "held-out samples", "samples to score, repair and train on"


@dataclass(frozen=True)
class Fed:
    """What one input of a model was fed.

    Attributes:
        name: Of the input.
        samples: Which ones they are.
        n_samples: So many of them were looked at.
        dtype: As the model takes it.
        shape: Of one sample.
        least: Of all values, as are the next three; None where they are no numbers.
        preparation: How it was made from pictures; "" for arrays, which are fed as they are.
    """

    name: str
    samples: str
    n_samples: int
    dtype: str
    shape: list[int]
    least: float | None
    greatest: float | None
    mean: float | None
    std: float | None
    preparation: str

    @property
    def values(self) -> str:
        """The range of the values, as messages write it."""
        if self.least is None or self.greatest is None:
            return f"'{self.name}' no numbers"
        return f"'{self.name}' {self.least:.4g} to {self.greatest:.4g}"


@dataclass(frozen=True)
class Baseline:
    """What a compressed model is compared with.

    Attributes:
        accuracy: Of the original, top-1 on held-out samples, in [0, 1]; None without labels.
        fed: What it was fed.
        doubts: Why the accuracy may mean little, each with its likely cause.
    """

    accuracy: float | None = None
    fed: list[Fed] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def examine(original: Outputs, samples: Samples, *, apart: bool) -> Baseline:
    """Look at what the original is fed and answers.

    Args:
        original: What it gives for the samples to measure on.
        samples: To score, repair and train on.
        apart: Whether the others come from elsewhere, and may have been prepared otherwise.
    """
    graph, held = original.graph, original.samples
    fed, answers = _describe(graph, held, HELD_OUT), _answers(original)
    found = [] if answers is None else _doubts(answers, fed)
    if apart:
        fed = [*fed, *_describe(graph, samples, WORKED_ON)]
    accuracy = None if answers is None or answers.labels is None else answers.accuracy
    return Baseline(accuracy, fed, [*found, *_missing_classes(samples, held)])


@dataclass(frozen=True)
class _Answers:
    """What a classifier answers.

    Attributes:
        labels: How many samples each class has, None without labels.
        given: How many samples the model gives each class.
        right: How many answers equal the label; 0 without labels.
        confidence: Mean probability of the answers, in [0, 1]; scores that are no probabilities
            are taken for logits.
        probabilities: Whether the model gives probabilities, as only classifiers do.
    """

    labels: NDArray[np.int64] | None
    given: NDArray[np.int64]
    right: int
    confidence: float
    probabilities: bool

    @property
    def n_samples(self) -> int:
        return int(self.given.sum())

    @property
    def accuracy(self) -> float:
        return self.right / self.n_samples

    @property
    def commonest(self) -> float:
        """The share of the class that is given most often."""
        return float(self.given.max() / self.n_samples)


def _describe(graph: Graph, samples: Samples, which: str) -> list[Fed]:
    """Take statistics of inputs, run by run: all samples at once may not fit into memory."""
    some = samples.part(slice(0, _LOOKED_AT))
    runs: dict[str, list[list[float]]] = {port.name: [] for port in graph.inputs}
    feed: dict[str, NDArray[Any]] = {}
    for part in some.batches(batch_size_of(graph)):
        feed = some.feed(part)
        for name, array in feed.items():
            if array.dtype.kind not in "OSUc" and array.size:
                wide = array.astype(np.float64)
                values = (wide.min(), wide.max(), wide.mean(), wide.var())
                runs[name].append([wide.size, *map(float, values)])
    axes = dict.fromkeys(feed, 0) if some.batch_axes is None else some.batch_axes.inputs
    return [
        Fed(
            name=name,
            samples=which,
            n_samples=len(some),
            dtype=array.dtype.name,
            shape=[size for axis, size in enumerate(array.shape) if axis != axes[name]],
            **_joined(runs[name]),
            preparation=_DRAWN if name in some.drawn else str(some.prepared.get(name, "")),
        )
        for name, array in feed.items()
    ]


def _joined(runs: list[list[float]]) -> dict[str, float | None]:
    """Join the statistics of runs, each as [count, least, greatest, mean, variance]."""
    if not runs:
        return dict.fromkeys(("least", "greatest", "mean", "std"))
    counts, least, greatest, means, variances = np.array(runs).T
    mean = float(np.average(means, weights=counts))
    variance = float(np.average(variances + (means - mean) ** 2, weights=counts))
    return {
        "least": float(least.min()),
        "greatest": float(greatest.max()),
        "mean": mean,
        "std": variance**0.5,
    }


def _answers(original: Outputs) -> _Answers | None:
    """Run a model; None where its first output is not of shape [batch, classes], in floats."""
    name, labels = original.graph.outputs[0].name, original.samples.labels
    runs = original.runs()
    if labels is None:
        runs = itertools.islice(runs, max(_LOOKED_AT // original.size, 1))
    answers: list[NDArray[np.int64]] = []
    confidence, probabilities, n_classes = 0.0, True, 0
    for part, outputs in runs:
        scores = outputs[name]
        if not _are_of_classes(scores, part.stop - part.start):
            return None
        wide, n_classes = scores.astype(np.float64), scores.shape[1]
        given = bool((wide >= 0).all() and np.abs(wide.sum(axis=1) - 1).max() < _SUM_TOLERANCE)
        probabilities &= given
        answers.append(wide.argmax(axis=1))
        confidence += float((wide if given else _softmax(wide)).max(axis=1).sum())
    found = np.concatenate(answers)
    return _Answers(
        labels=None if labels is None else np.bincount(labels, minlength=n_classes),
        given=np.bincount(found, minlength=n_classes),
        right=0 if labels is None else int((found == labels).sum()),
        confidence=confidence / len(found),
        probabilities=probabilities,
    )


def _are_of_classes(scores: Any, n_samples: int) -> bool:
    tensor = isinstance(scores, np.ndarray) and scores.ndim == CLASSES_RANK
    return tensor and len(scores) == n_samples and is_float(scores.dtype)


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _doubts(answers: _Answers, fed: list[Fed]) -> list[str]:
    """Say why what is measured on held-out samples may mean little."""
    values = ", ".join(one.values for one in fed)
    pictures = any(one.preparation for one in fed)
    means = ", ".join(f"`ImageOptions.{name}`" for name in ("scale", "mean", "std", "color"))
    change = f": see {means}" if pictures else ""
    prepared = (
        f"the inputs differ from what it was trained on in range, mean and std, or order of "
        f"channels (it was fed {values}{change})"
    )
    if answers.labels is not None:
        few = _doubts_about_number(answers.n_samples)
        return [*few, *_doubts_about_accuracy(answers, answers.labels, prepared)]
    classifies = answers.probabilities and len(answers.given) > 1
    if not classifies or answers.n_samples < FEW_SAMPLES or answers.commonest < 1:
        return []
    which = f"all {answers.n_samples:,} held-out samples class {answers.given.argmax()}"
    return [f"the original gives {which}: they may all be of it, or {prepared}"]


def _doubts_about_number(n_samples: int) -> list[str]:
    if n_samples >= FEW_SAMPLES:
        return []
    number = "1 held-out sample" if n_samples == 1 else f"{n_samples} held-out samples"
    worth = f"where one is worth {100 / n_samples:.3g} points"
    more = "give more `data`, a larger `DataOptions.holdout`, or `DataOptions.evaluation`"
    return [f"accuracy was measured on {number}, {worth}: {more}"]


def _doubts_about_accuracy(
    answers: _Answers, labels: NDArray[np.int64], prepared: str
) -> list[str]:
    n, most = answers.n_samples, int(labels.max())
    if most == n:
        one_class = (
            f"all {n:,} held-out samples are of class {labels.argmax()}: accuracy does not say "
            f"whether the model can tell classes apart; give samples of every class"
        )
        return [one_class] if n > 1 else []
    chance = max(most / n, 1 / len(labels))
    right = f"the original is right on {100 * answers.accuracy:.2f} % of the held-out samples"
    cause = _cause(answers, most / n, prepared)
    if chance**n < _SIGNIFICANCE <= _luck(answers.right, n, chance):
        luck = f"no better than chance, {100 * chance:.2f} %"
        return [f"{right}, {luck}, so that no figure here tells what was lost: {cause}"]
    if n >= FEW_SAMPLES and answers.confidence - answers.accuracy > _OVERCONFIDENT:
        sure = f"{100 * answers.confidence:.2f} %"
        return [f"{right}, but as sure of itself as if it were on {sure}: {cause}"]
    return []


def _luck(right: int, n_samples: int, chance: float) -> float:
    """Return how likely a model that guesses is right that often, or more often.

    Args:
        right: How many answers are right.
        n_samples: Of how many.
        chance: Of one to be; above 0 and below 1, as where labels are of several classes.
    """
    logs = [
        math.lgamma(n_samples + 1)
        - math.lgamma(count + 1)
        - math.lgamma(n_samples - count + 1)
        + count * math.log(chance)
        + (n_samples - count) * math.log1p(-chance)
        for count in range(right, n_samples + 1)
    ]
    return min(math.fsum(math.exp(log) for log in logs), 1.0)


def _cause(answers: _Answers, largest: float, prepared: str) -> str:
    """Say what is likely wrong; a model that gives most samples one class, not the labels."""
    if answers.commonest == 1 or answers.commonest > 2 * largest:
        share, which = f"{100 * answers.commonest:.0f} %", answers.given.argmax()
        return f"it gives {share} of them class {which}, so likely {prepared}"
    return f"likely the labels are shuffled or number the classes in another order, or {prepared}"


def _missing_classes(used: Samples, held: Samples) -> list[str]:
    """Say which classes only one part of the samples has, and why that may be."""
    if used.labels is None or held.labels is None:
        return []
    parts = ((HELD_OUT, held.labels, used.labels), (WORKED_ON, used.labels, held.labels))
    found = []
    for name, own, others in parts:
        missing = np.setdiff1d(others, own)
        if len(missing):
            found.append(
                f"the {name} ({len(own):,}) hold none of {_listed(missing)}, which the others hold:"
                f" too few samples of these were given, or too few are held out; give more, another"
                f" `DataOptions.holdout`, or `DataOptions.evaluation` of every class"
            )
    return found


def _listed(classes: NDArray[np.int64]) -> str:
    """Name classes, the first ones of many."""
    named = ", ".join(map(str, classes[:_NAMED]))
    more = f" and {len(classes) - _NAMED:,} more" if len(classes) > _NAMED else ""
    return f"class {named}" if len(classes) == 1 else f"classes {named}{more}"
