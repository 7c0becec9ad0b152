"""What may be asked of an engine, and which of that each one takes.

Loads nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

USES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("provider", "provider_options", "threads", "optimization"),
    "openvino": ("device", "threads"),
    "trtexec": ("command",),
    "command": ("command", "answer"),
}
"""Engines by name, and the fields of `EngineOptions` that each one looks at."""
OPTIMIZATIONS = ("none", "basic", "extended", "all")
"""Levels of ONNX Runtime's rewriting of graphs."""


@dataclass(frozen=True)
class EngineOptions:
    """Which engine times models, and how; None leaves the engine its default.

    Attributes:
        engine: "onnxruntime", "openvino", "trtexec" or "command".
        provider: Execution provider of ONNX Runtime, such as "CUDAExecutionProvider".
        provider_options: Its options by name.
        threads: Threads that compute one run.
        optimization: How far ONNX Runtime rewrites the graph: "none", "basic", "extended", "all".
        device: Device of OpenVINO, such as "CPU" or "GPU".
        command: The program of the engines "trtexec" and "command", with its arguments; "{model}"
            and "{shapes}" stand for the file, and for the inputs as x:1x3x224x224,y:1x8.
        answer: Where the milliseconds are in the JSON that the program prints, as
            results.0.latency_ms; the last number that it prints where nothing is said.
    """

    engine: str = "onnxruntime"
    provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    optimization: str | None = None
    device: str | None = None
    command: str | None = None
    answer: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in USES:
            raise RequestError(
                f"`EngineOptions.engine` '{self.engine}' is not known: choose from "
                f"{', '.join(USES)}"
            )
        for name, holds in _HOLDS.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise RequestError(f"`EngineOptions.{name}` cannot be {value!r}: {_MEANING[name]}")
        ignored = [f"`EngineOptions.{name}`" for name in self.given if name not in self.uses]
        if ignored:
            raise RequestError(
                f"engine '{self.engine}' does not look at {', '.join(ignored)}: leave that out, or "
                f"use another `EngineOptions.engine`"
            )
        if self.provider_options and self.provider is None:
            raise RequestError(
                "`EngineOptions.provider_options` are of one provider: name it with "
                "`EngineOptions.provider`"
            )
        if self.engine == "command" and "{model}" not in (self.command or ""):
            raise RequestError(
                "engine 'command' runs a program of yours: give `EngineOptions.command`, with "
                "{model} where the file is named, such as 'bench {model}'"
            )

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields that the engine looks at."""
        return USES[self.engine]

    @property
    def given(self) -> dict[str, Any]:
        """What was said besides the name of the engine, as plain data."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "engine"}
        return {name: value for name, value in said.items() if value not in (None, {})}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(text, str) for name, text in value.items()
    )


_HOLDS: dict[str, Callable[[Any], bool]] = {
    "provider": _is_text,
    "provider_options": _are_texts,
    "threads": lambda value: type(value) is int and value >= 1,
    "optimization": lambda value: value in OPTIMIZATIONS,
    "device": _is_text,
    "command": _is_text,
    "answer": _is_text,
}
_TEXT = "it is a text"
_MEANING = {
    "provider": _TEXT,
    "provider_options": "it has a text for each name",
    "threads": "it is a whole number of at least 1",
    "optimization": f"choose from {', '.join(OPTIMIZATIONS)}",
    "device": _TEXT,
    "command": _TEXT,
    "answer": _TEXT,
}
