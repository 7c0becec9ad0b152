"""Quality by a function of the user's, where top-1 accuracy says nothing of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.user_code import calling, load_function

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from obc_onnx.measuring.outputs import Outputs
    from obc_onnx.samples.options import DataOptions, MetricFunction


class MeasuredRun(NamedTuple):
    """One run of a model over held-out samples, as a metric gets it.

    Attributes:
        inputs: What the model was fed, by name.
        outputs: What it gave, by name.
        labels: Of the samples of the run, int64; None without labels.
    """

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class MetricChange:
    """What the metric says of the original and of the result.

    Attributes:
        name: Of the function.
        before: Of the original.
        after: Of the result.
        lower_is_better: Whether it is an error, such as a distance.
    """

    name: str
    before: float
    after: float
    lower_is_better: bool


@dataclass(frozen=True)
class Metric:
    """A function that says how good a model is.

    Attributes:
        name: How reports and messages call it.
        function: Gets a `MeasuredRun` after the other, and returns one number.
        lower_is_better: Whether the number is an error.
    """

    name: str
    function: MetricFunction
    lower_is_better: bool

    @classmethod
    def of(cls, options: DataOptions) -> Metric | None:
        """Return what the options ask for; None where they name no metric.

        Raises:
            RequestError: It names no function, or a direction is given without it.
        """
        given = options.metric
        if given is None:
            if options.lower_is_better:
                raise RequestError("`DataOptions.lower_is_better` is of `DataOptions.metric`")
            return None
        function: MetricFunction = load_function(given) if isinstance(given, str) else given
        name = given.rpartition(":")[2] if isinstance(given, str) else _name_of(given)
        return cls(name, function, options.lower_is_better)

    def value(self, outputs: Outputs) -> float:
        """Return what the function says of a model.

        Raises:
            RequestError: It raises, or returns something else than one finite number.
        """
        with calling(f"metric '{self.name}'"):
            found = self.function(_runs(outputs))
        number = np.asarray(found)
        if number.ndim or number.dtype.kind not in "iuf":
            raise RequestError(
                f"metric '{self.name}' returned {type(found).__name__}: it has to return one number"
            )
        if not np.isfinite(number):
            raise RequestError(
                f"metric '{self.name}' returned {number}: it has to return a finite number"
            )
        return float(number)

    def change(self, before: Outputs, after: Outputs) -> MetricChange:
        """Hold a result against the original."""
        return MetricChange(self.name, self.value(before), self.value(after), self.lower_is_better)

    def drop(self, before: float, after: float) -> float:
        """Return how much worse `after` is; below 0 where it is better."""
        return after - before if self.lower_is_better else before - after


def _name_of(function: MetricFunction) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _runs(outputs: Outputs) -> Iterator[MeasuredRun]:
    samples = outputs.samples
    for part, found in outputs.runs():
        labels = None if samples.labels is None else samples.labels[part]
        yield MeasuredRun(samples.feed(part), dict(found), labels)
