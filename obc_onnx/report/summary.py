"""What an inspection and a compression found, as plain data."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import BEGINNING, describe, is_long, leaves
from obc_onnx.planning.blocks import steps_of
from obc_onnx.planning.costs import COSTS, units_left
from obc_onnx.planning.scope import BLOCKS
from obc_onnx.report.network import shares_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.coupling.explain import AxisExplanation
    from obc_onnx.coupling.model import Coupling, Group, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.latency.nodes import NodeTime
    from obc_onnx.latency.predictor import Predictor
    from obc_onnx.measuring.baseline import Fed
    from obc_onnx.measuring.error import OutputError
    from obc_onnx.measuring.metric import MetricChange
    from obc_onnx.ops.base.context import Role
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Recovery
    from obc_onnx.report.branches import BranchSummary
    from obc_onnx.report.network import Layer, OperatorCount
    from obc_onnx.training.course import Epoch
    from obc_onnx.verification.checks import Check


_SHOWN = 3
"""Units that are shown at each end."""


@dataclass(frozen=True)
class GroupSummary:
    """A group: its units, and every weight axis that they lie on.

    Attributes:
        kept: How many units stay.
        node: The node that first writes its units, or else meets them, by the name that patterns
            of names take.
        macs: Multiply-accumulates of one sample that depend on its width; what several groups
            share counts for each of them.
        params: Elements of the weights that it lies on, in the same way.
        inexact: Why removing units does more than masking them, or None.
        members: One line for each role, as `Conv 'c': c.weight axis 0 writes = c.weight:0(64)`. One
            of an axis on which many groups lie is with the first of them alone.
        n_members: How many roles there are.
    """

    name: str
    size: int
    kept: int
    node: str
    macs: int
    params: int
    inexact: str | None
    members: list[str]
    n_members: int


@dataclass(frozen=True)
class Extremes:
    """The units of a group with the least and the most saliency, each as (unit, saliency)."""

    group: str
    least: list[tuple[int, float]]
    most: list[tuple[int, float]]


@dataclass(frozen=True)
class SaliencySummary:
    """What the units of a group are worth, before any of them was removed.

    Attributes:
        least: Saliency of the unit with the least, as are the next two.
        removed: The share of the group's whole saliency that went, in [0, 1].
    """

    group: str
    least: float
    median: float
    greatest: float
    removed: float


@dataclass(frozen=True)
class Inspection:
    """What can be pruned, and what cannot and why.

    Attributes:
        macs: Multiply-accumulates of one sample.
        least_macs: What the narrowest widths of the usual `Scope` would leave of them, if widths
            were any number.
        least_macs_inexact: The same where inexact groups may shrink too.
        params: Elements of float initializers.
        layers: The nodes that multiply, or along which weights act, in the order of the graph.
        operators: How often each is there, and what it costs; the dearest first.
        axes: What those axes of weights are made of, as `c.weight axis 1`, of which members tell
            only how it begins.
        batch: Where the samples are, if not on the first axis of every input.
        explained: What an axis is tied to, where that was asked for.
        salient: The units that matter least and most, where scores were given.
        seconds: Of each stage.
        notes: What lies outside of what was analysed.
        branches: What could go whole, as `Budget.depth` lets it go: branches of sums, and spans.
    """

    model: str
    sha256: str
    macs: int
    least_macs: int
    least_macs_inexact: int
    params: int
    groups: list[GroupSummary]
    layers: list[Layer]
    operators: list[OperatorCount]
    axes: dict[str, str]
    frozen: list[dict[str, Any]]
    unknown: list[str]
    batch: list[str]
    explained: list[AxisExplanation]
    salient: list[Extremes]
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    branches: list[BranchSummary] = field(default_factory=list)

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Change:
    """A number before and after; None where it was not measured."""

    before: float | None
    after: float | None

    @property
    def ratio(self) -> str:
        """How many times less the second number is, or more; empty where that has no sense."""
        if not self.before or not self.after:
            return ""
        large, small = max(self.before, self.after), min(self.before, self.after)
        return f"{large / small:.2f}x {'less' if self.before >= self.after else 'more'}"


@dataclass(frozen=True)
class Report:
    """What a compression did and how it was verified.

    Attributes:
        targets: What might be left of each cost, see `plan.PruningPlan`.
        layers: The nodes that multiply, or along which weights act, in the order of the graph.
        saliency: What the units of each group were worth; empty where a plan was given.
        outputs: How far each float output is from the original's on the held-out samples; empty
            without data.
        accuracy: Top-1 on the held-out samples, in [0, 1], where there are labels.
        metric: Of the user's on the same samples, where one was named.
        latency_ms: Median of one run in ONNX Runtime, or in the engine of a profile that was given,
            where it was measured.
        node_times: Milliseconds of the nodes before and after, in the same engine, where speed was
            asked for and the engine tells them; the one that took longest comes first.
        held_out: How many samples it was measured on.
        fed: What the inputs were fed, where there is data.
        recovery: The steps of repair without training, and whether they were kept.
        notes: What was decided or left out, each with its reason.
        warnings: What makes the result doubtful, each as `what: its likely cause`; empty where all
            is good.
        sparse_epochs: Loss of each epoch of sparse learning.
        epochs: Loss of each epoch of fine-tuning.
        verification: Each check with its measured error.
        seconds: Of each stage.
    """

    model: str
    criterion: str
    targets: dict[str, float]
    macs: Change
    params: Change
    file_bytes: Change
    outputs: list[OutputError]
    accuracy: Change
    metric: MetricChange | None
    held_out: int
    fed: list[Fed]
    latency_ms: Change
    node_times: list[NodeTime]
    groups: list[GroupSummary]
    layers: list[Layer]
    saliency: list[SaliencySummary]
    frozen: list[dict[str, Any]]
    unknown: list[str]
    recovery: list[Recovery]
    notes: list[str]
    warnings: list[str]
    sparse_epochs: list[Epoch]
    epochs: list[Epoch]
    verification: list[Check]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One line: what was gained, or why the result is doubtful."""
        gains = [
            f"{_ratio(self.macs):.2f}x fewer MACs",
            *([f"{_ratio(self.latency_ms):.2f}x as fast"] if self.latency_ms.after else []),
            *_quality(self.accuracy, self.metric),
        ]
        found = ", ".join(gains)
        if not self.warnings:
            return f"good: {found}; every check holds"
        doubts = "; ".join(warning.partition(": ")[0] for warning in self.warnings)
        return f"doubtful: {doubts} ({found})"

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps({**asdict(self), "verdict": self.verdict}, indent=1)


@dataclass(frozen=True)
class Outlook:
    """What a plan would leave of a model.

    Attributes:
        groups: Every group, and how many of its units the plan keeps.
        layers: The nodes that multiply, or along which weights act, in the order of the graph.
        saliency: What the units of each group were worth.
        notes: What was decided, each with its reason.
    """

    model: str
    plan: PruningPlan
    groups: list[GroupSummary]
    layers: list[Layer]
    saliency: list[SaliencySummary]
    frozen: list[dict[str, Any]]
    unknown: list[str]
    notes: list[str]


def _ratio(change: Change) -> float:
    return (change.before or 0.0) / (change.after or 1.0)


def _quality(accuracy: Change, metric: MetricChange | None) -> list[str]:
    if metric is not None:
        return [f"{metric.name} {metric.before:.4g} -> {metric.after:.4g}"]
    if accuracy.before is None or accuracy.after is None:
        return []
    return [f"accuracy {100 * (accuracy.after - accuracy.before):+.2f} points"]


def summarise_groups(coupling: Coupling, keep: Keep) -> list[GroupSummary]:
    """Describe every group."""
    lines, shares = _members(coupling), shares_of(coupling)
    return [
        GroupSummary(
            name=group.name,
            size=group.size,
            kept=int(keep[group.dim].sum()) if group.dim in keep else group.size,
            node=_main_node(group),
            macs=shares[group.dim].macs,
            params=shares[group.dim].params,
            inexact=group.inexact,
            members=lines.get(group.dim, []),
            n_members=len(group.members),
        )
        for group in coupling.groups
    ]


def _main_node(group: Group) -> str:
    """Name the node that first writes the units of a group, or else the first that meets them."""
    roles = sorted(group.members, key=lambda role: role.kind != "writes")
    return roles[0].node.name or roles[0].node.key


def _members(coupling: Coupling) -> dict[Dim, list[str]]:
    """Describe what weights do, by the groups that they do it to.

    An axis may hold all that was before it, as in a dense block. To describe each such axis with
    each of its groups would take the cube of the network: it is with the first of them alone.
    """
    names = _names(coupling)
    found: dict[Dim, list[str]] = {}
    for role in coupling.roles:
        expr = _axis_of(coupling, role)
        groups = (dim for dim in leaves(expr) if dim in names)
        shown = dict.fromkeys(islice(groups, BEGINNING if is_long(expr) else None))
        line = f"{role.node.label}: {_place(role)} {role.kind} = {describe(expr, names)}"
        for dim in shown:
            found.setdefault(dim, []).append(line)
    return found


def summarise_axes(coupling: Coupling) -> dict[str, str]:
    """Write out those axes of weights that hold many dims."""
    names = _names(coupling)
    long = {_place(role): _axis_of(coupling, role) for role in coupling.roles}
    return {
        place: describe(expr, names, whole=True) for place, expr in long.items() if is_long(expr)
    }


def _names(coupling: Coupling) -> dict[Dim, str]:
    return {group.dim: group.name for group in coupling.groups}


def _place(role: Role) -> str:
    return f"{role.node.inputs[role.slot]} axis {role.axis}"


def _axis_of(coupling: Coupling, role: Role) -> Expr:
    return coupling.axes[role.node.inputs[role.slot]][role.axis]


def summarise_frozen(coupling: Coupling) -> list[dict[str, Any]]:
    """Describe every frozen dim of a weight axis."""
    return [asdict(frozen) for frozen in coupling.frozen]


def note_on_blocks(plan: PruningPlan, block: int) -> str:
    """Say of what widths are a multiple where nobody asked for one, and which are not.

    Those of groups are; an axis with parts of several groups, such as a concatenation, need not be.
    """
    if block == 1:
        return "widths are any number: with multiples of channels the budget cannot be met"
    larger = "" if block == BLOCKS[0] else ", since with more the budget cannot be met"
    off = [
        f"{len(kept)} along axis {axis} of '{name}'"
        for name, axes in plan.initializers.items()
        for axis, kept in axes.items()
        if len(kept) % block
    ]
    but = f"; but {off[0]}, since parts of other groups lie there, or limits say so" if off else ""
    more = f" ({len(off)} axes)" if len(off) > 1 else ""
    return (
        f"widths that shrink are multiples of {block} channels, for speed{larger}: see "
        f"`Scope.round_to`{but}{more}"
    )


def note_on_steps(coupling: Coupling, predictor: Predictor) -> str:
    """Say of what the widths of groups are a multiple, where a profile says it."""
    counts = Counter(steps_of(coupling, predictor).values())
    named = ", ".join(f"{step} ({counts[step]} groups)" for step in sorted(counts))
    return f"widths that shrink are multiples of what the profile's times step by: {named}"


def notes_on_edit(made: PruningPlan, plan: PruningPlan) -> list[str]:
    """Say what a plan that a person has edited leaves.

    Args:
        made: As it was given.
        plan: As it is applied.
    """
    notes = []
    if made.open_groups:
        notes.append(
            f"the plan says of {len(made.open_groups)} groups how many units stay: those worth "
            f"most by '{plan.criterion}' were taken"
        )
    missed = [
        f"; its target of {target:g} for {COSTS[name].label}, which that misses, no longer counts"
        for name, target in made.targets.items()
        if plan.targets[name] != target
    ]
    left = [
        f"{after:,} {what} ({after / before:.1%} of them)"
        for what, (before, after) in (("MACs", plan.macs), ("params", plan.params))
        if before
    ]
    return [*notes, f"the plan was edited: it leaves {' and '.join(left)}{''.join(missed)}"]


def notes_on_graph(graph: Graph) -> list[str]:
    """Say what of a model stays as it is, whatever is cut."""
    notes = [
        f"{label} has {count:,} weights in subgraphs, which stay as they are and have no MACs here"
        for label, count in graph.enclosed.items()
    ]
    if graph.opaque.labels:
        notes.append(
            f"ONNX Runtime does not know {', '.join(graph.opaque.labels)}: such nodes were not run "
            f"and stay as they are; MACs, errors and times are those of the rest, which is "
            f"{graph.opaque.coverage}"
        )
    if graph.in_brain_floats:
        notes.append(
            "bfloat16 is computed in float32 where ONNX Runtime has no code for it: errors are "
            "those of that, and times are not those of a runtime that has"
        )
    if graph.header.training_info:
        notes.append("its training_info stays as it is, and may not fit weights that are cut")
    return notes


def notes_on_inexact(coupling: Coupling, keep: Keep) -> list[str]:
    """Say which groups were cut that no mask can verify, or that most of the model is such."""
    inexact = [group for group in coupling.groups if group.inexact is not None]
    cut = [group for group in inexact if group.dim in keep]
    n_units, n_inexact = (sum(g.size for g in groups) for groups in (coupling.groups, inexact))
    if cut:
        named = "; ".join(f"{group.name} ({group.inexact})" for group in cut)
        return [f"{len(cut)} inexact groups were cut, which the masked check leaves out: {named}"]
    if 2 * n_inexact > n_units:
        share = f"{n_inexact} of {n_units} units stand under a norm or a mean"
        return [f"{share}: they are pruned with `Scope.allow_inexact` only"]
    return []


def summarise_scores(groups: Mapping[str, NDArray[np.float64]]) -> list[Extremes]:
    """Pick the units that matter least and most of every group, the extreme ones first."""
    found = []
    for name, scores in groups.items():
        order = np.argsort(scores, kind="stable")
        least, most = (
            [(int(u), float(scores[u])) for u in o[:_SHOWN]] for o in (order, order[::-1])
        )
        found.append(Extremes(name, least, most))
    return found


def summarise_saliency(
    coupling: Coupling, saliency: Mapping[str, NDArray[np.float64]], keep: Keep
) -> list[SaliencySummary]:
    """Say what the units of each group are worth, and what of that went."""
    found = []
    for group in coupling.groups:
        scores = saliency.get(group.name)
        if scores is not None:
            total, left = float(scores.sum()), float(scores[units_left(group, keep)].sum())
            removed = (total - left) / total if total > 0 else 0.0
            least, median, greatest = (float(x) for x in np.quantile(scores, (0, 0.5, 1)))
            found.append(SaliencySummary(group.name, least, median, greatest, removed))
    return found
