"""TensorRT, by its own program trtexec.

Sources: samples/common/sampleReporting.cpp and samples/trtexec of github.com/NVIDIA/TensorRT for
flags and files; its migration guide for what version 11 left out.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.engines.engine import PROGRAM_TURNS, Engine, Layer, Loaded, shapes_text
from obc_onnx.engines.naming import Naming
from obc_onnx.engines.programs import last_line, run_program
from obc_onnx.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from obc_onnx.engines.engine import Feed

_OLDEST = 10
"""Major version from which the files that are read here are known."""
_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_DEVICE = re.compile(r"Selected Device: (.+)")
_ERROR = re.compile(r"\[E\] (.+)")
_TURN = ("--warmUp=200", "--duration=1", "--iterations=20")
"""Milliseconds before times count, seconds and runs that are timed at least."""
_IN_METADATA = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_BETWEEN = " + "
"""What stands between the names of nodes that became one layer."""
_OLD_SCHEME = 10_000
"""Up to version 9 a number is 1000 times the major version, and 10000 times it from there on."""
_NAN = re.compile(r"(:\s*)-?nan\b")
"""As C++ writes what JSON writes as NaN."""


class Trtexec(Engine):
    """TensorRT: builds an engine once, and times it with trtexec."""

    name = "trtexec"

    def load(self, model: Path, feed: Feed, folder: Path) -> Loaded:
        """Build the engine of a model."""
        return _Built(shlex.split(self.options.command or "trtexec"), model, feed, folder)


class _Built(Loaded):
    """An engine that was built, and what it is fed."""

    fewest_turns = PROGRAM_TURNS

    def __init__(self, command: Sequence[str], model: Path, feed: Feed, folder: Path) -> None:
        self._command, self._model, self._folder = command, model, folder
        files = {name: folder / f"input{place}.bin" for place, name in enumerate(feed)}
        for name, path in files.items():
            path.write_bytes(feed[name].tobytes())
        self._flags = Flags(open_shapes(model, feed), files)
        said = run_program(
            [*command, *self._flags.building(model, folder)],
            f"build the engine of '{model.name}'",
            _reason,
        )
        self.version, self.device = version_and_device(said, command[0])

    def warm_up(self) -> None:
        """Leave that to trtexec."""

    def turn_seconds(self) -> float:
        """Run trtexec once; the time is what the device computes, without copies."""
        path = self._folder / "times.json"
        self._run(path, self._flags.timing(self._folder, path))
        return seconds_in(path)

    def layers(self) -> list[Layer]:
        """Read the times of layers in a run of their own, and which nodes they are."""
        path = self._folder / _PROFILE
        self._run(path, self._flags.profiling(self._folder))
        return layers_in(self._model, self._folder)

    def _run(self, path: Path, flags: Sequence[str]) -> None:
        """Run the engine, which writes a file; one of an earlier run is not to be read for it."""
        path.unlink(missing_ok=True)
        run_program([*self._command, *flags], f"time '{self._model.name}'", _reason)


@dataclass(frozen=True)
class Flags:
    """What trtexec is called with.

    Attributes:
        shapes: Of inputs with open axes, see `open_shapes`.
        inputs: The file of raw bytes of each input.
    """

    shapes: str
    inputs: Mapping[str, str | Path]

    def building(self, model: str | Path, folder: str | Path) -> list[str]:
        """Build the engine of a model, and tell its layers."""
        return [
            f"--onnx={model}",
            f"--saveEngine={folder}/{_PLAN}",
            *(f"--{bound}Shapes={self.shapes}" for bound in _BOUNDS if self.shapes),
            "--skipInference",
            "--profilingVerbosity=detailed",
            f"--exportLayerInfo={folder}/{_LAYERS}",
        ]

    def timing(self, folder: str | Path, times: str | Path) -> list[str]:
        """Time the engine in a folder, and write times."""
        return [*self._running(folder), f"--exportTimes={times}"]

    def profiling(self, folder: str | Path) -> list[str]:
        """Time the layers of the engine in a folder, in a run of their own."""
        profile = f"--exportProfile={folder}/{_PROFILE}"
        return ["--separateProfileRun", *self._running(folder), profile]

    def _running(self, folder: str | Path) -> list[str]:
        named = ",".join(f"{name}:{path}" for name, path in self.inputs.items())
        shapes = [f"--shapes={self.shapes}"] if self.shapes else []
        return [*shapes, f"--loadEngine={folder}/{_PLAN}", f"--loadInputs={named}", *_TURN]


_BOUNDS = ("min", "opt", "max")
"""Of the shapes that an engine is built for."""
_PLAN, _LAYERS, _PROFILE = "model.plan", "layers.json", "profile.json"
"""Files of one engine."""


def seconds_in(path: Path) -> float:
    """Read what `--exportTimes` wrote: the median time that the device computes, without copies.

    Raises:
        EngineError: It is missing, torn, or of another version.
    """
    times = [_number(entry, "computeMs", path) for entry in _read_list(path)]
    if not times:
        raise EngineError(f"trtexec wrote no times into '{path.name}'")
    return float(np.median(times)) / 1e3


def layers_in(model: Path, folder: Path) -> list[Layer]:
    """Read the times of layers, and which nodes of a model they are.

    Args:
        model: The file.
        folder: Where trtexec wrote what `Flags.building` and `Flags.profiling` ask for.
    Raises:
        EngineError: A file is missing, torn, or of another version.
    """
    path = folder / _PROFILE
    entries = [entry for entry in _read_list(path) if "name" in entry]
    nodes = layer_nodes(_read(folder / _LAYERS))
    times = []
    for entry in entries:
        ms = _number(entry, "medianMs", path)
        name = str(entry["name"])
        times.append((nodes.get(name, name.split(_BETWEEN)), 0.0 if np.isnan(ms) else ms))
    return Naming(model).layers(times)


def layer_nodes(info: Any) -> dict[str, list[str]]:
    """Return the nodes of each layer by its name.

    Args:
        info: What `--exportLayerInfo` wrote with detailed verbosity.
    Raises:
        EngineError: It was written without, or is no such file.
    """
    layers = info.get("Layers") if isinstance(info, dict) else None
    if not isinstance(layers, list):
        raise EngineError("trtexec wrote layer information without 'Layers': update TensorRT")
    if not all(isinstance(layer, dict) and "Name" in layer for layer in layers):
        raise EngineError(
            "trtexec wrote layers without details: leave --profilingVerbosity out of "
            "`EngineOptions.command`"
        )
    found = {}
    for layer in layers:
        noted = _IN_METADATA.findall(str(layer.get("Metadata", "")))
        found[str(layer["Name"])] = noted or str(layer["Name"]).split(_BETWEEN)
    return found


def _reason(said: str) -> str:
    """Return the first error that trtexec logged: others follow from it."""
    found = _ERROR.search(said)
    return found[1].strip() if found else last_line(said)


def version_and_device(said: str, program: str) -> tuple[str, str]:
    """Read what trtexec begins with.

    Raises:
        EngineError: It is not trtexec, or too old.
    """
    found = _DEVICE.search(said)
    device = found[1].strip() if found else "a device that trtexec does not name"
    return _version(said, program), device


def _version(said: str, program: str) -> str:
    """Read the version out of what trtexec begins with, as [TensorRT v101300] or v8601.

    Raises:
        EngineError: There is none, or it is too old.
    """
    found = _BANNER.search(said)
    if found is None:
        raise EngineError(
            f"'{program}' does not say that it is trtexec: give its path with "
            f"`EngineOptions.command`"
        )
    number = int(found[1])
    step = 100 * (100 if number >= _OLD_SCHEME else 10)
    major, rest = divmod(number, step)
    version = f"{major}.{rest // 100}.{rest % 100}"
    if major < _OLDEST:
        raise EngineError(
            f"'{program}' is of TensorRT {version}, and {_OLDEST} is needed: its files are others"
        )
    return version


def open_shapes(model: Path, feed: Feed) -> str:
    """Write the shapes of those inputs that have open axes: trtexec takes no others."""
    graph = onnx.load(model, load_external_data=False).graph
    is_open = {
        port.name: not all(size.HasField("dim_value") for size in port.type.tensor_type.shape.dim)
        for port in graph.input
    }
    return shapes_text({name: array for name, array in feed.items() if is_open.get(name)})


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        return json.loads(_NAN.sub(r"\1NaN", text), strict=False)
    except OSError as error:
        raise EngineError(f"trtexec did not write '{path.name}'") from error
    except ValueError as error:
        raise EngineError(f"trtexec wrote '{path.name}', which is no JSON: {error}") from error


def _read_list(path: Path) -> list[dict[str, Any]]:
    found = _read(path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise EngineError(f"trtexec wrote '{path.name}', which is no list of objects")
    return found


def _number(entry: Mapping[str, Any], field: str, path: Path) -> float:
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EngineError(
            f"trtexec wrote '{path.name}' without a number '{field}': it is of a version that is "
            f"not known here"
        )
    return float(value)
