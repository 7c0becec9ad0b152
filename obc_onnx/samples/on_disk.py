"""Samples that stay on disk: tell a folder of arrays, `.tar` files and a folder of images apart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from obc_onnx.errors import DataError
from obc_onnx.samples.checks import taken_labels
from obc_onnx.samples.images import prepare
from obc_onnx.samples.lazy import LazyArray, MappedFile, find_arrays, map_file
from obc_onnx.samples.pictures import PictureSource, list_pictures
from obc_onnx.samples.ragged import LENGTHS
from obc_onnx.samples.shards import open_shards

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from obc_onnx.graph.node import Port
    from obc_onnx.samples.image_options import ImageOptions
    from obc_onnx.samples.images import Preparation
    from obc_onnx.samples.pictures import Files


@dataclass(frozen=True)
class Stored:
    """What a source holds.

    Attributes:
        inputs: Arrays by name.
        labels: Class indices, not checked yet, or None.
        prepared: For inputs that hold pictures, how those are made.
        lengths: Of the samples, not checked yet, or None.
    """

    inputs: Mapping[str, LazyArray]
    labels: NDArray[Any] | None
    prepared: Mapping[str, Preparation] = field(default_factory=dict)
    lengths: NDArray[Any] | None = None


def open_stored(
    path: Path, ports: Sequence[Port], images: ImageOptions, spare: Container[str] = ()
) -> Stored:
    """Find what is on disk.

    Args:
        path: A `.tar`, or a folder. One with `.npy` files in it holds those, one with `.tar` files
            those, and any other images.
        ports: The inputs of the model.
        images: How pictures become an input.
        spare: Names of inputs that pictures are never, and that need not be there.
    Raises:
        DataError: Something is damaged, missing or ambiguous.
    """
    pictured = [port for port in ports if port.name not in spare]
    if not path.is_dir():
        return _from_shards([path], ports, pictured, images, path)
    arrays = find_arrays(path, [port.name for port in ports])
    shards = sorted(path.glob("*.tar"))
    if arrays and shards:
        raise DataError(f"data '{path}' holds both .npy and .tar files: move one kind elsewhere")
    if shards:
        return _from_shards(shards, ports, pictured, images, path)
    return _from_arrays(arrays, ports) if arrays else _from_images(path, pictured, images)


def open_array(path: Path) -> LazyArray:
    """Find the samples of an `.npy` file, without reading them."""
    return LazyArray(MappedFile(path))


def listed(names: Iterable[str]) -> str:
    """Write names one after the other, as messages do."""
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _from_arrays(files: dict[str, Path], ports: Sequence[Port]) -> Stored:
    names = {port.name for port in ports}
    labels = taken_labels(files, names)
    lengths = None if LENGTHS in names else files.pop(LENGTHS, None)
    inputs = {name: open_array(file) for name, file in files.items()}
    beside = (None if file is None else map_file(file) for file in (labels, lengths))
    return Stored(inputs, next(beside), lengths=next(beside))


def _from_shards(
    paths: Sequence[Path],
    ports: Sequence[Port],
    pictured: Sequence[Port],
    images: ImageOptions,
    what: Path,
) -> Stored:
    names = [port.name for port in ports]
    shards = open_shards(paths, names)
    without = [port for port in pictured if port.name not in shards.arrays]
    if shards.pictures is None or not without:
        if not shards.arrays:
            raise DataError(
                f"data '{what}' holds no samples: members have to be called KEY.jpg or KEY.png, or "
                f"KEY.NAME.npy with NAME one of {listed(names)}"
            )
        return Stored(shards.arrays, shards.labels, lengths=shards.lengths)
    if len(without) > 1:
        raise DataError(
            f"data '{what}' holds pictures, but inputs {listed(port.name for port in without)} "
            f"have no arrays: give all but one of them as KEY.NAME.npy"
        )
    stored = _with_pictures(without[0], shards.pictures, images, shards.labels, shards.arrays)
    return replace(stored, lengths=shards.lengths)


def _from_images(path: Path, ports: Sequence[Port], images: ImageOptions) -> Stored:
    if len(ports) != 1:
        raise DataError(
            f"a folder of images needs a model with one input; this one has {len(ports)}"
        )
    files, labels = list_pictures(path)
    return _with_pictures(ports[0], files, images, labels, {})


def _with_pictures(
    port: Port,
    files: Files,
    images: ImageOptions,
    labels: NDArray[Any] | None,
    arrays: Mapping[str, LazyArray],
) -> Stored:
    """Make pictures one input, beside the arrays of others. None is decoded yet."""
    preparation = prepare(port, images)
    pixels = LazyArray(PictureSource(files, preparation))
    return Stored({**arrays, port.name: pixels}, labels, {port.name: preparation})
