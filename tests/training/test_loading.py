"""Batches read by worker processes: the same as without them, errors included."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from sample_files import N, arrays, files, in_memory, labelled, shards, tar
from small import chain, classes, images

from obc_onnx.errors import DataError, InvariantError, ObcError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.samples import pictures
from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.samples.read import load_samples
from obc_onnx.samples.samples import Samples
from obc_onnx.training.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Batch = tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.int64] | None]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

GRAPH = Graph.from_model(chain())
TRANSFORMS = """
import os
import torch

def noisy(picture, rng):
    return picture + rng.standard_normal(picture.shape).astype(picture.dtype)

def threads(picture, rng):
    picture[:] = torch.get_num_threads()
    return picture

def process(picture, rng):
    picture[:] = os.getpid()
    return picture

def wrong(picture, rng):
    return 1

def fail(picture, rng):
    raise LookupError("a fault of the user's")
"""


@pytest.fixture
def transforms(tmp_path: Path) -> str:
    path = tmp_path / "transforms.py"
    path.write_text(TRANSFORMS)
    return str(path)


SOURCES = (in_memory, arrays, files, shards)


def order(*seeds: int) -> list[NDArray[np.int64]]:
    """Return batches of 6, 6, 6 and 2 samples for each seed, and an empty one."""
    batches = []
    for seed in seeds:
        drawn = np.random.default_rng(seed).permutation(N)
        batches += [drawn[start : start + 6] for start in range(0, N, 6)]
    return [*batches, np.array([], np.int64)]


def assert_same(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    """Raise unless batches are the same to the byte."""
    for (which, feed, labels), (own, other, known) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(which, own)
        np.testing.assert_array_equal(labels, known)
        assert list(feed) == list(other)
        for name, array in feed.items():
            assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
            assert array.tobytes() == other[name].tobytes()
            assert array.flags.c_contiguous
            assert array.flags.writeable


@pytest.mark.parametrize("cache_bytes", [0, 2**31])
@pytest.mark.parametrize("source", SOURCES)
def test_workers_give_what_is_read_without_them(
    source: Callable[[Path], Path],
    cache_bytes: int,
    transforms: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "CACHE_BYTES", cache_bytes)
    samples = load_samples(source(tmp_path), GRAPH)
    augmentation = Augmentation(2, flip=True, transform=f"{transforms}:noisy")
    alone, helped = Loader(samples, augmentation, 0, 5), Loader(samples, augmentation, 2, 5)
    for epoch in (1, 2):
        expected = list(alone.batches(epoch, order(epoch, 7)))
        assert len(expected) == 9
        assert_same(helped.batches(epoch, order(epoch, 7)), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_samples_in_the_order_given(workers: int, tmp_path: Path) -> None:
    samples = load_samples(in_memory(tmp_path), GRAPH).part(np.arange(N)[::-1])
    batches = list(Loader(samples, None, workers, 0).batches(1, order(3)))
    for (which, feed, labels), asked in zip(batches, order(3), strict=True):
        assert which is not None
        np.testing.assert_array_equal(which, asked)
        np.testing.assert_array_equal(feed["x"], images()[::-1][asked])
        np.testing.assert_array_equal(labels, classes()[::-1][asked])


def test_a_pass_can_go_on_from_the_middle(transforms: str, tmp_path: Path) -> None:
    samples = load_samples(arrays(tmp_path), GRAPH)
    augmentation = Augmentation(1, transform=f"{transforms}:noisy")
    whole = list(Loader(samples, augmentation, 0, 1).batches(4, order(2)))
    assert all(labels is None for _, _, labels in whole)
    assert_same(Loader(samples, augmentation, 2, 1).batches(4, order(2)[2:]), whole[2:])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_left_early_does_not_disturb_the_next(workers: int, tmp_path: Path) -> None:
    loader = Loader(load_samples(arrays(tmp_path), GRAPH), None, workers, 0)
    expected = list(loader.batches(1, order(1)))
    left = loader.batches(2, order(2, 3, 4))
    next(left)
    assert_same(loader.batches(1, order(1)), expected)
    with pytest.raises(InvariantError, match="went on after the next had begun"):
        next(left)


def test_processes_are_reused_and_have_one_thread_each(transforms: str, tmp_path: Path) -> None:
    def values(loader: Loader) -> set[float]:
        found = [feed["x"] for _, feed, _ in loader.batches(1, order(1, 2))]
        return {float(value) for x in found for value in np.unique(x)}

    samples = load_samples(arrays(tmp_path), GRAPH)
    loader = Loader(samples, Augmentation(transform=f"{transforms}:process"), 2, 0)
    first = values(loader)
    children = {float(child.pid or 0) for child in multiprocessing.active_children()}
    assert len(first) == 2
    assert first <= children
    assert values(loader) == first
    torch.set_num_threads(2)
    try:
        threads = Loader(samples, Augmentation(transform=f"{transforms}:threads"), 2, 0)
        assert values(threads) == {1.0}
    finally:
        torch.set_num_threads(1)
    del loader, threads
    gc.collect()
    left = {float(child.pid or 0) for child in multiprocessing.active_children()}
    assert not left & first


def test_workers_draw_nothing_from_the_generators_of_training(tmp_path: Path) -> None:
    loader = Loader(load_samples(arrays(tmp_path), GRAPH), None, 2, 0)
    before = torch.random.get_rng_state()
    for epoch in (1, 2):
        assert len(list(loader.batches(epoch, order(epoch)))) == 5
    assert torch.equal(torch.random.get_rng_state(), before)


def test_processes_end_at_once_when_the_loader_is_garbage_in_a_cycle(tmp_path: Path) -> None:
    cycle: list[Any] = [Loader(load_samples(arrays(tmp_path), GRAPH), None, 2, 0)]
    cycle.append(cycle)
    next(cycle[0].batches(1, order(1)))
    gc.collect()
    start = time.monotonic()
    cycle = []
    gc.collect()
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 4


def refusal(loader: Loader, batches: Sequence[NDArray[np.int64]]) -> ObcError:
    with pytest.raises(ObcError) as error:
        list(loader.batches(1, batches))
    return error.value


@pytest.mark.parametrize("source", [files, shards])
def test_a_picture_that_cannot_be_read_is_named_by_workers_too(
    source: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "CACHE_BYTES", 0)
    path = source(tmp_path)
    if source is files:
        (path / "class1" / "5.png").write_bytes(b"no picture")
    else:
        damaged = labelled(range(8)) | {"train/005.png": b"no picture"}
        tar(path / "a.tar", damaged)
    samples = load_samples(path, GRAPH)
    alone, helped = (refusal(Loader(samples, None, n, 0), order(1)) for n in (0, 2))
    assert type(alone) is type(helped) is DataError
    assert str(alone) == str(helped)
    assert "5.png'" in str(helped)
    assert "\n" not in str(helped)


def test_faults_of_the_users_function_are_told_by_workers_too(
    transforms: str, tmp_path: Path
) -> None:
    samples = load_samples(arrays(tmp_path), GRAPH)
    wrong, fail = (Augmentation(transform=f"{transforms}:{f}") for f in ("wrong", "fail"))
    alone, helped = (refusal(Loader(samples, wrong, n, 0), order(1)) for n in (0, 2))
    assert type(alone) is type(helped) is RequestError
    assert str(alone) == str(helped)
    for workers in (0, 2):
        with pytest.raises(LookupError, match="a fault of the user's"):
            list(Loader(samples, fail, workers, 0).batches(1, order(1)))


def test_a_worker_that_dies_is_a_refusal_of_the_next_batch(transforms: str, tmp_path: Path) -> None:
    samples = load_samples(arrays(tmp_path), GRAPH)
    loader = Loader(samples, Augmentation(transform=f"{transforms}:process"), 1, 0)
    stream = loader.batches(1, order(1, 2, 3))
    _, feed, _ = next(stream)
    os.kill(int(feed["x"].max()), signal.SIGKILL)
    time.sleep(0.2)  # nothing is raised meanwhile
    with pytest.raises(DataError, match=r"fewer `TrainingOptions.workers`"):
        list(stream)


def test_types_that_torch_lacks_are_handed_over(tmp_path: Path) -> None:
    values = images().astype(ml_dtypes.bfloat16)
    names = np.array([f"sample {i}" for i in range(N)])
    dtypes = {"x": values.dtype, "name": names.dtype, "n": np.dtype(np.uint64)}
    inputs = {"x": values, "name": names, "n": np.arange(N, dtype=np.uint64)}
    samples = Samples(inputs, None, dtypes)
    alone, helped = (Loader(samples, None, n, 0).batches(1, order(1)) for n in (0, 2))
    assert_same(helped, alone)


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    samples = load_samples(arrays(tmp_path), GRAPH)
    with pytest.raises(RequestError, match="workers must be at least 0, found -1"):
        Loader(samples, None, -1, 0)
    with pytest.raises(RequestError, match="crop 8"):
        Loader(samples, Augmentation(crop=8), 0, 0)


SPAWNED = """
import multiprocessing, sys
import numpy as np
from obc_onnx import Augmentation
from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.graph.model import Graph
from obc_onnx.samples.read import load_samples
from obc_onnx.training.loading import Loader

if __name__ == "__main__":
    model, data, transform, method = sys.argv[1:]
    multiprocessing.set_start_method(method)
    samples = load_samples(data, Graph.load(model)).part(np.arange(20)[::-1])
    augmentation = Augmentation(1, flip=True, transform=transform)
    order = [np.arange(12), np.arange(12, 20)]
    found = []
    for workers in (0, 1):
        loader = Loader(samples, augmentation, workers, 3)
        found.append([feed["x"].tobytes() for _, feed, _ in loader.batches(1, order)])
    print(found[0] == found[1])
"""


def test_workers_that_are_not_forked_read_the_same(transforms: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    onnx.save(chain(), tmp_path / "model.onnx")
    command = [script, tmp_path / "model.onnx", shards(tmp_path), f"{transforms}:noisy", "spawn"]
    run = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"
