"""ONNX Runtime, with any execution provider."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.engines.engine import WARM_UP_SECONDS, Engine, Layer, Loaded, midmean, processor
from obc_onnx.engines.naming import Naming
from obc_onnx.errors import EngineError
from obc_onnx.graph.runtime import (
    CPU,
    InferenceSession,
    SessionOptions,
    available_providers,
    optimization_level,
    run_refusals,
    runtime_version,
    session_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.engines.engine import Feed
    from obc_onnx.engines.options import EngineOptions

_KERNEL = "_kernel_time"
_RUN = "model_run"
_SUFFIX, _PREFIX = "_nchwc", "fused "
"""What ONNX Runtime adds to the names of nodes that it has rewritten."""
_LAYER_SECONDS, _FEWEST_RUNS = 0.5, 5
"""How long single nodes are timed, and in how many runs at least."""


class OnnxRuntime(Engine):
    """ONNX Runtime, as it is installed here."""

    name = "onnxruntime"

    def load(self, model: Path, feed: Feed, folder: Path) -> Loaded:
        """Open a session."""
        provider = self.options.provider or CPU
        known = available_providers()
        if provider not in known:
            raise EngineError(
                f"ONNX Runtime {runtime_version()} has no '{provider}' here: there are "
                f"{', '.join(known)}; install the package of ONNX Runtime for it"
            )
        return _Session(model, feed, folder, self.options)


class _Session(Loaded):
    """A session, and what it is fed."""

    def __init__(self, model: Path, feed: Feed, folder: Path, options: EngineOptions) -> None:
        self.version, self.device = runtime_version(), processor()
        self._model, self._feed, self._folder, self._options = model, feed, folder, options
        self._session = self._open(self._settings())

    def turn_seconds(self) -> float:
        """Make one run."""
        start = time.perf_counter()
        self._run(self._session)
        return time.perf_counter() - start

    def layers(self) -> list[Layer]:
        """Read what ONNX Runtime's profiler writes of some runs.

        Source: its documentation, "Profiling tools": events in the format of Chrome's traces, of
        category "Node", with durations in microseconds.
        """
        settings = self._settings()
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self._folder / "profile")
        session = self._open(settings)
        start = time.perf_counter()
        warm = runs = 0
        while runs < _FEWEST_RUNS or time.perf_counter() - start < WARM_UP_SECONDS + _LAYER_SECONDS:
            self._run(session)
            if time.perf_counter() - start < WARM_UP_SECONDS and runs < _FEWEST_RUNS:
                warm += 1
            else:
                runs += 1
        path = Path(session.end_profiling())
        found = layers_in(self._model, path, warm)
        path.unlink()
        return found

    def _settings(self) -> SessionOptions:
        asked = self._options
        settings = session_options(optimize=True)
        settings.graph_optimization_level = optimization_level(asked.optimization or "all")
        if asked.threads is not None:
            settings.intra_op_num_threads = asked.threads
        return settings

    def _open(self, settings: SessionOptions) -> InferenceSession:
        asked = self._options
        provider = asked.provider or CPU
        providers = [(provider, dict(asked.provider_options))]
        try:
            session = InferenceSession(str(self._model), settings, providers)
        except run_refusals() as error:
            raise EngineError(f"ONNX Runtime cannot load the model: {error}") from error
        if provider not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime fell back from '{provider}' to "
                f"{', '.join(session.get_providers())}: its libraries are not found, or an option "
                f"is wrong; `EngineOptions.provider` '{CPU}' is always there"
            )
        return session

    def _run(self, session: InferenceSession) -> None:
        try:
            session.run(None, dict(self._feed))
        except run_refusals() as error:
            raise EngineError(f"ONNX Runtime cannot run the model: {error}") from error


def layers_in(model: Path, trace: Path, warm: int) -> list[Layer]:
    """Read the times of layers, and which nodes of a model they are.

    Args:
        model: The file.
        trace: What ONNX Runtime's profiler wrote of its runs.
        warm: How many of the first runs do not count.
    Raises:
        EngineError: The trace is missing or torn.
    """
    try:
        times = kernel_times(json.loads(trace.read_text(encoding="utf-8")), warm)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"'{trace}' is no trace of ONNX Runtime's profiler, or torn") from error
    naming = Naming(model)
    return naming.layers(([_plain(name, naming)], ms) for name, ms in times.items())


def kernel_times(events: Iterable[Mapping[str, Any]], warm: int) -> dict[str, float]:
    """Return the milliseconds of each kernel in one run, see `engine.midmean`.

    Args:
        events: What the profiler wrote.
        warm: How many of the first runs do not count.
    """
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == _RUN)[warm:]
    starts, ends = (np.asarray([run[side] for run in runs]) for side in (0, 1))
    found: dict[str, NDArray[np.float64]] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith(_KERNEL):
            continue
        place = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if place >= 0 and event["ts"] <= ends[place]:
            name = event["name"].removesuffix(_KERNEL)
            found.setdefault(name, np.zeros(len(runs)))[place] += event["dur"]
    return {name: midmean(times) / 1e3 for name, times in found.items()}


def _plain(name: str, naming: Naming) -> str:
    """Return the name of a node without what ONNX Runtime may have added."""
    trials = (name, name.removesuffix(_SUFFIX), name.removeprefix(_PREFIX))
    return next((trial for trial in trials if naming.key(trial) is not None), name)
