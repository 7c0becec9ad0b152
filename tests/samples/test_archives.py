"""Samples in `.tar` files: what belongs together, reading at random, and what is refused."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import build
from sample_files import labelled, npy, picture, png, tar
from small import CHAIN, TWO_INPUTS, assert_refused, chain, images, invoke, saved

from obc_onnx.errors import DataError
from obc_onnx.graph.model import Graph
from obc_onnx.samples import pictures
from obc_onnx.samples.image_options import ImageOptions
from obc_onnx.samples.read import load_samples
from obc_onnx.samples.shards import Members

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = Graph.from_model(chain())
PAIR = Graph.from_model(build(TWO_INPUTS))
PAIR_LABELLED = Graph.from_model(
    build(
        "net (float[N,3,8,8] left, float[N,5] right) => (float[N,4] y)"
        "<float[4,197] w> { f = Flatten(left) c = Concat<axis=1>(f, right) y = Gemm<transB=1>(c, w) }"
    )
)
N = 12


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    tar(folder / "b.tar", labelled(range(5, N)))
    tar(folder / "a.tar", labelled(range(5)))
    return folder


@pytest.fixture(params=[0, 2**31], ids=["decoded each time", "decoded once"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CACHE_BYTES", request.param)


@pytest.mark.usefixtures("cache")
def test_files_follow_each_other_by_name_and_samples_as_they_lie(shards: Path) -> None:
    samples = load_samples(shards, GRAPH)
    assert samples.labels is not None
    assert samples.labels.tolist() == [number % 4 for number in range(N)]
    which = np.array([11, 0, 4, 5, 11])
    expected = np.stack([picture(i).transpose(2, 0, 1) for i in which]) / np.float32(255)
    for read in (samples.feed(which), samples.part(which).feed(slice(None))):
        np.testing.assert_allclose(read["x"], expected, rtol=1e-6)
    copy = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(copy.feed(which)["x"], samples.feed(which)["x"])


def test_one_file_is_read_as_a_folder_of_it(shards: Path) -> None:
    options = ImageOptions(mean=(0.5,), std=(0.25,))
    samples = load_samples(shards / "a.tar", GRAPH, options)
    assert len(samples) == 5
    found = samples.feed(slice(1, 2))["x"][0]
    np.testing.assert_allclose(found, (picture(1).transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-5)


def test_pictures_of_every_kind_are_read(tmp_path: Path) -> None:
    kinds = {
        "png": "png",
        "PNG": "png",
        "jpg": "jpeg",
        "jpeg": "jpeg",
        "bmp": "bmp",
        "webp": "webp",
    }
    members = {f"{i}.{ending}": png(i, kind) for i, (ending, kind) in enumerate(kinds.items())}
    samples = load_samples(tar(tmp_path / "a.tar", members), GRAPH)
    assert samples.labels is None
    assert samples.feed(slice(None))["x"].shape == (6, 3, 8, 8)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_length_are_kept_apart(kind: int, tmp_path: Path) -> None:
    folders = [f"{'d' * 60}/{'e' * 60}{i}" for i in range(3)]
    members = {f"{folder}/k.x.npy": npy(images()[i]) for i, folder in enumerate(folders)}
    samples = load_samples(tar(tmp_path / "a.tar", members, kind), GRAPH)
    np.testing.assert_array_equal(samples.feed(slice(None))["x"], images()[:3])


def test_arrays_are_found_by_the_names_of_inputs(tmp_path: Path) -> None:
    members = {".png": b"hidden", "0.more.npy": npy(0)}
    for i in range(4):
        members[f"{i}.right.npy"] = npy(np.asfortranarray(images()[i, :2]))
        members[f"{i}.other.npy"] = npy(i)
        members[f"{i}.json"] = b"{}"
        members[f"./._{i}.left.npy"] = b"what macOS adds"
        members[f"{i}.left"] = b"not the array"
        members[f"{i}.left.npy"] = npy(images()[i].astype(np.float16))
    samples = load_samples(tar(tmp_path / "a.tar", members), PAIR)
    feed = samples.part(np.array([2, 0])).feed(slice(None))
    assert list(feed) == ["left", "right"]
    np.testing.assert_array_equal(feed["left"], images()[[2, 0]].astype(np.float16))
    np.testing.assert_array_equal(feed["right"], images()[[2, 0], :2])
    left = samples.part(np.array([2, 0])).inputs["left"]
    assert left.where(0) == f"'2.left.npy' of '{tmp_path / 'a.tar'}'"


def test_arrays_are_taken_where_there_are_pictures_too(tmp_path: Path) -> None:
    members = {"a.png": png(0), "a.x.npy": npy(images()[0])}
    samples = load_samples(tar(tmp_path / "a.tar", members), GRAPH)
    np.testing.assert_array_equal(samples.feed(slice(None))["x"], images()[:1])


def test_a_name_with_dots_is_found(tmp_path: Path) -> None:
    model = build(CHAIN)
    model.graph.input[0].name = model.graph.node[0].input[0] = "x.1"
    data = tar(tmp_path / "a.tar", {"k.x.1.npy": npy(images()[0])})
    samples = load_samples(data, Graph.from_model(model))
    np.testing.assert_array_equal(samples.feed(slice(None))["x.1"], images()[:1])


def test_pictures_are_for_the_input_without_arrays_and_only_they_are_normalised(
    tmp_path: Path,
) -> None:
    codes = np.arange(5 * N, dtype=np.float32).reshape(N, 5)
    members = labelled(range(N))
    members.update({f"train/{i:03}.right.npy": npy(codes[i]) for i in range(N)})
    data = tar(tmp_path / "a.tar", members)
    feed = load_samples(data, PAIR_LABELLED, ImageOptions(mean=(1.0,))).feed(slice(3, 5))
    np.testing.assert_array_equal(feed["right"], codes[3:5])
    expected = picture(3).transpose(2, 0, 1) / 255 - 1
    np.testing.assert_allclose(feed["left"][0], expected, atol=1e-6)


def test_tar_files_compress_like_a_folder_of_images(shards: Path, tmp_path: Path) -> None:
    options = ("--image-mean", "0.5", "--holdout", "0.5", "--epochs", "0")
    result = invoke(
        "compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--data", shards, *options
    )
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout


BAD = images()[0].copy()
BAD[0, 0, 0] = np.nan
REFUSED: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {
    "nothing of use": ({"a.txt": b"", "b.json": b"{}"}, ("no samples", "KEY.jpg", "'x'")),
    "classes alone": ({"a.cls": b"1"}, ("no samples", "KEY.NAME.npy")),
    "another name": ({"a.z.npy": npy(images()[0])}, ("no samples", "'x'")),
    "no class": (
        {"a.png": png(0), "a.cls": b"1", "b.png": png(1)},
        ("sample 'b' of", "a.tar'", "no member 'cls'", "'a' of"),
    ),
    "one class": (
        {"a.png": png(0), "b.png": png(1), "b.cls": b"1"},
        ("sample 'b' of", "a.tar'", "a member 'cls'", "'a' of", "none"),
    ),
    "no picture": (
        {"a.png": png(0), "a.cls": b"1", "b.cls": b"1"},
        ("sample 'b' of", "no member 'picture'"),
    ),
    "two pictures": ({"a.png": png(0), "a.jpg": png(1, "jpeg")}, ("'a.jpg' of", "second")),
    "a name for a class": ({"a.png": png(0), "a.cls": b"cat"}, ("'a.cls' of", "holds 'cat'")),
    "no text": ({"a.png": png(0), "a.cls": b"\xff"}, ("'a.cls' of", "not a class index")),
    "an empty class": ({"a.png": png(0), "a.cls": b""}, ("'a.cls' of", "holds ''")),
    "a negative class": ({"a.png": png(0), "a.cls": b"-1"}, ("'a.cls' of", "holds '-1'")),
    "a huge class": ({"a.png": png(0), "a.cls": b"9" * 30}, ("'a.cls' of", "holds '99")),
    "a large class": ({"a.png": png(0), "a.cls": b"4"}, ("4 to 4", "4 classes")),
    "a fraction for a length": (
        {"a.x.npy": npy(images()[0]), "a.lengths.npy": npy(2.0)},
        ("'a.lengths.npy' of", "a.tar'", "one integer", "float64"),
    ),
    "several lengths": (
        {"a.x.npy": npy(images()[0]), "a.lengths.npy": npy([2, 3])},
        ("'a.lengths.npy' of", "one integer", "[2]"),
    ),
    "no length inside": (
        {"a.x.npy": npy(images()[0]), "a.lengths.npy": b"no"},
        ("'a.lengths.npy' of", "a.tar'", "not an .npy"),
    ),
    "a length for some": (
        {"a.x.npy": npy(images()[0]), "a.lengths.npy": npy(2), "b.x.npy": npy(images()[1])},
        ("sample 'b' of", "no member 'lengths'"),
    ),
    "lengths alone": ({"a.lengths.npy": npy(2)}, ("no samples", "'x'")),
    "no picture inside": ({"a.png": png(0), "b.png": b"no"}, ("image 'b.png' of", "a.tar'")),
    "no array inside": ({"a.x.npy": b"no"}, ("'a.x.npy' of", "a.tar'", "not an .npy")),
    "a short array": ({"a.x.npy": npy(images()[0])[:-9]}, ("'a.x.npy' of", "not an .npy")),
    "a short header": ({"a.x.npy": npy(images()[0])[:9]}, ("'a.x.npy' of", "not an .npy")),
    "objects": ({"a.x.npy": npy(np.array([None], object))}, ("'a.x.npy' of", "not an .npy")),
    "another shape": (
        {"a.x.npy": npy(images()[0]), "b.x.npy": npy(images()[1, :, :7])},
        ("'b.x.npy' of", "(3, 7, 8)", "'a.x.npy' of", "(3, 8, 8)"),
    ),
    "another type": (
        {"a.x.npy": npy(images()[0]), "b.x.npy": npy(images()[1].astype(np.float16))},
        ("'b.x.npy' of", "float16", "'a.x.npy' of", "float32"),
    ),
    "NaN": (
        {"a.x.npy": npy(images()[0]), "b.x.npy": npy(BAD)},
        ("1 samples, first 1, in 'b.x.npy' of", "a.tar'"),
    ),
}


@pytest.mark.parametrize(("members", "parts"), REFUSED.values(), ids=REFUSED.keys())
def test_members_that_do_not_fit_are_named(
    members: dict[str, bytes], parts: tuple[str, ...], tmp_path: Path
) -> None:
    data = tar(tmp_path / "a.tar", members)
    result = invoke("compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--data", data)
    assert_refused(result, *parts)


def test_a_file_is_not_searched_for_the_name_of_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are not kept, so that one costs a pass over the whole file."""
    members = {f"{i}.x.npy": npy(images()[i]) for i in range(3)}
    data = tar(tmp_path / "a.tar", members)
    monkeypatch.delattr(Members, "where")
    found = load_samples(data, GRAPH).feed(slice(None))["x"]
    np.testing.assert_array_equal(found, images()[:3])


def test_pictures_for_one_of_several_inputs_are_refused(tmp_path: Path) -> None:
    data = tar(tmp_path / "a.tar", labelled(range(2)))
    with pytest.raises(DataError, match="inputs 'left', 'right' have no arrays"):
        load_samples(data, PAIR)


def test_links_are_refused_with_what_to_do(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("b.png")
    entry.type, entry.linkname = tarfile.LNKTYPE, "a.png"
    with tarfile.open(tar(tmp_path / "a.tar", {"a.png": png(0)}), "a") as file:
        file.addfile(entry)
    with pytest.raises(DataError, match=r"'b\.png' of .*a\.tar' is a link .*--hard-dereference"):
        load_samples(tmp_path / "a.tar", GRAPH)


def test_folders_within_are_no_samples(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("folder.png")
    entry.type = tarfile.DIRTYPE
    with tarfile.open(tar(tmp_path / "a.tar", {"a.png": png(0)}), "a") as file:
        file.addfile(entry)
    assert len(load_samples(tmp_path / "a.tar", GRAPH)) == 1


DAMAGES = ("empty", "no tar", "compressed", "cut", "cut between members", "a header", "joined")


def damaged(what: str, good: bytes, member: tarfile.TarInfo) -> bytes:
    """Damage a `.tar` file at a member."""
    return {
        "empty": b"",
        "no tar": b"no tar" * 500,
        "compressed": gzip.compress(good),
        "cut": good[: member.offset_data + 10],
        "cut between members": good[: member.offset],
        "a header": good[: member.offset + 100] + b"x" * 50 + good[member.offset + 150 :],
        "joined": good + good,
    }[what]


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_files_are_refused_wherever_the_damage_is(what: str, shards: Path) -> None:
    path = shards / "b.tar"
    with tarfile.open(path) as file:
        member = file.getmembers()[4]
    path.write_bytes(damaged(what, path.read_bytes(), member))
    with pytest.raises(DataError, match=r"b\.tar' is not a \.tar file that can be read"):
        load_samples(shards, GRAPH)


def test_any_flipped_byte_gives_samples_or_a_refusal_but_no_traceback(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", labelled(range(2)) | {"t/9.x.npy": npy(images()[0])})
    good = path.read_bytes()
    refused = 0
    for position in range(0, len(good), 23):
        flipped = bytes([good[position] ^ 0xFF])
        path.write_bytes(good[:position] + flipped + good[position + 1 :])
        try:
            load_samples(path, GRAPH).feed(slice(None))
        except DataError:
            refused += 1
    assert refused


@pytest.mark.usefixtures("cache")
def test_files_that_change_meanwhile_are_named(shards: Path) -> None:
    samples = load_samples(shards, GRAPH)
    if pictures.CACHE_BYTES:
        (shards / "a.tar").unlink()
        samples.feed(slice(None))
        return
    (shards / "a.tar").write_bytes((shards / "a.tar").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"a\.tar' was cut off"):
        samples.feed(slice(4, 5))
    (shards / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a\.tar' cannot be read: No such file"):
        samples.feed(slice(4, 5))
