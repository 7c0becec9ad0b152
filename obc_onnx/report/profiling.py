"""What profiling a model gives back, and what people are told of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.latency.profile import Profile


_UNSURE = 0.05
"""Standard error from which on a time says little."""


@dataclass(frozen=True)
class Profiling:
    """A profile, and what it is worth.

    Attributes:
        model: How the model is called.
        profile: The times.
        errors: For each design, how far its time is from what the others tell of it, as a share.
    """

    model: str
    profile: Profile
    errors: tuple[float, ...]

    def save(self, path: str | Path) -> None:
        """Write the profile."""
        self.profile.save(path)


def profiling_text(profiling: Profiling) -> str:
    """Render what was timed, and how well that tells the times of other widths."""
    profile, errors = profiling.profile, profiling.errors
    times = [timing.ms for timing in profile.timings[1:]]
    spread = max(timing.spread for timing in profile.timings[1:])
    asked = "".join(f", {name} {value}" for name, value in profile.engine.given.items())
    engine = f"{profile.engine.engine} {profile.version}".strip()
    shapes = ", ".join(f"{n} {'x'.join(map(str, shape))}" for n, shape in profile.shapes.items())
    unsure = sum(timing.spread > _UNSURE for timing in profile.timings)
    warning = (
        f"\nwarning: {unsure} of {len(profile.timings)} times are known to no better than "
        f"{100 * _UNSURE:.0f} %: other work holds this machine up; profile again when it rests"
    )
    return (
        f"{profiling.model} in {engine}{asked} on "
        f"{profile.device}, {shapes}\n"
        f"whole: {profile.whole_ms:.4g} ms; {len(times)} designs in multiples of "
        f"{profile.round_to} channels: {min(times):.4g} to {max(times):.4g} ms, known to "
        f"{100 * spread:.1f} % or better\n"
        f"each as the others tell it: off by {100 * statistics.median(errors):.1f} % in the "
        f"median, {100 * max(errors):.1f} % at most"
    ) + (warning if unsure else "")
