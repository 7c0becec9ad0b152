"""The order of the stages; the only module that knows it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.coupling import Coupling, find_coupling
from obc_onnx.data import ImageOptions, Samples, load_samples
from obc_onnx.errors import RequestError
from obc_onnx.files import write_text
from obc_onnx.graph import Graph
from obc_onnx.measure import accuracy, latencies_ms
from obc_onnx.ops import DEFAULT_RULES, RuleSet
from obc_onnx.plan import Budget, PruningPlan, make_plan
from obc_onnx.report.summary import (
    Change,
    Inspection,
    Report,
    summarise_frozen,
    summarise_groups,
)
from obc_onnx.saliency import DATA_FREE, Scene, make_criterion
from obc_onnx.shapes import ANALYSIS_BATCH, infer_shapes, input_shapes
from obc_onnx.surgery import remove_units
from obc_onnx.verify import (
    Check,
    check_budget,
    check_format,
    check_interface,
    check_masked,
    check_plan,
    check_runs,
    check_structure,
    compare,
    random_feed,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obc_onnx.coupling import Keep
    from obc_onnx.finetune import Epoch, TrainingOptions

    Shape = tuple[int, ...]
    Model = str | Path | onnx.ModelProto | Graph

_VERIFIED_SAMPLES = 4
_TIMED_BATCH = 1


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from.

    Attributes:
        source: An `.npz` or a folder of images; None works without data.
        holdout: Share of it, from the end, that is only measured on.
        evaluation: Samples to measure on instead.
        images: How pictures become an input.
        scored: Samples that the criterion looks at, at most.
    """

    source: str | Path | Samples | None = None
    holdout: float = 0.2
    evaluation: str | Path | Samples | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    scored: int = 512


@dataclass(frozen=True)
class Result:
    """A compressed model that passed every check.

    Attributes:
        graph: The compressed model.
        plan: Which units stayed.
        report: What changed, and the checks.
    """

    graph: Graph
    plan: PruningPlan
    report: Report

    @property
    def model(self) -> onnx.ModelProto:
        """The compressed model as ONNX."""
        return self.graph.to_model()

    def save(self, path: str | Path, plan: str | Path | None = None) -> None:
        """Write the model, and the plan where a path is given.

        Raises:
            ModelError: A file cannot be written.
        """
        self.graph.save(path)
        if plan is not None:
            write_text(Path(plan), self.plan.to_json())


def inspect(
    model: Model,
    *,
    input_shape: Mapping[str, Shape] | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Inspection:
    """Find what can be pruned, and what cannot and why.

    Args:
        model: A file, a loaded model, or a graph.
        input_shape: Sizes of dynamic inputs, by input name.
        rules: What is known of operators.
    Raises:
        ModelError: The model cannot be read or analysed.
        RequestError: An input name or shape does not fit.
    """
    clock = _Clock()
    with clock("load"):
        graph = _load(model)
    coupling, _ = _analyse(graph, input_shape, rules, clock)
    return Inspection(
        model=_name(model),
        sha256=graph.sha256,
        macs=coupling.macs({}),
        params=graph.params,
        groups=summarise_groups(coupling, {}),
        frozen=summarise_frozen(coupling),
        unknown=list(coupling.unknown),
        seconds=clock.seconds,
    )


def compress(
    model: Model,
    *,
    data: DataOptions | str | Path | Samples | None = None,
    budget: Budget | float = 0.5,
    criterion: str | None = None,
    training: TrainingOptions | int = 0,
    input_shape: Mapping[str, Shape] | None = None,
    seed: int = 0,
    latency: bool = False,
    rules: RuleSet = DEFAULT_RULES,
) -> Result:
    """Make a smaller model with the same inputs and outputs, and prove it.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        data: Samples to score, fine-tune and measure on.
        budget: What to meet; a number is the share of the MACs that may be left.
        criterion: "jacobian" by default with data, "l2" without.
        training: How to fine-tune; a number is the epochs, 0 only cuts.
        input_shape: Sizes of dynamic inputs, by input name.
        seed: Of every random choice: equal seeds give equal bytes.
        latency: Whether to time both models.
        rules: What is known of operators.
    Returns:
        The model, its plan and its report. Nothing is written.
    Raises:
        ObcError: The request cannot be met; the message says why.
        VerificationError: The result failed a check.
    """
    run = _Run(
        data=data if isinstance(data, DataOptions) else DataOptions(data),
        budget=budget if isinstance(budget, Budget) else Budget(budget),
        criterion=criterion,
        training=_training(training, seed),
        seed=seed,
        rules=rules,
    )
    return run.execute(model, input_shape, latency=latency)


def verify(
    original: Model,
    compressed: Model,
    plan: PruningPlan,
    *,
    input_shape: Mapping[str, Shape] | None = None,
    seed: int = 0,
    rules: RuleSet = DEFAULT_RULES,
) -> list[Check]:
    """Check a compressed model against its original and its plan.

    Returns:
        Every check, failed ones included.
    Raises:
        RequestError: The plan is for another model.
    """
    clock = _Clock()
    before, after = _load(original), _load(compressed)
    if before.sha256 != plan.model_sha256:
        raise RequestError(
            f"the plan is for a model with sha256 {plan.model_sha256[:12]}..., "
            f"but '{_name(original)}' has {before.sha256[:12]}..."
        )
    coupling, shapes = _analyse(before, input_shape, rules, clock)
    keep = plan.keep(coupling)
    feed = random_feed(before, shapes, seed)
    checks = [
        check_plan(before, after, plan),
        check_structure(remove_units(coupling, keep), after),
        check_interface(before, after),
        *check_format(after, shapes),
        check_masked(coupling, keep, feed),
        check_runs(after, feed),
    ]
    if all(check.passed for check in checks):
        recounted, _ = _analyse(after, shapes, rules, clock)
        checks.append(check_budget(recounted.macs({}), coupling.macs({}), plan.target_macs))
    return checks


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class _Run:
    """One compression."""

    data: DataOptions
    budget: Budget
    criterion: str | None
    training: TrainingOptions | None
    seed: int
    rules: RuleSet
    clock: _Clock = field(default_factory=_Clock)
    notes: list[str] = field(default_factory=list)

    def execute(
        self, model: Model, input_shape: Mapping[str, Shape] | None, *, latency: bool
    ) -> Result:
        with self.clock("load"):
            graph = _load(model)
            samples, held = self._samples(graph)
        shapes = {**_shapes_of(graph, samples), **(input_shape or {})}
        coupling, inputs = _analyse(graph, shapes, self.rules, self.clock)
        criterion = self._criterion(samples)
        plan = self._plan(coupling, samples, criterion)
        keep = plan.keep(coupling)
        with self.clock("surgery"):
            pruned = remove_units(coupling, keep)
        feed = self._feed(graph, held, inputs)
        with self.clock("verify"):
            checks = [check_masked(coupling, keep, feed)]
            require(checks)
        result, epochs = pruned, []
        if self.training is not None and samples is not None:
            result, epochs, folded = self._finetune(coupling, keep, pruned, samples, feed)
            checks.append(folded)
        with self.clock("verify"):
            checks += self._final_checks(coupling, keep, plan, pruned, result, inputs, feed)
            require(checks)
        report = self._report(
            _name(model), coupling, keep, plan, result, held, checks, epochs, latency=latency
        )
        return Result(result, plan, report)

    def _samples(self, graph: Graph) -> tuple[Samples | None, Samples | None]:
        if self.data.source is None:
            if self.training is not None:
                raise RequestError("fine-tuning needs samples: give --data, or leave --epochs out")
            return None, None
        samples = _samples_from(self.data.source, graph, self.data.images)
        if self.data.evaluation is not None:
            return samples, _samples_from(self.data.evaluation, graph, self.data.images)
        return samples.split(self.data.holdout)

    def _criterion(self, samples: Samples | None) -> str:
        if self.criterion is None and samples is None:
            self.notes.append(
                f"no data was given, so units are scored by '{DATA_FREE}', which needs none"
            )
            return DATA_FREE
        return self.criterion or "jacobian"

    def _plan(self, coupling: Coupling, samples: Samples | None, name: str) -> PruningPlan:
        criterion = make_criterion(name)
        if criterion.needs_data and samples is None:
            raise RequestError(
                f"criterion '{name}' needs samples: give --data, or use --criterion {DATA_FREE}"
            )
        scored = None
        if samples is not None:
            rng = np.random.default_rng(self.seed)
            chosen = rng.permutation(len(samples))[: self.data.scored]
            scored = samples.part(np.sort(chosen))
        scene = Scene(coupling, scored, self.seed)
        with self.clock("score and plan"):
            return make_plan(
                coupling, lambda keep: criterion.score(scene, keep), self.budget, name, self.seed
            )

    def _feed(
        self, graph: Graph, held: Samples | None, inputs: Mapping[str, Shape]
    ) -> dict[str, Any]:
        """Return real samples to verify on where there are enough, random ones elsewhere."""
        if held is None:
            return random_feed(graph, inputs, self.seed)
        static = [p.shape[0] for p in graph.inputs if p.shape and isinstance(p.shape[0], int)]
        wanted = static[0] if static else min(_VERIFIED_SAMPLES, len(held))
        if wanted > len(held):
            return random_feed(graph, inputs, self.seed)
        return held.feed(slice(0, wanted))

    def _finetune(
        self, coupling: Coupling, keep: Keep, pruned: Graph, samples: Samples, feed: dict[str, Any]
    ) -> tuple[Graph, list[Epoch], Check]:
        import torch

        from obc_onnx.equivalent import EquivalentTwin
        from obc_onnx.finetune import finetune
        from obc_onnx.runtime import Session

        if self.training is None:
            raise RequestError("fine-tuning needs training options")
        with self.clock("fine-tune"):
            student = EquivalentTwin(coupling, keep, pruned)
            epochs = finetune(student, coupling.graph, samples, self.training)
            folded = student.cpu().fold(pruned)
        with self.clock("verify"), torch.no_grad():
            inputs = [torch.from_numpy(feed[port.name]) for port in coupling.graph.inputs]
            outputs = student(*inputs)
            names = [port.name for port in coupling.graph.outputs]
            unfolded = {n: o.numpy() for n, o in zip(names, outputs, strict=True)}
            found = Session(folded, optimize=False).run(feed)
            return folded, epochs, compare("folded equals trained network", found, unfolded)

    def _final_checks(
        self,
        coupling: Coupling,
        keep: Keep,
        plan: PruningPlan,
        pruned: Graph,
        result: Graph,
        inputs: Mapping[str, Shape],
        feed: dict[str, Any],
    ) -> list[Check]:
        graph = coupling.graph
        checks = [
            check_plan(graph, result, plan),
            check_structure(pruned, result),
            check_interface(graph, result),
            *check_format(result, inputs),
            check_runs(result, feed),
        ]
        recounted, _ = _analyse(result, inputs, self.rules, self.clock)
        checks.append(check_budget(recounted.macs({}), coupling.macs({}), plan.target_macs))
        if coupling.unknown:
            self.notes.append(
                f"the twin was not compared: {len(coupling.unknown)} nodes have no rule"
            )
        else:
            checks.append(_check_twin(recounted, feed))
        return checks

    def _report(
        self,
        name: str,
        coupling: Coupling,
        keep: Keep,
        plan: PruningPlan,
        result: Graph,
        held: Samples | None,
        checks: list[Check],
        epochs: list[Epoch],
        *,
        latency: bool,
    ) -> Report:
        graph = coupling.graph
        with self.clock("measure"):
            scores = Change(None, None)
            if held is not None and held.labels is not None:
                scores = Change(accuracy(graph, held), accuracy(result, held))
            times = Change(None, None)
            if latency:
                one = self._feed(graph, None, _one_sample(coupling))
                measured = latencies_ms({"before": graph, "after": result}, one)
                times = Change(measured["before"], measured["after"])
        return Report(
            model=name,
            criterion=plan.criterion,
            target_macs=plan.target_macs,
            macs=Change(*plan.macs),
            params=Change(*plan.params),
            file_bytes=Change(graph.size_bytes(), result.size_bytes()),
            accuracy=scores,
            latency_ms=times,
            groups=summarise_groups(coupling, keep),
            frozen=summarise_frozen(coupling),
            unknown=list(coupling.unknown),
            notes=self.notes,
            epochs=epochs,
            verification=checks,
            seconds=self.clock.seconds,
        )


def _load(model: Model) -> Graph:
    if isinstance(model, Graph):
        return model
    return Graph.from_model(model) if isinstance(model, onnx.ModelProto) else Graph.load(model)


def _name(model: Model) -> str:
    return str(model) if isinstance(model, (str, Path)) else "model"


def _samples_from(source: str | Path | Samples, graph: Graph, images: ImageOptions) -> Samples:
    return source if isinstance(source, Samples) else load_samples(source, graph, images)


def _training(training: TrainingOptions | int, seed: int) -> TrainingOptions | None:
    if isinstance(training, int):
        if training == 0:
            return None
        from obc_onnx.finetune import TrainingOptions

        return TrainingOptions(epochs=training, seed=seed)
    return replace(training, seed=seed)


def _shapes_of(graph: Graph, samples: Samples | None) -> dict[str, Shape]:
    """Take dynamic sizes besides the batch from the samples."""
    if samples is None:
        return {}
    first = samples.feed(slice(0, 1))
    shapes = {}
    for port in graph.inputs:
        batch = port.shape[0] if port.shape else ANALYSIS_BATCH
        size = batch if isinstance(batch, int) else ANALYSIS_BATCH
        shapes[port.name] = (size, *first[port.name].shape[1:])
    return shapes


def _analyse(
    graph: Graph, given: Mapping[str, Shape] | None, rules: RuleSet, clock: _Clock
) -> tuple[Coupling, dict[str, Shape]]:
    with clock("shapes"):
        inputs = input_shapes(graph, given)
        shapes = infer_shapes(graph, inputs)
    with clock("coupling"):
        return find_coupling(graph, shapes, rules), inputs


def _check_twin(coupling: Coupling, feed: dict[str, Any]) -> Check:
    import torch

    from obc_onnx.runtime import Session
    from obc_onnx.twin import build_twin

    graph = coupling.graph
    shapes = {name: tuple(axis.size for axis in axes) for name, axes in coupling.axes.items()}
    twin = build_twin(graph, shapes, coupling.rules)
    with torch.no_grad():
        outputs = twin(*(torch.from_numpy(feed[port.name]) for port in graph.inputs))
    names = [port.name for port in graph.outputs]
    found = {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
    return compare("twin equals ONNX Runtime", found, Session(graph, optimize=False).run(feed))


def _one_sample(coupling: Coupling) -> dict[str, Shape]:
    """Return input shapes with a dynamic batch of one."""
    shapes = {}
    for port in coupling.graph.inputs:
        axes = coupling.axes[port.name]
        shapes[port.name] = tuple(_TIMED_BATCH if a is coupling.batch else a.size for a in axes)
    return shapes
