"""What stripping took out of a model, as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.report.doubts import doubts_of_place

if TYPE_CHECKING:
    import onnx

    from obc_onnx.graph.model import Graph
    from obc_onnx.report.summary import Change
    from obc_onnx.stripping.find import Finding
    from obc_onnx.stripping.heads import Head
    from obc_onnx.verification.checks import Check


@dataclass(frozen=True)
class TableRows:
    """An embedding that lost rows.

    Attributes:
        name: Of the table.
        node: What picks from it.
        before: Rows it had.
        after: Rows it has.
    """

    name: str
    node: str
    before: int
    after: int


@dataclass(frozen=True)
class Seen:
    """Ids of samples.

    Attributes:
        ids: How many different ones there are.
        kept: How many of them stay.
        occurrences: How often ids occur, all together.
        kept_occurrences: How often those that stay do.
    """

    ids: int
    kept: int
    occurrences: int
    kept_occurrences: int


@dataclass(frozen=True)
class VocabularyReport:
    """What became of a vocabulary.

    Attributes:
        inputs: Inputs of the model that hold its ids.
        tables: The embeddings.
        heads: The outputs that were cut with them.
        ids: Those that stay, sorted; an id has the row of its place here.
        unknown: The id in place of which all others are taken; None where those are refused.
        bytes_saved: Bytes of initializers that went, less those that were added.
        seen: Ids of the samples; None without.
    """

    inputs: list[str]
    tables: list[TableRows]
    heads: list[Head]
    ids: list[int]
    unknown: int | None
    bytes_saved: int
    seen: Seen | None


@dataclass(frozen=True)
class StripReport:
    """What went, why, and what proves that nothing was lost.

    Attributes:
        model: What it is called.
        below: Weights up to this size counted as zeros; 0 where stripping is exact.
        macs: Multiply-accumulates of one sample.
        params: Elements of float initializers.
        file_bytes: Sizes of the files.
        rounds: What went each time that the graph was looked at; units are numbered as in what the
            round before had left.
        initializers: For each initializer that shrank, for each axis, which positions stay.
        errors: For each output, the largest difference from the original's on random inputs, as a
            share of its root mean square.
        notes: What was decided or left out, each with its reason.
        warnings: What makes the result doubtful.
        verification: Each check with its measured error.
        seconds: Of each stage.
        vocabulary: What became of the vocabulary; None where that was not asked for.
    """

    model: str
    below: float
    macs: Change
    params: Change
    file_bytes: Change
    rounds: list[list[Finding]]
    initializers: dict[str, dict[str, list[int]]]
    errors: dict[str, float]
    notes: list[str]
    warnings: list[str]
    verification: list[Check]
    seconds: dict[str, float]
    vocabulary: VocabularyReport | None = None

    @property
    def n_units(self) -> int:
        """How many units went."""
        return sum(len(found.units) for findings in self.rounds for found in findings)

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Stripping:
    """A model without units that did nothing, which passed every check.

    Attributes:
        graph: The model.
        report: What went, and the checks.
    """

    graph: Graph
    report: StripReport

    @property
    def model(self) -> onnx.ModelProto:
        """The model as ONNX."""
        return self.graph.written()

    def save(self, path: str | Path, report: str | Path | None = None) -> None:
        """Write the model, and the report as JSON where a path is given: both or none.

        Raises:
            ModelError: A file cannot be written.
        """
        reports = [] if report is None else [(Path(report), self.report.to_json() + "\n")]
        self.graph.save(path, *reports)
        self.report.warnings.extend(doubts_of_place(Path(path)))
