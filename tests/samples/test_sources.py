"""Samples that stay on disk: folders of arrays, how they are split and read, and what memory it takes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build
from hypothesis import given
from hypothesis import strategies as st
from small import CHAIN, TWO_INPUTS, assert_refused, chain, classes, images, invoke, saved

from obc_onnx.errors import DataError
from obc_onnx.graph.model import Graph
from obc_onnx.samples import checks as sample_checks
from obc_onnx.samples.lazy import LazyArray, MappedFile
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import load_samples, open_samples
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GRAPH = Graph.from_model(chain())
N = 20


def stored(folder: Path, **arrays: Any) -> Path:
    """Write a folder of `.npy` files."""
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stored(tmp_path / "data", x=images(), labels=classes())


def test_a_folder_of_arrays_holds_what_an_archive_of_them_holds(folder: Path) -> None:
    samples = load_samples(folder, GRAPH)
    assert len(samples) == N
    np.testing.assert_array_equal(samples.labels, classes())
    np.testing.assert_array_equal(samples.feed(slice(3, 9))["x"], images()[3:9])
    mixed = np.array([7, 2, 7, 19])
    np.testing.assert_array_equal(samples.feed(mixed)["x"], images()[mixed])
    assert isinstance(samples.inputs["x"], LazyArray)


def test_labels_are_optional_and_no_view_of_a_file(folder: Path) -> None:
    labels = load_samples(folder, GRAPH).labels
    assert labels is not None
    assert (type(labels), labels.dtype, labels.base) == (np.ndarray, np.int64, None)
    (folder / "labels.npy").unlink()
    assert load_samples(folder, GRAPH).labels is None


def test_what_is_fed_can_be_written_to_and_changes_no_file(folder: Path) -> None:
    samples = load_samples(folder, GRAPH)
    samples.feed(slice(0, 4))["x"][:] = 7
    np.testing.assert_array_equal(samples.feed(slice(0, 4))["x"], images()[:4])


def test_parts_are_taken_without_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = load_samples(folder, GRAPH)
    read: list[int] = []
    whole = MappedFile.read

    def counted(source: MappedFile, which: NDArray[np.int64]) -> NDArray[Any]:
        read.extend(which.tolist())
        return whole(source, which)

    monkeypatch.setattr(MappedFile, "read", counted)
    used, held = samples.part(np.arange(N)[::-1]).split(0.25)
    assert (len(used), len(held), used.inputs["x"].shape) == (15, 5, (15, 3, 8, 8))
    assert not read
    fed = held.feed(slice(1, 3))["x"]
    assert len(read) == 2
    np.testing.assert_array_equal(fed, images()[read])
    np.testing.assert_array_equal(held.labels[1:3], classes()[read])


@given(data=st.data(), n_samples=st.integers(1, 12))
def test_a_lazy_array_is_indexed_and_split_like_the_array(
    data: st.DataObject, n_samples: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.arange(3 * n_samples).reshape(n_samples, 3)
    path = tmp_path_factory.mktemp("lazy") / "x.npy"
    np.save(path, array)
    lazy: Any = LazyArray(MappedFile(path))
    bound = st.none() | st.integers(-15, 15)
    for _ in range(3):
        places = st.lists(st.integers(-len(array), len(array) - 1)) if len(array) else st.just([])
        which = data.draw(
            st.builds(slice, bound, bound, st.none() | st.just(2) | st.just(-1))
            | places.map(lambda chosen: np.array(chosen, np.int64))
        )
        np.testing.assert_array_equal(lazy[which], array[which])
        lazy, array = lazy.part(which), array[which]
        assert (lazy.shape, lazy.ndim, lazy.dtype) == (array.shape, array.ndim, array.dtype)
        assert len(lazy) == len(array)
        np.testing.assert_array_equal(lazy, array)
        assert [row.tolist() for row in lazy] == array.tolist()


def test_arrays_of_any_order_and_type_are_read(tmp_path: Path) -> None:
    pixels = np.arange(N * 192, dtype=">i2").reshape(N, 3, 8, 8)
    for array in (pixels, np.asfortranarray(pixels)):
        samples = load_samples(stored(tmp_path / "data", x=array), GRAPH)
        fed = samples.feed(np.array([5, 1]))["x"]
        assert fed.dtype == np.float32
        assert fed.flags.c_contiguous
        np.testing.assert_array_equal(fed, pixels[[5, 1]])


def test_a_pickled_copy_reads_the_same(folder: Path) -> None:
    samples = load_samples(folder, GRAPH).part(np.array([4, 2, 8]))
    copy = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(copy.feed(slice(None))["x"], images()[[4, 2, 8]])
    np.testing.assert_array_equal(copy.labels, classes()[[4, 2, 8]])


@pytest.mark.parametrize(
    ("name", "place"), [("in.put.1", "in.put.1.npy"), ("/a/b", "a/b.npy"), ("c:0", "c:0.npy")]
)
def test_inputs_with_odd_names_are_found(name: str, place: str, tmp_path: Path) -> None:
    model = build(CHAIN)
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    (tmp_path / place).parent.mkdir(exist_ok=True)
    np.save(tmp_path / place, images())
    np.save(tmp_path / "labels.npy", classes())
    samples = load_samples(tmp_path, Graph.from_model(model))
    np.testing.assert_array_equal(samples.feed(slice(0, 2))[name], images()[:2])
    assert samples.labels is not None


def test_an_input_called_labels_is_an_input(tmp_path: Path) -> None:
    graph = Graph.from_model(build(CHAIN.replace("x)", "labels)").replace("(x,", "(labels,")))
    samples = load_samples(stored(tmp_path / "data", labels=images()), graph)
    assert samples.labels is None
    assert len(samples) == N


def test_several_inputs_are_read_together(tmp_path: Path) -> None:
    graph = Graph.from_model(build(TWO_INPUTS))
    data = stored(tmp_path / "data", right=images()[:, :2], left=images())
    feed = load_samples(data, graph).part(np.array([3, 1])).feed(slice(None))
    assert list(feed) == ["left", "right"]
    np.testing.assert_array_equal(feed["right"], images()[[3, 1], :2])


MISFITS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another name": ({"z": images()}, ("data' holds 'z'", "are 'x'")),
    "a name too many": ({"x": images(), "z": images()}, ("'x', 'z'", "are 'x'")),
    "labels alone": ({"labels": classes()}, ("holds nothing", "'x'")),
    "a scalar": ({"x": np.float32(1)}, ("'x'", "no samples")),
    "no samples": ({"x": images(0)}, ("'x'", "no samples")),
    "another size": ({"x": images(size=9)}, ("'x'", "size 9 on axis 2", "takes 8")),
    "float64": ({"x": images().astype(float)}, ("float64", "float32", ".astype(")),
    "one-hot labels": ({"x": images(), "labels": np.eye(N, 4)}, ("(20, 4)",)),
    "a large label": ({"x": images(), "labels": classes() + 4}, ("'y'", "4 classes")),
}


@pytest.mark.parametrize(("arrays", "parts"), MISFITS.values(), ids=MISFITS.keys())
def test_a_folder_that_does_not_fit_is_refused(
    arrays: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    data = stored(tmp_path / "data", **arrays)
    result = invoke("compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--data", data)
    assert_refused(result, *parts)


def test_files_that_are_no_arrays_are_named(folder: Path) -> None:
    good = (folder / "x.npy").read_bytes()
    np.savez(folder / "y.npz", x=images())
    np.save(folder / "objects.npy", np.array([None], object))
    objects, archive = (folder / "objects.npy").read_bytes(), (folder / "y.npz").read_bytes()
    (folder / "objects.npy").unlink()
    for name in ("x.npy", "labels.npy"):
        kept = (folder / name).read_bytes()
        for content in (b"", b"x", good[:70], good[:5000], objects, archive):
            (folder / name).write_bytes(content)
            with pytest.raises(DataError, match=rf"data/{name}' is not an \.npy file that numpy"):
                load_samples(folder, GRAPH)
        (folder / name).write_bytes(kept)


def test_a_file_that_changes_meanwhile_is_named(folder: Path) -> None:
    samples = load_samples(folder, GRAPH)
    np.save(folder / "x.npy", images()[:7])
    with pytest.raises(DataError, match=r"x\.npy' was changed"):
        samples.feed(slice(0, 1))
    (folder / "x.npy").unlink()
    with pytest.raises(DataError, match=r"x\.npy' is not an"):
        samples.feed(slice(0, 1))


def test_arrays_and_tar_files_in_one_folder_are_refused(folder: Path) -> None:
    (folder / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"both \.npy and \.tar"):
        load_samples(folder, GRAPH)


@pytest.mark.parametrize("block_bytes", [1, 768, 4000, 2**25])
@pytest.mark.parametrize("on_disk", [False, True])
def test_bad_values_are_counted_over_all_blocks(
    block_bytes: int, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_checks, "_BLOCK_BYTES", block_bytes)
    bad = images()
    bad[5, 2, 7, 7], bad[6, 0, 0, 0], bad[19, 1] = np.nan, np.inf, -np.inf
    data = stored(tmp_path / "data", x=bad) if on_disk else Samples({"x": bad}, None, {})
    with pytest.raises(DataError, match=r"NaN or infinite values in 3 samples, first 5") as refusal:
        open_samples(DataOptions(data), GRAPH)
    assert str(refusal.value).endswith("x.npy'") == on_disk


SHOW_PEAK = """
import resource, sys
import numpy as np
from obc_onnx import DataOptions
from obc_onnx.graph.model import Graph
from obc_onnx.samples import pictures
from obc_onnx.samples.read import open_samples

pictures.CACHE_BYTES = 0
graph = Graph.load(sys.argv[1])
used, held = open_samples(DataOptions(sys.argv[2]), graph)
order = np.random.default_rng(0).permutation(len(used))
for start in range(0, len(order), 16):
    used.feed(order[start : start + 16])
print(len(used) + len(held), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
LAUNCH = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"
"""A process starts with the peak of the one that started it, which has to be a small one."""
LARGE = (
    "net (float[N,3,256,256] x) => (float[N,4] y) <float[4,3] w>"
    "{ p = GlobalAveragePool(x) q = Flatten(p) y = Gemm<transB=1>(q, w) }"
)


def peak_bytes(model: Path, data: Path) -> tuple[int, int]:
    """Check and read a set twice in a process of its own: how many samples, and its peak memory."""
    command = [sys.executable, "-c", LAUNCH, "-c", SHOW_PEAK, str(model), str(data)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    n_samples, peak = map(int, shown.split())
    return n_samples, peak


def test_memory_does_not_grow_with_a_folder_of_arrays(tmp_path: Path) -> None:
    model = saved(tmp_path, LARGE)
    peaks = []
    for count in (32, 512):
        data = tmp_path / f"data{count}"
        data.mkdir()
        array = np.lib.format.open_memmap(data / "x.npy", "w+", np.float32, (count, 3, 256, 256))
        array[::7] = 1  # the rest are holes, which take no room on disk
        array.flush()
        del array
        n_samples, peak = peak_bytes(model, data)
        assert n_samples == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 480 * 3 * 256 * 256 * 4 / 4


def test_memory_does_not_grow_with_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    model = saved(tmp_path, LARGE)
    peaks = []
    for count in (32, 1024):
        data = tmp_path / f"data{count}"
        (data / "cat").mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(data / "cat" / "0.png")
        for number in range(1, count):
            (data / "cat" / f"{number}.png").hardlink_to(data / "cat" / "0.png")
        n_samples, peak = peak_bytes(model, data)
        assert n_samples == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 992 * 3 * 256 * 256 / 4
