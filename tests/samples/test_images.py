"""Folders of pictures: layout, order, normalisation, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build
from PIL import ExifTags, Image
from sample_files import arrays, in_memory
from small import CHAIN, OPEN, TWO_INPUTS, assert_refused, invoke, saved

from obc_onnx.errors import DataError
from obc_onnx.graph.model import Graph
from obc_onnx.samples import pictures as picture_files
from obc_onnx.samples.image_options import ImageOptions
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import load_samples, open_samples
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable
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


INTEGERS = (
    "net (TYPE[N,8,8,3] x) => (float[N,4] y) <float[4,192] w>"
    "{ c = Cast<to=1>(x) p = Flatten(c) y = Gemm<transB=1>(p, w) }"
)
TYPES = ["uint8", "int16", "int32", "int64"]


@pytest.mark.parametrize("dtype", TYPES)
def test_integers_are_fed_the_pixels_as_they_are(dtype: str, folder: Path) -> None:
    graph = Graph.from_model(build(INTEGERS.replace("TYPE", dtype)))
    fed = load_samples(folder, graph).feed(slice(None))["x"]
    assert fed.dtype == dtype
    drawn = {picture(i, n).tobytes() for i, c in enumerate(SIZES.values()) for n in range(c)}
    assert {x.astype(np.uint8).tobytes() for x in fed} == drawn
    assert fed.max() > 250


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("given", [{"scale": 1.0}, {"mean": (0.0,)}, {"std": (0.5,)}])
def test_integers_take_no_scale_mean_or_std(
    dtype: str, given: dict[str, Any], folder: Path
) -> None:
    graph = Graph.from_model(build(INTEGERS.replace("TYPE", dtype)))
    with pytest.raises(
        DataError, match=rf"'x' takes {dtype}.*leave `ImageOptions.{next(iter(given))}`"
    ):
        load_samples(folder, graph, ImageOptions(**given))


@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_types_that_hold_no_pixels_take_no_pictures(dtype: str, folder: Path) -> None:
    graph = Graph.from_model(build(INTEGERS.replace("TYPE", dtype)))
    with pytest.raises(DataError, match=rf"'x' takes {dtype}, which does not hold pixels"):
        load_samples(folder, graph)


def test_a_model_of_bytes_compresses_and_the_report_says_what_it_was_fed(
    folder: Path, tmp_path: Path
) -> None:
    body = CHAIN.replace("(float[N,3,8,8] x)", "(uint8[N,3,8,8] raw)").replace(
        "{ p = Conv", "{ x = Cast<to=1>(raw) p = Conv"
    )
    model, target = saved(tmp_path, body), tmp_path / "small.onnx"
    result = invoke("compress", model, "-o", target, "--data", folder, "--holdout", "0.5")
    assert result.exit_code == 0, result.output
    assert "'raw' 0 to 255, uint8 of 3 x 8 x 8" in result.stdout
    assert "rgb pictures as NCHW, stretched to 8 x 8, pixels as they are" in result.stdout


def first(folder: Path, graph: Graph = GRAPH, **options: Any) -> NDArray[Any]:
    """Return what a model is fed for the first picture of a folder."""
    fed = load_samples(folder, graph, ImageOptions(**options)).feed(slice(0, 1))
    return np.asarray(next(iter(fed.values()))[0])


@pytest.mark.parametrize(("given", "factor"), [((), 1 / 255), ((1.0,), 1.0), ((1 / 128,), 1 / 128)])
def test_pixels_are_multiplied_by_the_scale(
    given: tuple[float, ...], factor: float, folder: Path
) -> None:
    fed = first(folder, scale=given[0] if given else None, mean=(0.25,), std=(2.0,))
    expected = (picture(0, 0).transpose(2, 0, 1) * factor - 0.25) / 2
    np.testing.assert_allclose(fed, expected, rtol=1e-6, atol=1e-6)


def test_channels_can_come_in_reverse(folder: Path) -> None:
    mean = (0.1, 0.2, 0.3)  # in the order of the channels that the model takes
    reverse = picture(0, 0)[:, :, ::-1].transpose(2, 0, 1) / 255
    expected = reverse - np.reshape(mean, (3, 1, 1))
    np.testing.assert_allclose(first(folder, color="bgr", mean=mean), expected, atol=1e-6)


def drawn_alone(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write a folder of one picture."""
    place = tmp_path / "alone"
    place.mkdir()
    Image.fromarray(pixels).save(place / "0.png")
    return place


def passing(shape: str) -> Graph:
    """Build a model that gives what it takes, of which a folder without labels is fed."""
    return Graph.from_model(
        build(f"net (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}")
    )


def test_open_channels_are_those_of_the_colour(tmp_path: Path) -> None:
    graph, drawn = passing("N,H,W,C"), picture(0, 0)
    data = drawn_alone(tmp_path, drawn)
    options: dict[str, Any] = {"layout": "NHWC", "color": "bgr", "size": (8, 8), "scale": 1}
    np.testing.assert_array_equal(first(data, graph, **options), drawn[..., ::-1])
    options |= {"layout": "NCHW", "color": "gray"}
    assert first(data, graph, **options).shape == (1, 8, 8)
    with pytest.raises(DataError, match=r"leaves its channels open: give `ImageOptions.color`"):
        first(data, graph, layout="NHWC", size=(8, 8))


def test_a_shape_that_may_be_read_in_two_ways_is_refused_until_options_tell(
    tmp_path: Path,
) -> None:
    data = drawn_alone(tmp_path, picture(0, 0))
    with pytest.raises(
        DataError, match=r"more than one axis of 1 or 3 channels.*`ImageOptions.layout`"
    ):
        first(data, passing("N,3,8,3"))
    assert first(data, passing("N,3,8,3"), layout="NHWC").shape == (3, 8, 3)
    assert first(data, passing("N,1,8,3"), color="gray").shape == (1, 8, 3)


@pytest.mark.parametrize(("height", "above"), [(4, 2), (3, 2), (7, 0), (8, 0)])
def test_letterbox_puts_a_wide_picture_in_the_middle(
    height: int, above: int, tmp_path: Path
) -> None:
    wide = picture(9, 9)[:height]
    fed = first(drawn_alone(tmp_path, wide), scale=1, resize="letterbox", pad=114)
    expected = np.full((8, 8, 3), 114)
    expected[above : above + height] = wide
    np.testing.assert_array_equal(fed, expected.transpose(2, 0, 1))


def test_letterbox_keeps_the_ratio_of_a_large_picture(tmp_path: Path) -> None:
    tall = np.full((32, 16, 3), 200, np.uint8)
    fed = first(drawn_alone(tmp_path, tall), scale=1, resize="letterbox")
    expected = np.zeros((3, 8, 8))
    expected[:, :, 2:6] = 200
    np.testing.assert_array_equal(fed, expected)


def test_letterbox_pads_grey_pictures(tmp_path: Path) -> None:
    graph = Graph.from_model(build(GREY))
    wide = np.full((4, 8), 10, np.uint8)
    fed = first(drawn_alone(tmp_path, wide), graph, scale=1, resize="letterbox", pad=255)
    assert fed[0, :, 0].tolist() == [255, 255, 10, 10, 10, 10, 255, 255]


def test_crop_takes_the_middle_of_the_long_side(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (8, 20, 3), np.uint8)
    fed = first(drawn_alone(tmp_path, wide), scale=1, resize="crop")
    np.testing.assert_array_equal(fed, wide[:, 6:14].transpose(2, 0, 1))


def test_crop_takes_a_share_of_the_short_side(tmp_path: Path) -> None:
    tall = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    fed = first(drawn_alone(tmp_path, tall), scale=1, resize="crop", crop=0.5)
    np.testing.assert_array_equal(fed, tall[6:14, 4:12].transpose(2, 0, 1))


def test_stretch_takes_all_of_a_picture(tmp_path: Path) -> None:
    wide = np.zeros((8, 32, 3), np.uint8)
    wide[:, 16:] = 255
    fed = first(drawn_alone(tmp_path, wide), scale=1)
    assert (fed[:, :, :3] < 16).all()
    assert (fed[:, :, -3:] > 239).all()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"mean": (0.5, 0.5)}, ("`ImageOptions.mean`", "1 or 3", "found 2")),
        ({"mean": ()}, ("`ImageOptions.mean`", "found 0")),
        ({"std": (0.0,)}, ("`ImageOptions.std`", "above 0", "found 0")),
        ({"std": (1.0, -1.0, 1.0)}, ("`ImageOptions.std`", "above 0", "found 1, -1, 1")),
        ({"mean": (float("nan"),)}, ("`ImageOptions.mean`", "finite", "nan")),
        ({"std": (float("inf"),)}, ("`ImageOptions.std`", "finite", "inf")),
        ({"scale": 0.0}, ("`ImageOptions.scale`", "above 0")),
        ({"scale": float("inf")}, ("`ImageOptions.scale`", "finite")),
        ({"size": (9, 8)}, ("`ImageOptions(size=(9, 8))`", "'x'", "8, 8")),
        ({"size": (0, 8)}, ("`ImageOptions(size=(0, 8))` is not",)),
        ({"size": (-1, -1)}, ("`ImageOptions(size=(-1, -1))` is not",)),
        ({"color": "gray"}, ("no axis of 1 channels", "`ImageOptions.layout`")),
        ({"color": "gray", "layout": "NCHW"}, ("3 channels on axis 1", "not 1, as gray")),
        ({"color": "cmyk"}, ("`ImageOptions.color`", "rgb, bgr, gray", "'cmyk'")),
        ({"layout": "NHWC"}, ("8 channels on axis 3", "not 1 or 3")),
        ({"layout": "nchw"}, ("`ImageOptions.layout`", "NCHW, NHWC", "'nchw'")),
        ({"resize": "zoom"}, ("`ImageOptions.resize`", "letterbox", "'zoom'")),
        ({"crop": 0.9}, ("`ImageOptions.crop` is for `ImageOptions(resize='crop')`",)),
        ({"crop": 1.5, "resize": "crop"}, ("`ImageOptions.crop`", "at most 1", "1.5")),
        (
            {"pad": 7, "resize": "crop"},
            ("`ImageOptions.pad` is for `ImageOptions(resize='letterbox')`",),
        ),
        ({"pad": 256, "resize": "letterbox"}, ("`ImageOptions.pad`", "0 to 255", "256")),
    ],
)
def test_options_that_do_not_fit_are_refused(
    given: dict[str, Any], parts: tuple[str, ...], folder: Path
) -> None:
    with pytest.raises(DataError) as refusal:
        load_samples(folder, GRAPH, ImageOptions(**given))
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_the_command_line_takes_every_option(folder: Path, tmp_path: Path) -> None:
    options = (
        "--image-scale 1/255 --image-mean 0.5,0.4,0.3 --image-std 0.2 --image-layout NCHW "
        "--image-color bgr --image-size 8 8 --image-resize letterbox --image-pad 114"
    )
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", "--data", folder)
    result = invoke(*command, "--json", "--holdout", "0.5", *options.split())
    assert result.exit_code == 0, result.output
    (fed,) = json.loads(result.stdout)["fed"]
    assert fed["preparation"] == (
        "bgr pictures as NCHW, letterboxed to 8 x 8, padded with 114, "
        "(pixel * 1/255 - 0.5, 0.4, 0.3) / 0.2"
    )
    assert (fed["name"], fed["dtype"], fed["shape"]) == ("x", "float32", [3, 8, 8])
    more = ("--image-resize", "crop", "--image-crop", "0.875", "--holdout", "0.5", "--force")
    result = invoke(*command, *more)
    assert "cropped from 0.875 of the short side to 8 x 8" in result.stdout


@pytest.mark.parametrize("value", ["1/0", "a", "1/2/3", "nan", ""])
def test_a_scale_that_is_no_number_is_a_usage_error(
    value: str, folder: Path, tmp_path: Path
) -> None:
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", "--data", folder)
    assert_refused(invoke(*command, "--image-scale", value), f"'{value}'", "1/255", code=2)


@pytest.mark.parametrize(
    "option", ["--image-scale 1", "--image-mean 0", "--image-size 8 8", "--image-color bgr"]
)
@pytest.mark.parametrize("form", [in_memory, arrays, None])
def test_options_for_pictures_are_refused_where_there_are_none(
    form: Callable[[Path], Path] | None, option: str, tmp_path: Path
) -> None:
    data = () if form is None else ("--data", form(tmp_path))
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", *data)
    assert_refused(invoke(*command, *option.split()), option.partition(" ")[0], "pictures")


def test_pictures_can_be_measured_on_arrays(folder: Path, tmp_path: Path) -> None:
    ready = Samples({"x": np.zeros((3, 3, 8, 8), np.float32)}, None, {})
    options = DataOptions(folder, evaluation=ready, images=ImageOptions(scale=1))
    used, held = open_samples(options, GRAPH)
    assert used is not None
    assert held is not None
    assert used.feed(slice(None))["x"].max() == 255
    assert held.feed(slice(None))["x"].max() == 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (OPEN, ("'x'", "dynamic size", "`ImageOptions.size`")),
        (FLAT, ("'x'", "2 axes", "4")),
        (TWO_INPUTS, ("one input", "2")),
        (
            CHAIN.replace("N,3,8,8", "N,5,8,8").replace("12,3,3,3", "12,5,3,3"),
            ("no axis of 1 or 3 channels",),
        ),
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
    (empty / "notes.txt").write_text("no image")
    model = saved(tmp_path)
    result = invoke("compress", model, "-o", tmp_path / "small.onnx", "--data", empty)
    assert_refused(result, empty, "no images", "class subfolders")


def test_images_straight_in_a_folder_have_no_labels(folder: Path) -> None:
    samples = load_samples(folder / "dog", GRAPH)
    assert samples.labels is None
    assert {x.transpose(1, 2, 0).tobytes() for x in samples.inputs["x"]} == {
        picture(1, number).tobytes() for number in range(SIZES["dog"])
    }


def test_images_beside_class_subfolders_are_refused(folder: Path) -> None:
    (folder / "cat" / "0.PNG").rename(folder / "loose.png")
    with pytest.raises(DataError, match=r"beside those in class subfolders, such as 'loose\.png'"):
        load_samples(folder, GRAPH)


def test_class_subfolders_are_refused_for_a_model_without_classes(folder: Path) -> None:
    with pytest.raises(DataError, match=r"without labels.*straight in their folder"):
        load_samples(folder, passing("N,3,8,8"))


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

    def counted(file: io.BytesIO, **options: Any) -> Image.Image:
        counts[file.getvalue()] += 1
        return whole(file, **options)

    monkeypatch.setattr(Image, "open", counted)
    return counts


def test_a_set_that_fits_into_memory_is_decoded_once(
    folder: Path, decoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_files, "CACHE_BYTES", sum(SIZES.values()) * 3 * 8 * 8)
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
    monkeypatch.setattr(picture_files, "CACHE_BYTES", sum(SIZES.values()) * 3 * 8 * 8 - 1)
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
    monkeypatch.setattr(picture_files, "CACHE_BYTES", 0)
    samples = load_samples(folder, GRAPH)
    (folder / "dog" / "1.PNG").unlink()
    with pytest.raises(DataError, match=r"dog/1\.PNG' cannot be read"):
        samples.feed(slice(None))


def saved_as(kind: str, pixels: NDArray[Any]) -> bytes:
    """Return the file of a picture."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind)
    return held.getvalue()


@pytest.mark.parametrize("kind", ["gif", "tiff", "eps", "ppm", "ico"])
def test_only_a_few_formats_are_opened_whatever_the_name_says(kind: str, folder: Path) -> None:
    (folder / "dog" / "1.PNG").write_bytes(saved_as(kind, picture(0, 0, 16)))
    with pytest.raises(DataError, match=r"dog/1\.PNG' cannot be read as BMP, JPEG, PNG or WebP"):
        load_samples(folder, GRAPH)


def test_the_orientation_that_a_camera_notes_is_not_applied(folder: Path) -> None:
    pixels, held = picture(0, 0, 8), io.BytesIO()
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(held, "png", exif=orientation)
    (folder / "dog" / "1.PNG").write_bytes(saved_as("png", pixels))
    plain = load_samples(folder, GRAPH).feed(slice(None))["x"]
    (folder / "dog" / "1.PNG").write_bytes(held.getvalue())
    np.testing.assert_array_equal(load_samples(folder, GRAPH).feed(slice(None))["x"], plain)


def test_pictures_of_more_than_8_bits_are_refused(folder: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    (folder / "dog" / "1.PNG").write_bytes(saved_as("png", deep))
    with pytest.raises(DataError, match=r"dog/1\.PNG' has more than 8 bits per channel"):
        load_samples(folder, GRAPH)


def test_a_picture_of_a_huge_size_is_refused_before_it_is_decoded(folder: Path) -> None:
    held = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(held, "png")
    (folder / "dog" / "1.PNG").write_bytes(held.getvalue())
    with pytest.raises(DataError, match=r"dog/1\.PNG' cannot be read.*huge"):
        load_samples(folder, GRAPH)


def test_a_pipe_among_pictures_is_refused(folder: Path) -> None:
    (folder / "dog" / "1.PNG").unlink()
    os.mkfifo(folder / "dog" / "1.PNG")
    with pytest.raises(DataError, match=r"dog/1\.PNG' is not a regular file"):
        load_samples(folder, GRAPH)
