"""Write what a TensorRT pipeline needs beside a smaller model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import load_model
from obc_onnx.errors import ModelError, RequestError
from obc_onnx.files import holds, replacing_all
from obc_onnx.graph.external import files_of
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.run.opened import analysed, read
from obc_onnx.samples.options import DataOptions
from obc_onnx.tensorrt.bundle import Bundle
from obc_onnx.tensorrt.data import Runs
from obc_onnx.user_code import file_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.samples import Samples

    Shape = tuple[int, ...]

BATCHES = (1, 8, 16)
CALIBRATION_SAMPLES = 256
_EXECUTABLE = 0o755


def export_trt(
    original: str | Path,
    result: str | Path,
    folder: str | Path,
    *,
    data: DataOptions | str | Path | Samples,
    batches: tuple[int, int, int] = BATCHES,
    n_samples: int = CALIBRATION_SAMPLES,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    force: bool = False,
) -> list[Path]:
    """Write scripts, raw inputs, references and calibration data for TensorRT.

    Models stay where they are, and scripts name them as seen from the folder.

    Args:
        original: The file of the model before it was compressed.
        result: The file after.
        folder: Where to write; it is made where it is missing.
        data: Samples to calibrate and compare on.
        batches: The fewest samples of a run, those of most runs, and the most, where the model
            leaves them open.
        n_samples: Samples that are written, at most.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        force: Whether files that exist may be replaced.
    Returns:
        The files, in the order of their names.
    Raises:
        ObcError: The models have other inputs or outputs than each other, the samples do not fit,
            or files exist.
    """
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise RequestError(f"`batches` have to be above 0 and to grow, found {batches}")
    folder = Path(folder)
    options = DataOptions.of(data)
    before, after = load_model(Path(original)), load_model(Path(result))
    _check_alike(before, after)
    before, samples, _ = read(before, options, input_shape, batch_axes)
    if samples is None:
        raise RequestError("an engine is calibrated and compared on samples: give `data`")
    before = analysed(before, samples, input_shape, batch_axes, DEFAULT_RULES)[0].graph
    after = after.with_batch(before.batch_axes)
    bundle = Bundle(
        original=os.path.relpath(original, folder),
        result=os.path.relpath(result, folder),
        graphs=(before, after),
        runs=Runs.of(before, samples, batches[1], n_samples),
        batches=batches,
    )
    sources = [*files_of(Path(original)), *files_of(Path(result))]
    named = (options.source, options.evaluation)
    sources += [file_of(s) or Path(s) for s in named if isinstance(s, (str, Path))]
    return _write(folder, bundle.files(), sources, force=force)


def _check_alike(before: Graph, after: Graph) -> None:
    for kind in ("inputs", "outputs"):
        ports = [getattr(graph, kind) for graph in (before, after)]
        if ports[0] != ports[1]:
            names = [", ".join(f"'{port.name}'" for port in own) for own in ports]
            raise RequestError(
                f"the models are not two of one: {kind} are {names[0]} before and {names[1]} "
                f"after, or differ in type or size"
            )


def _write(
    folder: Path, files: Mapping[str, bytes], read: Sequence[Path], *, force: bool
) -> list[Path]:
    """Write all files, or none; those that were read are never replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot make folder '{folder}': {error.strerror or error}") from error
    for target in (path for path in map(folder.joinpath, files) if path.exists()):
        if any(holds(source, target) for source in read):
            raise RequestError(f"'{target}' is read, and would be destroyed: name another folder")
        if not force:
            raise RequestError(f"'{target}' exists: name another folder, or replace it by `force`")
    with replacing_all(folder) as replacement:
        for name, content in files.items():
            temporary = replacement.beside(folder / name)
            temporary.write_bytes(content)
            if name.endswith(".sh"):
                temporary.chmod(_EXECUTABLE)
    return sorted(folder / name for name in files)
