"""OpenVINO, which is an extra."""

from __future__ import annotations

import time
from collections import defaultdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

from obc_onnx.engines.engine import Engine, Layer, Loaded, midmean
from obc_onnx.engines.naming import Naming
from obc_onnx.errors import EngineError, InstallationError

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.engines.engine import Feed
    from obc_onnx.engines.options import EngineOptions

_CPU = "CPU"
_LAYER_RUNS = 15
_RUN = "EXECUTED"
_ORIGINALS = "originalLayersNames"
"""Where OpenVINO notes which nodes one of its own was made of."""


class OpenVino(Engine):
    """OpenVINO, on any of its devices.

    Raises:
        InstallationError: It is not installed.
    """

    name = "openvino"

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        try:
            self._openvino: Any = import_module("openvino")
        except ImportError as error:
            raise InstallationError(
                f"engine 'openvino' needs OpenVINO, which cannot be imported ({error}): run pip "
                f"install 'obc-onnx[openvino]', or use another `EngineOptions.engine`"
            ) from error

    def load(self, model: Path, feed: Feed, folder: Path) -> Loaded:  # noqa: ARG002
        """Compile for the shapes of the feed."""
        return _Compiled(self._openvino, model, feed, self.options)


class _Compiled(Loaded):
    """A compiled model, and what it is fed."""

    def __init__(self, openvino: Any, model: Path, feed: Feed, options: EngineOptions) -> None:
        self.version = str(openvino.__version__)
        self._model, self._feed, self._options = model, dict(feed), options
        self._place = options.device or _CPU
        self._core = openvino.Core()
        self._request = self._compiled(counts=False).create_infer_request()
        self.device = str(self._core.get_property(self._place, "FULL_DEVICE_NAME"))

    def turn_seconds(self) -> float:
        """Make one run."""
        start = time.perf_counter()
        self._run(self._request)
        return time.perf_counter() - start

    def layers(self) -> list[Layer]:
        """Read the profiling information of some runs of the graph that is executed."""
        compiled = self._compiled(counts=True)
        request = compiled.create_infer_request()
        self._run(request)
        times: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(_LAYER_RUNS):
            self._run(request)
            for info in request.profiling_info:
                if info.status.name == _RUN:  # what was fused away is told of too
                    times[info.node_name].append(1e3 * info.real_time.total_seconds())
        originals = {op.friendly_name: _originals(op) for op in _executed(compiled)}
        return Naming(self._model).layers(
            (originals.get(name, [name]), midmean(own)) for name, own in times.items()
        )

    def _compiled(self, *, counts: bool) -> Any:
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        settings |= {"PERF_COUNT": "YES"} if counts else {}
        threads = self._options.threads
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads is not None else {}
        try:
            model = self._core.read_model(str(self._model))
            model.reshape({name: list(array.shape) for name, array in self._feed.items()})
            return self._core.compile_model(model, self._place, settings)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot load the model for {self._place}: {error}"
            ) from error

    def _run(self, request: Any) -> None:
        try:
            request.infer(self._feed)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run the model: {error}") from error


def _executed(compiled: Any) -> list[Any]:
    operations: list[Any] = compiled.get_runtime_model().get_ordered_ops()
    return operations


def _originals(operation: Any) -> list[str]:
    """List the nodes that an executed one was made of, as OpenVINO notes them."""
    noted = operation.get_rt_info()
    names = str(noted[_ORIGINALS].value).split(",") if _ORIGINALS in noted else []
    return names if any(names) else [operation.friendly_name]
