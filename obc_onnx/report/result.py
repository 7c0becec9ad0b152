"""What a compression gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.report.doubts import doubts_of_place

if TYPE_CHECKING:
    import onnx

    from obc_onnx.graph.model import Graph
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.report.summary import Report


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
        return self.graph.written()

    def save(self, path: str | Path, plan: str | Path | None = None) -> None:
        """Write the model, and the plan where a path is given: both or none.

        Raises:
            ModelError: A file cannot be written.
        """
        plans = [] if plan is None else [(Path(plan), self.plan.to_json())]
        self.graph.save(path, *plans)
        self.report.warnings.extend(doubts_of_place(Path(path)))
