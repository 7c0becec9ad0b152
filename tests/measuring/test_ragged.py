"""Samples that come with lengths: masks that are made of them, and padding without any mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import build
from measuring.test_padding import coupling_of, encoder, padded
from sample_files import npy, tar

from obc_onnx.cli.main import cli
from obc_onnx.errors import DataError, ObcError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.run.api import score
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.read import load_samples
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

SOUND = (
    "net (float[N,T,3] x) => (float[N,T,4] y) <float[3,6] w, float[6] b, float[6,4] v>"
    "{ c = MatMul(x, w) d = Add(c, b) r = Relu(d) y = MatMul(r, v) }"
)


def groups(model: Any, source: Any, mask_input: str | None = None, **how: Any) -> dict[str, Any]:
    data = DataOptions(source, mask_input=mask_input)
    return score(model, data=data, criterion="activation", **how).groups


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() != set()
    for name, scores in expected.items():
        assert found[name] == pytest.approx(scores, rel=1e-5), name


def in_shards(folder: Path, arrays: dict[str, Any], axes: dict[str, int] | None = None) -> Path:
    """Write two `.tar` files; samples lie on axis 0 of arrays, or on that which is named."""
    by_sample = {
        name: np.moveaxis(array, (axes or {}).get(name, 0), 0) for name, array in arrays.items()
    }
    (n_samples,) = {len(array) for array in by_sample.values()}
    for file, numbers in (("a", range(n_samples // 3)), ("b", range(n_samples // 3, n_samples))):
        members = {
            f"{number:03}.{name}.npy": npy(array[number])
            for number in numbers
            for name, array in by_sample.items()
        }
        tar(folder / "shards" / f"{file}.tar", members)
    return folder / "shards"


@pytest.mark.parametrize("kind", ["npz", "folder", "shards"])
def test_a_mask_is_made_of_lengths(tmp_path: Path, kind: str) -> None:
    whole = padded(coupling_of(encoder()), 40)
    arrays = {name: np.asarray(array) for name, array in whole.inputs.items()}
    arrays["lengths"] = arrays.pop("mask").sum(1)
    if kind == "npz":
        source = tmp_path / "data.npz"
        np.savez(source, **arrays)
    elif kind == "folder":
        source = tmp_path
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    else:
        source = in_shards(tmp_path, arrays)
    assert_same(groups(encoder(), source), groups(encoder(), whole))


STATEFUL = (
    "net (float[T,N,3] x, float[N,T] mask, float[2,N,3] state) => (float[T,N,4] y)"
    "<float[3,6] w, float[6,4] v>"
    "{ p = Transpose<perm=[1,0]>(mask) q = Unsqueeze(p, two) m = Mul(x, q)"
    "  s = ReduceMean<axes=[0], keepdims=0>(state) c = Add(m, s)"
    "  h = MatMul(c, w) r = Relu(h) y = MatMul(r, v) }"
)


def test_a_mask_is_made_of_shards_wherever_inputs_have_the_samples(tmp_path: Path) -> None:
    """A sample of a `.tar` lies without the batch axis, which is no first one here."""
    model = build(STATEFUL, {"two": [2]})
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((9, 20, 3)), rng.standard_normal((2, 20, 3))
    inputs = {"x": x.astype(np.float32), "state": state.astype(np.float32)}
    lengths = rng.integers(2, 10, 20)
    mask = (np.arange(9) < lengths[:, None]).astype(np.float32)
    source = in_shards(tmp_path, {**inputs, "lengths": lengths}, {"x": 1, "state": 1})
    found = load_samples(source, Graph.from_model(model))
    np.testing.assert_array_equal(found.inputs["mask"], mask)
    np.testing.assert_array_equal(found.feed(slice(0, 20))["state"], inputs["state"])


def test_without_a_mask_what_is_beyond_lengths_counts_nowhere() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 10, 40)
    x = rng.standard_normal((40, 9, 3)).astype(np.float32)
    there = np.arange(9) < lengths[:, None]
    found = [
        groups(
            build(SOUND),
            Samples({"x": np.where(there[:, :, None], x, fill)}, None, {}, lengths=lengths),
        )
        for fill in (np.float32(0), np.float32(50))
    ]
    assert_same(*found)


@pytest.mark.parametrize("kind", ["memory", "shards"])
def test_lengths_that_are_an_input_are_that(tmp_path: Path, kind: str) -> None:
    text = SOUND.replace("[N,T,3] x)", "[N,T,3] x, int64[N] lengths)")
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((20, 9, 3)).astype(np.float32),
        "lengths": rng.integers(2, 10, 20),
    }
    model = build(text.replace("y = MatMul(r, v) }", "y = MatMul(r, v) u = Neg(lengths) }"))
    given = Samples(inputs, None, {}) if kind == "memory" else in_shards(tmp_path, inputs)
    assert_same(groups(model, given), groups(model, Samples(inputs, None, {})))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (np.full(40, 10), "'lengths' has 10 for a sample, but input 'mask'.* has 9 positions"),
        (np.full(40, 0), "at least one position"),
        (np.full(40, 2.0), "one integer per sample"),
        (np.full(39, 2), "39 lengths for 40 samples"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths: Any, message: str) -> None:
    inputs = dict(padded(coupling_of(encoder()), 40).inputs)
    del inputs["mask"]
    with pytest.raises(DataError, match=message):
        groups(encoder(), Samples(inputs, None, {}, lengths=lengths))


def test_a_mask_of_the_other_sign_is_not_made() -> None:
    inputs = dict(padded(coupling_of(encoder(0)), 40, real=0).inputs)
    lengths = (inputs.pop("mask") == 0).sum(1)
    with pytest.raises(DataError, match="takes 0 there"):
        groups(encoder(0), Samples(inputs, None, {}, lengths=lengths))


def test_lengths_along_several_open_axes_are_refused() -> None:
    model = build("net (float[N,T,U] x) => (float[N,T,U] y) { y = Relu(x) }")
    x = np.ones((20, 4, 5), np.float32)
    with pytest.raises(DataError, match="axis 1 of 'x', axis 2 of 'x'"):
        groups(model, Samples({"x": x}, None, {}, lengths=np.full(20, 3)))


BLIND = (
    "net (float[N,L,3] x, float[N,L] mask) => (float[N,L,4] y) <float[3,6] w, float[6,4] v>"
    "{ h = MatMul(x, w) r = Relu(h) o = MatMul(r, v) u = Unsqueeze(mask, two) z = Mul(u, zero)"
    "  s = MatMul(z, row) y = Add(o, s) }"
)


def blind_samples(fill: float) -> Samples:
    rng = np.random.default_rng(0)
    there = np.arange(5) < rng.integers(1, 6, 40)[:, None]
    x = np.where(there[:, :, None], rng.standard_normal((40, 5, 3)), fill).astype(np.float32)
    return Samples({"x": x, "mask": there.astype(np.float32)}, None, {})


def test_a_mask_that_nothing_shows_is_named() -> None:
    model = build(BLIND, {"two": [2], "zero": np.float32(0), "row": np.ones((1, 4), np.float32)})
    named = [groups(model, blind_samples(fill), "mask") for fill in (0.0, 30.0)]
    assert_same(*named)


@pytest.mark.parametrize(("name", "message"), [("no", "no input"), ("x", "has shape")])
def test_an_input_that_is_no_mask_is_refused(name: str, message: str) -> None:
    model = build(BLIND, {"two": [2], "zero": np.float32(0), "row": np.ones((1, 4), np.float32)})
    with pytest.raises(RequestError, match=message):
        groups(model, blind_samples(0.0), name)


def test_the_command_line_takes_the_name(tmp_path: Path) -> None:
    import onnx

    onnx.save(encoder(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **padded(coupling_of(encoder()), 20).inputs)
    usual = ["score", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "data.npz")]
    for name, code in (("mask", 0), ("ids", 1)):
        out = ["-o", str(tmp_path / f"{name}.npz"), "--mask-input", name]
        result = CliRunner().invoke(cli, [*usual, *out])
        assert result.exit_code == code, result.output
    assert isinstance(result.exception, (SystemExit, ObcError))
