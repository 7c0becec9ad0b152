"""Networks of a few hundred weights, samples for them, and the command line in one call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from click.testing import CliRunner, Result
from helpers import build

from obc_onnx.cli.main import cli
from obc_onnx.run.api import compress

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from obc_onnx.planning.plan import PruningPlan

N_CLASSES = 4
OLD = b"what was there before"
"""The bytes of a target file that a failing command must leave alone."""

_BODY = (
    "<float[12,3,3,3] a, float[12] a_bias, float[20,12,3,3] b, float[20] b_bias,"
    " float[4,20] fc, float[4] fc_bias>"
    "{ p = Conv<pads=[1,1,1,1]>(x, a, a_bias) q = Relu(p) r = Conv(q, b, b_bias) s = Relu(r)"
    "  t = GlobalAveragePool(s) u = Flatten(t) y = Gemm<transB=1>(u, fc, fc_bias) }"
)
CHAIN = f"net (float[N,3,8,8] x) => (float[N,4] y) {_BODY}"
"""Two convolutions and a classifier: groups `a:0` of 12 and `b:0` of 20 units."""
STATIC = f"net (float[4,3,8,8] x) => (float[4,4] y) {_BODY}"
OPEN = f"net (float[N,3,H,W] x) => (float[N,4] y) {_BODY}"
NORMED = (
    "net (float[N,3,8,8] x) => (float[N,4] y)"
    "<float[12,3,3,3] a, float[12] scale, float[12] shift, float[12] mean, float[12] var,"
    " float[8,12,3,3] b, float[4,8] fc, float[4] fc_bias>"
    "{ p = Conv(x, a) q = BatchNormalization(p, scale, shift, mean, var) r = Relu(q)"
    "  s = Conv(r, b) t = Relu(s) u = GlobalAveragePool(t) v = Flatten(u)"
    "  y = Gemm<transB=1>(v, fc, fc_bias) }"
)
TWO_INPUTS = (
    "net (float[N,3,8,8] left, float[N,2,8,8] right) => (float[N,4,8,8] y)"
    "<float[6,3,1,1] a, float[6,2,1,1] b, float[4,6,1,1] c>"
    "{ p = Conv(left, a) q = Conv(right, b) r = Add(p, q) s = Relu(r) y = Conv(s, c) }"
)
UNKNOWN = (
    "net (float[N,3,8,8] x) => (float[N,4,8,8] y)"
    "<float[6,3,1,1] a, float[8,6,1,1] b, float[10,8,1,1] c, float[4,10,1,1] d>"
    "{ p = Conv(x, a) q = com.microsoft.SampleOp(p) r = Conv(q, b) s = Relu(r) t = Conv(s, c)"
    "  u = Relu(t) y = Conv(u, d) }"
)
"""An operator without a rule stands between `a` and `b`; `b:0` and `c:0` are free."""
TWO_CONVS = (
    "net (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[5,3,1,1] a, float[4,5,1,1] b>"
    "{ p = Conv(x, a) y = Conv(p, b) }"
)
PRODUCT = (
    "net (float[N,3,8,1] x) => (float[N,8,8] y) <float[5,3,1,1] a, float[5,3,1,1] b>"
    "{ p = Conv(x, a) q = Reshape(p, to) t = Transpose<perm=[0,2,1]>(q)"
    "  r = Conv(x, b) s = Reshape(r, to) y = MatMul(t, s) }"
)
"""A product of two values that convolutions computed; `to` has to be `[-1, 5, 8]`."""


@cache
def chain() -> onnx.ModelProto:
    """Build the network that most tests use; nothing writes into a model."""
    return build(CHAIN)


@cache
def half_plan() -> PruningPlan:
    """Plan the removal of half of `chain`."""
    return compress(chain(), budget=0.5).plan


def saved(folder: Path, text: str = CHAIN, name: str = "model.onnx") -> Path:
    """Write a model that is given as ONNX text."""
    path = folder / name
    onnx.save(build(text), path)
    return path


def archive(folder: Path, name: str = "data.npz", **arrays: ArrayLike) -> Path:
    """Write an `.npz`."""
    path = folder / name
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
    return path


def images(n_samples: int = 20, size: int = 8, seed: int = 0) -> NDArray[np.float32]:
    """Draw what `chain` takes."""
    drawn = np.random.default_rng(seed).standard_normal((n_samples, 3, size, size))
    return drawn.astype(np.float32)


def classes(n_samples: int = 20, seed: int = 1) -> NDArray[np.int64]:
    """Draw labels for `chain`."""
    return np.random.default_rng(seed).integers(0, N_CLASSES, n_samples)


def invoke(*args: str | Path) -> Result:
    """Run the command line in this process; a bug of ours shows as its traceback."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def written_into(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder, temporary ones included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_done(result: Result) -> None:
    """Raise unless a command ended well, and said nothing on stderr but what it wrote."""
    assert result.exit_code == 0, result.output
    others = [line for line in result.stderr.splitlines() if not line.startswith("wrote ")]
    assert not others, result.stderr


def assert_refused(result: Result, *parts: Any, code: int = 1) -> None:
    """Raise unless a command stopped with one sentence that holds every one of `parts`."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr == f"{lines[0]}\n"
    for part in parts:
        assert str(part) in lines[0], f"'{part}' is not in: {lines[0]}"
