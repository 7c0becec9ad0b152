"""What a compression gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.files import replacing

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
        if plan is None:
            self.graph.save(path)
            return
        with replacing(Path(plan)) as temporary:
            temporary.write_text(self.plan.to_json(), encoding="utf-8")
            self.graph.save(path)
