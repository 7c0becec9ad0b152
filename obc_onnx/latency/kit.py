"""A kit for another machine: what is timed there, the scripts that do so, and what they wrote."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.engines.onnx_runtime import layers_in as traced_layers
from obc_onnx.engines.options import EngineOptions
from obc_onnx.engines.trtexec import (
    Flags,
    layers_in,
    open_shapes,
    seconds_in,
    version_and_device,
)
from obc_onnx.errors import EngineError, RequestError
from obc_onnx.files import file_sha256
from obc_onnx.latency.board import TURNS, onnxruntime_script, trtexec_script
from obc_onnx.latency.designs import keep_of
from obc_onnx.latency.measure import timing_of, write_named
from obc_onnx.latency.profile import Profile, Timing
from obc_onnx.measuring.latency import Race
from obc_onnx.progress import track
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.engines.engine import Feed

KIT = "kit.json"
"""What a kit has that nothing else has."""
FORMAT = 1
_NUMBERS = "biufc"
"""Kinds of arrays that are raw bytes in a file."""
SCRIPTS = {"onnxruntime": "time_onnxruntime.py", "trtexec": "time_trtexec.sh"}
"""What times in each engine that a kit knows; its answers lie in a folder of the engine's name."""


@dataclass(frozen=True)
class Kit:
    """What a folder holds.

    Attributes:
        model_sha256: Of the model.
        shapes: Of the inputs that it is timed on.
        inputs: Of each input its file and its type.
        round_to: Of how many channels widths are a multiple.
        seed: Of the designs.
        designs: The widths of each; the first is the whole model, and has none.
        files: The SHA-256 of each file that scripts read.
    """

    model_sha256: str
    shapes: dict[str, list[int]]
    inputs: dict[str, dict[str, str]]
    round_to: int
    seed: int
    designs: list[dict[str, int]]
    files: dict[str, str]
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path) -> Kit:
        """Read what a folder holds.

        Raises:
            RequestError: It is no kit, or was changed.
        """
        path = folder / KIT
        if not path.is_file():
            raise RequestError(f"'{folder}' is no kit: it has no '{KIT}'")
        found = _json(path)
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or found.keys() != names or found["format"] != FORMAT:
            raise RequestError(f"'{path}' is not of a kit of format {FORMAT}: write the kit again")
        return cls(**found)


def write_kit(
    coupling: Coupling,
    designs: Sequence[Mapping[str, int]],
    feed: Feed,
    folder: Path,
    *,
    round_to: int,
    seed: int,
) -> None:
    """Write designs of a model, what they are fed, and scripts that time them.

    Args:
        coupling: Of the model.
        designs: Widths of groups, for each design.
        feed: An array for each input.
        folder: An empty one.
        round_to: Of how many channels widths are a multiple, for the record.
        seed: Of the designs, for the record.
    Raises:
        RequestError: An input holds no numbers.
    """
    inputs = {}
    for place, (name, array) in enumerate(feed.items()):
        if array.dtype.kind not in _NUMBERS:
            raise RequestError(f"input '{name}' holds no numbers, and a kit has files of raw ones")
        inputs[name] = {"file": f"input{place}.bin", "dtype": array.dtype.name}
        (folder / inputs[name]["file"]).write_bytes(array.tobytes())
    widths = [{}, *map(dict, designs)]
    for place, own in enumerate(track(widths, "writing designs")):
        write_named(remove_units(coupling, keep_of(coupling, own)), folder / _design(place))
    files = sorted(path.name for path in folder.iterdir())
    kit = Kit(
        model_sha256=coupling.graph.sha256,
        shapes={name: list(array.shape) for name, array in feed.items()},
        inputs=inputs,
        round_to=round_to,
        seed=seed,
        designs=widths,
        files={name: file_sha256(folder / name) for name in files},
    )
    text = json.dumps(asdict(kit), indent=1, sort_keys=True) + "\n"
    (folder / KIT).write_text(text, encoding="utf-8")
    flags = Flags(
        open_shapes(folder / _design(0), feed), {name: own["file"] for name, own in inputs.items()}
    )
    numbers = [f"{place:02}" for place in range(len(widths))]
    scripts = {
        "onnxruntime": onnxruntime_script(),
        "trtexec": trtexec_script(flags, numbers, [KIT, *files]),
    }
    for engine, script in scripts.items():
        (folder / SCRIPTS[engine]).write_text(script, encoding="utf-8")


def read_kit(folder: Path, engine: str) -> Profile:
    """Read what a script wrote.

    Args:
        folder: The kit, with what was written into it on another machine.
        engine: Which script: "onnxruntime" or "trtexec".
    Raises:
        RequestError: Something is missing, half written, or of another kit.
        EngineError: What the engine wrote cannot be read.
    """
    kit = Kit.load(folder)
    if engine not in _READERS:
        raise RequestError(f"a kit is timed in {' or '.join(_READERS)}, and not in '{engine}'")
    there = [name for name in _READERS if (folder / name).is_dir()]
    if engine not in there:
        more = f"; there are those of {', '.join(there)}: name it with `engine`" if there else ""
        raise RequestError(
            f"'{folder}' has no times of {engine}: run '{SCRIPTS[engine]}' in it on the machine "
            f"that is to be profiled, and bring the folder back{more}"
        )
    for name, digest in kit.files.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise RequestError(f"'{folder / name}' is missing or was changed: write the kit again")
    return _READERS[engine](folder, kit)


def _from_onnxruntime(folder: Path, kit: Kit) -> Profile:
    own = folder / "onnxruntime"
    _check_finished(own / "times.json", "onnxruntime")
    found = _json(own / "times.json")
    try:
        _check_files(folder, kit, found["files"], "onnxruntime")
        races = [_race(race["before"], race["after"]) for race in found["races"]]
        traced_from, version, device = found["traced_from"], found["version"], found["device"]
        options = EngineOptions("onnxruntime", **found["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise _changed(own / "times.json") from error
    if len(races) != len(kit.designs):
        raise _changed(own / "times.json")
    timings = [
        timing_of(
            widths,
            race,
            traced_layers(
                folder / _design(place), own / f"design{place:02}.trace.json", traced_from
            ),
        )
        for place, (widths, race) in enumerate(zip(kit.designs, races, strict=True))
    ]
    return _profile(kit, options, version, device, timings)


def _from_trtexec(folder: Path, kit: Kit) -> Profile:
    own = folder / "trtexec"
    _check_finished(own / "done", "trtexec")
    command = _text(own / "command").strip()
    lines = (line.split(maxsplit=1) for line in _text(own / "files.sha256").splitlines())
    digests = {line[1].lstrip("*"): line[0] for line in lines if len(line) > 1}
    _check_files(folder, kit, digests, "trtexec")
    version, device = version_and_device(_text(own / "00" / "build.log"), command)
    timings = []
    for place, widths in enumerate(kit.designs):
        part = own / f"{place:02}"
        before, after = (
            [seconds_in(part / f"{side}{turn}.json") for turn in TURNS]
            for side in ("before", "after")
        )
        layers = layers_in(folder / _design(place), part)
        timings.append(timing_of(widths, _race(before, after), layers))
    return _profile(kit, EngineOptions("trtexec", command=command), version, device, timings)


_READERS: dict[str, Callable[[Path, Kit], Profile]] = {
    "onnxruntime": _from_onnxruntime,
    "trtexec": _from_trtexec,
}


def _profile(
    kit: Kit, engine: EngineOptions, version: str, device: str, timings: list[Timing]
) -> Profile:
    return Profile(
        model_sha256=kit.model_sha256,
        engine=engine,
        version=version,
        device=device,
        shapes=kit.shapes,
        round_to=kit.round_to,
        seed=kit.seed,
        timings=timings,
    )


def _race(before: Sequence[float], after: Sequence[float]) -> Race:
    """Return turns as they were timed.

    Raises:
        ValueError: They are no times.
    """
    times = np.asarray([before, after], np.float64)
    if times.ndim != 2 or not times.size or not (np.isfinite(times) & (times > 0)).all():  # noqa: PLR2004
        raise ValueError("no times")
    return Race(times[0], times[1])


def _check_finished(last: Path, engine: str) -> None:
    """Check that the file is there that a script writes last."""
    if not last.is_file():
        raise RequestError(
            f"'{last.parent}' is half written: '{SCRIPTS[engine]}' did not come to its end; run it "
            f"again"
        )


def _check_files(folder: Path, kit: Kit, timed: Mapping[str, str], engine: str) -> None:
    """Check that a script timed what the kit holds."""
    expected = {KIT: file_sha256(folder / KIT), **kit.files}
    other = [name for name, digest in expected.items() if timed.get(name) != digest]
    if other:
        raise RequestError(
            f"the times of {engine} in '{folder}' are of another '{other[0]}' than the one there: "
            f"they are of another kit, or it was changed; run '{SCRIPTS[engine]}' again"
        )


def _changed(path: Path) -> RequestError:
    return RequestError(f"'{path}' is not what the script of a kit writes: run the script again")


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"'{path}' cannot be read as JSON: it is torn or was changed") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise EngineError(f"'{path}' is missing: run the script of the kit again") from error


def _design(place: int) -> str:
    return f"design{place:02}.onnx"
