"""What an engine measured of a model at a few widths, written down.

A profile is plain data, so that plans can be made from it without the machine that it is of.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obc_onnx.engines.engine import Layer
from obc_onnx.engines.options import EngineOptions
from obc_onnx.errors import RequestError
from obc_onnx.files import check_regular, replacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.coupling.model import Coupling

FORMAT = 1
"""Version of the profile file; another one is refused."""


@dataclass(frozen=True)
class Timing:
    """The time of one design.

    Attributes:
        widths: Of the groups that are narrower than in the model, how many units they have.
        ms: Median milliseconds of one run.
        ratio: Median over turns of that time by the time of the whole model.
        spread: Standard error of the ratio, as a share of it.
        turns: How often both were timed.
        layers: What the engine tells of parts of a run; empty where it tells nothing.
    """

    widths: dict[str, int]
    ms: float
    ratio: float
    spread: float
    turns: int
    layers: list[Layer]


@dataclass(frozen=True)
class Profile:
    """Times of a model at a few widths, in one engine on one device.

    Attributes:
        model_sha256: Of the model.
        engine: The engine, and what was asked of it.
        version: Of the engine.
        device: What ran it.
        shapes: Of the inputs that it was timed on.
        round_to: Of how many channels widths are a multiple.
        seed: Of the designs.
        timings: The whole model, and then the designs.
    """

    model_sha256: str
    engine: EngineOptions
    version: str
    device: str
    shapes: dict[str, list[int]]
    round_to: int
    seed: int
    timings: list[Timing]
    format: int = FORMAT

    @property
    def whole_ms(self) -> float:
        """Milliseconds of the whole model."""
        return self.timings[0].ms

    @cached_property
    def sha256(self) -> str:
        """The digest of its file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Write as JSON with sorted keys: equal profiles give equal bytes."""
        engine = {"engine": self.engine.engine, **self.engine.given}
        return json.dumps({**asdict(self), "engine": engine}, indent=1, sort_keys=True) + "\n"

    def save(self, path: str | Path) -> None:
        """Write a profile file."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def of(cls, given: Profile | str | Path) -> Profile:
        """Return a profile that is given as it is, or as a file."""
        return cls.load(given) if isinstance(given, (str, Path)) else given

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file.

        Raises:
            RequestError: It is missing, or not a profile of this format.
        """
        check_regular(Path(path), "profile", RequestError)
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"profile '{path}' cannot be read as JSON") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise RequestError(f"'{path}' is not a profile of format {FORMAT}")
        if found.keys() != {field.name for field in fields(cls)}:
            raise RequestError(f"profile '{path}' lacks fields or has unknown ones")
        for name, holds in _FIELDS.items():
            if not holds(found[name]):
                raise RequestError(f"profile '{path}' has a '{name}' that is not of a profile")
        try:
            engine = EngineOptions(**found["engine"])
        except (TypeError, RequestError) as error:
            raise RequestError(
                f"profile '{path}' names no engine that is known: {error}"
            ) from error
        return cls(**{**found, "engine": engine, "timings": [*map(_timing, found["timings"])]})

    def check(self, coupling: Coupling) -> None:
        """Check that the profile is of a model.

        Raises:
            RequestError: It is of another one, or was taken with other sizes of inputs.
        """
        sha256 = coupling.graph.sha256
        if self.model_sha256 != sha256:
            raise RequestError(
                f"the profile is of a model with sha256 {self.model_sha256[:12]}..., but this one "
                f"has {sha256[:12]}...: profile it"
            )
        sizes = {group.name: group.size for group in coupling.groups}
        for timing in self.timings:
            for name, width in timing.widths.items():
                if not width < sizes.get(name, 0):
                    raise RequestError(
                        f"the profile cuts group '{name}' to {width} units, but the model has "
                        f"{sizes.get(name, 'no such group')}: profile it again"
                    )


def rounded(timing: Timing) -> Timing:
    """Return a timing with six digits: more are noise."""
    layers = [Layer(layer.nodes, _six(layer.ms)) for layer in timing.layers]
    ms, ratio, spread = map(_six, (timing.ms, timing.ratio, timing.spread))
    return replace(timing, ms=ms, ratio=ratio, spread=spread, layers=layers)


def _six(number: float) -> float:
    return float(f"{number:.6g}")


def _timing(entry: dict[str, Any]) -> Timing:
    layers = [Layer(tuple(layer["nodes"]), float(layer["ms"])) for layer in entry["layers"]]
    return Timing(**{**entry, "layers": layers})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        for shape in value.values()
    )


def _is_layer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"nodes", "ms"}
        and isinstance(value["nodes"], list)
        and all(map(_is_text, value["nodes"]))
        and _is_number(value["ms"])
    )


def _is_timing(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in fields(Timing)}
        and isinstance(value["widths"], dict)
        and all(map(_is_count, value["widths"].values()))
        and all(_is_number(value[name]) and value[name] > 0 for name in ("ms", "ratio"))
        and _is_number(value["spread"])
        and _is_count(value["turns"])
        and isinstance(value["layers"], list)
        and all(map(_is_layer, value["layers"]))
    )


def _are_timings(value: Any) -> bool:
    """Say whether the first one is of the whole model, and others follow."""
    return (
        isinstance(value, list)
        and len(value) >= _FEWEST
        and all(map(_is_timing, value))
        and not value[0]["widths"]
    )


_FEWEST = 4
"""Timings that a time can be fitted to."""
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model_sha256": _is_text,
    "engine": lambda value: isinstance(value, dict),
    "version": _is_text,
    "device": _is_text,
    "shapes": _are_shapes,
    "round_to": _is_count,
    "seed": lambda value: type(value) is int and value >= 0,
    "timings": _are_timings,
}
"""What a profile file has to hold, since people may have edited it."""
