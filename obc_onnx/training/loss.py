"""What a network is trained towards: labels, the original's outputs, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from obc_onnx.errors import RequestError
from obc_onnx.graph.node import CLASSES_RANK
from obc_onnx.measuring.classes import class_axis, ends_in_softmax
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.training.options import LABELS_AND_TEACHER, check_labels
from obc_onnx.twin.compared import Compared
from obc_onnx.twin.logits import logits_of
from obc_onnx.twin.tensors import wide
from obc_onnx.user_code import load_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port
    from obc_onnx.measuring.padding import RealOf
    from obc_onnx.measuring.scales import Scale
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.training.options import TrainingOptions


@dataclass(frozen=True)
class Labels:
    """Classes of the samples of a batch.

    Attributes:
        own: Shape [batch], int64.
        other: Where samples are blended, the classes of what is blended in.
        share: Of `own` in each sample.
    """

    own: Tensor
    other: Tensor | None = None
    share: float = 1.0

    @classmethod
    def of(
        cls,
        labels: NDArray[np.int64],
        others: NDArray[np.int64] | None,
        share: float,
        device: torch.device,
    ) -> Labels:
        """Put the classes of a batch onto a device; `others` and `share` are those of `mix`."""
        own = torch.from_numpy(labels).to(device)
        return cls(own, None if others is None else own[torch.from_numpy(others).to(device)], share)


class TrainingLoss:
    """A weighted sum of losses, each a mean over samples.

    "ce" and "kd" look at the first output, which holds class logits or probabilities: cross entropy
    with the labels, and T^2 * KL(original / T || pruned / T). "mse", "cosine" and "smooth-l1"
    compare every float output with the original's, see `compared`. A float output that nothing
    looks at adds its "mse", so that no output drifts. What is padding counts in none of these.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531; the mix
    is that of the recipes in Chen et al., arXiv 2508.05521.

    Args:
        options: Which losses, and their numbers.
        graph: The original.
        scales: Of the float outputs, by name.
        rules: What is known of operators.
        labelled: Whether there are labels.
    Raises:
        RequestError: No output is a float, or a loss needs labels and there are none.
    """

    def __init__(
        self,
        options: TrainingOptions,
        graph: Graph,
        scales: Mapping[str, Scale],
        rules: RuleSet = DEFAULT_RULES,
        *,
        labelled: bool,
    ) -> None:
        self._options = options
        self._compared = {name: Compared(scale) for name, scale in scales.items()}
        self._names = [port.name for port in graph.outputs]
        self._probabilities = ends_in_softmax(graph, rules)
        self._axis = class_axis(graph, rules)
        self._rank = len(graph.outputs[0].shape or (0, 0))
        self.terms = dict(options.loss or self._usual(labelled=labelled))
        check_labels(options, labelled=labelled)
        self._check_output(graph.outputs[0])
        self._given = {name: load_function(name) for name in self.terms if ".py:" in name}

    @property
    def needs_original(self) -> bool:
        """Whether anything is compared with the original's outputs."""
        return len(self._names) > 1 or set(self.terms) != {"ce"}

    @property
    def replaces_distance(self) -> bool:
        """Whether nearer to the original may not be better: labels teach, or a user's loss."""
        return "ce" in self.terms or bool(self._given)

    def _usual(self, *, labelled: bool) -> tuple[tuple[str, float], ...]:
        if labelled and self._rank == CLASSES_RANK:
            return LABELS_AND_TEACHER
        told = self._probabilities and self._axis is not None
        return (("kd" if told else "mse", 1.0),)

    def _check_output(self, port: Port) -> None:
        """Check that the first output holds what the losses look for."""
        shape = list(port.shape or ())
        if "ce" in self.terms and self._rank != CLASSES_RANK:
            raise RequestError(
                f"loss 'ce' takes an output [samples, classes], but '{port.name}' has shape {shape}"
            )
        if "kd" in self.terms and self._axis is None:
            raise RequestError(
                f"loss 'kd' cannot tell which axis of '{port.name}', of shape {shape}, holds "
                f"classes: use 'mse' in `TrainingOptions.loss`, or a function of yours"
            )
        if self._options.label_smoothing and "ce" not in self.terms:
            raise RequestError(
                "`TrainingOptions.label_smoothing` is of loss 'ce', which is not asked for"
            )

    def __call__(
        self,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        labels: Labels | None,
        real: RealOf | None = None,
    ) -> Tensor:
        """Return the loss, a scalar in float32 at least.

        Args:
            outputs: Of the pruned network, in order.
            targets: Of the original; none where `needs_original` says no.
            labels: Where there are some.
            real: Says of an output, by its name, where it is no padding; None where all counts.
        """
        floats = [i for i, output in enumerate(outputs) if output.is_floating_point()]
        if not floats:
            raise RequestError(
                "no output of the model is a float: there is nothing to train towards"
            )
        found, wanted = (
            [wide(value) if i in floats else value for i, value in enumerate(values)]
            for values in (outputs, targets)
        )
        terms, seen = [], set[int]()
        for name, weight in self.terms.items():
            if name in self._given:
                terms.append(weight * self._user(name, found, wanted, labels))
                seen.update(floats)
            elif name in _DISTANCES:
                terms += [weight * self._distance(name, found, wanted, i, real) for i in floats]
                seen.update(floats)
            else:
                terms.append(weight * self._of_classes(name, found[0], wanted[:1], labels, real))
                seen.add(0)
        terms += [self._distance("mse", found, wanted, i, real) for i in floats if i not in seen]
        return torch.stack(terms).sum()

    def _distance(
        self,
        name: str,
        found: Sequence[Tensor],
        wanted: Sequence[Tensor],
        i: int,
        real: RealOf | None,
    ) -> Tensor:
        own = None if real is None else real(self._names[i])
        return _DISTANCES[name](self._compared[self._names[i]], found[i], wanted[i], own)

    def _of_classes(
        self,
        name: str,
        output: Tensor,
        targets: Sequence[Tensor],
        labels: Labels | None,
        real: RealOf | None,
    ) -> Tensor:
        logits = logits_of(output, probabilities=self._probabilities)
        if name == "kd":
            wanted = logits_of(targets[0], probabilities=self._probabilities)
            assert self._axis is not None
            logits, wanted = (value.movedim(self._axis, -1) for value in (logits, wanted))
            mask = None if real is None else real(self._names[0])
            if mask is not None:
                rows = torch.from_numpy(mask).to(logits.device).movedim(self._axis, -1)[..., 0]
                rows = rows.expand(logits.shape[:-1])
                logits, wanted = logits[rows], wanted[rows]
            return distillation(logits, wanted, self._options.temperature)
        assert labels is not None
        smoothing = self._options.label_smoothing
        own = functional.cross_entropy(logits, labels.own, label_smoothing=smoothing)
        if labels.other is None:
            return own
        other = functional.cross_entropy(logits, labels.other, label_smoothing=smoothing)
        return labels.share * own + (1 - labels.share) * other

    def _user(
        self, name: str, found: Sequence[Tensor], wanted: Sequence[Tensor], labels: Labels | None
    ) -> Tensor:
        function: Callable[..., Any] = self._given[name]
        by_name = (dict(zip(self._names, values, strict=True)) for values in (found, wanted))
        value = function(*by_name, None if labels is None else labels.own)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise RequestError(
                f"the loss '{name}' has to return a tensor of floats, one number or one per "
                f"sample; it gave {type(value).__name__}"
            )
        return value.mean()


def distillation(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(targets / T || logits / T), the mean over all axes but that of classes."""
    classes = logits.shape[-1]
    soft = functional.kl_div(
        functional.log_softmax(logits.reshape(-1, classes) / temperature, -1),
        functional.log_softmax(targets.reshape(-1, classes) / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * soft


_DISTANCES = {"mse": Compared.mse, "smooth-l1": Compared.smooth_l1, "cosine": Compared.cosine}
