"""Random changes of pictures: what is drawn depends on seed, epoch and index, and on nothing else."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from obc_onnx.cli.augment_options import augment_options, augmentation_of
from obc_onnx.errors import RequestError
from obc_onnx.samples.augmentation import Augmentation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


TRANSFORMS = """
import numpy as np

def noisy(picture, rng):
    return picture + rng.standard_normal(picture.shape).astype(picture.dtype)

def drawn(picture, rng):
    picture[:] = rng.random()
    return picture

def in_place(picture, rng):
    picture[:] = 5
    return picture

def double(picture, rng):
    return picture.astype("float64")

def smaller(picture, rng):
    return picture[:, 1:]

def nothing(picture, rng):
    picture += 1

number = 3
"""
N = 40
WHICH = np.arange(100, 100 + N)


@pytest.fixture
def transforms(tmp_path: Path) -> str:
    path = tmp_path / "transforms.py"
    path.write_text(TRANSFORMS)
    return str(path)


def pictures(height: int = 6, width: int = 9, last: bool = False) -> NDArray[np.float32]:
    """Draw pictures without a zero."""
    shape = (N, height, width, 3) if last else (N, 3, height, width)
    return np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)


def changed(
    augmentation: Augmentation,
    array: NDArray[Any],
    which: NDArray[np.int64] = WHICH,
    epoch: int = 1,
    seed: int = 0,
) -> NDArray[Any]:
    return augmentation.apply({"x": array}, which, epoch, seed)["x"]


def crops(picture: NDArray[Any], pad: int) -> dict[bytes, tuple[int, int]]:
    """Return every crop of a padded picture, channels first, by its bytes."""
    _, height, width = picture.shape
    padded = np.pad(picture, ((0, 0), (pad, pad), (pad, pad)))
    return {
        padded[:, top : top + height, left : left + width].tobytes(): (top, left)
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    }


def test_a_crop_is_one_of_the_picture_padded_with_zeros_and_each_one_is_drawn() -> None:
    array, seen = pictures(), set()
    for epoch in range(12):
        found = changed(Augmentation(crop=2), array, epoch=epoch)
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        seen |= {crops(a, 2)[b.tobytes()] for a, b in zip(array, found, strict=True)}
    assert len(seen) == 25


def test_about_half_of_the_pictures_are_mirrored_left_to_right() -> None:
    array, mirrored = pictures(), 0
    for epoch in range(12):
        for old, new in zip(
            array, changed(Augmentation(flip=True), array, epoch=epoch), strict=True
        ):
            assert new.tobytes() in {old.tobytes(), old[:, :, ::-1].tobytes()}
            mirrored += new.tobytes() != old.tobytes()
    assert abs(mirrored - 6 * N) < 4 * np.sqrt(3 * N)


def test_channels_last_are_changed_like_channels_first() -> None:
    first = pictures()
    both = Augmentation(crop=3, flip=True)
    last = changed(both, np.ascontiguousarray(first.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), changed(both, first))


def test_a_crop_comes_before_the_flip_and_the_function_sees_both(transforms: str) -> None:
    array = pictures()
    cropped = changed(Augmentation(crop=2), array)
    mirrored = changed(Augmentation(flip=True), cropped)
    np.testing.assert_array_equal(changed(Augmentation(crop=2, flip=True), array), mirrored)
    noisy = f"{transforms}:noisy"
    np.testing.assert_array_equal(
        changed(Augmentation(2, flip=True, transform=noisy), array),
        changed(Augmentation(transform=noisy), mirrored),
    )


@given(data=st.data())
def test_a_sample_is_changed_the_same_in_any_batch(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("code") / "transforms.py"
    path.write_text(TRANSFORMS)
    augmentation = Augmentation(2, flip=True, transform=f"{path}:noisy")
    array = pictures()
    whole = changed(augmentation, array, epoch=3, seed=9)
    places = np.array(data.draw(st.lists(st.integers(0, N - 1))), np.int64)
    some = changed(augmentation, array[places], WHICH[places], epoch=3, seed=9)
    np.testing.assert_array_equal(some, whole[places])


def test_seed_epoch_and_index_each_change_what_is_drawn(transforms: str) -> None:
    array = np.broadcast_to(pictures()[:1], (N, 3, 6, 9))
    for augmentation in (
        Augmentation(crop=2),
        Augmentation(flip=True),
        Augmentation(transform=f"{transforms}:noisy"),
    ):
        base = changed(augmentation, array)
        np.testing.assert_array_equal(base, changed(augmentation, array))
        assert (base != changed(augmentation, array, seed=1)).any()
        assert (base != changed(augmentation, array, seed=2**62)).any()
        assert (base != changed(augmentation, array, epoch=2)).any()
        assert (base != changed(augmentation, array, WHICH + 1000)).any()


def test_what_one_change_draws_does_not_depend_on_the_others(transforms: str) -> None:
    array = np.zeros((N, 3, 6, 9), np.float32)
    noisy = f"{transforms}:noisy"
    alone = changed(Augmentation(transform=noisy), array)
    np.testing.assert_array_equal(changed(Augmentation(2, True, noisy), array), alone)


def test_what_the_function_draws_says_nothing_of_the_flip(transforms: str) -> None:
    array = pictures()
    mirrored = (changed(Augmentation(flip=True), array) != array).any(axis=(1, 2, 3))
    drawn = changed(Augmentation(transform=f"{transforms}:drawn"), array)[:, 0, 0, 0]
    assert (mirrored != (drawn < 0.5)).any()


def test_all_inputs_of_a_sample_are_changed_alike(transforms: str) -> None:
    array = pictures()
    feed = {"x": array, "mask": array[:, :1], "length": np.arange(N), "row": array[:, :, 0]}
    found = Augmentation(2, flip=True).apply(feed, WHICH, 1, 0)
    assert list(found) == list(feed)
    np.testing.assert_array_equal(found["mask"], found["x"][:, :1])
    for name in ("length", "row"):
        np.testing.assert_array_equal(found[name], feed[name])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float64])
def test_the_type_of_pictures_is_kept(dtype: type[np.generic]) -> None:
    array = (pictures() * 50).astype(dtype)
    assert changed(Augmentation(2, flip=True), array).dtype == dtype


def test_what_was_given_is_left_as_it_is(transforms: str) -> None:
    array = pictures()
    found = changed(Augmentation(transform=f"{transforms}:in_place"), array)
    assert (found == 5).all()
    np.testing.assert_array_equal(array, pictures())


def test_no_samples_give_no_samples() -> None:
    found = changed(Augmentation(2, flip=True), pictures()[:0], WHICH[:0])
    assert found.shape == (0, 3, 6, 9)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("double", ("[3, 6, 9]", "float32", "type float64")),
        ("smaller", ("[3, 6, 9]", "float32", "[3, 5, 9]")),
        ("nothing", ("[3, 6, 9]", "a NoneType")),
    ],
)
def test_a_function_that_returns_something_else_is_named(
    name: str, parts: tuple[str, ...], transforms: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        changed(Augmentation(transform=f"{transforms}:{name}"), pictures())
    assert all(part in str(refusal.value) for part in (f"{transforms}:{name}", *parts))


PICTURES = (8, 3, 6, 9)


@pytest.mark.parametrize(
    ("augmentation", "shape", "parts"),
    [
        (Augmentation(crop=6), PICTURES, ("crop 6", "'x' of 6 x 9")),
        (Augmentation(crop=6), (8, 9, 6, 3), ("crop 6", "'x' of 9 x 6")),
        (Augmentation(flip=True), (8, 3, 6), ("no input", "4 axes")),
        (Augmentation(transform="none.py:f"), PICTURES, ("no Python file 'none.py'",)),
        (Augmentation(transform="none.py"), PICTURES, ("FILE.py:FUNCTION",)),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    augmentation: Augmentation, shape: tuple[int, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(RequestError) as refusal:
        augmentation.check({"length": (8,), "x": shape})
    assert all(part in str(refusal.value) for part in parts)


def test_what_can_work_is_not(transforms: str) -> None:
    augmentation = Augmentation(5, flip=True, transform=f"{transforms}:noisy")
    augmentation.check({"x": PICTURES, "y": (8, 2)})
    with pytest.raises(RequestError, match="no function 'number'"):
        Augmentation(transform=f"{transforms}:number").check({"x": PICTURES})
    with pytest.raises(RequestError, match=r"`Augmentation.crop` must be at least 0, found -1"):
        Augmentation(crop=-1)


def test_a_pickled_copy_does_the_same(transforms: str) -> None:
    augmentation = Augmentation(1, flip=True, transform=f"{transforms}:noisy")
    before = changed(augmentation, pictures())
    copy = pickle.loads(pickle.dumps(augmentation))
    assert copy == augmentation
    np.testing.assert_array_equal(changed(copy, pictures()), before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        (["--workers", "2"], None),
        (["--crop", "4"], Augmentation(crop=4)),
        (["--flip"], Augmentation(flip=True)),
        (["--transform", "t.py:f", "--crop", "1"], Augmentation(1, transform="t.py:f")),
    ],
)
def test_options_become_an_augmentation(given: list[str], expected: Augmentation | None) -> None:
    found = []

    @click.command
    @augment_options
    def command(workers: int, **options: Any) -> None:
        found.append((augmentation_of(options), workers))

    result = CliRunner().invoke(command, given, catch_exceptions=False)
    assert result.exit_code == 0
    assert found == [(expected, 2 if "--workers" in given else 0)]
    assert CliRunner().invoke(command, ["--crop", "-1"]).exit_code == 2
    assert CliRunner().invoke(command, ["--workers", "-1"]).exit_code == 2
