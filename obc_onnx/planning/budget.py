"""What a plan has to meet: targets, and the way to them.

Loads nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from obc_onnx.errors import RequestError
from obc_onnx.planning.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.saliency.options import Ranking

Unit = Literal["number", "bytes", "time"]
"""What the numbers of a target may be followed by."""
TARGET_MACS = 0.5
"""Where no other target is given."""
SWEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Targets of a sweep, where none are given."""
STEPS = 4
REPAIRED_STEPS = 2
"""Where what is left is repaired before it is scored again: docs/criteria.md."""
MEASURED_SAMPLES = 512
"""Held-out samples that the sensitivity of groups is measured on."""
DESIGNS = 12
"""Networks that a profile times besides the model."""
_OF_PAIRS = {"macs", "params"}
"""Costs of which it is known what two layers in the place of one save."""
_TARGET = "target_"
"""How the fields of targets begin; the rest is the name of a cost."""


def _target(text: str, unit: Unit = "number") -> Any:
    """Return the field of a target: the command line makes its option of this."""
    return field(default=None, metadata={"help": text, "unit": unit})


@dataclass(frozen=True)
class Budget:
    """What a plan has to meet: all targets that are given, or half of the MACs where none is.

    A target is a share of the original in (0, 1], or a number above 1 that may be left.

    Attributes:
        target_macs: MACs of one sample.
        ranking: "global" compares saliency across groups; "per-cost" divides it by what one more
            unit saves, as a share of each cost whose target is not met yet; "uniform" takes the
            same share of every group; "isomorphic" compares units within sets of groups of equal
            structure, each of which loses the same share. None is what suits the criterion.
        steps: Cut in this many steps, and score before each. None is 2 where repair is all that
            follows, and units are scored again on the network that was repaired; else 4.
        target_params: Elements of weights.
        target_size: Bytes of the file.
        target_latency: Nanoseconds of one run, as a profile tells them: 2.5e6 are 2.5 ms.
        max_drop: Find the smallest network that is no worse than this on held-out samples, in place
            of targets.
        scope: Which groups may lose units, and how narrow each may get.
        strip: Whether what does nothing goes first, as `strip` takes it out; not where a profile or
            scores are of the model as it is.
        depth: Whether whole branches may go too, where that costs less: operands of sums, and what
            lies between values of equal axes.
        low_rank: Whether layers that channels cannot narrow may become two of low rank.
    """

    target_macs: float | None = _target(
        "MACs that may be left: a share such as 0.5, or a number such as 12e6 or 1.5M. Where "
        f"several targets are given all have to hold. [{TARGET_MACS}, where none is]"
    )
    ranking: Ranking | None = None
    steps: int | None = None
    target_params: float | None = _target("Parameters that may be left, in the same way.")
    target_size: float | None = _target(
        "Size that the file may have: a share, or bytes such as 500KB or 1.5MiB.", "bytes"
    )
    target_latency: float | None = _target("Time of a run: a share, or such as 2.5ms.", "time")
    max_drop: float | None = None
    scope: Scope = field(default_factory=Scope)
    strip: bool = True
    depth: bool = False
    low_rank: bool = False

    @classmethod
    def target_fields(cls) -> list[Field[Any]]:
        """The fields of targets; the metadata of each has its help and its unit."""
        return [field for field in fields(cls) if field.name.startswith(_TARGET)]

    @classmethod
    def costs(cls) -> list[str]:
        """The names of the costs that a target may limit."""
        return [field.name.removeprefix(_TARGET) for field in cls.target_fields()]

    def at(self, cost: str, target: float) -> Budget:
        """Return this budget with a target of one cost."""
        return self.with_targets({cost: target})

    def with_targets(self, targets: Mapping[str, float]) -> Budget:
        """Return this budget with other targets, by the names of their costs."""
        asked: dict[str, Any] = {f"{_TARGET}{cost}": target for cost, target in targets.items()}
        return replace(self, **asked)

    @property
    def targets(self) -> dict[str, float]:
        """The targets by the names of their costs."""
        return self._asked or {"macs": TARGET_MACS}

    @property
    def _asked(self) -> dict[str, float]:
        named = {field.name: getattr(self, field.name) for field in self.target_fields()}
        return {k.removeprefix(_TARGET): v for k, v in named.items() if v is not None}

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise RequestError(
                f"`Budget.max_drop` must be a number of at least 0, found {self.max_drop:g}"
            )
        if self.max_drop is not None and self._asked:
            raise RequestError(
                "`Budget.max_drop` finds how much may go: give it or targets, and not both"
            )
        if self.low_rank and not _OF_PAIRS.issuperset(self._asked):
            raise RequestError(
                "`Budget.low_rank` goes with targets of MACs and params: bytes and milliseconds of "
                "two layers in the place of one are not predicted"
            )
        if self.low_rank and self.ranking not in (None, "global", "per-cost"):
            raise RequestError(
                f"`Budget.ranking` '{self.ranking}' takes shares of groups, which layers of low "
                f"rank may leave whole: with `Budget.low_rank` use 'per-cost' or 'global'"
            )
        if self.steps is not None and self.steps < 1:
            raise RequestError(f"`Budget.steps` must be at least 1, found {self.steps}")
