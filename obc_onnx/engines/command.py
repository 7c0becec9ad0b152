"""Any program that prints milliseconds."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import TYPE_CHECKING, Any

from obc_onnx.engines.engine import PROGRAM_TURNS, Engine, Loaded, processor, shapes_text
from obc_onnx.engines.programs import last_line, run_program
from obc_onnx.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.engines.engine import Feed

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]*\d)")


class Command(Engine):
    """A program of the user's."""

    name = "command"

    def load(self, model: Path, feed: Feed, folder: Path) -> Loaded:  # noqa: ARG002
        """Note what to run."""
        return _Program(self.options.command or "", self.options.answer, model, feed)


class _Program(Loaded):
    """A program and the model that it times; it warms up by itself."""

    fewest_turns = PROGRAM_TURNS

    def __init__(self, command: str, answer: str | None, model: Path, feed: Feed) -> None:
        self.version, self.device = "", processor()
        places = {"{model}": str(model), "{shapes}": shapes_text(feed)}
        self._arguments = [_filled(word, places) for word in shlex.split(command)]
        self._answer = answer

    def warm_up(self) -> None:
        """Leave that to the program."""

    def turn_seconds(self) -> float:
        """Run the program once, and read its milliseconds."""
        said = run_program(self._arguments, "time the model")
        ms = last_number(said) if self._answer is None else number_at(said, self._answer)
        if not (math.isfinite(ms) and ms > 0):
            raise EngineError(f"'{self._arguments[0]}' printed {ms:g}, which is no time in ms")
        return ms / 1e3


def last_number(text: str) -> float:
    """Read the last number that a program printed.

    Raises:
        EngineError: There is none.
    """
    numbers = _NUMBER.findall(text)
    if not numbers:
        raise EngineError(
            f"the program printed no number, but '{last_line(text)}': let it print milliseconds "
            f"last"
        )
    return float(numbers[-1])


def number_at(text: str, path: str) -> float:
    """Read a number out of the JSON object or list that a program printed.

    Args:
        text: What it printed; lines in front of the JSON are passed over.
        path: Keys and places, as results.0.latency_ms.
    Raises:
        EngineError: There is no JSON, or no number there.
    """
    found = _json_in(text)
    for key in path.split("."):
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            there = list(found)[:5] if isinstance(found, dict) else type(found).__name__
            raise EngineError(
                f"the JSON of the program has no '{key}' of `EngineOptions.answer` '{path}': there "
                f"is {there}"
            )
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise EngineError(
            f"`EngineOptions.answer` '{path}' leads to no number in the JSON of the program, but "
            f"to a {type(found).__name__}"
        ) from error


def _json_in(text: str) -> Any:
    """Return the first object or list of JSON in a text."""
    decoder = json.JSONDecoder()
    for place in (match.start() for match in re.finditer(r"^\s*[\[{]", text, re.MULTILINE)):
        try:
            return decoder.raw_decode(text[place:].lstrip())[0]
        except ValueError:
            continue
    raise EngineError(f"the program printed no JSON, but '{last_line(text)}'")


def _filled(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word
