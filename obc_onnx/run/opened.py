"""A model and samples, as they were read: what the stages of a run begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.coupling.analysis import Clock, Model, analyse, load_model
from obc_onnx.samples.placing import first_of, known_by, shapes_of
from obc_onnx.samples.read import open_samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.graph.model import Graph
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.measuring.error import Distance
    from obc_onnx.measuring.metric import Metric
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.recover.bench import Bench
    from obc_onnx.run.timing import Timing
    from obc_onnx.samples.options import DataOptions
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]


class Opened(NamedTuple):
    """A model and samples, as they were read.

    Attributes:
        coupling: Of the model, or of what sparse learning has made of it.
        inputs: Sizes of its inputs.
        samples: To score, repair and train on.
        held: To measure on.
        original: The model as it came, without what does nothing where that went first.
        came: The model with that, and with layers whole that are split; None where it is as it was.
        stripped: Whether what does nothing went.
        distance: From what the original gives for the samples to measure on.
        bench: What repair looks at and is judged on.
        metric: Of the user's, which quality is measured by.
        timing: What tells milliseconds, where there is a profile.
    """

    coupling: Coupling
    inputs: Mapping[str, Shape]
    samples: Samples | None
    held: Samples | None
    original: Coupling
    distance: Distance | None
    bench: Bench | None
    metric: Metric | None = None
    timing: Timing | None = None
    came: Coupling | None = None
    stripped: bool = False

    @property
    def predictor(self) -> Predictor | None:
        """What predicts milliseconds, where there is a profile."""
        return None if self.timing is None else self.timing.predictor


def read(
    model: Model,
    data: DataOptions,
    input_shape: Mapping[str, Shape] | None,
    batch_axes: Axes | None,
) -> tuple[Graph, Samples | None, Samples | None]:
    """Read a model, samples to work with and samples to measure on.

    Returns:
        The graph, which knows from the samples where it has them; and both, None without data.
    Raises:
        ObcError: One cannot be read, or they do not fit.
    """
    graph = load_model(model)
    samples, held = open_samples(data, graph, batch_axes, input_shape)
    return known_by(graph, samples), samples, held


def analysed(
    graph: Graph,
    samples: Samples | None,
    input_shape: Mapping[str, Shape] | None,
    batch_axes: Axes | None,
    rules: RuleSet,
    clock: Clock | None = None,
) -> tuple[Coupling, Mapping[str, Shape]]:
    """Analyse a model at the sizes that samples have, or that are given.

    Returns:
        The coupling, and the sizes of the inputs.
    Raises:
        ObcError: It cannot be analysed, or sizes are missing.
    """
    shapes = {**shapes_of(samples), **(input_shape or {})}
    return analyse(graph, shapes, rules, clock or Clock(), batch_axes, first_of(samples))
