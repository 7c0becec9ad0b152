"""What makes a result doubtful: warnings of a report, each as `what: its likely cause`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.costs import units_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.coupling import Coupling, Keep
    from obc_onnx.latency import Race
    from obc_onnx.recover.error import OutputError

_NARROW = 0.1
"""Share of its units below which a group is hardly there."""
_NAMED = 3


def doubts_of_quality(*, measured: bool) -> list[str]:
    """Warn where no samples said how good the result is."""
    if measured:
        return []
    cause = "no data was given, and what was written may be worth nothing"
    return [f"quality was not measured: {cause}; --data takes samples without labels too"]


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


def doubts_of_widths(coupling: Coupling, keep: Keep) -> list[str]:
    """Warn of groups that were nearly removed."""
    left = {group: int(units_left(group, keep).sum()) for group in coupling.groups}
    narrow = [group for group, width in left.items() if width < _NARROW * group.size]
    if not narrow:
        return []
    named = ", ".join(f"'{g.name}' {g.size} -> {left[g]}" for g in narrow[:_NAMED])
    more = f" and {len(narrow) - _NAMED} more" if len(narrow) > _NAMED else ""
    what = f"{len(narrow)} groups were cut below a tenth"
    return [f"{what}: {named}{more}; --min-channels leaves them wider"]


def doubts_of_speed(times: Race | None) -> list[str]:
    """Warn where the result is slower than the original."""
    if times is None or not times.is_slower:
        return []
    before, after = times.medians_ms
    what = f"slower than before, {before / after:.2f}x as fast in ONNX Runtime"
    cause = (
        "widths off the blocks of the runtime, or small layers, which memory holds up and not MACs"
    )
    return [f"{what}: {cause}; try --round-to 8 or 16"]
