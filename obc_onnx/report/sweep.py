"""What a sweep over targets found: as plain data, and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from obc_onnx.planning.tradeoff import Tradeoff, front, knee
from obc_onnx.report.terminal import in_si, open_console

if TYPE_CHECKING:
    from rich.console import Console

    from obc_onnx.measuring.metric import MetricChange
    from obc_onnx.report.summary import Change, Report


@dataclass(frozen=True)
class Point:
    """The result of one target, repaired but not trained; see `Report` for what it is made of.

    Attributes:
        target: What was asked for.
        cost: What is left of the cost that was swept, as a share.
        drop: How much worse it is than the original, see `Sweep.what`.
        error: Of the outputs, the mean over them.
    """

    target: float
    cost: float
    macs: Change
    params: Change
    file_bytes: Change
    latency_ms: Change
    accuracy: Change
    metric: MetricChange | None
    error: float
    drop: float
    verdict: str

    @classmethod
    def of(cls, target: float, cost: float, drop: float, report: Report) -> Point:
        """Take from a report what is compared."""
        errors = [output.error for output in report.outputs]
        return cls(
            target=target,
            cost=cost,
            macs=report.macs,
            params=report.params,
            file_bytes=report.file_bytes,
            latency_ms=report.latency_ms,
            accuracy=report.accuracy,
            metric=report.metric,
            error=sum(errors) / max(len(errors), 1),
            drop=drop,
            verdict=report.verdict,
        )

    @property
    def tradeoff(self) -> Tradeoff:
        """Cost and quality alone."""
        return Tradeoff(self.target, self.cost, self.drop)


@dataclass(frozen=True)
class Sweep:
    """What each target leaves of a model.

    Attributes:
        cost: The name of the cost that was swept.
        criterion: What said which units go first.
        what: What the drop is a drop of.
        n_samples: Held-out samples that it was measured on.
        points: The largest target first.
        unreachable: Why there is no result, by target.
        picked: The targets whose results were taken.
    """

    model: str
    cost: str
    criterion: str
    what: str
    n_samples: int
    points: list[Point]
    unreachable: dict[float, str] = field(default_factory=dict)
    picked: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def front(self) -> list[float]:
        """The targets of the Pareto set: no other result costs less and is as good."""
        return [found.target for found in front([point.tradeoff for point in self.points])]

    @property
    def knee(self) -> float | None:
        """The target from which on less cost loses the most, see `tradeoff.knee`."""
        found = knee([point.tradeoff for point in self.points])
        return None if found is None else found.target

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps({**asdict(self), "front": self.front, "knee": self.knee}, indent=1)


def sweep_text(sweep: Sweep) -> str:
    """Render a sweep: a row for each target, and which results are worth having."""
    to = open_console()
    to.print(_table(sweep))
    for target, reason in sweep.unreachable.items():
        to.print(f"{target:g}: {reason}")
    to.print(
        f"units were scored once, by '{sweep.criterion}'; a drop is one of the {sweep.what} on "
        f"{sweep.n_samples:,} held-out samples"
    )
    if sweep.front:
        to.print("* the Pareto set: no other result costs less and is as good")
    _print_choice(to, sweep)
    return str(to.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def _table(sweep: Sweep) -> Table:
    named = next((point.metric.name for point in sweep.points if point.metric), None)
    quality = named or "accuracy"
    headings = ("target", "MACs", "params", "file", "speed", quality, "error", "drop")
    table = Table(*headings, title=f"{sweep.model}: targets of {sweep.cost}")
    for column in table.columns:
        column.justify = "right"
    curve = sweep.front
    for point in sweep.points:
        table.add_row(
            f"{'*' if point.target in curve else ''} {point.target:g}",
            in_si(point.macs.after or 0.0).rstrip(),
            in_si(point.params.after or 0.0).rstrip(),
            f"{in_si(point.file_bytes.after or 0.0).rstrip()}B",
            _speed(point.latency_ms),
            _quality(point),
            f"{point.error:.3g}",
            f"{point.drop:.4g}",
        )
    return table


def _quality(point: Point) -> str:
    if point.metric is not None:
        return f"{point.metric.after:.4g}"
    return "" if point.accuracy.after is None else f"{100 * point.accuracy.after:.2f} %"


def _speed(latency: Change) -> str:
    if latency.before is None or not latency.after:
        return ""
    return f"{latency.before / latency.after:.2f}x"


def _print_choice(to: Console, sweep: Sweep) -> None:
    if sweep.knee is None:
        to.print("no knee: no result is better than those beside it would let expect")
    else:
        to.print(f"knee: {sweep.knee:g}; below it each step costs more than above it")
    if sweep.picked:
        to.print(f"picked: {', '.join(f'{target:g}' for target in sweep.picked)}")
    doubtful = [point for point in sweep.points if not point.verdict.startswith("good")]
    for point in doubtful:
        to.print(f"{point.target:g} is {point.verdict}")
