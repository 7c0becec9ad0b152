"""Which groups may lose units, and how narrow each may get: what is asked for, and files of it.

Loads nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BLOCKS = (8, 4, 2, 1)
"""Multiples of channels for widths that shrink; the first with which the targets can be met.

Convolutions of ONNX Runtime work on blocks of 8 or 16 channels and leave that layout where a width
is no multiple; tensor cores take multiples of 8.
"""
AUTO: Final = "auto"
"""In place of a multiple: each group has the one at which the times of a profile step."""
MIN_CHANNELS = 1 / 8
"""Share of its units that a group keeps."""
RUNTIMES = {
    # Convolutions are laid out in blocks of 8 channels with AVX2, 16 with AVX-512, and a width that
    # is no multiple leaves that layout: `NchwcBlockSize` in onnxruntime/core/mlas/lib/platform.cpp.
    "onnxruntime-cpu": 8,
    # oneDNN pads to its blocked layouts, such as nChw8c: its guide to memory formats.
    "openvino": 8,
    # Tensor cores take multiples of 8 in FP16 and of 16 in INT8, and others are padded: TensorRT's
    # guide to best practices, "Optimizing for Tensor Cores".
    "tensorrt-fp16": 8,
    # ModelOpt leaves most convolutions with fewer than 16 channels in or out in float too:
    # modelopt/onnx/quantization/graph_utils.py.
    "tensorrt-int8": 16,
}
"""Of how many channels widths have to be a multiple, by what the model is to run on.

That holds along every weight axis, the parts of a concatenation and the channels of one block of a
grouped convolution included; no group gets narrower than one such multiple.
"""


@dataclass(frozen=True)
class Limits:
    """What the groups of one pattern may become; None says nothing.

    Attributes:
        min: Least width, an int; or a float, the share of the units in (0, 1].
        max: Largest width, in the same way: wider groups are cut whatever the budget says.
        round_to: Widths that shrink stay a multiple of this, in channels.
        keep: Whether they stay whole.
    """

    min: float | None = None
    max: float | None = None
    round_to: int | None = None
    keep: bool | None = None

    def __post_init__(self) -> None:
        for key, holds in _HOLDS.items():
            value = getattr(self, key)
            if value is not None and not holds(value):
                raise RequestError(f"{key} = {value} is none of: {_MEANING[key]}")

    def over(self, other: Limits) -> Limits:
        """Return these limits, and those of `other` where these say nothing."""
        own = {key: value for key, value in vars(self).items() if value is not None}
        return Limits(**{**vars(other), **own})


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_width(value: Any) -> bool:
    return _is_count(value) or (type(value) is float and 0 < value <= 1)


_HOLDS: dict[str, Callable[[Any], bool]] = {
    "min": _is_width,
    "max": _is_width,
    "round_to": _is_count,
    "keep": lambda value: type(value) is bool,
}


_WIDTH = "a number of units such as 8, a share in (0, 1] such as 0.25"


_MEANING = {"min": _WIDTH, "max": _WIDTH, "round_to": "a number above 0", "keep": "true, false"}


@dataclass(frozen=True)
class Config:
    """What a file says.

    Attributes:
        options: What stands outside of tables, by its key.
        limits: The tables, by the pattern of names that each is for.
    """

    options: dict[str, Any]
    limits: dict[str, Limits]


def read_config(path: str | Path) -> Config:
    """Read a file of limits and of options.

    Raises:
        RequestError: It is missing, no TOML, or a table has a key or a value that is not known.
    """
    import tomllib  # help waits for nothing that it does not need

    from obc_onnx.files import check_regular

    check_regular(Path(path), "config", RequestError)
    try:
        said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise RequestError(f"config '{path}' is nested too deeply to be read as TOML") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"config '{path}' cannot be read as TOML: {error}") from error
    tables = {key: value for key, value in said.items() if isinstance(value, dict)}
    options = {key: value for key, value in said.items() if key not in tables}
    return Config(options, {key: _limits(path, key, table) for key, table in tables.items()})


def _limits(path: str | Path, pattern: str, table: dict[str, Any]) -> Limits:
    for key, value in table.items():
        if key not in _HOLDS:
            hint = ": put quotes around the pattern" if isinstance(value, dict) else ""
            raise RequestError(
                f"config '{path}' has an unknown key '{key}' for '{pattern}'{hint}; there are "
                f"{', '.join(_HOLDS)}"
            )
    try:
        return Limits(**table)
    except RequestError as error:
        raise RequestError(f"config '{path}', '{pattern}': {error}") from error


@dataclass(frozen=True)
class Scope:
    """Which groups may lose units, and how narrow each may get.

    Attributes:
        exclude: Patterns of names; groups that a matching node or initializer touches stay whole.
        only: Patterns of names; only groups that a matching node or initializer touches may shrink.
        allow_inexact: Whether groups may shrink over which a statistic is taken, such as the mean
            in a layer norm: that changes more than the removed units.
        round_to: Widths that shrink stay a multiple of this many channels, along weight axes:
            runtimes work in blocks. "auto" takes, for each group, the blocks that a profile tells.
            None is 8, or less where the targets cannot be met with it.
        runtime: In place of `round_to`, what the model is to run on: "onnxruntime-cpu", "openvino",
            "tensorrt-fp16" or "tensorrt-int8".
        min_channels: No group is cut to fewer units, an int, or to a smaller share of its units, a
            float in (0, 1]; with `round_to`, to the next multiple. None is an eighth.
        limits: Of the groups that a pattern of names touches; later ones go before earlier ones.
    """

    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    allow_inexact: bool = False
    round_to: int | Literal["auto"] | None = None
    min_channels: float | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)
    runtime: str | None = None

    def __post_init__(self) -> None:
        Limits(min=self.min_channels, round_to=self._asked)  # checks both
        if self.runtime is None:
            return
        if self.runtime not in RUNTIMES:
            raise RequestError(
                f"`Scope.runtime` '{self.runtime}' is not known: choose from {', '.join(RUNTIMES)}"
            )
        if self.round_to is not None:
            raise RequestError(
                f"`Scope.runtime` says that widths are multiples of {RUNTIMES[self.runtime]}: "
                f"leave `Scope.round_to` out, or the other"
            )

    @property
    def multiple(self) -> int | None:
        """Of how many channels widths have to be a multiple; None where nobody says it."""
        if self.runtime is not None:
            return RUNTIMES[self.runtime]
        return self._asked

    @property
    def _asked(self) -> int | None:
        return None if self.round_to == AUTO else self.round_to
