"""Reports for people: tables in a terminal."""

from __future__ import annotations

from collections import Counter
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from obc_onnx.axes.expressions import LONG
from obc_onnx.planning.scope import MIN_CHANNELS
from obc_onnx.planning.sensitivity import N_SHARES
from obc_onnx.report.summary import Change
from obc_onnx.stripping.find import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from obc_onnx.latency.nodes import NodeTime
    from obc_onnx.measuring.baseline import Fed
    from obc_onnx.measuring.error import OutputError
    from obc_onnx.planning.sensitivity import Point, Sensitivity
    from obc_onnx.report.stripping import StripReport, VocabularyReport
    from obc_onnx.report.summary import Extremes, GroupSummary, Inspection, Outlook, Report
    from obc_onnx.verification.checks import Check

_WIDTH = 100
_COLUMNS = 80
"""Of a terminal that nobody has changed."""
_NAME = 50
"""Columns of a name in a list."""
_WORDS = TextWrapper(_COLUMNS - 2, break_long_words=False, break_on_hyphens=False)
"""Names in sentences stay whole, so that they can be copied."""
_NODES = 3
"""Nodes that are named, of those that got faster and of those that did not."""
_NS_PER_MS = 1e6


def inspection_text(inspection: Inspection, *, whole: bool = False) -> str:
    """Render an inspection; it is lines alone, of which there may be many, and no tables.

    Args:
        inspection: What was found.
        whole: Whether every member of a group and every frozen dim has a line; otherwise a group
            has one line, as a reason has.
    """
    costs = f"{in_si(inspection.macs)}MACs, {in_si(inspection.params)}params"
    lines = [f"{inspection.model}: {costs}", *_reach_lines(inspection)]
    lines += (f"  {note}" for note in inspection.batch)
    lines += _operator_lines(inspection)
    n_units = sum(group.size for group in inspection.groups)
    title = f"{len(inspection.groups)} groups, {n_units} units; what depends on each"
    lines += ["", f"{title:<53}{'units':>7}{'MACs':>9}{'params':>9}"]
    salient = {extremes.group: extremes for extremes in inspection.salient}
    for group in inspection.groups:
        lines += _group_lines(group, inspection, salient.get(group.name), whole=whole)
    lines += _branch_lines(inspection)
    lines += _frozen_lines(inspection.frozen, whole=whole)
    lines += _unknown_lines(inspection.unknown)
    lines += (f"note: {note}" for note in inspection.notes)
    return "\n".join([*lines, _seconds(inspection.seconds), ""])


def _reach_lines(inspection: Inspection) -> list[str]:
    """Say how far the whole can go."""
    whole, least = inspection.macs, inspection.least_macs
    if not whole:
        return []
    lines = [
        f"{_share(MIN_CHANNELS)} of the units of each group need {_share(least, whole)} of the MACs"
    ]
    if inspection.least_macs_inexact != least:
        more = _share(inspection.least_macs_inexact, whole)
        lines.append(f"{more} where inexact groups, marked by ~, shrink too: `Scope.allow_inexact`")
    return lines


def _operator_lines(inspection: Inspection) -> list[str]:
    """Lay out what each operator costs; those that cost nothing are counted together."""
    lines = ["", f"{'operators':<53}{'nodes':>7}{'MACs':>9}{'params':>9}"]
    costly = [one for one in inspection.operators if one.macs or one.params]
    for one in costly:
        shares = (_share(one.macs, inspection.macs), _share(one.params, inspection.params))
        lines.append(f"  {_short(one.op_type):<51}{one.count:>7}{shares[0]:>9}{shares[1]:>9}")
    others = [one for one in inspection.operators if one not in costly]
    if others:
        what = f"{len(others)} more, which neither multiply nor hold weights"
        lines.append(f"  {what:<51}{sum(one.count for one in others):>7}")
    return lines


def _group_lines(
    group: GroupSummary, inspection: Inspection, extremes: Extremes | None, *, whole: bool
) -> list[str]:
    shares = (_share(group.macs, inspection.macs), _share(group.params, inspection.params))
    mark = "~" if group.inexact else " "
    lines = [f"{mark} {_short(group.node):<51}{group.size:>7}{shares[0]:>9}{shares[1]:>9}"]
    if whole:
        lines.append(f"      {group.name}{f'   inexact: {group.inexact}' if group.inexact else ''}")
        more = group.n_members - len(group.members)
        rest = [f"... ({more} more, on axes of more than {LONG} parts)"] if more else []
        lines += (f"      {line}" for line in (*group.members, *rest))
    if extremes is not None:
        lines.append(f"      least: {_units(extremes.least)}")
        lines.append(f"      most:  {_units(extremes.most)}")
    return lines


def _branch_lines(inspection: Inspection) -> list[str]:
    """List what could go, with what would stand in for it."""
    found = inspection.branches
    title = f"{len(found)} branches that could go whole: `Budget.depth`"
    return ["", title, *(f"  {branch.told}" for branch in found)] if found else []


def _frozen_lines(frozen: Sequence[Mapping[str, Any]], *, whole: bool) -> list[str]:
    """Say which dims lose nothing, reason by reason."""
    lines = ["", f"{len(frozen)} frozen dims of weights"]
    if whole:
        return lines + [f"  {f['where']}({f['size']})   frozen: {f['reason']}" for f in frozen]
    places: dict[str, list[str]] = {}
    for dim in frozen:
        places.setdefault(dim["reason"], []).append(f"{dim['where']}({dim['size']})")
    for reason, found in places.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines += (f"  {line}" for line in _WORDS.wrap(reason))
        lines.append(f"      {_short(found[0])}{more}")
    return lines


def _share(part: float, whole: float = 1.0) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _short(name: str, most: int = _NAME) -> str:
    """Return a name, or the end of a long one, which tells it from others."""
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _units(pairs: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"unit {unit} ({saliency:.3g})" for unit, saliency in pairs)


def explanation_text(inspection: Inspection) -> str:
    """Render what axes are tied to, and by which nodes."""
    lines = []
    for axis in inspection.explained:
        lines.append(f"{axis.place} = {axis.expression}")
        for dim in axis.dims:
            lines.append(f"  {dim.name}, {dim.size} units: {dim.state}")
            lines += (f"      {s.target}   by {s.node}, from {s.source}" for s in dim.steps)
    return "\n".join([*lines, ""])


def report_text(report: Report) -> str:
    """Render a report: before and after, groups, checks."""
    console = open_console()
    table = _change_table(report.model, report.macs, report.params)
    _row(table, "file bytes", report.file_bytes)
    if report.latency_ms.before is not None:
        _row(table, "latency, ms", report.latency_ms, digits=3)
    if report.accuracy.before is not None and report.accuracy.after is not None:
        before, after = 100 * report.accuracy.before, 100 * report.accuracy.after
        name = f"accuracy on {report.held_out:,} held out, %"
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
    if report.metric is not None:
        found = report.metric
        name = f"{found.name} on {report.held_out:,} held out"
        gain = f"{found.after - found.before:+.4g}"
        table.add_row(name, f"{found.before:.4g}", f"{found.after:.4g}", gain)
    console.print(table)
    for line in node_lines(report.node_times):
        console.print(line)
    for output in report.outputs:
        console.print(_output_line(output))
    console.print(_group_table(report.groups))
    for line in _unknown_lines(report.unknown):
        console.print(line)
    console.print(check_table(report.verification))
    for fed in report.fed:
        console.print(_fed_text(fed))
    for step in report.recovery:
        layers = f" of {len(step.layers)} layers" if step.layers else ""
        console.print(
            f"repair by {step.step}{layers}: error of held-out outputs {step.before:.4g} -> "
            f"{step.after:.4g}, {'kept' if step.kept else 'not kept'}"
        )
    _print_said(console, report)
    console.print(report.verdict)
    return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def _change_table(title: str, macs: Change, params: Change) -> Table:
    """Begin a table of what there was before, and what is left."""
    table = Table("", "before", "after", "change", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    _row(table, "MACs", macs)
    _row(table, "params", params)
    return table


def _print_said(console: Console, report: Report | StripReport) -> None:
    """Print what was decided, how long it took, and what makes the result doubtful."""
    for note in report.notes:
        console.print(f"note: {note}")
    console.print(_seconds(report.seconds))
    for warning in report.warnings:
        console.print(f"warning: {warning}")


def node_lines(times: Sequence[NodeTime]) -> list[str]:
    """Say which nodes got faster, and which of the slow ones did not."""
    faster = sorted((t for t in times if t.is_faster), key=lambda t: t.gain, reverse=True)
    others = sorted((t for t in times if not t.is_faster), key=lambda t: t.after, reverse=True)
    found = []
    for own, what in ((faster, "faster"), (others, "not faster")):
        if own:
            named = ", ".join(
                f"{_short(one.node)} {one.before:.3g} -> {one.after:.3g} ms" for one in own[:_NODES]
            )
            more = f", and {len(own) - _NODES} more" if len(own) > _NODES else ""
            found.append(f"{what}: {named}{more}")
    return found


def _fed_text(fed: Fed) -> str:
    """Render what an input was fed."""
    shape = " x ".join(map(str, fed.shape)) or "one number"
    text = f"fed: {fed.values}, {fed.dtype} of {shape}"
    if fed.mean is not None and fed.std is not None:
        text += f", mean {fed.mean:.4g}, std {fed.std:.4g}"
    how = fed.preparation or "arrays, as they are"
    return f"{text} ({fed.n_samples:,} of the {fed.samples}); {how}"


def _output_line(output: OutputError) -> str:
    worst = ", ".join(f"{channel.channel} {channel.error:.3g}" for channel in output.worst)
    farthest = (
        f"; farthest of {output.n_channels} channels: {worst}" if output.n_channels > 1 else ""
    )
    return (
        f"output '{output.name}' on held-out samples: error {output.error:.3g}; agreement with the "
        f"original {output.agreement:.3f}, 5th percentile {output.agreement_p5:.3f}{farthest}"
    )


def plan_text(outlook: Outlook) -> str:
    """Render a plan: what would be left, in all and of each group."""
    console, plan = open_console(), outlook.plan
    table = _change_table(outlook.model, Change(*plan.macs), Change(*plan.params))
    if plan.latency is not None:
        before, after = (ns / _NS_PER_MS for ns in plan.latency)
        _row(table, "latency as predicted, ms", Change(before, after), digits=3)
    console.print(table)
    widths = Table("group", "units", "kept")
    for group in outlook.groups:
        widths.add_row(group.name, str(group.size), str(group.kept))
    console.print(widths)
    console.print(
        f"units were scored by '{plan.criterion}' and compared by ranking '{plan.ranking}'"
    )
    for note in outlook.notes:
        console.print(f"note: {note}")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def sensitivity_text(sensitivity: Sensitivity) -> str:
    """Render what each share of each group is worth."""
    longest = max((len(group.name) for group in sensitivity.groups), default=0)
    console = open_console(_WIDTH + longest)  # names are what one goes on with: none is cut off
    console.print(
        f"{sensitivity.model}: each group cut alone, least salient units by "
        f"'{sensitivity.criterion}' first, on {sensitivity.n_samples} held-out samples\n"
    )
    console.print(_share_table(sensitivity, "output error", lambda point: f"{point.error:.3g}"))
    if sensitivity.accuracy is not None:
        title = f"accuracy, %; {100 * sensitivity.accuracy:.2f} with all units"
        console.print(_share_table(sensitivity, title, _percent))
    if sensitivity.latency_ms is not None:
        title = f"latency as predicted, ms; {sensitivity.latency_ms:.4g} with all units"
        console.print(_share_table(sensitivity, title, _milliseconds))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def strip_text(report: StripReport) -> str:
    """Render what went out of a model and why: before and after, groups, checks."""
    console = open_console()
    table = _change_table(report.model, report.macs, report.params)
    _row(table, "file bytes", report.file_bytes)
    console.print(table)
    if report.rounds:
        console.print(_findings_table(report))
    if report.vocabulary is not None:
        console.print(_vocabulary_table(report.vocabulary))
        for line in _vocabulary_lines(report.vocabulary):
            console.print(line)
    console.print(check_table(report.verification))
    _print_said(console, report)
    return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def _findings_table(report: StripReport) -> Table:
    """Count the units of each group that went, by the reason."""
    counts: dict[str, Counter[str]] = {}
    for found in (found for findings in report.rounds for found in findings):
        counts.setdefault(found.group, Counter())[found.reason] += len(found.units)
    reasons = list(Reason)
    table = Table("group", *reasons)
    for group, own in counts.items():
        table.add_row(group, *(str(own[reason] or "") for reason in reasons))
    return table


def _vocabulary_table(found: VocabularyReport) -> Table:
    """Show what embeddings and outputs have left of a vocabulary."""
    table = Table("vocabulary", "at", "before", "after")
    for own in found.tables:
        table.add_row(own.name, own.node, str(own.before), str(own.after))
    for head in found.heads:
        how = f"output, axis {head.axis}"
        put_back = "" if head.narrow else f", put back to {head.size}"
        table.add_row(head.output, how, str(head.size), f"{len(found.ids)}{put_back}")
    return table


def _vocabulary_lines(found: VocabularyReport) -> Iterator[str]:
    """Say what that saves, how many ids of samples stay, and what becomes of others."""
    yield f"saves {found.bytes_saved} bytes of initializers"
    seen = found.seen
    if seen is not None:
        yield (
            f"of {seen.ids} ids of the samples {seen.kept} stay, which are "
            f"{seen.kept_occurrences} of {seen.occurrences} occurrences"
        )
    if found.unknown is None:
        yield "other ids are refused when the model runs"
    else:
        yield f"other ids are taken as {found.unknown}"


def _percent(point: Point) -> str:
    return "" if point.accuracy is None else f"{100 * point.accuracy:.2f}"


def _milliseconds(point: Point) -> str:
    return "" if point.latency_ms is None else f"{point.latency_ms:.4g}"


def _share_table(sensitivity: Sensitivity, title: str, show: Callable[[Point], str]) -> Table:
    shares = [f"{eighth}/{N_SHARES}" for eighth in range(1, N_SHARES)]
    table = Table("group", "units", *shares, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for group in sensitivity.groups:
        shown = {round(point.share * N_SHARES): show(point) for point in group.points}
        cells = [shown.get(eighth, "") for eighth in range(1, N_SHARES)]
        table.add_row(group.name, str(group.size), *cells)
    return table


def checks_text(checks: Sequence[Check]) -> str:
    """Render the outcome of checks."""
    console = open_console()
    console.print(check_table(checks))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def check_table(checks: Sequence[Check]) -> Table:
    """Lay out checks, one a row."""
    table = Table("check", "", "error", "noise", "allowed", "mistakes\nfound")
    for check in checks:
        measured = check.tolerance > 0
        tried = f"{check.caught} of {check.planted}" if check.planted else ""
        table.add_row(
            check.name,
            "ok" if check.passed else "FAILED",
            f"{check.error:.1e}" if measured else "",
            f"{check.noise:.1e}" if check.noise else "",
            f"{check.tolerance:.1e}" if measured else "",
            check.detail or check.doubt or tried,
        )
    return table


def _group_table(groups: Sequence[GroupSummary]) -> Table:
    table = Table("group", "units", "kept", "")
    for group in groups:
        table.add_row(
            group.name,
            str(group.size),
            str(group.kept),
            f"inexact: {group.inexact}" if group.inexact else "",
        )
    return table


def _row(table: Table, name: str, change: Change, digits: int = 0) -> None:
    if change.before is None or change.after is None:
        return
    before, after = (f"{value:,.{digits}f}" for value in (change.before, change.after))
    table.add_row(name, before, after, change.ratio)


def _unknown_lines(unknown: Sequence[str]) -> list[str]:
    """Say which nodes are not known; nothing where all are."""
    if not unknown:
        return []
    title = (
        f"{len(unknown)} nodes are not known: they freeze what they touch, and their MACs are not "
        f"counted:"
    )
    return ["", title, *(f"  {label}" for label in unknown)]


def _seconds(seconds: dict[str, float]) -> str:
    return "\nseconds: " + ", ".join(f"{stage} {value:.3g}" for stage, value in seconds.items())


def in_si(number: float) -> str:
    """Write a number with a prefix, and a blank in front of its unit."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.4g} {unit} "
    return f"{number:g} "


def open_console(width: int = _WIDTH) -> Console:
    """Return a console that keeps what it prints as text."""
    import io

    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, soft_wrap=True)
