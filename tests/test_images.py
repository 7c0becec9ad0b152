"""Folders of pictures: layout, order, normalisation, and what is refused."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build
from PIL import Image
from small import CHAIN, OPEN, TWO_INPUTS, assert_refused, invoke, saved

from obc_onnx import images
from obc_onnx.data import DataOptions, load_samples, open_samples
from obc_onnx.errors import DataError
from obc_onnx.graph import Graph
from obc_onnx.images import ImageOptions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GRAPH = Graph.from_model(build(CHAIN))
SIZES = {"cat": 8, "dog": 4, "eel": 2}
"""Pictures of each class."""
LAST = (
    "net (float[N,8,8,3] x) => (float[N,4] y) <float[4,192] w>"
    "{ p = Flatten(x) y = Gemm<transB=1>(p, w) }"
)
FLAT = "net (float[N,192] x) => (float[N,4] y) <float[4,192] w> { y = Gemm<transB=1>(x, w) }"
GREY = CHAIN.replace("[N,3,8,8]", "[N,1,8,8]").replace("[12,3,3,3]", "[12,1,3,3]")


def picture(label: int, number: int, size: int = 8) -> NDArray[np.uint8]:
    """Draw a picture that no other one is like."""
    rng = np.random.default_rng(100 * label + number)
    return rng.integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for label, (name, count) in enumerate(SIZES.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(label, number)).save(root / name / f"{number}.PNG")
    (root / "cat" / "notes.txt").write_text("not a picture")
    return root


def test_classes_are_numbered_by_name_and_every_picture_is_read(folder: Path) -> None:
    samples = load_samples(folder, GRAPH)
    assert samples.labels is not None
    assert np.bincount(samples.labels).tolist() == list(SIZES.values())
    drawn = {picture(i, n).tobytes() for i, c in enumerate(SIZES.values()) for n in range(c)}
    read = {x.transpose(1, 2, 0).tobytes() for x in samples.inputs["x"]}
    assert read == drawn


def test_every_half_holds_half_of_each_class(folder: Path) -> None:
    used, held = open_samples(DataOptions(folder, holdout=0.5), GRAPH)
    for part in (used, held):
        assert part is not None
        assert part.labels is not None
        assert np.bincount(part.labels).tolist() == [count // 2 for count in SIZES.values()]


def test_pixels_are_normalised_per_channel(folder: Path) -> None:
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    samples = load_samples(folder, GRAPH, ImageOptions(mean, std))
    pixels = samples.inputs["x"][:2] / 255
    for channel in range(3):
        expected = (pixels[:, channel] - mean[channel]) / std[channel]
        found = samples.feed(slice(0, 2))["x"][:, channel]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channels_last_are_left_last(folder: Path) -> None:
    graph = Graph.from_model(build(LAST))
    last = load_samples(folder, graph).feed(slice(0, 3))["x"]
    first = load_samples(folder, GRAPH).feed(slice(0, 3))["x"]
    np.testing.assert_array_equal(last, first.transpose(0, 2, 3, 1))


def test_one_channel_takes_grey_pictures(folder: Path) -> None:
    samples = load_samples(folder, Graph.from_model(build(GREY)))
    assert samples.inputs["x"].shape == (sum(SIZES.values()), 1, 8, 8)


def test_pictures_of_any_size_are_resized_to_height_and_width(folder: Path) -> None:
    striped = np.zeros((31, 20, 3), np.uint8)
    striped[:, 10:] = 255
    for path in folder.rglob("*.PNG"):
        Image.fromarray(striped).save(path)
    graph = Graph.from_model(build(OPEN))
    pixels = np.asarray(load_samples(folder, graph, ImageOptions(size=(6, 10))).inputs["x"])
    assert pixels.shape[1:] == (3, 6, 10)
    assert (pixels[..., :3] < 16).all(), "what was on the left stays there"
    assert (pixels[..., -3:] > 239).all()


def test_a_folder_compresses_like_an_archive(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    options = ("--image-mean", "0.5", "--image-std", "0.25,0.25,0.5", "--holdout", "0.5")
    result = invoke("compress", saved(tmp_path), "-o", target, "--data", folder, *options)
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (ImageOptions(mean=(0.5, 0.5)), ("--image-mean", "1 or 3", "found 2")),
        (ImageOptions(std=(0.0,)), ("--image-std", "0")),
        (ImageOptions(mean=(float("nan"),)), ("--image-mean", "finite", "nan")),
        (ImageOptions(std=(float("inf"),)), ("--image-std", "finite", "inf")),
        (ImageOptions(size=(9, 8)), ("--image-size 9 8", "'x'", "8, 8")),
        (ImageOptions(size=(0, 8)), ("--image-size 0 8 is not",)),
        (ImageOptions(size=(-1, -1)), ("--image-size -1 -1 is not",)),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: ImageOptions, parts: tuple[str, ...], folder: Path
) -> None:
    with pytest.raises(DataError) as refusal:
        load_samples(folder, GRAPH, options)
    assert all(part in str(refusal.value) for part in parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (OPEN, ("'x'", "dynamic size", "--image-size")),
        (FLAT, ("'x'", "2 axes", "4")),
        (TWO_INPUTS, ("one input", "2")),
        (CHAIN.replace("N,3,8,8", "N,5,8,8").replace("12,3,3,3", "12,5,3,3"), ("1 or 3 channels",)),
    ],
)
def test_a_model_that_takes_no_pictures_is_refused(
    text: str, parts: tuple[str, ...], folder: Path
) -> None:
    with pytest.raises(DataError) as refusal:
        load_samples(folder, Graph.from_model(build(text)))
    assert all(part in str(refusal.value) for part in parts)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "cat").mkdir(parents=True)
    (empty / "loose.png").write_bytes(b"")
    model = saved(tmp_path)
    result = invoke("compress", model, "-o", tmp_path / "small.onnx", "--data", empty)
    assert_refused(result, empty, "no images in class subfolders")


def test_a_picture_that_cannot_be_read_is_named(folder: Path) -> None:
    path = folder / "dog" / "1.PNG"
    good = path.read_bytes()
    for content in (b"", b"no picture", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"dog/1\.PNG' cannot be read"):
            load_samples(folder, GRAPH)


def test_a_damaged_picture_gives_pixels_or_a_refusal_but_no_traceback(folder: Path) -> None:
    path = folder / "dog" / "1.PNG"
    good = path.read_bytes()
    refused = 0
    for position in range(0, len(good), 7):
        flipped = bytes([good[position] ^ 0xFF])
        path.write_bytes(good[:position] + flipped + good[position + 1 :])
        try:
            load_samples(folder, GRAPH)
        except DataError:
            refused += 1
    assert refused


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count how often each picture is decoded."""
    counts: Counter[bytes] = Counter()
    whole = Image.open

    def counted(file: io.BytesIO, *args: Any) -> Image.Image:
        counts[file.getvalue()] += 1
        return whole(file, *args)

    monkeypatch.setattr(Image, "open", counted)
    return counts


def test_a_set_that_fits_into_memory_is_decoded_once(
    folder: Path, decoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CACHE_BYTES", sum(SIZES.values()) * 3 * 8 * 8)
    samples = load_samples(folder, GRAPH)
    used, held = samples.split(0.5)
    for _ in range(2):
        used.feed(slice(None))
        held.feed(np.array([3, 1]))
    assert len(decoded) == len(samples)
    assert set(decoded.values()) == {1}


def test_pictures_of_a_larger_set_are_decoded_when_they_are_asked_for(
    folder: Path, decoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_samples(folder, GRAPH).feed(slice(None))["x"]
    monkeypatch.setattr(images, "CACHE_BYTES", sum(SIZES.values()) * 3 * 8 * 8 - 1)
    decoded.clear()
    samples = load_samples(folder, GRAPH)
    assert sum(decoded.values()) <= 2  # those that show which axis is the batch
    decoded.clear()
    used = samples.part(np.array([5, 2, 9]))
    assert not decoded
    np.testing.assert_array_equal(used.feed(slice(1, 3))["x"], whole[[2, 9]])
    np.testing.assert_array_equal(used.feed(slice(1, 2))["x"], whole[[2]])
    assert sorted(decoded.values()) == [1, 2]


def test_a_pickled_copy_reads_the_same_and_keeps_no_pixels(
    folder: Path, decoded: Counter[bytes]
) -> None:
    samples = load_samples(folder, GRAPH)
    expected = samples.feed(slice(None))["x"]
    copy = pickle.loads(pickle.dumps(samples))
    decoded.clear()
    for _ in range(2):
        np.testing.assert_array_equal(copy.feed(slice(None))["x"], expected)
    assert set(decoded.values()) == {2}


@pytest.mark.parametrize("kind", ["png", "bmp", "jpeg", "webp"])
def test_a_damaged_picture_of_any_kind_gives_pixels_or_a_refusal(kind: str, folder: Path) -> None:
    held = io.BytesIO()
    Image.fromarray(picture(0, 0)).convert("P" if kind in {"png", "bmp"} else "RGB").save(
        held, kind
    )
    good, refused = held.getvalue(), 0
    path = folder / "dog" / f"odd.{kind}"
    for position in range(0, len(good), max(len(good) // 120, 1)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            load_samples(folder, GRAPH)
        except DataError:
            refused += 1
    assert refused


def test_faults_that_pillow_calls_values_are_refusals(folder: Path) -> None:
    path = folder / "dog" / "1.PNG"
    good, header_length = path.read_bytes(), 11
    path.write_bytes(good[:header_length] + b"\x05" + good[header_length + 1 :])
    with pytest.raises(DataError, match=r"dog/1\.PNG' cannot be read"):
        load_samples(folder, GRAPH)


def test_a_file_that_is_gone_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    samples = load_samples(folder, GRAPH)
    (folder / "dog" / "1.PNG").unlink()
    with pytest.raises(DataError, match=r"dog/1\.PNG' cannot be read"):
        samples.feed(slice(None))
