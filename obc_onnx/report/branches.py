"""What is said of branches: those that could go, and those that went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.branches.find import chosen, find_branches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.branches.find import Branch, StandIns
    from obc_onnx.coupling.model import Coupling


@dataclass(frozen=True)
class BranchSummary:
    """What lies between a value and another one that could stand in for it.

    Attributes:
        value: The value that would go, as a plan names it.
        stand_in: What would be read in its place, as a plan names it among `spans`.
        operand: The operand of a sum that would go, as a plan names it among `branches`; None of a
            span.
        label: What the node is called that gives the value.
        nodes: The names of the nodes that go with it, in the order of the graph.
        macs: Multiply-accumulates of one sample that these take, at full width.
        share: The same as a share of the network's.
    """

    value: str
    stand_in: str
    operand: str | None
    label: str
    nodes: list[str]
    macs: int
    share: float

    @property
    def told(self) -> str:
        """One line."""
        ends = dict.fromkeys([self.nodes[0], self.nodes[-1]])
        where = " to ".join(f"'{name}'" for name in ends)
        count = f"{len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        how = f"as '{self.stand_in}'" if self.operand is None else f"without '{self.operand}'"
        return f"{self.label} {how}: {count}, {where}, {self.share:.1%} of MACs"


def summarise_branches(coupling: Coupling) -> list[BranchSummary]:
    """Describe every branch of a graph."""
    return _summaries(coupling, find_branches(coupling))


def notes_on_branches(coupling: Coupling, stand_ins: StandIns) -> list[str]:
    """Say which branches went, one line each.

    Args:
        coupling: Of the whole graph.
        stand_ins: For each value that went, what is read in its place.
    """
    gone = chosen(coupling, stand_ins) if stand_ins else ()
    told = zip(gone, _summaries(coupling, gone), strict=True)
    return [
        f"a {'span' if branch.operand is None else 'branch'} is gone: {found.told}"
        for branch, found in told
    ]


def _summaries(coupling: Coupling, branches: Sequence[Branch]) -> list[BranchSummary]:
    whole = coupling.macs({}) if branches else 0  # once, since it grows with the network
    return [_summary(coupling, branch, whole) for branch in branches]


def _summary(coupling: Coupling, branch: Branch, whole: int) -> BranchSummary:
    nodes = [coupling.graph.producers[key] for key in branch.nodes]
    macs = sum(coupling.node_macs(node, {}) for node in nodes)
    names = [node.name or node.key for node in nodes]
    share = macs / whole if whole else 0.0
    return BranchSummary(
        branch.value, branch.stand_in, branch.operand, branch.label, names, macs, share
    )
