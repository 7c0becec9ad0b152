"""All files for a TensorRT pipeline, made of two models and samples."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from obc_onnx.graph.session import Session
from obc_onnx.tensorrt.data import npz, raw, similarities
from obc_onnx.tensorrt.flags import VERSIONS, arguments
from obc_onnx.tensorrt.texts import BUILD, CALIBRATION, COMMANDS, COMPARE, LOADER, QUANTISE, filled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.graph.model import Graph
    from obc_onnx.tensorrt.data import Runs

ALGORITHM, THRESHOLD = "cos", 1e-3
"""How version 11 compares an engine with references: 1 less the cosine, which may be that large.

Errors of 4.5 % of the outputs' size are as far away, in the square mean: 1e-3 is half their square.
"""


@dataclass(frozen=True)
class Bundle:
    """What files are made of.

    Attributes:
        original: Where the original lies, as seen from the folder.
        result: Where the smaller model lies.
        graphs: Both.
        runs: Samples.
        batches: The fewest samples of a run, those of most runs, and the most.
    """

    original: str
    result: str
    graphs: tuple[Graph, Graph]
    runs: Runs
    batches: tuple[int, int, int]

    def files(self) -> dict[str, bytes]:
        """Return the contents of all files by name."""
        loader = filled(LOADER, AXES=repr(self.runs.axes), BATCH=self.runs.size)
        texts = {"loader.py": loader, **self._scripts()}
        inputs, references = self._raw_inputs, self._references
        if self._runs_whole:
            texts["calibration.py"] = CALIBRATION
        return {
            "samples.npz": npz(self.runs.all()),
            "run.npz": npz(self.runs.first()),
            **dict(inputs.values()),
            **dict(references.values()),
            **{name: text.encode() for name, text in texts.items()},
        }

    @property
    def _runs_whole(self) -> bool:
        """Whether ONNX Runtime runs the files."""
        return not self.graphs[1].opaque.labels

    @cached_property
    def _raw_inputs(self) -> dict[str, tuple[str, bytes]]:
        return raw(self.runs.first(), "input")

    @cached_property
    def _references(self) -> dict[str, tuple[str, bytes]]:
        """Run the smaller model, where that is possible without stand-ins."""
        if not self._runs_whole:
            return {}
        return raw(Session(self.graphs[1]).run(self.runs.first()), "reference")

    def _scripts(self) -> dict[str, str]:
        model = shlex.quote(self.result)
        scripts = {build_script(version): self._build(version) for version in VERSIONS}
        for kind, command in COMMANDS.items():
            text = filled(QUANTISE, MODEL=model, KIND=kind, COMMAND=command)
            scripts[f"quantise_{kind}.sh"] = text
        scripts["compare_tensorrt.sh"] = self._compare_tensorrt()
        if self._runs_whole:
            scripts["compare_onnxruntime.sh"] = self._compare_onnxruntime()
        return scripts

    def _build(self, version: int) -> str:
        references = self._references
        values = {
            "version": str(version),
            **dict(zip(("min", "opt", "max"), map(self._shapes, self.batches), strict=True)),
            "inputs": _files(self._raw_inputs),
            "references": _files(references),
            "algorithm": ALGORITHM if references else "",
            "threshold": str(THRESHOLD) if references else "",
        }
        own = list(arguments(version, values))
        checked = any(argument.startswith("--loadRef") for argument in own)
        return filled(
            BUILD,
            VERSION=version,
            MODEL=shlex.quote(self.result),
            CHECKED=", held against ONNX Runtime" if checked else "",
            ARGUMENTS=" \\\n  ".join(own),
        )

    def _shapes(self, count: int) -> str:
        """Write the shapes of inputs with open axes for a number of samples; nothing without."""
        shapes = {name: array.shape for name, array in self.runs.first().items()}
        batch = self.graphs[1].batch_axes
        shapes = batch.resized(shapes, batch.size or count)
        parts = (f"{_called(n)}:{'x'.join(map(str, shapes[n]))}" for n in self._open)
        return shlex.quote(",".join(parts)) if self._open else ""

    @property
    def _open(self) -> list[str]:
        """The inputs of which the file leaves a size open."""
        return [
            port.name
            for port in self.graphs[1].inputs
            if port.name in self.runs.names
            and (port.shape is None or any(isinstance(size, str) for size in port.shape))
        ]

    def _compare_onnxruntime(self) -> str:
        found = similarities(self.graphs, self.runs)
        return filled(
            COMPARE,
            SCRIPT="compare_onnxruntime",
            ONE="the smaller model",
            OTHER="the original, both in ONNX Runtime; thresholds are what was measured, with half "
            "of\n# the distance more",
            MODEL=shlex.quote(self.result),
            FIRST=f"{shlex.quote(self.original)} --onnxrt",
            SECOND="--onnxrt",
            THRESHOLDS=" ".join(shlex.quote(f"{n}:{least:.6f}") for n, least in found.items()),
        )

    def _compare_tensorrt(self) -> str:
        engine = " ".join(["--trt", "--strongly-typed", *self._profile])
        against = '"$model" --onnxrt' if self._runs_whole else f"{shlex.quote(self.original)} "
        return filled(
            COMPARE,
            SCRIPT="compare_tensorrt",
            ONE="an engine",
            OTHER="ONNX Runtime" if self._runs_whole else "that of the original",
            MODEL=shlex.quote(self.result),
            FIRST=against if self._runs_whole else f"{against}{engine}",
            SECOND=engine,
            THRESHOLDS=f'"${{SIMILARITY:-{1 - THRESHOLD}}}"',
        )

    @property
    def _profile(self) -> list[str]:
        """What says Polygraphy the shapes that an engine takes."""
        shapes = {name: array.shape for name, array in self.runs.first().items()}
        batch, found = self.graphs[1].batch_axes, []
        for kind, count in zip(("min", "opt", "max"), self.batches, strict=True):
            own = batch.resized(shapes, batch.size or count)
            parts = [shlex.quote(f"{n}:[{','.join(map(str, own[n]))}]") for n in self._open]
            found += [f"--trt-{kind}-shapes", *parts] if parts else []
        return found


def build_script(version: int = VERSIONS[-1]) -> str:
    """Name the script that builds an engine with a version of TensorRT; the newest, unless said."""
    return f"build_trt{version}.sh"


def _called(name: str) -> str:
    """Write a name as trtexec reads it: in quotes where it holds what ends one."""
    return f"'{name}'" if ":" in name or "," in name else name


def _files(raw_files: Mapping[str, tuple[str, bytes]]) -> str:
    """Write which file holds which value."""
    parts = (f"{_called(name)}:{file}" for name, (file, _) in raw_files.items())
    return shlex.quote(",".join(parts)) if raw_files else ""
