"""What makes a result doubtful: warnings of a report, each as `what: its likely cause`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.files import destination
from obc_onnx.graph.external import files_of
from obc_onnx.planning.costs import units_left

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.error import OutputError
    from obc_onnx.measuring.latency import Race
    from obc_onnx.report.summary import Change

_NARROW = 0.1
"""Share of its units below which a group is hardly there."""
_NAMED = 3
_FALL = 0.05
"""Accuracy that a result may lose without a doubt."""
_FAR = 0.2
"""Error of an output up to which a result is close. A ResNet-20 for Fashion-MNIST that was cut and
not repaired lost 3.3 points of accuracy at an error of 0.10, and 27.5 at 0.45."""


def doubts_of_place(path: Path) -> list[str]:
    """Warn where a result that was written does not open under the name that was given.

    Programs look for weights in the folder of the name that they open, and follow no link there.

    Args:
        path: What was given; the result has been written.
    """
    real = destination(path)
    if real.parent.resolve() == path.parent.resolve() or len(files_of(real)) == 1:
        return []
    said = "it is a link into another folder, where the weights lie in a file of their own"
    return [f"'{path}' does not open: {said}; open '{real}'"]


def doubts_of_quality(outputs: Sequence[OutputError], *, given: bool) -> list[str]:
    """Warn where nothing said how good the result is.

    Args:
        outputs: The errors of those that were measured; an accuracy is always that of one of them.
        given: Whether there were samples.
    """
    if outputs:
        return []
    cause = "no output is a float" if given else "no data was given"
    remedy = "compare its answers yourself" if given else "`data` takes samples without labels too"
    return [
        f"quality was not measured: {cause}, and what was written may be worth nothing; {remedy}"
    ]


def doubts_of_stand_ins(graph: Graph, drawn: Sequence[str]) -> list[str]:
    """Warn where samples hold random numbers for what nodes give that were not run.

    Args:
        graph: The model.
        drawn: Its inputs that are such.
    """
    if not drawn:
        return []
    givers = ", ".join(dict.fromkeys(graph.opaque.givers[name] for name in drawn))
    names = ", ".join(f"'{name}'" for name in drawn)
    found = (
        f"what is behind {givers} was fed random numbers: ONNX Runtime does not know it, and the "
        f"data lacks what it gives; record {names} where the model runs, and put that into the data"
    )
    return [found]


def doubts_of_outputs(outputs: Sequence[OutputError]) -> list[str]:
    """Warn of outputs with channels that are farther off than their mean would be."""
    found = []
    for output in outputs:
        if output.n_lost:
            worst = output.worst[0]
            what = f"{output.n_lost} of {output.n_channels} channels of output '{output.name}' lost"
            cause = (
                f"their mean would be nearer to the original's, as for {worst.channel} with an "
                f"error of {worst.error:.3g} beside a deviation of {worst.deviation:.3g}; too much "
                f"was cut for what they do"
            )
            found.append(f"{what}: {cause}")
    return found


def doubts_of_drop(
    accuracy: Change, outputs: Sequence[OutputError], judged: str, *, trained: bool
) -> list[str]:
    """Warn of a result that is much worse than the original.

    Args:
        accuracy: Of one output, before and after; both None without labels.
        outputs: The errors of all; those that have lost channels have a warning already.
        judged: The output that the accuracy is of: its error matters only where there is none.
        trained: Whether the result was fine-tuned.
    """
    known = accuracy.before is not None and accuracy.after is not None
    fall = (accuracy.before or 0.0) - (accuracy.after or 0.0)
    found = [f"accuracy fell by {100 * fall:.1f} points"] if known and fall > _FALL else []
    found += [
        f"output '{output.name}' is off by {output.error:.2f} of its variance"
        for output in outputs
        if not (output.error <= _FAR or output.n_lost or (known and output.name == judged))
    ]
    remedy = (
        "training made up for; try more `TrainingOptions.epochs`"
        if trained
        else "repair made up for; try `training`"
    )
    cause = f"more was cut than {remedy}, a larger share of the targets, or `Budget.max_drop`"
    return [f"{what}: {cause}" for what in found]


def doubts_of_widths(coupling: Coupling, keep: Keep) -> list[str]:
    """Warn of groups that were nearly removed."""
    left = {group: int(units_left(group, keep).sum()) for group in coupling.groups}
    narrow = [group for group, width in left.items() if width < _NARROW * group.size]
    if not narrow:
        return []
    named = ", ".join(f"'{g.name}' {g.size} -> {left[g]}" for g in narrow[:_NAMED])
    more = f" and {len(narrow) - _NAMED} more" if len(narrow) > _NAMED else ""
    what = f"{len(narrow)} groups were cut below a tenth"
    return [f"{what}: {named}{more}; `Scope.min_channels` leaves them wider"]


def doubts_of_speed(times: Race | None, engine: str = "ONNX Runtime") -> list[str]:
    """Warn where the result is slower than the original.

    Args:
        times: Of both, where they were timed.
        engine: What they were timed in.
    """
    if times is None or not times.is_slower:
        return []
    before, after = times.medians_ms
    what = f"slower than before, {before / after:.2f}x as fast in {engine}"
    cause = (
        "widths off the blocks of the runtime, or small layers, which memory holds up and not MACs"
    )
    return [f"{what}: {cause}; try `Scope(round_to=8)` or 16"]
