"""What is said of branches: those that could go, and those that went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.branches.find import chosen, find_branches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.branches.find import Branch, Branches
    from obc_onnx.coupling.model import Coupling


@dataclass(frozen=True)
class BranchSummary:
    """An operand that a sum could do without.

    Attributes:
        sum: The value that the sum gives, as a plan names it.
        output: The operand, as a plan names it.
        label: What the sum is called.
        nodes: The names of the nodes that go with it, in the order of the graph.
        macs: Multiply-accumulates of one sample that these take, at full width.
        share: The same as a share of the network's.
    """

    sum: str
    output: str
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
        return f"{self.label} without '{self.output}': {count}, {where}, {self.share:.1%} of MACs"


def summarise_branches(coupling: Coupling) -> list[BranchSummary]:
    """Describe every branch of a graph."""
    return _summaries(coupling, find_branches(coupling))


def notes_on_branches(coupling: Coupling, branches: Branches) -> list[str]:
    """Say which branches went, one line each.

    Args:
        coupling: Of the whole graph.
        branches: For each sum the operand that went.
    """
    gone = chosen(coupling, branches) if branches else ()
    return [f"a branch is gone: {found.told}" for found in _summaries(coupling, gone)]


def _summaries(coupling: Coupling, branches: Sequence[Branch]) -> list[BranchSummary]:
    whole = coupling.macs({}) if branches else 0  # once, since it grows with the network
    return [_summary(coupling, branch, whole) for branch in branches]


def _summary(coupling: Coupling, branch: Branch, whole: int) -> BranchSummary:
    nodes = [coupling.graph.producers[key] for key in branch.nodes]
    macs = sum(coupling.node_macs(node, {}) for node in nodes)
    names = [node.name or node.key for node in nodes]
    share = macs / whole if whole else 0.0
    return BranchSummary(branch.sum, branch.output, branch.label, names, macs, share)
