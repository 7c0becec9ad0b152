"""Samples: what fits a model, what does not and why, and how they are split."""

from __future__ import annotations

import itertools
import os
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import build
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import draw_samples
from small import (
    CHAIN,
    OLD,
    OPEN,
    STATIC,
    TWO_INPUTS,
    archive,
    assert_refused,
    chain,
    classes,
    images,
    invoke,
    saved,
    written_into,
)

from obc_onnx.errors import DataError
from obc_onnx.graph.model import Graph
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import check_samples, load_samples, open_samples
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GRAPH = Graph.from_model(chain())
N = 20
"""Samples of every archive here."""


def with_value(array: NDArray[Any], index: int, value: Any) -> NDArray[Any]:
    """Copy an array and change one element of sample `index`."""
    changed = array.copy()
    changed[index].reshape(-1)[0] = value
    return changed


def labelled(*extreme: int, dtype: type[np.integer[Any]] = np.int64) -> NDArray[Any]:
    """Return labels that are 0 but for the last ones."""
    return np.array([0] * (N - len(extreme)) + list(extreme), dtype)


LARGEST = 2**64 - 1
MISFITS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another name": ({"z": images()}, ("'z'", "'x'")),
    "a name too many": ({"x": images(), "z": images()}, ("'x', 'z'", "are 'x'")),
    "no input": ({"labels": classes()}, ("nothing", "'x'")),
    "float64": ({"x": images().astype(float)}, ("'x'", "float64", "float32")),
    "int64": ({"x": np.zeros((N, 3, 8, 8), np.int64)}, ("int64", "float32")),
    "strings": ({"x": np.full((N, 3, 8, 8), "a")}, ("<U1", "float32")),
    "another size": ({"x": images(size=9)}, ("'x'", "size 9 on axis 2", "takes 8")),
    "another rank": ({"x": images()[:, 0]}, ("'x'", "3 axes", "takes 4")),
    "no samples": ({"x": images(0)}, ("'x'", "no samples")),
    "a scalar": ({"x": np.float32(1)}, ("'x'", "no samples")),
    "NaN": ({"x": with_value(images(), 7, np.nan)}, ("'x'", "NaN", "1 samples, first 7")),
    "infinity": ({"x": with_value(images(), 3, np.inf)}, ("'x'", "1 samples, first 3")),
    "a label too many": ({"x": images(), "labels": classes(N + 1)}, ("21 labels", "20 samples")),
    "rows that are not one-hot": ({"x": images(), "labels": np.eye(N, 4)}, ("(20, 4)",)),
    "soft labels": ({"x": images(), "labels": np.full((N, 4), 0.25)}, ("(20, 4)", "one-hot")),
    "one-hot labels of more classes": (
        {"x": images(), "labels": np.eye(5)[classes()]},
        ("(20, 5)", "one-hot"),
    ),
    "float labels": ({"x": images(), "labels": np.zeros(N)}, ("(20,)", "float64")),
    "a large label": ({"x": images(), "labels": labelled(4)}, ("0 to 4", "'y'", "4 classes")),
    "a negative label": ({"x": images(), "labels": labelled(-1)}, ("-1 to 0", "4 classes")),
    "an overflowing label": (
        {"x": images(), "labels": labelled(LARGEST, dtype=np.uint64)},
        (f"0 to {LARGEST}", "4 classes"),
    ),
}


@pytest.mark.parametrize(("arrays", "parts"), MISFITS.values(), ids=MISFITS.keys())
def test_data_that_does_not_fit_is_refused_with_what_is_wrong(
    arrays: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "small.onnx").write_bytes(OLD)
    data = archive(tmp_path, **arrays)
    target = ("-o", folder / "small.onnx", "--force")
    result = invoke("compress", saved(tmp_path), *target, "--data", data)
    assert_refused(result, *parts)
    assert written_into(folder) == {"small.onnx": OLD}


@pytest.mark.parametrize(("arrays", "parts"), MISFITS.values(), ids=MISFITS.keys())
def test_samples_in_memory_are_checked_like_a_file(
    arrays: dict[str, Any], parts: tuple[str, ...]
) -> None:
    inputs = {name: np.asarray(array) for name, array in arrays.items() if name != "labels"}
    samples = Samples(inputs, arrays.get("labels"), {})
    with pytest.raises(DataError) as refusal:
        open_samples(DataOptions(samples), GRAPH)
    assert all(part in str(refusal.value) for part in parts)


def test_inputs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    data = archive(tmp_path, left=images(20), right=images(19)[:, :2])
    with pytest.raises(DataError, match=r"different lengths: \[19, 20\]"):
        load_samples(data, Graph.from_model(build(TWO_INPUTS)))


def test_files_that_are_no_archive_of_arrays_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", x=images())
    good = (tmp_path / "good.npz").read_bytes()
    damaged = good[:2000] + bytes(100) + good[2100:]
    for content in (b"", b"no archive", good[:-50], good[:500], damaged, b"PK\x03\x04"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz' is not an \.npz file"):
            load_samples(tmp_path / "bad.npz", GRAPH)


def test_one_array_is_the_input_of_a_model_with_one(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", images())
    np.savez(tmp_path / "unnamed.npz", images(), labels=classes())
    for name, labels in (("one.npy", None), ("unnamed.npz", classes())):
        samples = load_samples(tmp_path / name, GRAPH)
        np.testing.assert_array_equal(samples.feed(slice(None))["x"], images())
        np.testing.assert_array_equal(samples.labels, labels)


def test_one_array_is_not_enough_for_a_model_with_more_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", images())
    with pytest.raises(DataError, match="is one array, but the model's inputs are 'left', 'right'"):
        load_samples(tmp_path / "one.npy", Graph.from_model(build(TWO_INPUTS)))


def test_several_arrays_without_names_are_not_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "unnamed.npz", images(), classes())
    with pytest.raises(DataError, match="holds 'arr_0', 'arr_1', but the model's inputs are 'x'"):
        load_samples(tmp_path / "unnamed.npz", GRAPH)


@pytest.mark.parametrize(
    "labels",
    [np.eye(4)[classes()], np.eye(4, dtype=np.bool_)[classes()], classes()[:, None]],
    ids=["one-hot", "one-hot truths", "a column"],
)
@pytest.mark.parametrize("name", ["labels", "label"])
def test_labels_may_be_one_hot_and_have_another_name(
    labels: NDArray[Any], name: str, tmp_path: Path
) -> None:
    data = archive(tmp_path, x=images(), **{name: labels})
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", images())
    np.save(folder / f"{name}.npy", labels)
    for source in (data, folder):
        np.testing.assert_array_equal(load_samples(source, GRAPH).labels, classes())


def test_labels_of_both_names_are_refused(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images(), labels=classes(), label=classes())
    with pytest.raises(DataError, match="holds both 'labels' and 'label'"):
        load_samples(data, GRAPH)


def test_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("x", "some text")
    with pytest.raises(DataError, match="'x', which is not an array"):
        load_samples(tmp_path / "text.npz", GRAPH)
    data = archive(tmp_path, x=np.array([None, 1], object))
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load_samples(data, GRAPH)


def test_data_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz' does not exist"):
        load_samples(tmp_path / "none.npz", GRAPH)


def test_bytes_are_taken_where_the_model_takes_floats(tmp_path: Path) -> None:
    pixels = np.arange(N * 192, dtype=np.uint8).reshape(N, 3, 8, 8)
    samples = load_samples(archive(tmp_path, x=pixels), GRAPH)
    fed = samples.feed(slice(2, 5))["x"]
    assert fed.dtype == np.float32
    assert samples.inputs["x"].dtype == np.uint8, "kept small until it is fed"
    np.testing.assert_array_equal(fed, pixels[2:5])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint16, np.uint64])
def test_labels_of_any_integer_type_become_int64(
    dtype: type[np.integer[Any]], tmp_path: Path
) -> None:
    data = archive(tmp_path, x=images(), labels=classes().astype(dtype))
    samples = load_samples(data, GRAPH)
    assert samples.labels is not None
    assert samples.labels.dtype == np.int64
    np.testing.assert_array_equal(samples.labels, classes())


def test_inputs_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    graph = Graph.from_model(build(TWO_INPUTS))
    data = archive(tmp_path, right=images()[:, :2], left=images())
    assert list(load_samples(data, graph).feed(slice(0, 1))) == ["left", "right"]


def test_an_input_called_labels_is_an_input(tmp_path: Path) -> None:
    graph = Graph.from_model(build(CHAIN.replace("x)", "labels)").replace("(x,", "(labels,")))
    samples = load_samples(archive(tmp_path, labels=images()), graph)
    assert samples.labels is None
    assert len(samples) == N


def numbered(n_samples: int, labels: NDArray[np.int64] | None = None) -> Samples:
    """Make samples that are their own places."""
    return Samples({"x": np.arange(n_samples)}, labels, {"x": np.dtype(int)})


def places(samples: Samples | None) -> list[int]:
    """Return which of the numbered samples there are, in order."""
    assert samples is not None
    return [int(place) for place in samples.feed(slice(None))["x"]]


@given(n_samples=st.integers(1, 60), holdout=st.floats(0, 1) | st.just(float("nan")))
def test_a_split_takes_every_sample_once_with_its_label(n_samples: int, holdout: float) -> None:
    samples = numbered(n_samples, np.arange(n_samples))
    try:
        used, held = samples.split(holdout)
    except DataError as refusal:
        assert f"{n_samples} samples" in str(refusal)  # noqa: PT017 - the rest is the other case
        share = holdout if 0 < holdout < 1 else 0
        assert round(n_samples * share) in {0, n_samples}
        return
    assert abs(len(held) - n_samples * holdout) <= 0.5
    for part in (used, held):
        np.testing.assert_array_equal(places(part), part.labels)
    assert sorted(places(used) + places(held)) == list(range(n_samples))


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda s: sum(s) > 1),
    holdout=st.floats(0.02, 0.98),
    seed=st.integers(0, 99),
)
def test_each_class_gives_about_its_share_and_one_at_least(
    sizes: list[int], holdout: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n_held = round(len(labels) * holdout)
    assume(0 < n_held < len(labels))
    _, held = numbered(len(labels), labels).split(holdout)
    assert len(held) == n_held
    found = np.bincount(held.labels, minlength=len(sizes))
    several = [index for index, size in enumerate(sizes) if size > 1]
    n_alone = sum(size == 1 for size in sizes)
    assert found[np.array(sizes) == 1].sum() == max(n_held - (len(labels) - n_alone), 0)
    if n_held >= len(several):
        assert all(found[index] for index in several), "a class is missing that need not be"
    else:
        assert found.max() == 1
    for one, other in itertools.permutations(several, 2):
        if found[one] > 1 and found[other] < sizes[other]:  # no place of one is due to the other
            assert (found[one] - 0.5) / sizes[one] <= (found[other] + 0.5) / sizes[other]


@pytest.mark.parametrize("form", ["npz", "npy", "in memory"])
def test_samples_that_lie_class_by_class_are_held_out_from_every_class(
    form: str, tmp_path: Path
) -> None:
    labels = np.repeat(np.arange(4), 25)
    pixels = images(100)
    pixels[:, 0, 0, 0] = labels
    data: Any = Samples({"x": pixels}, labels, {})
    if form == "npz":
        data = archive(tmp_path, x=pixels, labels=labels)
    elif form == "npy":
        data = tmp_path / "folder"
        data.mkdir()
        np.save(data / "x.npy", pixels)
        np.save(data / "labels.npy", labels)
    used, held = open_samples(DataOptions(data), GRAPH)
    for part, count in ((used, 20), (held, 5)):
        assert part is not None
        assert np.bincount(part.labels).tolist() == [count] * 4
        np.testing.assert_array_equal(part.feed(slice(None))["x"][:, 0, 0, 0], part.labels)
        assert len(set(part.labels[:12])) == 4, "what looks at the first ones sees every class"


def test_samples_without_labels_are_held_out_from_everywhere() -> None:
    used, held = numbered(1000).split(0.2)
    by_tenth = np.bincount(np.array(places(held)) // 100, minlength=10)
    assert by_tenth.min() >= 8
    assert by_tenth.max() <= 35
    assert places(held) != sorted(places(held))
    assert places(used)[:200] != sorted(places(used)[:200])


def test_equal_sources_are_split_alike_whatever_else_is_asked_for(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images(), labels=classes())
    seen = [open_samples(DataOptions(source), GRAPH)[1] for source in (data, str(data), data)]
    fed = [part.feed(slice(None))["x"] for part in seen if part is not None]
    assert fed[0].tobytes() == fed[1].tobytes() == fed[2].tobytes()


def test_parts_of_arrays_in_memory_are_no_copies() -> None:
    pixels = images()
    used, held = Samples({"x": pixels}, None, {"x": pixels.dtype}).split(0.5)
    pixels[:] = 7
    for part in (used, held):
        assert (part.feed(slice(None))["x"] == 7).all()


def test_a_holdout_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images(2))
    options = ("-o", tmp_path / "small.onnx", "--data", data, "--holdout", "0.1")
    assert_refused(invoke("compress", saved(tmp_path), *options), "2 samples", "holdout 0.1")


def test_samples_to_measure_on_replace_the_held_out_share(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images())
    other = archive(tmp_path, "eval.npz", x=images(3, seed=9))
    used, held = open_samples(DataOptions(data, evaluation=other), GRAPH)
    assert used is not None
    assert held is not None
    assert (len(used), len(held)) == (N, 3)
    assert {x.tobytes() for x in held.inputs["x"]} == {x.tobytes() for x in images(3, seed=9)}


@pytest.mark.parametrize("most", [1, 4, N])
def test_no_more_samples_are_measured_on_than_are_asked_for(tmp_path: Path, most: int) -> None:
    other = archive(tmp_path, "eval.npz", x=images(7, seed=9))
    options = DataOptions(archive(tmp_path, x=images()), evaluation=other, eval_samples=most)
    used, held = open_samples(options, GRAPH)
    assert used is not None
    assert held is not None
    assert (len(used), len(held)) == (N, min(most, 7))
    everything = {x.tobytes() for x in images(7, seed=9)}
    assert {x.tobytes() for x in held.inputs["x"]} <= everything


@pytest.mark.parametrize(("most", "left"), [(1, 2), (2, 2), (5, 4), (9, 6)])
def test_whole_batches_are_measured_on(tmp_path: Path, most: int, left: int) -> None:
    graph = Graph.from_model(
        build("net (float[2,3] x) => (float[2,4] y) <float[3,4] w> { y = MatMul(x, w) }")
    )
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    data = archive(tmp_path, x=x)
    _, held = open_samples(DataOptions(data, evaluation=data, eval_samples=most), graph)
    assert held is not None
    assert len(held) == left


def test_a_report_says_that_fewer_samples_were_measured_on_than_there_are(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images())
    options = ("--data", data, "--eval-samples", "2", "--target-macs", "0.9")
    result = invoke("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", *options)
    assert result.exit_code == 0, result.output
    assert "no more than 2 samples are measured on: --eval-samples sets how many" in " ".join(
        result.output.split()
    )


def test_samples_to_measure_on_must_fit_the_model_too(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images())
    other = archive(tmp_path, "eval.npz", left=images())
    options = ("-o", tmp_path / "small.onnx", "--data", data, "--eval-data", other)
    assert_refused(invoke("compress", saved(tmp_path), *options), "eval.npz", "'left'", "'x'")


def test_a_static_batch_takes_whole_batches_only(tmp_path: Path) -> None:
    graph = Graph.from_model(build(STATIC))
    used, held = open_samples(DataOptions(archive(tmp_path, x=images(27))), graph)
    assert used is not None
    assert held is not None
    assert (len(used), len(held)) == (20, 4)
    with pytest.raises(DataError, match="batches of 4, but there are 2 samples to measure on"):
        open_samples(DataOptions(archive(tmp_path, x=images(10))), graph)


def test_a_dynamic_size_is_taken_from_the_samples(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images(size=6))
    result = invoke("compress", saved(tmp_path, OPEN), "-o", tmp_path / "s.onnx", "--data", data)
    assert result.exit_code == 0, result.output


def test_no_data_gives_no_samples() -> None:
    assert open_samples(DataOptions(), GRAPH) == (None, None)


def test_a_pipe_is_no_data(tmp_path: Path) -> None:
    for name in ("pipe", "pipe.tar"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="neither a file nor a folder"):
            load_samples(tmp_path / name, GRAPH)


def test_the_type_that_numpy_draws_comes_with_what_to_do() -> None:
    samples = draw_samples(GRAPH, 4)
    object.__setattr__(samples, "inputs", {"x": samples.inputs["x"].astype(np.float64)})
    with pytest.raises(DataError, match=r"\.astype\(np\.float32\)"):
        check_samples(samples, GRAPH)
