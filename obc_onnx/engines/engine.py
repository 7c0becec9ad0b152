"""What every engine offers: load a file, warm up, time runs, and time nodes where it can."""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from obc_onnx.engines.options import EngineOptions

    Feed = Mapping[str, NDArray[Any]]

WARM_UP_SECONDS = 0.3
"""Caches fill, memory is laid out, and clocks of processors rise."""
PROGRAM_TURNS = 3
"""Turns of a program, each of which makes many runs and takes seconds."""
_CPU_INFO = Path("/proc/cpuinfo")
_CPU_NAME = "model name"


@dataclass(frozen=True)
class Layer:
    """What an engine runs as one.

    Attributes:
        nodes: First outputs of the nodes of the file that it computes; none where the engine put it
            in by itself, such as a change of layout.
        ms: Milliseconds of one run.
    """

    nodes: tuple[str, ...]
    ms: float


class Loaded(ABC):
    """A model that an engine has loaded, with what it is fed.

    Attributes:
        version: Of the engine; empty for a program that tells none.
        device: What runs it.
        fewest_turns: How many turns tell a median; a program makes many runs in one.
    """

    version: str
    device: str
    fewest_turns: ClassVar[int] = 15

    @abstractmethod
    def turn_seconds(self) -> float:
        """Return the seconds of one run, measured now.

        An engine within this process makes one run. A program makes as many as it is used to, and
        this is their median.

        Raises:
            EngineError: The model does not run.
        """

    def warm_up(self) -> None:
        """Run until `WARM_UP_SECONDS` have passed, once at least."""
        start = time.perf_counter()
        while True:
            self.turn_seconds()
            if time.perf_counter() - start >= WARM_UP_SECONDS:
                return

    def layers(self) -> list[Layer] | None:
        """Time the parts of a run; None where the engine tells none.

        Raises:
            EngineError: What the engine tells cannot be read.
        """
        return None


class Engine(ABC):
    """A runtime. Classes of engines are named in `engines.table`.

    Args:
        options: What was asked for; the fields that the engine does not use are empty.
    """

    name: ClassVar[str]

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @abstractmethod
    def load(self, model: Path, feed: Feed, folder: Path) -> Loaded:
        """Load a model.

        Args:
            model: The file.
            feed: An array for each input; the shapes are those that the engine prepares for.
            folder: An empty one for what the engine writes, which has to outlive the result.
        Raises:
            EngineError: The engine is not there, or does not take the model.
        """


def midmean(times: ArrayLike) -> float:
    """Return the mean of the middle half of times.

    Profilers count whole microseconds, of which a median would be one.
    """
    ordered = np.sort(np.asarray(times, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def shapes_text(feed: Feed) -> str:
    """Write shapes as programs take them: x:1x3x224x224,y:1x8."""
    return ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in feed.items())


def processor() -> str:
    """Return the name of this machine's processor."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(_CPU_NAME):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
