"""Strip a model: what costs and does nothing goes, and the original proves the result."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Clock, Model, load_model, model_name, settled, told
from obc_onnx.errors import RequestError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.graph.precision import relative_error
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.report.stripping import Stripping, StripReport
from obc_onnx.report.summary import Change, notes_on_graph
from obc_onnx.run.vocabulary import Cut, samples_of
from obc_onnx.samples.placing import shapes_of
from obc_onnx.stripping.hints import may_strip
from obc_onnx.stripping.options import Vocabulary
from obc_onnx.stripping.strip import composed, strip_graph
from obc_onnx.verification.apart import checks_apart
from obc_onnx.verification.checks import (
    Check,
    check_description,
    check_format,
    check_interface,
    check_runs,
    doubts,
    require,
)
from obc_onnx.verification.same import check_same

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.stripping.strip import Stripped
    from obc_onnx.verification.same import Views

    Shape = tuple[int, ...]
    Feed = Mapping[str, NDArray[Any]]

_SIZES = ("same outputs", "same outputs at other sizes")
"""What runs are called, at the sizes that are given and at larger ones."""


def strip(
    model: Model,
    *,
    below: float = 0.0,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    rules: RuleSet = DEFAULT_RULES,
    vocabulary: Vocabulary | str | Path | Iterable[int] | None = None,
) -> Stripping:
    """Remove what costs and does nothing, without data and without loss, and prove it.

    Units go that no weight reads, that are zero or the same in every run, and that equal others.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        below: Weights of products, their biases and scales of norms that are not larger count as
            zeros and are written as such. Above 0 the result is no longer exact: the report says
            by how much.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of the inputs that original and result are compared on.
        rules: What is known of operators.
        vocabulary: Rows of embeddings that stay, or the ids of those, or a file with an id on each
            line; None leaves all. What is computed for these ids stays the same.
    Returns:
        The model and its report. Nothing is written.
    Raises:
        ObcError: The request cannot be met; the message says why.
        VerificationError: The result failed a check.
    """
    if not (math.isfinite(below) and below >= 0):
        raise RequestError(f"`below` is the size up to which weights are zeros, not {below}")
    clock, asked = Clock(), None if vocabulary is None else Vocabulary.of(vocabulary)
    with clock("load"):
        graph, samples = samples_of(asked, load_model(model), batch_axes, input_shape)
    sizes = {**shapes_of(samples), **(input_shape or {})}
    with told(graph, sizes):
        with clock("strip"):
            graph = settled(graph, sizes, batch_axes or {}, rules)
            stripped = strip_graph(graph, sizes, rules, seed, below)
        cut = None
        if asked is not None:
            with clock("vocabulary"):
                cut = Cut.of(stripped.coupling, asked, samples)
        with clock("verify"):
            outcome = _Outcome(graph, stripped, cut, seed + 1)
            checks = outcome.checks()
            require(checks)
    return Stripping(outcome.graph, outcome.report(model_name(model), below, checks, clock.seconds))


def strip_first(coupling: Coupling, inputs: Mapping[str, Shape], seed: int) -> Coupling | None:
    """Take out what does nothing before a model is compressed, as `strip` does it.

    Args:
        coupling: Of the model.
        inputs: Sizes of its inputs.
        seed: Of the inputs that original and result are compared on.
    Returns:
        Of what is left, which computes the same; None where nothing goes.
    Raises:
        ModelError: ONNX Runtime does not run the model.
        VerificationError: The result failed a check.
    """
    if not may_strip(coupling):
        return None
    stripped = strip_graph(coupling.graph, inputs, coupling.rules, seed)
    if not stripped.rounds:
        return None
    require(_Outcome(coupling.graph, stripped, None, seed + 1).checks())
    return replace(stripped.coupling, graph=stripped.graph.known_as(coupling.graph))


class _Outcome:
    """What was made of a model, and what it is checked on.

    Attributes:
        graph: The result.
        coupling: Of the result.
        kept: For each initializer that shrank, for each axis, which positions stay.
    """

    def __init__(self, original: Graph, stripped: Stripped, cut: Cut | None, seed: int) -> None:
        self._original, self._stripped, self._cut = original, stripped, cut
        runs = stripped.scenes.runs
        sizes = [{name: array.shape for name, array in run.feed.items()} for run in runs]
        graph = stripped.scenes.coupling.graph
        # no constant was read off those
        self._feeds: list[list[Feed]] = [[random_feed(graph, own, seed)] for own in sizes]
        self.graph, self.coupling, self.kept = stripped.graph, stripped.coupling, stripped.kept
        if cut is not None:
            self._feeds = [list(cut.feeds(feed, seed)) for (feed,) in self._feeds]
            self.graph, self.kept = cut.narrowed.graph, composed(self.kept, cut.narrowed.kept)
            self.coupling = cut.coupled(self._feeds[0][0])

    def checks(self) -> list[Check]:
        """Check the result as it is read back."""
        original, cut = self._original, self._cut
        declared = original if cut is None else cut.declared(original)
        written = Graph.from_model(self.graph.written()).with_batch(original.batch_axes)
        feed, merged = self._feeds[0][0], self.graph.merged
        copies = {n: of for n, of in self.graph.copies.items() if n not in merged}
        checks = [
            check_description(declared, written, copies),
            check_interface(declared, written),
            *checks_apart(original, written),
            *check_format(original, written, {name: array.shape for name, array in feed.items()}),
            check_runs(written, feed),
        ]
        if cut is not None:
            checks += cut.checks(written, feed)
        if not all(check.passed for check in checks):
            return checks
        looked_at = self._stripped.looked_at
        for name, feeds in zip(_SIZES, self._feeds, strict=False):
            checks.append(check_same(name, looked_at, written, feeds, self.coupling, self._views))
        return checks

    def errors(self) -> dict[str, float]:
        """Measure how far each output is from the original's."""
        feed, (whole, smaller) = self._feeds[0][0], self._views
        before = whole(Session(self._original, optimize=False).run(feed))
        after = smaller(Session(self.graph, optimize=False).run(feed))
        return {name: relative_error(after[name], value) for name, value in before.items()}

    def report(
        self, name: str, below: float, checks: list[Check], seconds: dict[str, float]
    ) -> StripReport:
        """Tell what became of the model.

        Args:
            name: Of the model.
            below: Up to which size weights counted as zeros.
            checks: What they found.
            seconds: Of each stage.
        """
        original, stripped, cut, errors = self._original, self._stripped, self._cut, self.errors()
        before = original.file_bytes or original.size_bytes()
        return StripReport(
            model=name,
            below=below,
            macs=Change(stripped.scenes.coupling.macs({}), self.coupling.macs({})),
            params=Change(original.params, self.graph.params),
            file_bytes=Change(before, self.graph.size_bytes()),
            rounds=[list(findings) for findings in stripped.rounds],
            initializers={
                name: {str(axis): kept.tolist() for axis, kept in axes.items()}
                for name, axes in self.kept.items()
            },
            errors=errors,
            notes=[*notes_on_graph(original), *_notes(stripped, cut, below, errors)],
            warnings=doubts(checks),
            verification=checks,
            seconds=seconds,
            vocabulary=None if cut is None else cut.report(),
        )

    @property
    def _views(self) -> Views:
        return (dict, dict) if self._cut is None else (self._cut.whole, self._cut.smaller)


def _notes(
    stripped: Stripped, cut: Cut | None, below: float, errors: Mapping[str, float]
) -> list[str]:
    found = [] if cut is None else cut.notes()
    if not stripped.rounds and cut is None:
        found.append("nothing was found that does nothing: the model is as it was")
    if not stripped.scenes.settled:
        found.append(
            "constants other than zero stay: the model runs at one size of its open axes alone, so "
            "that no other shows whether they depend on it"
        )
    if below > 0:
        worst = max(errors, key=errors.__getitem__)
        found.append(
            f"`below={below:g}` made zeros of weights: on random inputs output '{worst}' is off by "
            f"{errors[worst]:.3g} of its root mean square"
        )
    return found
