"""How units are scored: names and numbers that the command line and Python share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

ObjectiveName = Literal["labels", "pseudo", "output", "mixed"]
Rows = Literal["sample", "batch"]
Reduction = Literal["sum", "mean", "max", "first", "coupled"]
Normalizer = Literal["none", "mean", "max", "sum", "parameters"]
Ranking = Literal["global", "per-cost", "uniform", "isomorphic"]

OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
ROWS: tuple[Rows, ...] = get_args(Rows)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
NORMALIZERS: tuple[Normalizer, ...] = get_args(Normalizer)
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
FORMER_RANKINGS: dict[str, Ranking] = {"per-mac": "per-cost"}
"""Names that recorded experiments use; with a target of MACs alone they order units alike."""

SCORED_SAMPLES = 512

ROW_SIZE = 32
"""Samples per batch where nothing else is asked for; a pass takes fewer where memory lacks."""


def _check(field: str, value: str | None, known: Sequence[str | None]) -> None:
    if value not in known:
        names = ", ".join(name for name in known if name is not None)
        raise RequestError(f"`Scoring.{field}` '{value}' is not known: choose from {names}")


@dataclass(frozen=True)
class Scoring:
    """How a criterion looks at the samples, and how it makes one score of a group's members.

    Attributes:
        objective: What the loss is made of: "labels", the model's own arg max ("pseudo"), random
            projections of its outputs ("output"), or "mixed": labels, where there are some, or else
            the model's own answers, and projections, each as a share of its own total. That takes a
            pass for each of the two. None is "output"; but where means over samples are taken, by
            rows of batches or by a Taylor criterion, random projections would cancel out: there it
            is labels where there are some and the model has one output, "pseudo" where that comes
            from a Softmax, and "output" else.
        loss: `FILE.py:FUNCTION` in place of an objective.
        rows: Whether a row of the Jacobian is that of a sample, or of the mean of a batch, of which
            there are fewer. A model of static batch has no rows of samples but those of its own
            batches.
        samples: How many samples are looked at, at most; None is `SCORED_SAMPLES`.
        batches: How many batches are looked at, in place of `samples`.
        batch_size: Samples per batch; None is `ROW_SIZE`, in as many passes as memory needs.
        reduction: How the members of a group come together. "coupled" adds their rows before they
            are squared, which keeps what members have in common.
        normalizer: What the scores of a group are divided by.
        depthwise: Whether weights count that write each channel from itself alone.
        amp: Whether torch computes in bfloat16 where that is safe; sums are in float32 at least.
    """

    objective: ObjectiveName | None = None
    loss: str | None = None
    rows: Rows = "sample"
    samples: int | None = None
    batches: int | None = None
    batch_size: int | None = None
    reduction: Reduction = "sum"
    normalizer: Normalizer = "none"
    depthwise: bool = True
    amp: bool = False

    def __post_init__(self) -> None:
        """Check names and numbers.

        Raises:
            RequestError: One is not known or out of range, or two contradict each other.
        """
        if self.loss is not None and self.objective is not None:
            raise RequestError("`Scoring.loss` is an objective: leave out `Scoring.objective`")
        if self.samples is not None and self.batches is not None:
            raise RequestError(
                "`Scoring.batches` says how many samples: leave out `Scoring.samples`"
            )
        _check("objective", self.objective, (None, *OBJECTIVES))
        _check("rows", self.rows, ROWS)
        _check("reduction", self.reduction, REDUCTIONS)
        _check("normalizer", self.normalizer, NORMALIZERS)
        for what, number in (
            ("samples", self.samples),
            ("batches", self.batches),
            ("batch_size", self.batch_size),
        ):
            if number is not None and number < 1:
                raise RequestError(f"`Scoring.{what}` must be at least 1, found {number}")

    @property
    def n_samples(self) -> int:
        """How many samples are looked at, at most."""
        if self.batches is not None:
            return self.batches * self.row_size
        return self.samples or SCORED_SAMPLES

    @property
    def row_size(self) -> int:
        """How many samples a batch has."""
        return self.batch_size or ROW_SIZE


PRESETS: dict[str, Scoring] = {
    "paper": Scoring(objective="labels", rows="batch", batches=50, batch_size=128, depthwise=False),
}
"""Named settings. "paper" is that of Chen et al., Optimal Brain Connection, arXiv 2508.05521."""
